"""Pairs cut to length, and divided into training and validation by their prompts."""

from __future__ import annotations

import re

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_rows import (
    IDS,
    as_lists,
    conversation,
    load,
    questions,
    write,
)

from tddpo_jax.batches.layout import Example
from tddpo_jax.config.schema import DataConfig
from tddpo_jax.data import sources
from tddpo_jax.data.dataset import branch_limits
from tddpo_jax.data.examples import Limits, Split, cut, validation_prompts
from tddpo_jax.data.sources import read_rows

# ---- truncation ----------------------------------------------------------------------------------


def example_of(prompt, *responses):
    return Example(
        0,
        np.arange(prompt, dtype=np.int32),
        tuple(
            np.arange(100 * n, 100 * n + length, dtype=np.int32)
            for n, length in enumerate(responses, 1)
        ),
    )


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((6, 4, 4), (6, 4, 4)),  # fits exactly
        ((7, 4, 2), (4, 4, 2)),  # the prompt goes down to its limit for the longer branch
        ((3, 9, 2), (3, 7, 2)),  # a short prompt stays
        ((9, 8, 3), (4, 6, 3)),
        ((9, 8, 9), (4, 6, 6)),
    ],
)
def test_cut(lengths, expected):
    pair = example_of(*lengths)
    short = cut(pair, Limits(10, 4), bos=0)
    assert (len(short.prompt), *map(len, short.responses)) == expected
    if len(short.prompt) < len(pair.prompt):
        assert short.prompt.tolist() == [0, *pair.prompt[-3:]]
        assert cut(pair, Limits(10, 4), bos=None).prompt.tolist() == pair.prompt[-4:].tolist()


@given(
    lengths=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    max_length=st.integers(2, 50),
    share=st.floats(0, 1, exclude_max=True),
    bos=st.sampled_from([None, 0, 5]),
)
@settings(deadline=None)
def test_cut_pairs_fit_and_keep_something(lengths, max_length, share, bos):
    limits = Limits(max_length, max(1, int(share * max_length)))
    whole = example_of(*lengths)
    short = cut(whole, limits, bos)
    longest = max(map(len, whole.responses))
    assert len(short.prompt) + max(map(len, short.responses)) <= max_length
    assert min(map(len, (short.prompt, *short.responses))) >= 1
    for ids, of_whole in zip(short.responses, whole.responses, strict=True):
        assert ids.tolist() == of_whole[: len(ids)].tolist()
    if len(whole.prompt) + longest <= max_length:
        assert short is whole


def test_cuts_are_counted(tmp_path):
    ids = {"prompt_ids": [1, 20, 21, 22, 23, 24], "chosen_ids": [30, 31], "rejected_ids": [31, 30]}
    long = {**ids, "chosen_ids": [30, 31, 32, 33, 2], "rejected_ids": [30, 31, 32, 34, 2]}
    dataset = load(tmp_path, [ids, long, IDS], max_length=6, max_prompt_length=3)
    assert as_lists(dataset.train) == [(0, [1, 23, 24], [30, 31], [31, 30]), (2, *IDS.values())]
    assert dataset.dropped == {"identical after truncation": [1]}
    assert (dataset.cut_prompts, dataset.cut_responses) == (1, 0)
    dataset = load(tmp_path, [ids, long, IDS], max_length=7, max_prompt_length=3)
    assert as_lists(dataset.train)[1] == (1, [1, 23, 24], [30, 31, 32, 33], [30, 31, 32, 34])
    assert (dataset.cut_prompts, dataset.cut_responses) == (2, 2)


def test_default_lengths():
    assert branch_limits(DataConfig(), 4096) == (2048, 1024)
    assert branch_limits(DataConfig(), 512) == (512, 256)
    assert branch_limits(DataConfig(max_length=100, max_prompt_length=90), 512) == (100, 90)
    with pytest.warns(UserWarning, match=r"data\.max_length: 513 is beyond"):
        branch_limits(DataConfig(max_length=513), 512)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ({"max_length": 1}, "data.max_length: must be at least 2"),
        ({"max_length": 8, "max_prompt_length": 8}, "data.max_prompt_length: must be less"),
        (
            {"max_prompt_length": 64},
            "data.max_prompt_length: must be less than data.max_length, 64",
        ),
    ],
)
def test_lengths_that_leave_no_room(lengths, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        branch_limits(DataConfig(**lengths), 64)


# ---- splits --------------------------------------------------------------------------------------


@given(
    prompts=st.lists(st.integers(0, 30), min_size=2, max_size=60).filter(lambda p: len(set(p)) > 1),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
    random=st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_split_by_prompt(prompts, fraction, seed, random):
    """Neither side is empty, the share is not exceeded while it can be helped, order is nothing."""
    ids = [np.array([1, prompt], np.int32) for prompt in prompts]
    taken = validation_prompts(ids, Split(fraction, seed))
    held_out = sum(prompt.tobytes() in taken for prompt in ids)
    fewest = min(prompts.count(prompt) for prompt in prompts)
    assert 0 < held_out < len(prompts)
    assert held_out <= max(fewest, round(fraction * len(prompts)))
    random.shuffle(ids)
    assert validation_prompts(ids, Split(fraction, seed)) == taken


def test_split_by_default_and_by_fraction(tmp_path):
    rows = [*questions(50), *questions(50)]  # every prompt twice
    dataset = load(tmp_path, rows, validation=None)
    assert (len(dataset.train), len(dataset.validation)) == (90, 10)
    sides = [
        {pair.prompt.tobytes() for pair in side} for side in (dataset.train, dataset.validation)
    ]
    assert sides[0].isdisjoint(sides[1])
    assert [pair.row for pair in dataset.train] == sorted(pair.row for pair in dataset.train)
    again = load(tmp_path, rows, validation="0.1")
    assert as_lists(again.validation) == as_lists(dataset.validation)
    other = load(tmp_path, rows, validation=0.1, split_seed=1)
    assert as_lists(other.validation) != as_lists(dataset.validation)
    assert other.content_hash != dataset.content_hash
    assert len(load(tmp_path, rows, validation=0.5).validation) == 50


@pytest.mark.parametrize("none", [0, 0.0, "0", "0.0"])
def test_no_validation(tmp_path, none):
    dataset = load(tmp_path, questions(3), validation=none)
    assert (len(dataset.train), dataset.validation) == (3, [])


def test_the_split_does_not_depend_on_the_lengths(tmp_path):
    whole = load(tmp_path, questions(20), validation=0.25)
    short = load(tmp_path, questions(20), validation=0.25, max_length=12)
    assert short.cut_prompts == 20
    assert [p.row for p in short.validation] == [p.row for p in whole.validation]


def test_validation_from_a_file(tmp_path):
    other = write(tmp_path / "other.json", [conversation("a", "b", "b"), conversation("else")])
    dataset = load(tmp_path, [conversation("x", "y", "y"), *questions(3)], validation=other)
    assert (len(dataset.train), len(dataset.validation)) == (3, 1)
    assert [pair.row for pair in dataset.validation] == [1]
    assert dataset.dropped == {"identical branches": [0], "validation: identical branches": [0]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What a data set of the hub looks like to `datasets`, which caches it as Arrow files."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub"))
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.jsonl", questions(7))
    write(tmp_path / "set" / "test.jsonl", questions(2))
    return str(tmp_path / "set")


def test_splits_of_a_folder(tmp_path, folder):
    assert sources.split_names(folder) == ["train", "test"]
    assert read_rows(folder, "test") == questions(2)
    own = load(tmp_path, [], path=folder, validation=None)
    assert (len(own.train), len(own.validation)) == (7, 2)
    named = load(tmp_path, [], path=folder, validation="test")
    assert as_lists(named.validation) == as_lists(own.validation)
    share = load(tmp_path, [], path=folder, validation=0.3)
    assert (len(share.train), len(share.validation)) == (5, 2)
    assert {pair.row for pair in share.train + share.validation} == set(range(7))
    with pytest.raises(ValueError, match=r"data\.validation: 'dev' is no file.*has train, test"):
        load(tmp_path, [], path=folder, validation="dev")


def test_embedded(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "EMBEDDED", tmp_path)
    write(tmp_path / "train.jsonl", questions(5))
    write(tmp_path / "validation.jsonl", questions(2))
    dataset = load(tmp_path, [], path="embedded", validation=None)
    assert (len(dataset.train), len(dataset.validation)) == (5, 2)
