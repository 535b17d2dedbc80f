"""Data sets: what is read from rows."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from tiny_rows import (
    IDS,
    TOKENIZER,
    as_lists,
    assistant,
    conversation,
    load,
    questions,
    user,
    write,
)

from tddpo_jax.config.schema import DataSource
from tddpo_jax.data.dataset import load_uncut_examples
from tddpo_jax.data.examples import Unusable
from tddpo_jax.data.sources import read_rows
from tddpo_jax.data.templates import encode_prompt

# Of `IDS` alone, read for a context of 64.
HASH_OF_IDS = "2910b624197299b58975dfc93d8b003fae054825d27474f458948c4927e37d1e"


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_files_of_every_kind_hold_the_same_rows(tmp_path, suffix):
    rows = [IDS, {**IDS, "prompt_ids": [7]}]
    assert read_rows(write(tmp_path / f"data{suffix}", rows)) == rows


def test_json_objects_and_json_lines_under_the_name_json(tmp_path):
    file = tmp_path / "data.json"
    write(file, {"model": "some", "rows": [IDS]})
    assert read_rows(file) == [IDS]
    file.write_text(f"{json.dumps(IDS)}\n\n{json.dumps(IDS)}\n")
    assert read_rows(file) == [IDS, IDS]


def test_line_separators_inside_a_text_do_not_end_a_line(tmp_path):
    file = tmp_path / "data.jsonl"
    rows = [conversation("one\u2028two\x85three"), conversation()]
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert read_rows(file) == rows


SAME_CHAT = {
    "whole conversations": conversation(),
    "whole conversations beside a redundant prompt": {**conversation(), "prompt": "what is red?"},
    "an explicit conversation": {
        "prompt": [user("what is red?")],
        "chosen": [assistant("the ball")],
        "rejected": [assistant("the river")],
    },
    "an explicit conversation that is repeated": {
        **conversation(),
        "prompt": [user("what is red?")],
    },
    "a conversation and texts": {
        "prompt": [user("what is red?")],
        "chosen": "the ball",
        "rejected": "the river",
    },
    "a text and answers": {
        "prompt": "what is red?",
        "chosen": [assistant("the ball")],
        "rejected": [assistant("the river")],
    },
    "with columns that do not matter": {
        "chosen": [{**user("what is red?"), "id": 3}, assistant("the ball")],
        "rejected": conversation()["rejected"],
        "chosen_rating": 4.0,
        "rejected_rating": 4.0,
        "prompt_ids": None,
    },
}


@pytest.mark.parametrize("shape", SAME_CHAT)
def test_shapes_of_one_conversation(tmp_path, shape):
    (pair,) = load(tmp_path, [SAME_CHAT[shape]], template="llama-2").train
    ids = TOKENIZER(
        ["<s>[INST] what is red? [/INST] the ball </s>", "<s>[INST] what is red? [/INST]"],
        add_special_tokens=False,
    )["input_ids"]
    assert pair.prompt.tolist() == ids[1]
    assert pair.prompt.tolist() + pair.responses[0].tolist() == ids[0]
    assert TOKENIZER.decode(pair.responses[1]).strip() == "the river </s>"
    assert all(part.dtype == np.int32 for part in (pair.prompt, *pair.responses))


SAME_RESPONSE = {
    "messages": {"messages": [user("what is red?"), assistant("the ball")]},
    "messages beside a redundant prompt": {
        "messages": [user("what is red?"), assistant("the ball")],
        "prompt": "what is red?",
        "completion": "ignored",
    },
    "a conversation and its continuation": {
        "prompt": [user("what is red?")],
        "completion": [assistant("the ball")],
    },
    "a conversation and a text": {"prompt": [user("what is red?")], "completion": "the ball"},
    "a text and an answer": {"prompt": "what is red?", "completion": [assistant("the ball")]},
}


@pytest.mark.parametrize("shape", SAME_RESPONSE)
def test_shapes_of_one_response(tmp_path, shape):
    """The example is the pair's without its rejected response."""
    (single,) = load(tmp_path, [SAME_RESPONSE[shape]], template="llama-2").train
    (pair,) = load(tmp_path, [conversation()], template="llama-2").train
    assert as_lists([single]) == [as_lists([pair])[0][:-1]]


def test_texts_and_ids_of_one_response_are_verbatim(tmp_path):
    texts = load(tmp_path, [{"prompt": "what is red?", "completion": " the ball"}])
    (single,) = texts.train
    assert (texts.template, texts.responses) == ("verbatim", 1)
    whole = TOKENIZER("what is red? the ball")["input_ids"]
    assert [*single.prompt, *single.responses[0]] == [*whole, 2]
    ids = load(tmp_path, [{"prompt_ids": [1, 20], "response_ids": [30, 2]}], tokenizer=None)
    assert as_lists(ids.train) == [(0, [1, 20], [30, 2])]


def test_columns_of_a_pair_make_a_pair_whatever_else_is_there(tmp_path):
    """UltraFeedback's rows have `messages` too, and sampled pairs may keep their `response_ids`."""
    row = {**conversation(), "prompt": "what is red?", "messages": [user("a"), assistant("b")]}
    assert load(tmp_path, [row]).responses == 2
    assert as_lists(load(tmp_path, [{**IDS, "response_ids": [9]}]).train) == [(0, *IDS.values())]


def test_rows_of_one_response_that_cannot_be_used(tmp_path):
    rows = [
        {"messages": []},
        {"messages": [assistant("a")]},
        {"messages": [user("a"), assistant(" ")]},
        {"prompt": " ", "completion": "a"},
        {"prompt_ids": [1], "response_ids": []},
        {"messages": [user("the"), assistant("ball")]},
        {"messages": [user("the"), assistant("ball")]},
    ]
    dataset = load(tmp_path, rows)
    assert dataset.dropped == {"empty response": [0, 2, 4], "empty prompt": [1, 3]}
    assert [example.row for example in dataset.train] == [5, 6]


def test_rows_of_one_response_come_back_from_the_cache_and_are_cut(tmp_path):
    rows = [{"prompt_ids": [1, *range(20, 29)], "response_ids": [30, 31, 32, 2]}] * 2
    first, second = (load(tmp_path, rows, max_length=6, max_prompt_length=4) for _ in range(2))
    assert as_lists(first.train) == as_lists(second.train)
    assert as_lists(first.train)[1] == (1, [1, 26, 27, 28], [30, 31])
    assert (second.cut_prompts, second.cut_responses) == (2, 2)


def test_all_rows_have_the_same_number_of_responses(tmp_path):
    single = {"messages": [user("the"), assistant("ball")]}
    for rows, left in (([*questions(2), single], [0, 1]), ([IDS, single, single], [1, 2])):
        dataset = load(tmp_path, rows)
        (reason,) = dataset.dropped
        assert re.match(r"[12] responses?, where most rows have [21]", reason)
        assert [example.row for example in dataset.train] == left
    other = write(tmp_path / "other.jsonl", [single])
    with pytest.raises(ValueError, match=r"data\.validation: a row of \S+other\.jsonl has 1 respo"):
        load(tmp_path, questions(2), validation=other)


def test_the_content_hash_of_pairs_has_not_moved(tmp_path):
    """Runs and references that were made from these rows go by this hash."""
    dataset = load(tmp_path, [IDS], tokenizer=None, context=64)
    assert dataset.content_hash == HASH_OF_IDS


def test_texts_are_verbatim(tmp_path):
    row = {"prompt": "what is red?", "chosen": " the ball", "rejected": " the river"}
    dataset = load(tmp_path, [row])
    (pair,) = dataset.train
    assert dataset.template == "verbatim"
    assert pair.prompt.tolist() == encode_prompt(TOKENIZER, "what is red?").tolist()
    whole = TOKENIZER("what is red? the ball")["input_ids"]
    assert pair.prompt.tolist() + pair.responses[0].tolist() == [*whole, 2]


def test_ids_are_verbatim_and_need_no_tokenizer(tmp_path):
    dataset = load(tmp_path, [IDS], tokenizer=None)
    assert as_lists(dataset.train) == [(0, *IDS.values())]
    assert dataset.template == "verbatim"


REASONS = {
    "differing histories": {
        "chosen": [user("a"), assistant("x")],
        "rejected": [user("b"), assistant("y")],
    },
    "empty prompt": {"prompt": " ", "chosen": "a", "rejected": "b"},
    "empty response": conversation(rejected=" \n"),
    "identical branches": conversation("same", "a ", " a"),
    "half a surrogate pair": conversation("\ud83d"),
    "template: llama-2 wants user and assistant in turn, after at most one system message": {
        "chosen": [user("a"), user("b"), assistant("x")],
        "rejected": [user("a"), user("b"), assistant("y")],
    },
}


def test_rows_that_cannot_be_used_are_listed(tmp_path):
    more = [
        conversation(question=""),
        {"chosen": [assistant("a")], "rejected": [assistant("b")]},
        {"chosen": [], "rejected": []},
        {**IDS, "prompt_ids": []},
        {**IDS, "rejected_ids": []},
        {**IDS, "rejected_ids": IDS["chosen_ids"]},
    ]
    dataset = load(tmp_path, [*REASONS.values(), *more, conversation()], template="llama-2")
    expected = {reason: [number] for number, reason in enumerate(REASONS)}
    expected["empty prompt"] += [6, 7, 9]
    expected["empty response"] += [8, 10]
    expected["identical branches"] += [11]
    assert dataset.dropped == expected
    assert [pair.row for pair in dataset.train] == [12]


def test_uncut_pairs_are_every_row_in_order(tmp_path):
    long = conversation("what " * 3000)
    file = write(tmp_path / "data.jsonl", [long, *REASONS.values(), IDS])
    pairs = load_uncut_examples(DataSource(path=file), TOKENIZER, "llama-2")
    assert len(pairs) == len(REASONS) + 2
    assert len(pairs[0].prompt) > 3000
    unusable = [pair for pair in pairs if isinstance(pair, Unusable)]
    assert unusable == [
        (number, reason)
        for number, reason in enumerate(REASONS, 1)
        if reason != "identical branches"  # their log-probabilities exist
    ]
    assert as_lists(pairs[-1:]) == [(len(pairs) - 1, *IDS.values())]
