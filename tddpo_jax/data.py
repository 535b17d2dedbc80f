"""From preference rows to token ids to training and validation pairs.

A row that cannot be used is listed with its reason, never silently lost:

    empty prompt, empty response      nothing there, or white space; a last message of white space
    differing histories               the two conversations differ before their last message
    identical branches                the same ids
    identical after truncation        the same ids once they are cut
    template: …                       the template refuses the conversation, in its own words
    half a surrogate pair             a text that is no Unicode

Truncation can empty no response: a prompt is cut to less than a branch may hold.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tddpo_jax.config import DataConfig
from tddpo_jax.hub import NotAtHand
from tddpo_jax.layout import Pair
from tddpo_jax.rows import SUFFIXES, Example, Source, read_source, split_names
from tddpo_jax.templates import (
    ChatFormat,
    PairText,
    chat_format,
    chat_pair,
    encode_pairs,
    text_pair,
)

# Part of every content hash: raise it when the same rows come out as other ids or pairs.
VERSION = 1

DEFAULT_MAX_LENGTH = 2048
DEFAULT_FRACTION = 0.1
ROWS_AT_ONCE = 256  # between two reports of progress


class Unusable(NamedTuple):
    """A row that makes no pair, and why."""

    row: int  # number in its source
    reason: str


class Limits(NamedTuple):
    """Most tokens of one branch, and what the prompt of a longer one is cut down to."""

    max_length: int
    max_prompt_length: int


class Split(NamedTuple):
    """Share of the prompts that go to validation, and the seed that chooses them."""

    fraction: float
    seed: int


@dataclass(frozen=True)
class Dataset:
    """Training and validation pairs, and what became of the other rows."""

    train: list[Pair]
    validation: list[Pair]
    # Reason -> rows. Those of a validation source of its own stand under "validation: " + reason.
    dropped: dict[str, list[int]]
    cut_prompts: int  # prompts that lost their left
    cut_responses: int  # responses that lost their right, and the end of turn with it
    template: str  # name; "tokenizer" for the tokenizer's own, "verbatim" if none was used
    content_hash: str  # of everything that determines the ids and the split


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a local folder or a hub id.

    Raises:
        ValueError: there is none (`NotAtHand` of a hub id); or there is only a `tokenizer.model`,
            from which transformers makes a tokenizer that splits runs of spaces wrongly.
    """
    _check_json(folder, Path(folder, "tokenizer.model"))
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, ImportError) as error:
        kind = ValueError if Path(folder).exists() else NotAtHand
        raise kind(f"tokenizer {folder}: {' '.join(str(error).split())}") from None
    _check_json(folder, Path(getattr(tokenizer, "vocab_file", None) or ""))  # where the hub put it
    return tokenizer


def _check_json(folder: str | Path, vocabulary: Path) -> None:
    if vocabulary.suffix != ".model" or not vocabulary.is_file():
        return
    if not vocabulary.with_name("tokenizer.json").is_file():
        raise ValueError(
            f"tokenizer {folder}: has a {vocabulary.name} but no tokenizer.json, "
            "without which transformers splits runs of spaces wrongly"
        )


def load_dataset(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    context: int,
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
    vocab_size: int | None = None,
) -> Dataset:
    """The pairs of a run: read, encoded, split and cut.

    They are kept in `cache` under their content hash, so the next run only reads the rows.

    Args:
        config: the `data` section of a run.
        tokenizer: None will do for rows of token ids.
        context: the model's context, in tokens.
        cache: a directory, made if need be.
        progress: called with (rows encoded, rows in all).
        vocab_size: the model's; ids beyond it are refused.

    Raises:
        ValueError: one line that names the setting, or the file and row and column.
    """
    limits = branch_limits(config, context)
    sources, split = _sources(config)
    style = _style(config.template, tokenizer, sources)
    bos = None if tokenizer is None else tokenizer.bos_token_id
    content_hash = _content_hash(sources, style, [VERSION, bos, limits, split])
    file = Path(cache) / f"pairs-{content_hash[:32]}.npz"
    dataset = _read_cache(file, content_hash)
    if dataset is None:
        dataset = _build(sources, style, bos, limits, split, content_hash, progress)
        _write_cache(file, dataset)
    for source, pairs in ((sources[0], dataset.train), (sources[-1], dataset.validation)):
        check_vocabulary(source.name, pairs, vocab_size)
    return dataset


def load_uncut_pairs(
    path: str | Path, tokenizer: PreTrainedTokenizerBase | None, template: str | None
) -> list[Pair | Unusable]:
    """Every row of one source, in order, nothing cut: a pair, or the reason why it makes none.

    Identical branches make a pair here.

    Raises:
        ValueError: one line that names the file and row and column, or the template.
    """
    source = read_source(path)
    return _encode(list(enumerate(source.rows)), _style(template, tokenizer, [source]))


def branch_limits(config: DataConfig, context: int) -> Limits:
    """The lengths in tokens that `data.max_length` and `data.max_prompt_length` stand for.

    Raises:
        ValueError: a prompt might leave no room for a response.
    """
    max_length = config.max_length or min(DEFAULT_MAX_LENGTH, context)
    max_prompt_length = config.max_prompt_length or max_length // 2
    if max_length < 2:
        raise ValueError(f"data.max_length: must be at least 2, got {max_length}")
    if max_prompt_length >= max_length:
        raise ValueError(
            f"data.max_prompt_length: must be less than data.max_length, {max_length}, "
            f"got {max_prompt_length}"
        )
    if max_length > context:
        warnings.warn(
            f"data.max_length: {max_length} is beyond the model's context of {context}",
            stacklevel=3,
        )
    return Limits(max_length, max_prompt_length)


def cut(pair: Pair, limits: Limits, bos: int | None) -> Pair:
    """A pair whose branches both fit.

    A branch that is too long loses the left of its prompt, except for a leading `bos`, then the
    right of its response. The prompt is shared, so it is cut if either branch is too long.
    """
    longest = max(len(pair.chosen), len(pair.rejected))
    if len(pair.prompt) + longest <= limits.max_length:
        return pair
    prompt = pair.prompt
    if len(prompt) > limits.max_prompt_length:
        head = prompt[: int(prompt[0] == bos)]
        tail = prompt[len(prompt) - limits.max_prompt_length + len(head) :]
        prompt = np.concatenate([head, tail])
    room = limits.max_length - len(prompt)
    return Pair(pair.row, prompt, pair.chosen[:room], pair.rejected[:room])


def validation_prompts(prompts: Sequence[np.ndarray], split: Split) -> set[bytes]:
    """The bytes of the prompts that go to validation, with every pair that has one of them.

    A pure function of the seed and of how often each prompt occurs: prompts are taken in the order
    of their hashes as long as their pairs fit into the share, so the rows' order does not matter.

    Args:
        prompts: int32 ids [n], one entry per pair.
        split: share of the pairs, and seed.
    """
    if split.fraction == 0:
        return set()
    pairs = collections.Counter(prompt.tobytes() for prompt in prompts)
    room = max(1, min(round(split.fraction * len(prompts)), len(prompts) - 1))
    order = sorted(pairs, key=lambda ids: hashlib.sha256(b"%d:%b" % (split.seed, ids)).digest())
    taken = set()
    for prompt in order:
        if pairs[prompt] <= room:
            taken.add(prompt)
            room -= pairs[prompt]
    # Where every prompt has more pairs than fit, the one with the fewest goes.
    return taken or {min(order, key=lambda prompt: pairs[prompt])}


# ---- sources -------------------------------------------------------------------------------------


def check_sources(config: DataConfig) -> None:
    """Reads the rows of training and validation; needs no tokenizer.

    Raises:
        ValueError: a file is missing, or one of its rows is wrong (`NotAtHand` of a hub id).
    """
    _sources(config)


def _sources(config: DataConfig) -> tuple[list[Source], Split]:
    """The source of the training pairs, then that of the validation pairs if it is another one."""
    splits = split_names(config.path)
    choice = config.validation
    if choice is None:
        own = [name for name in ("validation", "test") if name in splits]
        choice = own[0] if own else DEFAULT_FRACTION
    if isinstance(choice, float):
        if not 0 <= choice < 1:
            raise ValueError(f"data.validation: a fraction must be in [0, 1), got {choice}")
        return [read_source(config.path)], Split(choice, config.split_seed)
    if choice in splits:
        validation = read_source(config.path, choice)
    elif Path(choice).suffix in SUFFIXES or Path(choice).is_file():
        validation = read_source(choice)
    else:
        raise ValueError(
            f"data.validation: {choice!r} is no file, no fraction, and no split of {config.path}, "
            f"which has {', '.join(splits)}"
        )
    return [read_source(config.path), validation], Split(0.0, config.split_seed)


def _style(
    template: str | None, tokenizer: PreTrainedTokenizerBase | None, sources: Sequence[Source]
) -> ChatFormat | None:
    """How the texts in the sources are written; None if there are none."""
    kinds = _kinds(sources)
    if template is not None and "chat" not in kinds:
        warnings.warn("data.template: ignored, as no row is a conversation", stacklevel=3)
    if kinds <= {"ids"}:
        return None
    if tokenizer is None:
        raise ValueError(f"data {sources[0].name}: holds texts, and there is no tokenizer for them")
    return chat_format(tokenizer, template)


def _kinds(sources: Sequence[Source]) -> set[str]:
    return {row.kind for source in sources for row in source.rows if isinstance(row, Example)}


def _content_hash(sources: Sequence[Source], style: ChatFormat | None, others: list[object]) -> str:
    digest = hashlib.sha256(json.dumps(others).encode())
    if style is not None:
        digest.update(style.jinja.encode())
        digest.update(_tokenizer_json(style.encoder.tokenizer).encode())
    for source in sources:
        digest.update(b"source")
        for row in source.rows:
            digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def _tokenizer_json(tokenizer: PreTrainedTokenizerBase) -> str:
    """Everything that makes ids of texts; truncation and padding are traces of earlier calls."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = {"vocab": tokenizer.get_vocab()} if backend is None else json.loads(backend.to_str())
    parts = {key: part for key, part in parts.items() if key not in ("truncation", "padding")}
    return json.dumps([parts, tokenizer.special_tokens_map], sort_keys=True, default=str)


# ---- pairs ---------------------------------------------------------------------------------------


class Fitted(NamedTuple):
    """A pair before and after truncation."""

    whole: Pair
    cut: Pair


def _build(
    sources: Sequence[Source],
    style: ChatFormat | None,
    bos: int | None,
    limits: Limits,
    split: Split,
    content_hash: str,
    progress: Callable[[int, int], None] | None,
) -> Dataset:
    rows = [(index, row) for source in sources for index, row in enumerate(source.rows)]
    encoded = _encode(rows, style, progress)
    first = len(sources[0].rows)
    train, dropped = _usable("data.path", sources[0], encoded[:first], limits, bos)
    if len(sources) == 2:
        validation, others = _usable("data.validation", sources[1], encoded[first:], limits, bos)
        dropped |= {f"validation: {reason}": rows for reason, rows in others.items()}
    else:
        train, validation = _divided(sources[0], train, split)
    fitted = train + validation
    return Dataset(
        train=[pair.cut for pair in train],
        validation=[pair.cut for pair in validation],
        dropped=dropped,
        cut_prompts=sum(len(pair.cut.prompt) < len(pair.whole.prompt) for pair in fitted),
        cut_responses=sum(len(pair.cut.chosen) < len(pair.whole.chosen) for pair in fitted)
        + sum(len(pair.cut.rejected) < len(pair.whole.rejected) for pair in fitted),
        template=style.name if style is not None and "chat" in _kinds(sources) else "verbatim",
        content_hash=content_hash,
    )


def _usable(
    field: str, source: Source, encoded: Sequence[Pair | Unusable], limits: Limits, bos: int | None
) -> tuple[list[Fitted], dict[str, list[int]]]:
    kept: list[Fitted] = []
    dropped: dict[str, list[int]] = collections.defaultdict(list)
    for row in encoded:
        if isinstance(row, Unusable):
            dropped[row.reason].append(row.row)
            continue
        pair = Fitted(row, cut(row, limits, bos))
        if np.array_equal(pair.whole.chosen, pair.whole.rejected):
            dropped["identical branches"].append(row.row)
        elif np.array_equal(pair.cut.chosen, pair.cut.rejected):
            dropped["identical after truncation"].append(row.row)
        else:
            kept.append(pair)
    if not kept:
        counts = ", ".join(f"{len(rows)} x {reason}" for reason, rows in dropped.items())
        raise ValueError(f"{field} {source.name}: none of its rows can be used: {counts}")
    return kept, dict(dropped)


def _divided(
    source: Source, pairs: list[Fitted], split: Split
) -> tuple[list[Fitted], list[Fitted]]:
    # By whole prompts, so that the sides do not depend on the lengths that are set.
    held_out = validation_prompts([pair.whole.prompt for pair in pairs], split)
    sides: tuple[list[Fitted], list[Fitted]] = ([], [])
    for pair in pairs:
        sides[pair.whole.prompt.tobytes() in held_out].append(pair)
    if not sides[0]:
        raise ValueError(f"data.validation: leaves no training pairs of {source.name}")
    return sides


def _encode(
    rows: Sequence[tuple[int, Example | str]],
    style: ChatFormat | None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Pair | Unusable]:
    encoded: list[Pair | Unusable] = []
    while len(encoded) < len(rows):
        encoded += _encode_some(rows[len(encoded) : len(encoded) + ROWS_AT_ONCE], style)
        if progress is not None:
            progress(len(encoded), len(rows))
    return encoded


def _encode_some(
    rows: Sequence[tuple[int, Example | str]], style: ChatFormat | None
) -> list[Pair | Unusable]:
    written = [_written(row, style) for _, row in rows]
    texts = [row for row in written if isinstance(row, PairText)]
    encoded = iter(encode_pairs(style, texts) if style is not None else [])
    results: list[Pair | Unusable] = []
    for (index, _), row in zip(rows, written, strict=True):
        if isinstance(row, str):
            results.append(Unusable(index, row))
            continue
        ids = next(encoded) if isinstance(row, PairText) else row[1:]
        prompt, chosen, rejected = (np.asarray(part, np.int32) for part in ids)
        # The tokenizer's normaliser may leave nothing of a text such as a zero-width space.
        usable = len(prompt) > 0
        results.append(
            Pair(index, prompt, chosen, rejected) if usable else Unusable(index, "empty prompt")
        )
    return results


def _written(row: Example | str, style: ChatFormat | None) -> PairText | Example | str:
    if isinstance(row, str) or row.kind == "ids":
        return row
    assert style is not None  # made wherever there are texts
    if row.kind == "text":
        return text_pair(style, row.prompt, row.chosen, row.rejected)
    try:
        return chat_pair(style, row.prompt, row.chosen, row.rejected)
    except ValueError as error:
        return str(error)


def check_vocabulary(name: str, pairs: Sequence[Pair], vocab_size: int | None) -> None:
    """Raises ValueError for a row of the source `name` with an id that the model does not have."""
    for pair in pairs:
        for column in ("prompt", "chosen", "rejected"):
            highest = int(getattr(pair, column).max())
            if vocab_size is not None and highest >= vocab_size:
                raise ValueError(
                    f"data {name} row {pair.row}: {column!r} holds the id {highest}, "
                    f"but the model's vocabulary ends at {vocab_size - 1}"
                )


# ---- cache ---------------------------------------------------------------------------------------


def _write_cache(file: Path, dataset: Dataset) -> None:
    pairs = dataset.train + dataset.validation
    parts = [ids for pair in pairs for ids in pair[1:]]
    facts = {
        "train": len(dataset.train),
        "dropped": dataset.dropped,
        "cut_prompts": dataset.cut_prompts,
        "cut_responses": dataset.cut_responses,
        "template": dataset.template,
        "content_hash": dataset.content_hash,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
    with unfinished.open("wb") as out:
        np.savez(
            out,
            ids=np.concatenate(parts),
            lengths=np.array([len(part) for part in parts]),
            index=np.array([pair.row for pair in pairs]),
            facts=np.array(json.dumps(facts)),
        )
    unfinished.replace(file)


def _read_cache(file: Path, content_hash: str) -> Dataset | None:
    if not file.exists():
        return None
    try:
        return _stored(file, content_hash)
    except Exception as error:  # whatever a damaged file makes numpy and zipfile raise
        warnings.warn(f"data: {file} is damaged ({error!r}); made anew", stacklevel=3)
        return None


def _stored(file: Path, content_hash: str) -> Dataset:
    # Opened here, because numpy leaves a file open that is no archive.
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
        ids, lengths, index = stored["ids"], stored["lengths"], stored["index"].tolist()
        facts = json.loads(str(stored["facts"]))
    if facts["content_hash"] != content_hash or lengths.sum() != len(ids):
        raise ValueError("holds something else")
    parts = np.split(ids, np.cumsum(lengths)[:-1])
    pairs = [Pair(*row) for row in zip(index, parts[0::3], parts[1::3], parts[2::3], strict=True)]
    train = facts.pop("train")
    return Dataset(train=pairs[:train], validation=pairs[train:], **facts)
