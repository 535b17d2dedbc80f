"""Damaged files of rows: each gives rows, or one line that says what is wrong. Nothing else."""

import gzip
import itertools
import json

import pyarrow
import pyarrow.parquet
import pytest
from damage import flips, odd_json, read_damaged, truncations
from tiny_rows import TOKENIZER

from tddpo_jax.config.schema import DataConfig
from tddpo_jax.data.dataset import load_dataset
from tddpo_jax.data.sources import read_source

ASKED = {"role": "user", "content": "what is red"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("the ball", "a river"))
ROWS = {
    "messages": {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD], "system": "you"},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "what is red"}],
        "chosen": {"from": "gpt", "value": "the ball"},
        "rejected": {"from": "gpt", "value": "a river"},
    },
    "ids": {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4]},
    "hh": {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    "parts": {"messages": [ASKED, {**GOOD, "content": [{"type": "text", "text": "the ball"}]}]},
}
TEXTS = {"prompt": 'a, "x"', "chosen": "b", "rejected": "c"}


def as_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv():
    return b'prompt,chosen,rejected\n"a, ""x""",b,c\nd,"[{""role"": ""user""}]",e\n'


def as_parquet():
    out = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([TEXTS]), out, compression="NONE")
    return out.getvalue().to_pybytes()


FILES = {
    "rows.json": (json.dumps([TEXTS, TEXTS]).encode(), 1),
    "rows.jsonl": (as_lines([ROWS["messages"], ROWS["messages"]]), 1),
    "rows.jsonl.gz": (gzip.compress(as_lines([TEXTS])), 1),
    "rows.csv": (as_csv(), 1),
    "rows.parquet": (as_parquet(), 5),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_cut_short_or_hold_other_bytes(tmp_path, name):
    content, step = FILES[name]
    file = tmp_path / name
    file.write_bytes(content)
    read_source(file)
    damaged = itertools.chain(truncations(content, step), flips(content, 11 * step))
    usable, tried = read_damaged(file, damaged, lambda: read_source(file))
    assert 0 < usable < tried


@pytest.mark.parametrize("name", ROWS)
def test_rows_with_odd_values_become_examples_or_are_dropped_by_name(tmp_path, name):
    """A whole row stands before the odd one."""
    file = tmp_path / "rows.jsonl"
    whole = json.dumps(ROWS[name]).encode()
    file.write_bytes(whole)
    config = DataConfig(path=str(file), validation=0.0)

    def read():
        return load_dataset(config, TOKENIZER, context=64, cache=tmp_path / "cache")

    contents = (
        whole + b"\n" + odd + b"\n" for odd in itertools.islice(odd_json(whole), 0, None, 3)
    )
    usable, tried = read_damaged(file, contents, read)
    assert 0 < usable < tried
