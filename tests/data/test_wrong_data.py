"""Files, rows and settings of data that are wrong: each is named in one line."""

from __future__ import annotations

import gzip
import json
import re
import warnings
from pathlib import Path

import pytest
from tiny_rows import (
    IDS,
    TOKENIZER,
    assistant,
    conversation,
    load,
    questions,
    user,
    write,
)
from tiny_tokenizers import byte_level, sentencepiece

from tddpo_jax.config.schema import DataConfig
from tddpo_jax.data import sources
from tddpo_jax.data.dataset import load_dataset
from tddpo_jax.data.dataset_folders import rows_of, splits_of
from tddpo_jax.data.examples import Vocabulary
from tddpo_jax.data.formats import ParsedRow
from tddpo_jax.data.sources import read_rows, read_source
from tddpo_jax.data.tokenizer import load_tokenizer
from tddpo_jax.errors import UserError


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.jsonl", "", "holds no rows"),
        ("data.json", " \n", "holds no rows"),
        ("data.json", "[]", "holds no rows"),
        ("data.jsonl", '{"a": 1}\n{"a": \n', "data.jsonl line 2: not JSON"),
        ("data.json", '[{"a": 1},\n{"a": ]', "data.json line 2: not JSON"),
        ("data.json", '{"a": 1}', "must be a list, or an object with one as `rows` or `data`"),
        ("data.json", '"text"', "must be a list"),
        ("data.jsonl", "[1]\n", "row 0: must be an object with columns"),
        ("data.csv", "a,b", "holds no rows"),
        ("data.csv", "a,b\n1,2,3\n", "data.csv line 2: has another number of cells than the first"),
        ("data.csv", "a,b\n1\n", "data.csv line 2: has another number of cells than the first"),
        ("data.csv", 'a,b\n1,"2\n', "data.csv line 2: not CSV: unexpected end of data"),
        ("data.txt", "a,b", "unknown suffix; known are .json, .jsonl, .csv, .parquet, and .gz beh"),
        ("data.jsonl.gz", "nothing", "data.jsonl.gz: Not a gzipped file"),
        (
            "data.jsonl.gz",
            gzip.compress(b'{"a": 1}', mtime=0)[:-9],
            "the compressed file is damaged",
        ),
        ("data.jsonl", "1\n" + "[" * 99999, "data.jsonl line 2: its lists or objects are nested t"),
        ("data.json", "[" * 99999, "data.json: its lists or objects are nested too deeply"),
        ("data.json", "9" * 9999, "data.json: not JSON: Exceeds the limit"),
        ("data.parquet", "nothing", "data.parquet: not Parquet"),
        ("data.jsonl", b"\xff\xfe", "is no UTF-8 text"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_rows(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "path", ["missing.jsonl", "no/such/folder", "/no/such/file", "missing.json"]
)
def test_missing_files(tmp_path, path):
    for call in (read_rows, sources.split_names):
        with pytest.raises(ValueError, match=f"data {path}: no such file"):
            call(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "a", "rejected": "b"}, "lacks the column 'prompt'"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "empty prompt"),
        ({"chosen": None, "rejected": None}, "empty response"),
        ({"prompt": "a", "chosen": "b"}, "lacks the column 'rejected'"),
        ({"prompt": "a", "chosen": None, "rejected": "b"}, "empty response"),
        ({"text": "a"}, "lacks the column 'chosen'"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "'prompt' must be a list of {role, cont"),
        (
            {"prompt": "p", "chosen": 3, "rejected": "b"},
            "'chosen' must be a list of {role, content",
        ),
        ({"prompt": "p", "chosen": [assistant("a")], "rejected": "b"}, "'rejected' must be a list"),
        (
            {**conversation(), "rejected": ["a", "b"]},
            "'rejected' must be a list of {role, content}",
        ),
        ({**conversation(), "chosen": [user(None)]}, "the last role of 'chosen' is 'user', not 'a"),
        ({**conversation(), "prompt": 3}, "'prompt' must be a list of {role, content}"),
        (
            {"chosen": [user("a"), user("b")], "rejected": [user("a"), assistant("b")]},
            "the last role of 'chosen' is 'user', not 'assistant'",
        ),
        ({"prompt_ids": [1]}, "lacks the column 'chosen_ids'"),
        ({**IDS, "chosen_ids": "1 2"}, "'chosen_ids' must be a list of integers"),
        ({**IDS, "chosen_ids": [1, 2.0]}, "'chosen_ids' must be a list of integers"),
        ({**IDS, "chosen_ids": [1, True]}, "'chosen_ids' must be a list of integers"),
        ({**IDS, "rejected_ids": [1, -1]}, "'rejected_ids' holds a number that is no token id"),
        ({**IDS, "prompt_ids": [2**31]}, "'prompt_ids' holds a number that is no token id"),
    ],
)
def test_rows_that_are_wrong(tmp_path, row, message):
    good, reason = read_source(write(tmp_path / "data.jsonl", [conversation(), row])).rows
    assert isinstance(good, ParsedRow)
    assert isinstance(reason, str)
    assert reason.startswith(message)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [user("a"), user("b")]}, "the last role of 'messages' is 'user', not 'assis"),
        ({"messages": "a text"}, "'messages' must be a list of {role, content}"),
        ({"completion": "b"}, "lacks the column 'prompt'"),
        ({"prompt": "a", "completion": 3}, "'completion' must be a list of {role, content}"),
        ({"response_ids": [1]}, "lacks the column 'prompt_ids'"),
        ({"prompt_ids": [1], "response_ids": [1.5]}, "'response_ids' must be a list of integers"),
    ],
)
def test_rows_of_one_response_that_are_wrong(tmp_path, row, message):
    file = write(tmp_path / "data.jsonl", [row])
    expected = re.escape(f"data {file}: none of its rows can be used: 1 x {message}")
    with pytest.raises(ValueError, match=expected + r".*\(row 0\); row 0 has \w+ \(") as caught:
        read_source(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "config", "message"),
    [
        (
            [conversation("a", "b", "b")] * 2,
            {},
            "none of its rows can be used: 2 x identical branch",
        ),
        (questions(3), {"template": "llama2"}, "template 'llama2': no such template"),
        (questions(3), {"template": "llama-3"}, "the tokenizer lacks <|start_header_id|>"),
        (questions(1), {"validation": 0.5}, "data.validation: leaves nothing to train on"),
        (
            [conversation(rejected="x"), conversation()],
            {"validation": 0.5},
            "data.validation: leav",
        ),
        (questions(3), {"validation": 1}, "data.validation: a fraction must be in [0, 1), got 1"),
        (
            questions(3),
            {"validation": "1"},
            "data.validation: a fraction must be in [0, 1), got 1.0",
        ),
        (questions(3), {"validation": -0.1}, "data.validation: a fraction must be in [0, 1)"),
        (questions(3), {"validation": "nan"}, "data.validation: a fraction must be in [0, 1)"),
        (
            questions(3),
            {"validation": "test"},
            "data.validation: 'test' is no file, no fraction, and",
        ),
        (questions(3), {"validation": "missing.jsonl"}, "data missing.jsonl: no such file"),
        (
            questions(3),
            {"max_length": 9, "max_prompt_length": 9},
            "data.max_prompt_length: must be l",
        ),
    ],
)
def test_settings_that_are_wrong(tmp_path, rows, config, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load(tmp_path, rows, **config)
    assert "\n" not in str(caught.value)


def test_a_validation_file_without_a_usable_row(tmp_path):
    other = write(tmp_path / "other.jsonl", [conversation("a", "b", "b")])
    with pytest.raises(
        ValueError, match=r"data\.validation .*none of its rows can be used: 1 x ide"
    ):
        load(tmp_path, questions(3), validation=other)


def test_texts_without_a_tokenizer(tmp_path):
    with pytest.raises(ValueError, match=r"data\.jsonl: holds texts, and there is no tokenizer"):
        load(tmp_path, questions(3), tokenizer=None)


def test_a_template_that_is_ignored(tmp_path):
    with pytest.warns(UserWarning, match=r"data\.template: ignored"):
        load(tmp_path, [IDS], template="plain")


@pytest.mark.parametrize("repeated", [False, True])
def test_ids_beyond_the_vocabulary(tmp_path, repeated):
    """Checked against the model, also where the pairs come from the cache."""
    config = DataConfig(path=write(tmp_path / "data.jsonl", [IDS]), validation=0)
    if repeated:
        load_dataset(config, None, context=64, cache=tmp_path, vocabulary=Vocabulary(33))
    with pytest.raises(ValueError, match=r"row 0: 'rejected' holds the id 32, but .* ends at 31"):
        load_dataset(config, None, context=64, cache=tmp_path, vocabulary=Vocabulary(32))


def test_load_tokenizer(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    ids = TOKENIZER("the  red ball")["input_ids"]
    assert load_tokenizer(tmp_path)("the  red ball")["input_ids"] == ids
    Path(tmp_path, "tokenizer.model").touch()
    assert load_tokenizer(str(tmp_path))("the  red ball")["input_ids"] == ids


CODE = "open({!r}, 'w')"
ASKED = (
    r"tokenizer .*model: auto_map asks to run code of its own \(own\.OwnTokenizer\), "
    r"which is never run"
)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ("PreTrainedTokenizerFast", pytest.warns(UserWarning, match=ASKED)),
        ("OwnTokenizer", pytest.raises(UserError, match=ASKED)),
    ],
    ids=["a known class is used", "an unknown class is refused"],
)
def test_a_tokenizers_own_code_is_never_run(known, expected, tmp_path, monkeypatch):
    """Nobody is asked, and the code would write a file."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    folder, ran = tmp_path / "model", tmp_path / "ran"
    byte_level().save_pretrained(folder)
    (folder / "own.py").write_text(CODE.format(str(ran)))
    (folder / "config.json").write_text(json.dumps({"model_type": "own"}))
    file = folder / "tokenizer_config.json"
    asked = {"auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}, "tokenizer_class": known}
    file.write_text(json.dumps({**json.loads(file.read_text()), **asked}))
    with expected:
        load_tokenizer(folder)
    assert not ran.exists()


def test_a_data_sets_own_code_is_never_run(tmp_path):
    folder, ran = tmp_path / "rows", tmp_path / "ran"
    folder.mkdir()
    (folder / "rows.py").write_text(CODE.format(str(ran)))
    with pytest.raises(UserError, match=r"data .*rows: is a script, rows\.py, which is never run"):
        splits_of(str(folder), None)
    with pytest.raises(UserError, match=r"data .*rows: is a script, rows\.py, which is never run"):
        rows_of(str(folder), None, None)
    assert not ran.exists()


def test_load_tokenizer_that_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="tokenizer /no/such/folder: "):
        load_tokenizer("/no/such/folder")
    Path(tmp_path, "tokenizer.model").touch()
    with pytest.raises(ValueError, match=r"has a tokenizer\.model but no tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_no_warning_about_long_texts(tmp_path, caplog):
    short = sentencepiece(model_max_length=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path, questions(2), tokenizer=short)
    assert not caplog.records
