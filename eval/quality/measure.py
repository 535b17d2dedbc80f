"""Measures a policy by its sampled answers, beside the answers of its base.

The KL is a Monte Carlo estimate on the policy's own samples: the mean of log pi(y | x) - log
pi_base(y | x) over answers, divided by their tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32

from tddpo_jax.adapters.load import load_model
from tddpo_jax.batches.layout import Example, score_count
from tddpo_jax.config.schema import ModelConfig
from tddpo_jax.generation.generator import Completion, Generator
from tddpo_jax.generation.rewards import Reward
from tddpo_jax.generation.sampling import Sampling
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.placement.computation import computation
from tddpo_jax.scoring.data_sets import example_log_probs
from tddpo_jax.weights.locate import resolve

from .ngrams import distinct, repetition
from .prompts import Question


class Asked(NamedTuple):
    """The fixed prompts and how answers are sampled.

    Attributes:
        template: the chat template, which ends an answer; None for the tokenizer's own.
        reward: scores the answers; None if nothing does.
    """

    questions: Sequence[Question]
    sampling: Sampling
    seed: int
    template: str | None = None
    reward: Reward | None = None

    @property
    def record(self) -> dict[str, Any]:
        """The facts that comparable figures have in common, as JSON."""
        asked = [(each.ids, each.row) for each in self.questions]
        digest = hashlib.sha256(json.dumps(asked, default=str).encode())
        return {
            "prompts": len(self.questions),
            "prompts_sha256": digest.hexdigest(),
            "sampling": self.sampling._asdict(),
            "seed": self.seed,
            "reward": None if self.reward is None else self.reward.identity,
        }


class Policy(NamedTuple):
    """A model twice: once to sample from, and once, with adapters merged, to score with."""

    generator: Generator
    model: Decoder


class Base(NamedTuple):
    """The base that policies are compared with, and its answers."""

    policy: Policy
    answers: list[Completion]


def load_policy(path: str, mesh: Mesh, template: str | None = None) -> Policy:
    """Loads the policy of a run, a folder or a hub id in float32.

    Raises:
        UserError: there is no model at `path`.
    """
    generator = Generator.from_path(path, "float32", template=template)
    return Policy(generator, load_model(resolve(path), mesh, jnp.float32))


def sampled_answers(generator: Generator, asked: Asked) -> list[Completion]:
    """One sampled answer per prompt. Prompt i has the key (seed, i), whatever the model."""
    ids = _prompt_ids(asked)
    keys = [(asked.seed, number) for number in range(len(ids))]
    return generator.generate(ids, [asked.sampling] * len(ids), keys)


def _prompt_ids(asked: Asked) -> list[Int32[np.ndarray, " n"]]:
    return [np.array(question.ids, np.int32) for question in asked.questions]


def measure(policy: Policy, base: Base, asked: Asked, mesh: Mesh) -> dict[str, Any]:
    """All figures of one policy. `scores` holds one number per prompt, the rest are means.

    Without a reward there are no `scores`, and none of the figures made of them.
    """
    same = policy is base.policy
    ours = base.answers if same else sampled_answers(policy.generator, asked)
    texts = [answer.text for answer in ours]
    return {
        **(_scored(ours, base.answers, asked, asked.reward) if asked.reward else {}),
        "tokens": float(np.mean([len(answer.token_ids) for answer in ours])),
        "unfinished": float(np.mean([answer.finish_reason == "length" for answer in ours])),
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "repetition": float(np.mean([repetition(text) for text in texts])),
        "kl_per_token": kl_per_token(policy, base.policy, asked, ours, mesh),
    }


def _scored(
    ours: Sequence[Completion], of_base: Sequence[Completion], asked: Asked, reward: Reward
) -> dict[str, Any]:
    """What the reward says of the answers."""
    scores, base_scores = (
        np.array(
            [
                reward.score(question.number, question.prompt, answer.text, question.row)
                for question, answer in zip(asked.questions, answers, strict=True)
            ]
        )
        for answers in (ours, of_base)
    )
    wins = (scores > base_scores) + 0.5 * (scores == base_scores)
    return {
        "score": float(scores.mean()),
        "base_score": float(base_scores.mean()),
        "win_rate": float(wins.mean()),
        "scores": scores.tolist(),
    }


def kl_per_token(
    policy: Policy, base: Policy, asked: Asked, ours: Sequence[Completion], mesh: Mesh
) -> float | None:
    """The KL to the base on the policy's samples, in nats per token.

    Answers without tokens are left out. None if no answer has a token.
    """
    answered = [number for number, answer in enumerate(ours) if answer.token_ids]
    if not answered:
        return None
    prompts = _prompt_ids(asked)
    examples = [
        Example(number, prompts[number], (np.array(ours[number].token_ids, np.int32),))
        for number in answered
    ]
    how = computation(ModelConfig(dtype="float32", remat="none"), mesh, policy.model.config)
    logps, base_logps = (
        example_log_probs(model, examples, how, mesh) for model in (policy.model, base.model)
    )
    return float(np.sum(logps - base_logps) / sum(map(score_count, examples)))
