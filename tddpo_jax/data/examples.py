"""From rows to training and validation examples: encoded, cut to length and split by prompts.

A row that cannot be used is listed with its reason, never silently lost:

    empty prompt, empty response      nothing there, or white space; a last message of white space
    differing histories               the two conversations differ before their answers
    identical branches                two responses with the same ids
    identical after truncation        the same ids once they are cut
    template: …                       the template refuses the conversation, in its own words
    template: leaves out …            a role, a key or words of the row, see `omissions`
    half a surrogate pair             a text that is no Unicode

Truncation can empty no response: a prompt is cut to less than a branch may hold.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from tddpo_jax.batches.layout import Example
from tddpo_jax.data.chat_format import ChatFormat
from tddpo_jax.data.formats import ParsedRow
from tddpo_jax.data.mixture import Mixture
from tddpo_jax.data.omissions import omission
from tddpo_jax.data.sources import Source, none_usable
from tddpo_jax.data.templates import (
    ExampleIds,
    ExampleText,
    branches,
    chat_example,
    encode_examples,
    text_example,
)
from tddpo_jax.errors import UserError

VERBATIM = "verbatim"  # in the place of a template's name, if no row is a conversation
ROWS_AT_ONCE = 256  # between two reports of progress


class Unusable(NamedTuple):
    """A row that makes no example, and why."""

    row: int  # number in its source
    reason: str


class Limits(NamedTuple):
    """Most tokens of one branch, and what the prompt of a longer one is cut down to."""

    max_length: int
    max_prompt_length: int


class Split(NamedTuple):
    """Share of a data set's prompts that go to validation, and the seed that chooses them."""

    fraction: float
    seed: int


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training and validation examples, and what became of the other rows."""

    train: list[Example]
    validation: list[Example]
    # Reason -> rows. Those of a validation source of its own stand under "validation: " + reason.
    # In a mixture, the name of the data set stands before the reason.
    dropped: dict[str, list[int]]
    cut_prompts: int  # prompts that lost their left
    cut_responses: int  # responses that lost their right, and the end of turn with it
    template: str  # name; "tokenizer" for the tokenizer's own, "verbatim" if none was used
    content_hash: str  # of everything that determines the ids and the split
    # Data set -> columns and keys of messages that nothing reads, in words.
    not_read: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def responses(self) -> int:
        """How many responses each example has."""
        return len(self.train[0].responses)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """The rows of each data set of a mixture; empty if there is only one."""
        train, validation = (
            collections.Counter(example.source for example in side)
            for side in (self.train, self.validation)
        )
        return {
            name: {"train_rows": train[name], "validation_rows": validation[name]}
            for name in dict.fromkeys((*train, *validation))
            if name
        }


def kinds(sources: Sequence[Source]) -> set[str]:
    """The kinds of rows that there are."""
    return {row.kind for source in sources for row in source.rows if isinstance(row, ParsedRow)}


def cut(example: Example, limits: Limits, bos: int | None) -> Example:
    """An example whose branches all fit.

    A branch that is too long loses the left of its prompt, except for a leading `bos`, then the
    right of its response. The prompt is shared, so it is cut if any branch is too long.
    """
    if len(example.prompt) + max(map(len, example.responses)) <= limits.max_length:
        return example
    prompt = example.prompt
    if len(prompt) > limits.max_prompt_length:
        head = prompt[: int(prompt[0] == bos)]
        tail = prompt[len(prompt) - limits.max_prompt_length + len(head) :]
        prompt = np.concatenate([head, tail])
    room = limits.max_length - len(prompt)
    responses = tuple(response[:room] for response in example.responses)
    scored = example.scored and tuple(each[:room] for each in example.scored)
    return example._replace(prompt=prompt, responses=responses, scored=scored)


def validation_prompts(prompts: Sequence[np.ndarray], split: Split) -> set[bytes]:
    """The bytes of the prompts that go to validation, with every example that has one of them.

    A pure function of the seed and of how often each prompt occurs: prompts are taken in the order
    of their hashes as long as their examples fit into the share, so the order of the rows does not
    matter.

    Args:
        prompts: int32 ids [n], one entry per example.
        split: share of the examples, and seed.
    """
    if split.fraction == 0:
        return set()
    counts = collections.Counter(prompt.tobytes() for prompt in prompts)
    room = max(1, min(round(split.fraction * len(prompts)), len(prompts) - 1))
    order = sorted(counts, key=lambda ids: hashlib.sha256(b"%d:%b" % (split.seed, ids)).digest())
    taken = set()
    for prompt in order:
        if counts[prompt] <= room:
            taken.add(prompt)
            room -= counts[prompt]
    # Where every prompt has more examples than fit, the one with the fewest goes.
    return taken or {min(order, key=lambda prompt: counts[prompt])}


class Fitted(NamedTuple):
    """An example before and after truncation."""

    whole: Example
    cut: Example

    @property
    def cut_responses(self) -> int:
        """How many responses are shorter than they were."""
        both = zip(self.cut.responses, self.whole.responses, strict=True)
        return sum(len(cut) < len(whole) for cut, whole in both)


def build(
    mixture: Mixture,
    style: ChatFormat | None,
    bos: int | None,
    limits: Limits,
    split_seed: int,
    content_hash: str,
    progress: Callable[[int, int], None] | None,
) -> Dataset:
    """Training and validation examples.

    Args:
        mixture: the sources of the rows.
        style: how texts are written; None if there are none.
        bos: the id that a cut prompt keeps at its start.
        limits: of the branches.
        split_seed: of the prompts that are held out.
        content_hash: of all this.
        progress: called with (rows encoded, rows in all).

    Raises:
        UserError: a source has no usable row, or the split leaves none to train on.
    """
    sources, several = mixture.sources, len(mixture.training) > 1
    rows = [row for each in sources for row in zip(each.numbers, each.rows, strict=True)]
    encoded = iter(encode(rows, style, progress))
    fitted: list[list[Fitted]] = []
    dropped: dict[str, list[int]] = collections.defaultdict(list)
    for number, source in enumerate(sources):
        trains = number < len(mixture.training)
        label = source.name if several else ""
        mine = list(itertools.islice(encoded, len(source.rows)))
        field = "data.path" if trains else "data.validation"
        used, unused = _usable(field, source, mine, limits, bos, label)
        fitted.append(used)
        for reason, numbers in unused.items():
            words = ["" if trains else "validation", label, reason]
            dropped[": ".join(filter(None, words))] += numbers
    splits = [Split(share, split_seed) for share in mixture.held_out]
    train, validation = _divided(mixture.training, fitted[: len(splits)], splits)
    validation += itertools.chain.from_iterable(fitted[len(splits) :])
    everything = train + validation
    return Dataset(
        train=[one.cut for one in train],
        validation=[one.cut for one in validation],
        dropped=dict(dropped),
        cut_prompts=sum(len(one.cut.prompt) < len(one.whole.prompt) for one in everything),
        cut_responses=sum(one.cut_responses for one in everything),
        template=style.name if style is not None and "chat" in kinds(sources) else VERBATIM,
        content_hash=content_hash,
    )


def _usable(
    field: str,
    source: Source,
    encoded: Sequence[Example | Unusable],
    limits: Limits,
    bos: int | None,
    label: str,
) -> tuple[list[Fitted], dict[str, list[int]]]:
    kept: list[Fitted] = []
    dropped: dict[str, list[int]] = collections.defaultdict(list)
    for row in encoded:
        if isinstance(row, Unusable):
            dropped[row.reason].append(row.row)
            continue
        row = row._replace(source=label)
        fitted = Fitted(row, cut(row, limits, bos))
        if _has_two_alike(fitted.whole):
            dropped["identical branches"].append(row.row)
        elif _has_two_alike(fitted.cut):
            dropped["identical after truncation"].append(row.row)
        else:
            kept.append(fitted)
    if not kept:
        raise UserError(none_usable(field, source.name, dropped, source.shape))
    return kept, dict(dropped)


def _has_two_alike(example: Example) -> bool:
    return len({ids.tobytes() for ids in example.responses}) < len(example.responses)


def _divided(
    sources: Sequence[Source], examples_of: Sequence[list[Fitted]], splits: Sequence[Split]
) -> tuple[list[Fitted], list[Fitted]]:
    """The examples to train on, and those whose prompt any of the sources holds out."""
    held_out: set[bytes] = set()
    for source, examples, split in zip(sources, examples_of, splits, strict=True):
        # By whole prompts, so that the sides do not depend on the lengths that are set.
        own = validation_prompts([one.whole.prompt for one in examples], split)
        _check_held_out(source, examples, own)
        held_out |= own
    sides: tuple[list[Fitted], list[Fitted]] = ([], [])
    for one in itertools.chain.from_iterable(examples_of):
        sides[one.whole.prompt.tobytes() in held_out].append(one)
    if not sides[0]:
        raise UserError(
            "data.validation: leaves nothing to train on, for each prompt is held out of one of "
            "the data sets: name a file with data.validation, or set it to 0"
        )
    return sides


def _check_held_out(source: Source, examples: list[Fitted], held_out: set[bytes]) -> None:
    """Warns if one prompt decides the split of a source.

    Raises:
        UserError: the source has no other prompt.
    """
    counts = collections.Counter(one.whole.prompt.tobytes() for one in examples)
    most = max(counts.values())
    if held_out == counts.keys():
        raise UserError(
            f"data.validation: leaves nothing to train on of {source.name}, for its usable rows "
            "all have the same prompt, whose rows stay together: name a file with "
            "data.validation, or set it to 0"
        )
    if held_out and most > 1 and 2 * most > len(examples):
        warnings.warn(
            f"data.validation: {most} of the {len(examples)} usable rows of {source.name} have "
            "the same prompt, and the rows of a prompt stay together: "
            f"{sum(counts[prompt] for prompt in held_out)} are held out; "
            "name a file with data.validation to choose others",
            stacklevel=5,
        )


def encode(
    rows: Sequence[tuple[int, ParsedRow | str]],
    style: ChatFormat | None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Example | Unusable]:
    """The example that each numbered row makes, uncut, or the reason why it makes none."""
    encoded: list[Example | Unusable] = []
    while len(encoded) < len(rows):
        encoded += _encode_some(rows[len(encoded) : len(encoded) + ROWS_AT_ONCE], style)
        if progress is not None:
            progress(len(encoded), len(rows))
    return encoded


def _encode_some(
    rows: Sequence[tuple[int, ParsedRow | str]], style: ChatFormat | None
) -> list[Example | Unusable]:
    written = [_written(row, style) for _, row in rows]
    texts = [row for row in written if isinstance(row, ExampleText)]
    encoded = iter(encode_examples(style, texts) if style is not None else [])
    results: list[Example | Unusable] = []
    for (index, _), row in zip(rows, written, strict=True):
        if isinstance(row, str):
            results.append(Unusable(index, row))
            continue
        ids = next(encoded) if isinstance(row, ExampleText) else row
        prompt, *responses = (np.asarray(part, np.int32) for part in (ids.prompt, *ids.responses))
        # The tokenizer's normaliser may leave nothing of a text such as a zero-width space.
        usable = len(prompt) > 0
        example = Example(index, prompt, tuple(responses), scored=_scored(ids))
        results.append(example if usable else Unusable(index, "empty prompt"))
    return results


def _scored(ids: ExampleIds | ParsedRow) -> tuple[np.ndarray, ...] | None:
    """Which tokens of each response are predicted; None if all are."""
    if isinstance(ids, ParsedRow) or all(map(all, ids.scored)):
        return None
    return tuple(np.asarray(each, bool) for each in ids.scored)


def _written(row: ParsedRow | str, style: ChatFormat | None) -> ExampleText | ParsedRow | str:
    if isinstance(row, str) or row.kind == "ids":
        return row
    assert style is not None  # made wherever there are texts
    if row.kind == "text":
        return text_example(style, row.prompt, row.responses)
    try:
        example = chat_example(
            style, row.prompt, row.responses, tools=row.tools, continues=row.continues
        )
    except UserError as error:
        return str(error)
    return _omission(row, style, example) or example


def _omission(row: ParsedRow, style: ChatFormat, example: ExampleText) -> str | None:
    """The reason why the template does not write all of a conversation, or None if it does."""
    before, answers = branches(row.prompt, row.responses, row.continues)
    for answer, said in zip(answers, example.responses, strict=True):
        text = "".join(each.text for each in (example.prompt, *said)).replace(said[0].mark, "")
        reason = omission(style, [*before, *answer], row.tools, text)
        if reason is not None:
            return reason
    return None


class Vocabulary(NamedTuple):
    """The token ids that a model takes."""

    size: int
    not_text: tuple[int, ...] = ()  # ids that stand for something else, such as a part of an image


def check_vocabulary(name: str, examples: Sequence[Example], vocabulary: Vocabulary | None) -> None:
    """Raises UserError for a row with an id that the model does not have, or that is no text.

    Args:
        name: of the data, unless an example names its own source.
        examples: to check.
        vocabulary: the model's; None checks nothing.
    """
    if vocabulary is None:
        return
    for example in examples:
        names = ("response",) if len(example.responses) == 1 else ("chosen", "rejected")
        parts = zip(("prompt", *names), (example.prompt, *example.responses), strict=True)
        for part, ids in parts:
            where = f"data {example.source or name} row {example.row}: {part!r} holds the id"
            highest = int(ids.max())
            if highest >= vocabulary.size:
                last = vocabulary.size - 1
                raise UserError(f"{where} {highest}, but the model's vocabulary ends at {last}")
            for token in np.intersect1d(ids, vocabulary.not_text):
                raise UserError(f"{where} {token}, which stands for an image; only text is trained")
