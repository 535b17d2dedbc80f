"""The study's rewards, for the verbs `sample` and `quality`, as
`eval.studies.sentiment.sentiment_rewards:labeller`.

Each scores a prefix with its continuation. The judges lie in the folder `SENTIMENT`, an environment
variable, by default `runs/sentiment`.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from tddpo_jax.errors import UserError


def labeller(prompt: Any, answer: str, row: dict[str, Any]) -> float:
    """The judge that makes the pairs."""
    return _score("labeller", row, answer)


def gold(prompt: Any, answer: str, row: dict[str, Any]) -> float:
    """The judge of another network and other sentences, which no training sees."""
    return _score("gold", row, answer)


def vader(prompt: Any, answer: str, row: dict[str, Any]) -> float:
    """The lexicon of vaderSentiment, -1 to 1."""
    return _lexicon().polarity_scores(row["prefix"] + answer)["compound"]


def _score(name: str, row: dict[str, Any], answer: str) -> float:
    return float(_judge(name).scores([row["prefix"] + answer])[0])


@functools.cache
def _judge(name: str) -> Any:
    from .judges import Judge

    file = Path(os.environ.get("SENTIMENT", "runs/sentiment")) / f"{name}.npz"
    if not file.is_file():
        raise UserError(f"{file}: no such judge; see eval/studies/sentiment")
    return Judge(file)


@functools.cache
def _lexicon() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
