"""Several data sets in one run: their shares, their validation data, and their names."""

from __future__ import annotations

import collections
import re

import datasets
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

from tddpo_jax.config.reading import resolve
from tddpo_jax.config.schema import DataConfig
from tddpo_jax.data.dataset import load_dataset
from tddpo_jax.data.examples import Vocabulary
from tddpo_jax.data.remarks import description


@pytest.fixture
def pair(tmp_path):
    """Two files of 40 and 20 rows, without a prompt in common."""
    first = write(tmp_path / "first.jsonl", questions(40))
    second = write(tmp_path / "second.jsonl", [conversation(f"else {i}") for i in range(20)])
    return first, second


def sources(examples):
    return collections.Counter(example.source for example in examples)


def test_a_mixture_has_the_stated_shares(tmp_path, pair):
    first, second = pair
    sets = [{"path": first, "fraction": 0.25}, second]
    mixed = load(tmp_path, [], path=sets)
    assert sources(mixed.train) == {first: 10, second: 20}
    assert mixed.counts[first] == {"train_rows": 10, "validation_rows": 0}
    assert list(description("", mixed))[1] == f"{first}: 10 training, 0 validation"
    rows = [example.row for example in mixed.train if example.source == first]
    assert rows == sorted(rows)
    assert set(rows) <= set(range(40))
    assert rows != list(range(10))
    # The ids are those of the file's own rows.
    alone = {example.row: example for example in load(tmp_path, [], path=first).train}
    assert as_lists(mixed.train[:10]) == as_lists([alone[row] for row in rows])


def test_the_draw_goes_by_its_seed(tmp_path, pair):
    def rows(**config):
        return [each.row for each in load(tmp_path, [], path=pair[0], **config).train]

    half = rows(fraction=0.5)
    assert half == rows(fraction=0.5)
    assert len(half) == 20
    assert half != rows(fraction=0.5, split_seed=1)
    assert set(rows(fraction=0.1)) < set(half)
    assert len(rows(fraction=0.001)) == 1


def test_validation_by_a_fraction_is_a_share_of_each(tmp_path, pair):
    mixed = load(tmp_path, [], path=list(pair), validation=0.25)
    assert sources(mixed.train) == {pair[0]: 30, pair[1]: 15}
    assert sources(mixed.validation) == {pair[0]: 10, pair[1]: 5}
    # Each file is divided as if it were alone.
    alone = load(tmp_path, [], path=pair[1], validation=0.25)
    assert as_lists(mixed.validation[10:]) == as_lists(alone.validation)


def test_a_prompt_of_two_data_sets_is_on_one_side(tmp_path, pair):
    again = write(tmp_path / "again.jsonl", [*questions(40), *questions(40)])
    mixed = load(tmp_path, [], path=[pair[0], again], validation=0.2)
    train, held_out = (
        {each.prompt.tobytes() for each in side} for side in (mixed.train, mixed.validation)
    )
    assert held_out
    assert not train & held_out


def test_each_validates_by_its_own_split(tmp_path, pair, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.jsonl", questions(7))
    write(folder / "test.jsonl", [conversation(f"test {i}") for i in range(3)])
    mixed = load(tmp_path, [], path=[str(folder), pair[1]], validation=None, fraction=0.5)
    # The file has no split of its own, so a tenth of what is drawn of it is held out.
    assert sources(mixed.train) == {str(folder): 4, pair[1]: 9}
    assert sources(mixed.validation) == {f"{folder} (test)": 3, pair[1]: 1}
    file = load(tmp_path, [], path=[str(folder), pair[1]], validation=pair[0])
    assert sources(file.validation) == {pair[0]: 40}
    assert len(file.train) == 27
    with pytest.raises(ValueError, match=r"'test' is no file.*no split of \S+second\.jsonl"):
        load(tmp_path, [], path=[str(folder), pair[1]], validation="test")


def test_entries_take_what_they_leave_open_from_the_section(tmp_path, pair):
    theirs = [{"question": "a", "chosen": "b", "rejected": "c"}]
    other = write(tmp_path / "other.jsonl", theirs)
    columns = {"prompt": "question"}
    own = {"path": other, "columns": columns}
    assert len(load(tmp_path, [], path=[own, pair[0]]).train) == 41
    twin = write(tmp_path / "twin.jsonl", theirs)
    assert len(load(tmp_path, [], path=[other, twin], columns=columns).train) == 2


def test_the_cache_and_the_hash_know_every_data_set(tmp_path, pair):
    first, second = pair
    mixed = load(tmp_path, [], path=[first, second], validation=0.25)
    again = load(tmp_path, [], path=[first, second], validation=0.25)
    assert as_lists(again.train) == as_lists(mixed.train)
    assert [each.source for each in again.train] == [each.source for each in mixed.train]
    share = load(tmp_path, [], path=[{"path": first, "fraction": 0.5}, second], validation=0.25)
    other = load(tmp_path, [], path=[first, second], validation=0.25, split_seed=1)
    swapped = load(tmp_path, [], path=[second, first], validation=0.25)
    alone = load(tmp_path, [], path=first, validation=0.25)
    hashes = [each.content_hash for each in (mixed, share, other, swapped, alone)]
    assert len(set(hashes)) == 5
    assert again.content_hash == mixed.content_hash
    # The same rows under other names are the same data, and are called by these names.
    renamed = write(tmp_path / "renamed.jsonl", questions(40))
    moved = load(tmp_path, [], path=[renamed, second], validation=0.25)
    assert moved.content_hash == mixed.content_hash
    assert set(sources(moved.train)) == {renamed, second}


def test_rows_that_cannot_be_used_go_by_their_data_set(tmp_path, pair):
    bad = write(tmp_path / "bad.jsonl", [*questions(2), conversation("same", "a", "a")])
    mixed = load(tmp_path, [], path=[pair[0], bad])
    assert mixed.dropped == {f"{bad}: identical branches": [2]}
    ids = write(tmp_path / "ids.jsonl", [IDS, {**IDS, "chosen_ids": [9999, 2]}])
    config = DataConfig(path=[pair[0], ids], validation=0)
    config = DataConfig(path=[pair[0], ids], validation=0)
    with pytest.raises(ValueError, match=r"data \S+ids\.jsonl row 1: 'chosen' holds the id 9999"):
        load_dataset(config, TOKENIZER, context=64, cache=tmp_path, vocabulary=Vocabulary(448))


def test_data_sets_of_another_number_of_responses_do_not_mix(tmp_path, pair):
    single = write(tmp_path / "single.jsonl", [{"messages": [user("a"), assistant("b")]}])
    with pytest.raises(ValueError, match=r"data\.path: a row of \S+single\.jsonl has 1 response,"):
        load(tmp_path, [], path=[pair[0], single])


MISTAKES = {
    "fraction 0": ([{"path": "a", "fraction": 0}], r"data\.path\.0\.fraction: .*, got 0"),
    "fraction 2": (["a", {"path": "b", "fraction": 2}], r"data\.path\.1\.fraction: .*, got 2"),
    "unknown": (["a", {"path": "b", "weight": 2}], r"data\.path\.1\.weight: no such setting"),
    "no path": ([{"fraction": 1}], r"data\.path\.0\.path: Field required"),
    "nothing": ([], r"data\.path: must name a data set"),
    "twice": (["a", {"path": "a"}], r"data\.path: names a data set twice"),
    "a number": (3, r"data\.path: must be a text, got 3"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_is_no_mixture_is_refused(name):
    path, message = MISTAKES[name]
    with pytest.raises(ValueError, match=rf"\A{message}") as caught:
        resolve({"data": {"path": path}})
    assert not re.search(r";|several|one:", str(caught.value))


def test_a_mixture_comes_back_from_its_settings(pair):
    mixed = resolve({"data": {"path": [{"path": "a", "fraction": 0.5}, "b"]}})
    again = resolve(mixed.model_dump(mode="json"))
    assert again == mixed
    assert hash(again) == hash(mixed)
    assert resolve({"data": {"path": ["a"]}}) == resolve({"data": {"path": "a"}})
