"""The examples of a run: read from its sources, made once and kept under their content hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from tddpo_jax.batches.layout import Example
from tddpo_jax.config.schema import DEFAULT_FRACTION, DEFAULT_MAX_LENGTH, DataConfig
from tddpo_jax.data.examples import (
    Dataset,
    Limits,
    Split,
    Unusable,
    build,
    check_vocabulary,
    encode,
    kinds,
)
from tddpo_jax.data.formats import ParsedRow
from tddpo_jax.data.omissions import OMISSION
from tddpo_jax.data.sources import (
    Source,
    names_files,
    number_of_responses,
    read_source,
    split_names,
)
from tddpo_jax.data.templates import ChatFormat, chat_format, check_continues
from tddpo_jax.data.tokenizer import pattern, tokenizer_json
from tddpo_jax.errors import UserError
from tddpo_jax.system.atomic import write_file

# Part of every content hash: raise it when the same rows come out as other ids or examples.
VERSION = 1
# Part of the names of cached files alone: raise it when a row that was used may become unusable.
CACHE_VERSION = 2


def load_dataset(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    context: int,
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
    vocab_size: int | None = None,
) -> Dataset:
    """The examples of a run: read, encoded, split and cut.

    They are kept in `cache` under their content hash, so the next run only reads the rows.

    Args:
        config: the `data` section of a run.
        tokenizer: None will do for rows of token ids.
        context: the model's context, in tokens.
        cache: a directory, made if need be.
        progress: called with (rows encoded, rows in all).
        vocab_size: the model's; ids beyond it are refused.

    Raises:
        UserError: one line that names the setting, or the file and row and column.
    """
    limits = branch_limits(config, context)
    sources, split = _sources(config)
    style = _style(config.template, tokenizer, sources)
    bos = None if tokenizer is None else tokenizer.bos_token_id
    content_hash = _content_hash(sources, style, [VERSION, bos, limits, split])
    file = Path(cache) / f"examples-{content_hash[:32]}-{CACHE_VERSION}.npz"
    dataset = _read_cache(file, content_hash)
    if dataset is None:
        made = build(sources, style, bos, limits, split, content_hash, progress)
        dataset = dataclasses.replace(made, content_hash=_hash_with_omissions(made))
        _write_cache(file, dataset, content_hash)
    for source, examples in ((sources[0], dataset.train), (sources[-1], dataset.validation)):
        check_vocabulary(source.name, examples, vocab_size)
    return dataset


def load_uncut_examples(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase | None,
    template: str | None,
) -> list[Example | Unusable]:
    """Every row of one source, in order, nothing cut: an example, or why the row makes none.

    Identical branches make an example here.

    Raises:
        UserError: one line that names the file and row and column, or the template.
    """
    source = read_source(path)
    return encode(list(enumerate(source.rows)), _style(template, tokenizer, [source]))


def branch_limits(config: DataConfig, context: int) -> Limits:
    """The lengths in tokens that `data.max_length` and `data.max_prompt_length` stand for.

    Raises:
        UserError: a prompt might leave no room for a response.
    """
    max_length = config.max_length or min(DEFAULT_MAX_LENGTH, context)
    max_prompt_length = config.max_prompt_length or max_length // 2
    if max_length < 2:
        raise UserError(f"data.max_length: must be at least 2, got {max_length}")
    if max_prompt_length >= max_length:
        raise UserError(
            f"data.max_prompt_length: must be less than data.max_length, {max_length}, "
            f"got {max_prompt_length}"
        )
    if max_length > context:
        warnings.warn(
            f"data.max_length: {max_length} is beyond the model's context of {context}",
            stacklevel=3,
        )
    return Limits(max_length, max_prompt_length)


# ---- sources -------------------------------------------------------------------------------------


def check_sources(config: DataConfig) -> None:
    """Reads the rows of training and validation; needs no tokenizer.

    Raises:
        UserError: a file is missing, or one of its rows is wrong (`NotAtHand` of a hub id).
    """
    _sources(config)


def _sources(config: DataConfig) -> tuple[list[Source], Split]:
    """The source of the training examples, then that of the validation if it is another one."""
    splits = split_names(config.path, config.config)
    choice = config.validation
    if choice is None:
        own = [name for name in _counterparts(config.split) if name in splits]
        choice = own[0] if own else DEFAULT_FRACTION
    training = read_source(config.path, config.split, config.config, config.columns)
    if isinstance(choice, float):
        if not 0 <= choice < 1:
            raise UserError(f"data.validation: a fraction must be in [0, 1), got {choice}")
        return [training], Split(choice, config.split_seed)
    if choice in splits:
        validation = read_source(config.path, choice, config.config, config.columns)
    elif names_files(choice):
        validation = read_source(choice, columns=config.columns)
    else:
        raise UserError(
            f"data.validation: {choice!r} is no file, no fraction, and no split of {config.path}, "
            f"which has {', '.join(splits)}"
        )
    if validation.responses != training.responses:
        raise UserError(
            f"data.validation: a row of {validation.name} has "
            f"{number_of_responses(validation.responses)}, one of {training.name} has "
            f"{number_of_responses(training.responses)}"
        )
    return [training, validation], Split(0.0, config.split_seed)


def _counterparts(split: str | None) -> list[str]:
    """The names that a split for validation may have beside a training split.

    They are `validation` and `test`, and `test_prefs` beside `train_prefs`.
    """
    common = ["validation", "test"]
    if split is None or not split.startswith("train"):
        return common
    return [name + split.removeprefix("train") for name in common]


def _style(
    template: str | None, tokenizer: PreTrainedTokenizerBase | None, sources: Sequence[Source]
) -> ChatFormat | None:
    """How the texts in the sources are written; None if there are none."""
    found = kinds(sources)
    if template is not None and "chat" not in found:
        warnings.warn("data.template: ignored, as no row is a conversation", stacklevel=3)
    if found <= {"ids"}:
        return None
    if tokenizer is None:
        raise UserError(f"data {sources[0].name}: holds texts, and there is no tokenizer for them")
    style = chat_format(tokenizer, template)
    if "chat" in found:
        check_continues(style)
    return style


def _content_hash(sources: Sequence[Source], style: ChatFormat | None, others: list[object]) -> str:
    digest = hashlib.sha256(json.dumps(others).encode())
    if style is not None:
        digest.update(style.jinja.encode())
        digest.update(tokenizer_json(style.encoder.tokenizer).encode())
        special = style.encoder.special.pattern
        if special != pattern(style.encoder.special_tokens).pattern:
            digest.update(special.encode())
    for source in sources:
        digest.update(b"source")
        for row in source.rows:
            digest.update(json.dumps(row if isinstance(row, str) else _parts(row)).encode())
    return digest.hexdigest()


def _parts(row: ParsedRow) -> list[object]:
    """All of a row. Parts at their defaults are left out: they came later, and hashes must stay."""
    further = {"tools": row.tools, "continues": row.continues}
    others = [further] if any(further.values()) else []
    return [row.kind, row.prompt, *row.responses, *others]


def _hash_with_omissions(dataset: Dataset) -> str:
    """The content hash, with the rows of which the template leaves out a part, if there are any."""
    omitted = sorted(each for each in dataset.dropped.items() if OMISSION in each[0])
    if not omitted:
        return dataset.content_hash
    return hashlib.sha256(json.dumps([dataset.content_hash, omitted]).encode()).hexdigest()


# ---- cache ---------------------------------------------------------------------------------------


def _write_cache(file: Path, dataset: Dataset, hash_of_rows: str) -> None:
    examples = dataset.train + dataset.validation
    parts = [ids for example in examples for ids in (example.prompt, *example.responses)]
    facts = {
        "train": len(dataset.train),
        "dropped": dataset.dropped,
        "cut_prompts": dataset.cut_prompts,
        "cut_responses": dataset.cut_responses,
        "template": dataset.template,
        "content_hash": dataset.content_hash,
        "hash_of_rows": hash_of_rows,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with write_file(file) as out:
        np.savez(
            out,
            ids=np.concatenate(parts),
            lengths=np.array([len(part) for part in parts]),
            index=np.array([example.row for example in examples]),
            facts=np.array(json.dumps(facts)),
        )


def _read_cache(file: Path, hash_of_rows: str) -> Dataset | None:
    if not file.exists():
        return None
    try:
        return _stored(file, hash_of_rows)
    except Exception as error:  # whatever a damaged file makes numpy and zipfile raise
        warnings.warn(f"data: {file} is damaged ({error!r}); made anew", stacklevel=3)
        return None


def _stored(file: Path, hash_of_rows: str) -> Dataset:
    # Opened here, because numpy leaves a file open that is no archive.
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
        ids, lengths, index = stored["ids"], stored["lengths"], stored["index"].tolist()
        facts = json.loads(str(stored["facts"]))
    if facts.pop("hash_of_rows") != hash_of_rows or lengths.sum() != len(ids):
        raise ValueError("holds something else")
    parts, each = np.split(ids, np.cumsum(lengths)[:-1]), len(lengths) // len(index)
    examples = [
        Example(row, parts[n * each], tuple(parts[n * each + 1 : (n + 1) * each]))
        for n, row in enumerate(index)
    ]
    train = facts.pop("train")
    return Dataset(train=examples[:train], validation=examples[train:], **facts)
