"""Damaged files of a tokenizer: a tokenizer that works, or one line that says what is wrong."""

import itertools
import json

import pytest
from damage import odd_json, read_damaged, truncations
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tddpo_jax.data.templates import encode_prompt
from tddpo_jax.data.tokenizer import load_tokenizer

PIECES = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4, "<unk>": 5}


@pytest.fixture
def folder(tmp_path):
    backend = Tokenizer(models.BPE(PIECES, [("a", "b")], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **specials).save_pretrained(tmp_path)
    return tmp_path


def damaged(content, step):
    yield from truncations(content, 40)
    yield from itertools.islice(odd_json(content), 0, None, step)


@pytest.mark.parametrize(
    ("name", "content", "step"),
    [
        ("tokenizer.json", None, 9),
        ("tokenizer_config.json", None, 2),
        ("special_tokens_map.json", {"bos_token": "<s>"}, 2),
        ("added_tokens.json", {"<s>": 0}, 2),
    ],
)
def test_a_damaged_tokenizer_is_refused_or_works(folder, name, content, step):
    def read():
        encode_prompt(load_tokenizer(folder), [{"role": "user", "content": "ab a"}])

    file = folder / name
    if content is not None:
        file.write_text(json.dumps(content))
    read()
    usable, tried = read_damaged(file, damaged(file.read_bytes(), step), read)
    assert 0 < usable < tried


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", "{", r"tokenizer\.json: not JSON"),
        ("tokenizer.json", "{}", "damaged or incomplete .*added_tokens"),
        ("tokenizer_config.json", "[" * 9999, r"tokenizer_config\.json: .* nested too deeply"),
        ("tokenizer_config.json", '{"bos_token": true}', "damaged or incomplete .*bos_token"),
    ],
)
def test_what_is_damaged_is_named(folder, name, content, said):
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=said) as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "template",
    ["{{", "{{ 1 / 0 }}", "{{ messages.a.b }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"],
)
def test_a_template_that_fails_is_one_line(folder, template):
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match="template"):
        encode_prompt(load_tokenizer(folder), [{"role": "user", "content": "ab a"}])
