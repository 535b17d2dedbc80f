"""Chooses the next token of every row: greedily, or by temperature, top-k and top-p.

Every setting is a traced array with one value per row. So the rows of a batch may differ, and no
setting causes a new compilation.

Letters: B rows, V vocabulary.

References:
    Holtzman et al., "The Curious Case of Neural Text Degeneration" (2020), for top-p.
    huggingface/transformers, `generation/logits_process.py`, for the order: temperature, top-k,
    top-p.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from tddpo_jax.errors import UserError


class Sampling(NamedTuple):
    """How to continue one prompt.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token and ignores top_k and top_p.
        top_k: sample from the k most likely tokens; 0: from all.
        top_p: sample from the fewest most likely tokens that together have this probability.
        max_new_tokens: largest number of new tokens, if no end of turn comes first.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 256


class Sampler(NamedTuple):
    """The settings of the rows of a batch, as arrays."""

    temperature: Float[Array, " B"]
    top_k: Int[Array, " B"]
    top_p: Float[Array, " B"]
    key: PRNGKeyArray  # [B]


def check(sampling: Sampling) -> None:
    """Refuses settings that are out of range.

    Raises:
        UserError: a setting is out of range; the message names it and its value.
    """
    problems = {
        "temperature": not 0 <= sampling.temperature < float("inf"),
        "top_k": sampling.top_k < 0,
        "top_p": not 0 < sampling.top_p <= 1,
        "max_new_tokens": sampling.max_new_tokens < 1,
    }
    for name, wrong in problems.items():
        if wrong:
            raise UserError(f"{name}: {getattr(sampling, name)} is out of range")


def room_for_prompt(context: int, new_tokens: int) -> int:
    """The most tokens of a prompt.

    Args:
        context: tokens of the model's context.
        new_tokens: the most new tokens.

    Raises:
        UserError: there is no room.
    """
    if new_tokens >= context:
        raise UserError(
            f"max_new_tokens: {new_tokens} leaves no room for a prompt in the model's context of "
            f"{context}"
        )
    return context - new_tokens


def check_keys(keys: Sequence[tuple[int, ...]]) -> None:
    """Refuses numbers from which `row_keys` cannot make keys.

    Raises:
        ValueError: rows have different counts of numbers.
        UserError: a number does not fit 32 bits. Only a user's seed can be such a number.
    """
    if len({len(numbers) for numbers in keys}) > 1:
        raise ValueError("keys: every row must have the same count of numbers")
    for number in (number for numbers in keys for number in numbers):
        if not 0 <= number < 2**32:
            raise UserError(f"seed: must be at least 0 and below 2^32, got {number}")


@jax.jit
@jax.vmap
def row_keys(numbers: UInt32[Array, " N"]) -> PRNGKeyArray:
    """Makes a random key from each row of numbers `[B, N]`. It depends on that row alone."""
    key = jax.random.key(0)
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return key


def next_token(
    logits: Float[Array, "B V"], sampler: Sampler, number: Int[Array, ""] | int
) -> Int[Array, " B"]:
    """Chooses the next token of every row.

    Args:
        logits: logits of the next token, float32.
        sampler: the rows' settings and keys.
        number: number of new tokens that the rows already have; it is folded into their keys.
    """
    greedy = jnp.argmax(logits, axis=-1)

    def sampled() -> Int[Array, " B"]:
        keys = jax.vmap(jax.random.fold_in, (0, None))(sampler.key, number)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
        return jnp.argmax(kept_logits(logits, sampler) + noise, axis=-1)

    # A batch of greedy rows computes neither noise nor sorting.
    drawn = jax.lax.cond(jnp.any(sampler.temperature > 0), sampled, lambda: greedy)
    return jnp.where(sampler.temperature > 0, drawn, greedy)


def kept_logits(logits: Float[Array, "B V"], sampler: Sampler) -> Float[Array, "B V"]:
    """The logits to sample from: divided by the temperature, and -inf for excluded tokens.

    Top-k and top-p exclude tokens. A token that is exactly as likely as the last one kept is kept
    too. transformers does the same for top-k; for top-p it drops some of them by their order.
    """
    warm = sampler.temperature > 0
    scaled = logits / jnp.where(warm, sampler.temperature, 1.0)[:, None]
    restricting = warm & ((sampler.top_k > 0) | (sampler.top_p < 1))
    least = jax.lax.cond(
        jnp.any(restricting),
        lambda: _least_kept(scaled, sampler),
        lambda: jnp.full_like(scaled[:, 0], -jnp.inf),
    )
    return jnp.where(scaled < least[:, None], -jnp.inf, scaled)


def _least_kept(logits: Float[Array, "B V"], sampler: Sampler) -> Float[Array, " B"]:
    """The smallest logit of every row that is kept by top-k and then by top-p."""
    descending = -jnp.sort(-logits, axis=-1)
    vocabulary = logits.shape[-1]
    k = jnp.where(sampler.top_k > 0, jnp.minimum(sampler.top_k, vocabulary), vocabulary)
    least = jnp.take_along_axis(descending, k[:, None] - 1, axis=-1)
    probability = jax.nn.softmax(jnp.where(descending < least, -jnp.inf, descending), axis=-1)
    # A token stays if the tokens before it together have less than top_p. The first always stays.
    before = jnp.cumsum(probability, axis=-1) - probability
    # Rounding may bring the sum to 1 early. With top_p = 1 that must not exclude anything.
    top_p = jnp.where(sampler.top_p < 1, sampler.top_p, jnp.inf)
    stays = (before < top_p[:, None]) & (descending >= least)
    return jnp.min(jnp.where(stays, descending, jnp.inf), axis=-1)
