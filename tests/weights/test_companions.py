"""What stands beside a policy's weights: which template, which ends of answers, which settings."""

from __future__ import annotations

import json

import pytest
from tiny_tokenizers import byte_level, sentencepiece
from transformers import AutoTokenizer, GenerationConfig

from tddpo_jax.data.chat_format import chat_format
from tddpo_jax.weights.companions import Companions, write_companions


@pytest.fixture
def folders(tmp_path):
    """A base with a tokenizer that has another template, and a policy's folder."""
    base, policy = tmp_path / "base", tmp_path / "policy"
    base.mkdir()
    policy.mkdir()
    byte_level(chat_template="{{ 'another' }}").save_pretrained(base)
    return base, policy


def stops(policy):
    return GenerationConfig.from_pretrained(policy).eos_token_id


def test_the_template_of_the_training_replaces_the_bases(folders):
    base, policy = folders
    chat = chat_format(AutoTokenizer.from_pretrained(base), "chatml")
    (base / "config.json").write_text('{"bos_token_id": 0, "eos_token_id": 1, "vocab_size": 400}')
    write_companions(Companions(base, base, chat), policy)
    assert AutoTokenizer.from_pretrained(policy).chat_template == chat.jinja
    config = json.loads((policy / "tokenizer_config.json").read_text())
    assert config["chat_template"] == chat.jinja
    assert not (policy / "README.md").exists()


@pytest.mark.parametrize("configured", [1, [1], [1, 3]])
def test_answers_end_where_the_template_ends_them(folders, configured):
    """The base's own ends stay, and so do its other settings."""
    base, policy = folders
    settings = {"eos_token_id": configured, "temperature": 0.7, "do_sample": True}
    (base / "generation_config.json").write_text(json.dumps(settings))
    tokenizer = AutoTokenizer.from_pretrained(base)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    write_companions(Companions(base, base, chat_format(tokenizer, "chatml")), policy)
    assert stops(policy) == [1, *([3] if configured == [1, 3] else []), end]
    assert GenerationConfig.from_pretrained(policy).temperature == 0.7


def test_without_settings_of_generation_the_models_config_counts(folders):
    base, policy = folders
    (base / "config.json").write_text('{"bos_token_id": 0, "eos_token_id": 1, "vocab_size": 400}')
    chat = chat_format(AutoTokenizer.from_pretrained(base), "llama-3")
    write_companions(Companions(base, base, chat), policy)
    assert stops(policy) == [1, 4]
    assert GenerationConfig.from_pretrained(policy).bos_token_id == 0


def test_without_conversations_the_tokenizer_stays_as_it_is(folders):
    base, policy = folders
    write_companions(Companions(base, base, card="text"), policy)
    written = {file.name: file.read_bytes() for file in policy.iterdir()}
    assert written.pop("README.md") == b"text"
    assert written == {file.name: file.read_bytes() for file in base.iterdir()}


def test_settings_without_a_new_end_are_not_written_anew(folders):
    base, policy = folders
    sentencepiece().save_pretrained(base)
    (base / "generation_config.json").write_text('{"eos_token_id": 2}')
    chat = chat_format(AutoTokenizer.from_pretrained(base), "zephyr")
    write_companions(Companions(base, base, chat), policy)
    assert (policy / "generation_config.json").read_text() == '{"eos_token_id": 2}'
