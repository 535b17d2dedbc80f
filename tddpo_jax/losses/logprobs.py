"""Log-probabilities of responses: the head applied where a response token is predicted.

`[B, T, V]` never exists: scores are cut into chunks, each computed in float32 and computed again in
the backward pass.

Letters: B rows, T stream positions, S scores, C scores of a chunk, D width, V vocabulary,
P examples of a row, N responses of an example, K chunks.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tddpo_jax.batches.layout import Batch

CHUNK = 512


def branch_logps(
    hidden: Float[Array, "B T D"], head: Float[Array, "V D"], batch: Batch
) -> Float[Array, "B P N"]:
    """log pi(response | prompt) of every response, in nats: float32 sums over its tokens.

    Args:
        hidden: the model's hidden states.
        head: the output embedding.
        batch: the packed rows that the hidden states belong to.
    """

    @jax.checkpoint
    def chunk(_: None, scores: tuple[Array, Array]) -> tuple[None, Array]:
        position, target = scores
        log_probs = _log_probs(hidden, head, position)
        return None, jnp.take_along_axis(log_probs, target[..., None], axis=-1)[..., 0]

    _, token_logps = jax.lax.scan(
        chunk, None, (_chunks(batch.score_position), _chunks(batch.score_target))
    )
    return _sum_by_branch(token_logps, batch)


def branch_kl(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    ref_hidden: Float[Array, "B T D"],
    ref_head: Float[Array, "V D"],
    batch: Batch,
) -> Float[Array, "B P N"]:
    """KL(p_theta || p_0) over the vocabulary, in nats, summed over each response."""

    @jax.checkpoint
    def chunk(_: None, position: Array) -> tuple[None, Array]:
        log_probs = _log_probs(hidden, head, position)
        ref_log_probs = _log_probs(ref_hidden, ref_head, position)
        return None, jnp.sum(jnp.exp(log_probs) * (log_probs - ref_log_probs), axis=-1)

    _, token_kl = jax.lax.scan(chunk, None, _chunks(batch.score_position))
    return _sum_by_branch(token_kl, batch)


def _log_probs(hidden: Array, head: Array, position: Int[Array, "B C"]) -> Float[Array, "B C V"]:
    scored = jnp.take_along_axis(hidden, position[..., None], axis=1)
    logits = jnp.einsum(
        "BCD,VD->BCV", scored, head.astype(scored.dtype), preferred_element_type=jnp.float32
    )
    return jax.nn.log_softmax(logits, axis=-1)


def _chunks(scores: Int[Array, "B S"]) -> Int[Array, "K B C"]:
    rows, count = scores.shape
    size = min(CHUNK, count)
    padded = jnp.pad(scores, ((0, 0), (0, -count % size)))
    return jnp.moveaxis(padded.reshape(rows, -1, size), 1, 0)


# Values are split at 2^-8 nats: multiples of it add up exactly in float32 while sums stay below
# 2^16 nats, and what is left of each value is too small for its rounding to matter.
GRAIN = 1 / 256


def _sum_by_branch(values: Float[Array, "K B C"], batch: Batch) -> Float[Array, "B P N"]:
    """Sums that do not depend on where an example stands: a product with indicators, in two parts.

    Added one after another, 300 values of -4 nats would lose up to 1e-3 nats on the way.
    """
    rows, scores = batch.score_branch.shape
    values = jnp.moveaxis(values, 0, 1).reshape(rows, -1)[:, :scores]
    examples, responses = batch.lengths.shape[-2:]
    belongs = jax.nn.one_hot(batch.score_branch, responses * examples, dtype=jnp.float32)
    coarse = jax.lax.stop_gradient(jnp.round(values / GRAIN) * GRAIN)
    parts = jnp.stack([coarse, values - coarse])
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    sums = product("XBS,BSN->XBN", parts, belongs).sum(axis=0)
    return sums.reshape(rows, examples, responses)
