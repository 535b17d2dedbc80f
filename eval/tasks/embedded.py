"""The embedded task: fixed requests for short texts.

No embedded pair has these prompts.
"""

from __future__ import annotations

from tddpo_jax.embedded.task import divided_prompts

Conversation = list[dict[str, str]]


def prompts() -> list[Conversation]:
    """All prompts, as conversations of one message."""
    return [[{"role": "user", "content": prompt.text}] for prompt in divided_prompts()["questions"]]
