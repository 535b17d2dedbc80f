"""From rows to training and validation pairs: encoded, cut to length and split by prompts.

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tddpo_jax.batches.layout import Pair
from tddpo_jax.data.formats import Example
from tddpo_jax.data.sources import Source
from tddpo_jax.data.templates import ChatFormat, PairText, chat_pair, encode_pairs, text_pair
from tddpo_jax.errors import UserError

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


def kinds(sources: Sequence[Source]) -> set[str]:
    """The kinds of examples that there are."""
    return {row.kind for source in sources for row in source.rows if isinstance(row, Example)}


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


class Fitted(NamedTuple):
    """A pair before and after truncation."""

    whole: Pair
    cut: Pair


def build(
    sources: Sequence[Source],
    style: ChatFormat | None,
    bos: int | None,
    limits: Limits,
    split: Split,
    content_hash: str,
    progress: Callable[[int, int], None] | None,
) -> Dataset:
    """Training and validation pairs.

    Args:
        sources: of the training rows, then of the validation rows if they are others.
        style: how texts are written; None if there are none.
        bos: the id that a cut prompt keeps at its start.
        limits: of the branches.
        split: of the training rows, where there is no other source.
        content_hash: of all this.
        progress: called with (rows encoded, rows in all).

    Raises:
        UserError: a source has no usable row, or the split leaves none to train on.
    """
    rows = [(index, row) for source in sources for index, row in enumerate(source.rows)]
    encoded = encode(rows, style, progress)
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
        template=style.name if style is not None and "chat" in kinds(sources) else "verbatim",
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
        raise UserError(f"{field} {source.name}: none of its rows can be used: {counts}")
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
        raise UserError(f"data.validation: leaves no training pairs of {source.name}")
    return sides


def encode(
    rows: Sequence[tuple[int, Example | str]],
    style: ChatFormat | None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Pair | Unusable]:
    """Of every numbered row its pair, uncut, or the reason why it makes none."""
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
    except UserError as error:
        return str(error)


def check_vocabulary(name: str, pairs: Sequence[Pair], vocab_size: int | None) -> None:
    """Raises UserError for a row of the source `name` with an id that the model does not have."""
    for pair in pairs:
        for column in ("prompt", "chosen", "rejected"):
            highest = int(getattr(pair, column).max())
            if vocab_size is not None and highest >= vocab_size:
                raise UserError(
                    f"data {name} row {pair.row}: {column!r} holds the id {highest}, "
                    f"but the model's vocabulary ends at {vocab_size - 1}"
                )
