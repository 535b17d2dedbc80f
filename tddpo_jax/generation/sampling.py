"""Choosing the next token: greedy, or by temperature, top-k and top-p, each row in its own way.

Every setting is a traced array with one value per row, so that rows of one batch may differ and no
setting compiles anything anew. B rows, V vocabulary.

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

    temperature: 0 takes the most likely token; the rest of the settings then change nothing.
    top_k: sample from the k most likely tokens; 0: from all.
    top_p: sample from the fewest most likely tokens that hold this probability together.
    max_new_tokens: where to stop if no end of turn comes first.
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
    """Refuses settings that mean nothing.

    Raises:
        UserError: naming the setting and its value.
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


def check_keys(keys: Sequence[tuple[int, ...]]) -> None:
    """Refuses numbers that `row_keys` cannot make keys of.

    Raises:
        ValueError: rows with different counts of numbers, or one that does not fit 32 bits.
    """
    if len({len(numbers) for numbers in keys}) > 1:
        raise ValueError("keys: every row must have the same count of numbers")
    if any(not 0 <= number < 2**32 for numbers in keys for number in numbers):
        raise ValueError("keys: every number must be at least 0 and below 2^32")


@jax.jit
@jax.vmap
def row_keys(numbers: UInt32[Array, " N"]) -> PRNGKeyArray:
    """A random key per row of numbers `[B, N]`, a function of that row alone."""
    key = jax.random.key(0)
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return key


def next_token(
    logits: Float[Array, "B V"], sampler: Sampler, number: Int[Array, ""] | int
) -> Int[Array, " B"]:
    """The token that follows in every row.

    Args:
        logits: float32.
        sampler: the rows' settings.
        number: how many new tokens the rows have already; folded into their keys.
    """
    greedy = jnp.argmax(logits, axis=-1)

    def sampled() -> Int[Array, " B"]:
        keys = jax.vmap(jax.random.fold_in, (0, None))(sampler.key, number)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
        return jnp.argmax(kept_logits(logits, sampler) + noise, axis=-1)

    # A batch of greedy rows pays for neither noise nor sorting.
    drawn = jax.lax.cond(jnp.any(sampler.temperature > 0), sampled, lambda: greedy)
    return jnp.where(sampler.temperature > 0, drawn, greedy)


def kept_logits(logits: Float[Array, "B V"], sampler: Sampler) -> Float[Array, "B V"]:
    """The logits to sample from: divided by the temperature, -inf where top-k or top-p exclude.

    Tokens exactly as likely as the last one kept are kept too; transformers does so for top-k, and
    for top-p drops some of them by their order.
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
    """The smallest logit of every row that stays after top-k, then top-p."""
    descending = -jnp.sort(-logits, axis=-1)
    vocabulary = logits.shape[-1]
    k = jnp.where(sampler.top_k > 0, jnp.minimum(sampler.top_k, vocabulary), vocabulary)
    least = jnp.take_along_axis(descending, k[:, None] - 1, axis=-1)
    probability = jax.nn.softmax(jnp.where(descending < least, -jnp.inf, descending), axis=-1)
    # A token stays while those before it hold less than top_p; the first always does.
    before = jnp.cumsum(probability, axis=-1) - probability
    # Rounding may bring the sum to 1 early, which must not exclude anything.
    top_p = jnp.where(sampler.top_p < 1, sampler.top_p, jnp.inf)
    stays = (before < top_p[:, None]) & (descending >= least)
    return jnp.min(jnp.where(stays, descending, jnp.inf), axis=-1)
