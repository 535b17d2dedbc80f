"""The cache of encoded data sets, and the hash of their contents."""

from __future__ import annotations

import os

import numpy as np
import pytest
from tiny_rows import (
    TOKENIZER,
    as_lists,
    load,
    questions,
    write,
)
from tiny_tokenizers import byte_level, sentencepiece

from tddpo_jax.config.schema import DataConfig
from tddpo_jax.data.dataset import load_dataset


def test_the_cache_saves_the_encoding(tmp_path):
    config = DataConfig(path=write(tmp_path / "data.jsonl", questions(300)), validation=0.1)
    calls = []

    def loaded():
        return load_dataset(
            config,
            TOKENIZER,
            context=64,
            cache=tmp_path / "cache",
            progress=lambda done, total: calls.append((done, total)),
        )

    first = loaded()
    assert calls == [(256, 300), (300, 300)]
    second = loaded()
    assert len(calls) == 2
    assert as_lists(second.train + second.validation) == as_lists(first.train + first.validation)
    facts = [{**vars(each), "train": 0, "validation": 0} for each in (first, second)]
    assert facts[0] == facts[1]
    assert len(os.listdir(tmp_path / "cache")) == 1  # no unfinished file stays


@pytest.mark.parametrize("damage", ["cut", "emptied", "scratched", "another"])
def test_a_damaged_cache_is_made_anew(tmp_path, damage):
    first = load(tmp_path, questions(9))
    (file,) = (tmp_path / "cache").iterdir()
    content = bytearray(file.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "emptied":
        content = b""
    elif damage == "scratched":
        content[200] ^= 255
    else:
        np.savez(file, something=np.arange(3))
        content = file.read_bytes()
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=r"examples-.*npz is damaged"):
        second = load(tmp_path, questions(9))
    assert as_lists(second.train) == as_lists(first.train)
    assert as_lists(load(tmp_path, questions(9)).train) == as_lists(first.train)


def test_content_hash(tmp_path):
    """It moves with everything that determines the ids, and with nothing else."""
    base = load(tmp_path, questions(4)).content_hash
    renamed = write(tmp_path / "renamed.json", questions(4))
    TOKENIZER(["some", "thing longer"], padding=False, truncation=True, max_length=2)
    assert load(tmp_path, [], path=renamed).content_hash == base
    others = [
        load(tmp_path, questions(5)),
        load(tmp_path, questions(4), max_length=512),
        load(tmp_path, questions(4), max_prompt_length=512),
        load(tmp_path, questions(4), template="zephyr"),
        load(tmp_path, questions(4), validation=0.5),
        load(tmp_path, questions(4), validation=0.5, split_seed=1),
        load(tmp_path, questions(4), validation=renamed),
        load(tmp_path, questions(4), tokenizer=sentencepiece("first")),
        load(tmp_path, questions(4), tokenizer=byte_level()),
    ]
    assert len({base, *(dataset.content_hash for dataset in others)}) == len(others) + 1
