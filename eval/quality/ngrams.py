"""Repetition in texts, counted in n-grams of words."""

from __future__ import annotations

from collections.abc import Sequence


def distinct(texts: Sequence[str], n: int) -> float:
    """The share of different n-grams among all n-grams of the texts; 0 if there are none.

    >>> distinct(["a b a", "a b"], 1)
    0.4
    """
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(text: str, n: int = 3) -> float:
    """The share of a text's n-grams that appear earlier in it.

    >>> repetition("a b c a b c")
    0.25
    """
    grams = _grams(text, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
