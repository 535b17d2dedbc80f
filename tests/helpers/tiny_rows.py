"""Preference rows of a few words, and functions that write and load them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from tiny_tokenizers import sentencepiece

from tddpo_jax.batches.layout import Example
from tddpo_jax.config.schema import DataConfig
from tddpo_jax.data.dataset import Dataset, load_dataset

TOKENIZER = sentencepiece()
IDS = {"prompt_ids": [1, 20, 21], "chosen_ids": [30, 2], "rejected_ids": [31, 32, 2]}


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def conversation(
    question: str = "what is red?", chosen: str = "the ball", rejected: str = "the river"
) -> dict[str, Any]:
    asked = user(question)
    return {"chosen": [asked, assistant(chosen)], "rejected": [asked, assistant(rejected)]}


def questions(count: int) -> list[dict[str, Any]]:
    return [conversation(f"question {i}") for i in range(count)]


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return str(file)


def load(
    tmp_path: Path,
    rows: list[dict[str, Any]],
    tokenizer: Any = TOKENIZER,
    *,
    context: int = 2048,
    **config: Any,
) -> Dataset:
    config = {"path": write(tmp_path / "data.jsonl", rows), "validation": 0, **config}
    return load_dataset(DataConfig(**config), tokenizer, context=context, cache=tmp_path / "cache")


def as_lists(examples: list[Example]) -> list[tuple]:
    parts: Any = ((each.row, each.prompt, *each.responses) for each in examples)
    return [(row, *(part.tolist() for part in ids)) for row, *ids in parts]
