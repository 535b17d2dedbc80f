"""The embedded task: fixed requests for short texts, and the embedded world's exact rule.

No embedded pair has these prompts.
"""

from __future__ import annotations

from tddpo_jax.embedded.task import divided_prompts
from tddpo_jax.embedded.task import score as rule

Conversation = list[dict[str, str]]


def prompts() -> list[Conversation]:
    """All prompts, as conversations of one message."""
    return [[{"role": "user", "content": prompt.text}] for prompt in divided_prompts()["questions"]]


def score(answer: str) -> float:
    """The rule's score of an answer, from 0 to 1."""
    return rule(answer)
