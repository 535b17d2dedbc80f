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
from tddpo_jax.config.schema import DEFAULT_MAX_LENGTH, DataConfig, DataSource
from tddpo_jax.data.chat_format import ChatFormat, chat_format, check_continues
from tddpo_jax.data.examples import (
    Dataset,
    Fitted,
    Limits,
    Split,
    Unusable,
    Vocabulary,
    build,
    check_vocabulary,
    encode,
    kinds,
)
from tddpo_jax.data.formats import ParsedRow
from tddpo_jax.data.mixture import Mixture, read_mixture
from tddpo_jax.data.omissions import OMISSION
from tddpo_jax.data.sources import Source, read_source
from tddpo_jax.data.tokenizer import pattern, tokenizer_json
from tddpo_jax.errors import UserError
from tddpo_jax.system.atomic import write_file

# Part of every content hash: raise it when the same rows come out as other ids or examples.
VERSION = 1
# Part of the names of cached files alone: raise it when a row that was used may become unusable, or
# when the files hold something else.
CACHE_VERSION = 3


def load_dataset(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    context: int,
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
    vocabulary: Vocabulary | None = None,
) -> Dataset:
    """The examples of a run: read, encoded, split and cut.

    They are kept in `cache` under their content hash, so the next run only reads the rows.

    Args:
        config: the `data` section of a run.
        tokenizer: None will do for rows of token ids.
        context: the model's context, in tokens.
        cache: a directory, made if need be.
        progress: called with (rows encoded, rows in all).
        vocabulary: the model's; other ids are refused.

    Raises:
        UserError: one line that names the setting, or the file and row and column.
    """
    limits = branch_limits(config, context)
    mixture = read_mixture(config)
    style = style_of(config.template, tokenizer, mixture.sources)
    bos = None if tokenizer is None else tokenizer.bos_token_id
    content_hash = _content_hash(mixture, style, [VERSION, bos, limits], config.split_seed)
    file = Path(cache) / f"examples-{_file_key(content_hash, mixture)}-{CACHE_VERSION}.npz"
    dataset = _read_cache(file, content_hash)
    if dataset is None:
        made = build(mixture, style, bos, limits, config.split_seed, content_hash, progress)
        dataset = dataclasses.replace(made, content_hash=_hash_with_omissions(made))
        _write_cache(file, dataset, content_hash)
    first, last = mixture.sources[0], mixture.sources[-1]
    for source, examples in ((first, dataset.train), (last, dataset.validation)):
        check_vocabulary(source.name, examples, vocabulary)
    not_read = {source.name: source.not_read for source in mixture.sources if source.not_read}
    return dataclasses.replace(dataset, not_read=not_read)


def load_fitted(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    context: int,
    cache: Path,
    count: int,
    vocabulary: Vocabulary | None = None,
) -> tuple[Dataset, list[Fitted]]:
    """The data of a run, and the first `count` training examples of each data set, whole and cut.

    The other arguments and the errors are those of `load_dataset`.
    """
    dataset = load_dataset(config, tokenizer, context=context, cache=cache, vocabulary=vocabulary)
    mixture = read_mixture(config)
    style = style_of(config.template, tokenizer, mixture.sources)
    shown: list[Fitted] = []
    for source in mixture.training:
        label = source.name if len(mixture.training) > 1 else ""
        taken = [each for each in dataset.train if each.source == label][:count]
        row_at = dict(zip(source.numbers, source.rows, strict=True))
        wholes = encode([(each.row, row_at[each.row]) for each in taken], style)
        shown += [
            Fitted(whole, cut)
            for whole, cut in zip(wholes, taken, strict=True)
            if isinstance(whole, Example)
        ]
    return dataset, shown


def load_uncut_examples(
    data: DataSource,
    tokenizer: PreTrainedTokenizerBase | None,
    template: str | None,
) -> list[Example | Unusable]:
    """Every row of one source, in order, nothing cut: an example, or why the row makes none.

    Identical branches make an example here.

    Raises:
        UserError: one line that names the file and row and column, or the template.
    """
    source = read_source(data.path, data.split, data.config, data.columns)
    return encode(list(enumerate(source.rows)), style_of(template, tokenizer, [source]))


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


# ---- what the examples depend on -----------------------------------------------------------------


def style_of(
    template: str | None, tokenizer: PreTrainedTokenizerBase | None, sources: Sequence[Source]
) -> ChatFormat | None:
    """How the texts in the sources are written; None if there are none.

    Raises:
        UserError: the template is wrong, or there is no tokenizer for the texts.
    """
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


def _content_hash(
    mixture: Mixture, style: ChatFormat | None, others: list[object], split_seed: int
) -> str:
    # One data set is written as it was before there were mixtures, for hashes must stay.
    splits = [Split(share, split_seed) for share in mixture.held_out]
    others = [*others, splits[0] if len(splits) == 1 else splits]
    digest = hashlib.sha256(json.dumps(others).encode())
    if style is not None:
        digest.update(style.jinja.encode())
        digest.update(tokenizer_json(style.encoder.tokenizer).encode())
        special = style.encoder.special.pattern
        if special != pattern(style.encoder.special_tokens).pattern:
            digest.update(special.encode())
    for source in mixture.sources:
        digest.update(b"source")
        if source.numbers != list(range(len(source.rows))):
            digest.update(json.dumps(source.numbers).encode())
        for row in source.rows:
            digest.update(json.dumps(row if isinstance(row, str) else _parts(row)).encode())
    return digest.hexdigest()


def _file_key(content_hash: str, mixture: Mixture) -> str:
    """What names a cached file: a mixture's examples hold the names of its data sets too."""
    if len(mixture.training) > 1:
        named = [content_hash, *(source.name for source in mixture.sources)]
        content_hash = hashlib.sha256(json.dumps(named).encode()).hexdigest()
    return content_hash[:32]


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
    names = sorted({example.source for example in examples})
    facts = {
        "names": names,
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
            source=np.array([names.index(example.source) for example in examples]),
            scored=np.concatenate([each for example in examples for each in example.scores]),
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
        source, scored = stored["source"].tolist(), stored["scored"]
        facts = json.loads(str(stored["facts"]))
    if facts.pop("hash_of_rows") != hash_of_rows or lengths.sum() != len(ids):
        raise ValueError("holds something else")
    names = facts.pop("names")
    parts, each = np.split(ids, np.cumsum(lengths)[:-1]), len(lengths) // len(index)
    said = lengths.reshape(-1, each)[:, 1:].ravel()
    masks = np.split(scored, np.cumsum(said)[:-1])
    examples = []
    for n, (row, of) in enumerate(zip(index, source, strict=True)):
        prompt, *responses = parts[n * each : (n + 1) * each]
        mask = tuple(masks[n * (each - 1) : (n + 1) * (each - 1)])
        partly = None if all(map(np.all, mask)) else mask
        examples.append(Example(row, prompt, tuple(responses), names[of], partly))
    train = facts.pop("train")
    return Dataset(train=examples[:train], validation=examples[train:], **facts)
