"""Prints examples as the model sees them: every token, what was cut, and what the loss counts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from tddpo_jax.config.schema import Config
from tddpo_jax.data.dataset import load_fitted
from tddpo_jax.data.examples import Dataset, Fitted, Vocabulary
from tddpo_jax.data.remarks import description
from tddpo_jax.planning.lengths import tokenizer_of
from tddpo_jax.system.cache import cache_folder
from tddpo_jax.weights.hugging_face import read_config
from tddpo_jax.weights.locate import model_folder

OPEN, CLOSE = "\u00ab", "\u00bb"  # around what the loss counts
LINE_END = "\u21b5\n"  # a line break that is seen


def examples_text(config: Config, count: int) -> Iterator[str]:
    """Yields lines: the data, the rows that cannot be used, the first examples of each data set.

    Args:
        config: settings of a run. Of the model, only the config and the tokenizer are read.
        count: number of examples of each data set.

    Raises:
        UserError: the user's input is wrong; the message names the field or file.
    """
    model = read_config(model_folder(config.model.path))
    tokenizer = tokenizer_of(config.model.path)
    dataset, shown = load_fitted(
        config.data,
        tokenizer,
        context=model.context,
        cache=cache_folder(),
        count=count,
        vocabulary=Vocabulary(model.vocabulary, model.not_text),
    )
    yield from description(config.data.names, dataset)
    yield from _unusable(dataset)
    yield f"the loss counts the tokens between {OPEN} and {CLOSE}"
    for example in shown:
        yield ""
        yield from example_lines(example, tokenizer)


def _unusable(dataset: Dataset) -> Iterator[str]:
    for reason, rows in dataset.dropped.items():
        numbers = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
        yield f"cannot be used: {len(rows)} x {reason} (row {numbers})"


def example_lines(example: Fitted, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[str]:
    """Yields the counts of an example's tokens, and its texts with their special tokens.

    Args:
        example: before and after truncation.
        tokenizer: writes the texts; None writes the ids.
    """
    cut, whole = example.cut, example.whole
    names = ["response"] if len(cut.responses) == 1 else ["chosen", "rejected"]
    parts = {"prompt": (cut.prompt, whole.prompt)}
    parts |= dict(zip(names, zip(cut.responses, whole.responses, strict=True), strict=True))
    counts = (f"{name} {_count(*both)}" for name, both in parts.items())
    yield f"row {cut.place}: {', '.join(counts)}"
    yield from _paragraph("prompt", _texts([cut.prompt], tokenizer)[0])
    for name, response, scored in zip(names, cut.responses, cut.scores, strict=True):
        turns = np.split(response, np.flatnonzero(np.diff(scored)) + 1)
        _, *texts = _texts([cut.prompt, *turns], tokenizer)
        texts[::2] = [f"{OPEN}{text}{CLOSE}" for text in texts[::2]]
        yield from _paragraph(name, "".join(texts))


def _count(cut: np.ndarray, whole: np.ndarray) -> str:
    lost = len(whole) - len(cut)
    return f"{len(cut)} tokens" + (f" ({lost} more are cut)" if lost else "")


def _texts(parts: Sequence[np.ndarray], tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """The text that each part adds to the parts before it."""
    if tokenizer is None:
        return [" ".join(map(str, part.tolist())) for part in parts]
    wholes = [""]
    for number in range(1, len(parts) + 1):
        ids = np.concatenate(parts[:number]).tolist()
        wholes.append(str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)))
    return [whole[len(before) :] for before, whole in itertools.pairwise(wholes)]


def _paragraph(name: str, text: str) -> Iterator[str]:
    first, *others = text.replace("\n", LINE_END).split("\n")
    yield f"  {name:<9}{first}"
    yield from (f"{'':<11}{line}" for line in others)
