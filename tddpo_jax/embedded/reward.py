"""The embedded rule as a reward of sampled answers."""

from __future__ import annotations

from typing import Any

from tddpo_jax.embedded.task import score


def reward(prompt: Any, answer: str, row: Any) -> float:
    """The embedded rule's score of an answer, from 0 to 1."""
    return score(answer)
