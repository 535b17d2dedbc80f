"""Suggests the name that a user may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# How alike two names must be, from 0 to 1. Dotted names are long, and many begin alike.
ALIKE, ALIKE_DOTTED = 0.6, 0.75


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: the most alike of the known ones, or nothing.

    A group may be missing in the word. Underscores, hyphens and capitals are not told apart.

    >>> did_you_mean("dpoo", ["td_dpo", "dpo", "sft"])
    '; did you mean dpo?'
    >>> did_you_mean("--learning_rate", ["--train.learning-rate", "--train.epochs"])
    '; did you mean --train.learning-rate?'
    >>> did_you_mean("loss.xyz", ["loss.tau"])
    ''
    """
    found = _closest(_plain(word), {_plain(name): name for name in names})
    return f"; did you mean {found}?" if found else ""


def _closest(word: str, names: dict[str, str]) -> str | None:
    group, _, last = word.rpartition(".")
    for name in names:
        if name.endswith(f".{last.lstrip('-')}"):
            return names[name]
    beside = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == group}
    if alike := difflib.get_close_matches(last, beside, n=1, cutoff=ALIKE):
        return names[beside[alike[0]]]
    alike = difflib.get_close_matches(word, names, n=1, cutoff=ALIKE_DOTTED)
    return names[alike[0]] if alike else None


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
