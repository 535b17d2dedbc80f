"""Log-probabilities of responses: the head applied where a response token is predicted.

`[B, T, V]` never exists: scores are cut into chunks, each computed in float32 and computed again in
the backward pass. Of a chunk's `[B, C, V]` arrays only the logits and their gradient exist.

Letters: B rows, T stream positions, S scores, C scores of a chunk, D width, V vocabulary,
P examples of a row, N responses of an example, K chunks.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from tddpo_jax.batches.layout import Batch

CHUNK = 512


def branch_logps(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    batch: Batch,
    *,
    with_tails: bool = False,
) -> Float[Array, "B P values"]:
    """log pi(response | prompt) of every response, in nats: float32 sums over its tokens.

    Args:
        hidden: the model's hidden states.
        head: the output embedding.
        batch: the packed rows that the hidden states belong to.
        with_tails: whether the sums over the tails follow, so that the last axis has 2 N values. A
            tail is what a response has beyond the length of the example's shortest response.
    """
    states = jnp.take_along_axis(hidden, batch.score_position[..., None], axis=1)
    token_logps = _token_logps(_chunks(states), head, _chunks(batch.score_target))
    whole = _sum_by_branch(token_logps, batch)
    if not with_tails:
        return whole
    tails = _sum_by_branch(jnp.where(_chunks(_in_tail(batch)), token_logps, 0.0), batch)
    return jnp.concatenate([whole, tails], axis=-1)


def _in_tail(batch: Batch) -> Bool[Array, "B S"]:
    """Whether a score belongs to a tail. The scores of a branch stand together, in their order."""
    branch = batch.score_branch
    rows, scores = branch.shape
    places = jnp.broadcast_to(jnp.arange(scores), (rows, scores))
    starts = jnp.pad(branch[:, 1:] != branch[:, :-1], ((0, 0), (1, 0)))
    first = jax.lax.cummax(jnp.where(starts, places, 0), axis=1)
    responses = batch.lengths.shape[-1]
    shared = jnp.repeat(jnp.min(batch.lengths, axis=-1), responses, axis=1)
    # An unused score belongs to the branch behind the last one.
    shared = jnp.pad(shared, ((0, 0), (0, 1)))
    return places - first >= jnp.take_along_axis(shared, branch, axis=1)


def branch_misses(
    hidden: Float[Array, "B T D"], head: Float[Array, "V D"], batch: Batch
) -> Float[Array, "B P N"]:
    """How many tokens of every response are not the likeliest; 0: greedy decoding gives it.

    Of equally likely tokens, the one with the lowest id counts as the likeliest.

    Args:
        hidden: this and the others: as in `branch_logps`.
        head: see `hidden`.
        batch: see `hidden`.
    """

    def chunk(_: None, scores: tuple[Array, Array]) -> tuple[None, Array]:
        states, targets = scores
        likeliest = jnp.argmax(_logits(states, head), axis=-1)
        return None, (likeliest != targets).astype(jnp.float32)

    states = jnp.take_along_axis(hidden, batch.score_position[..., None], axis=1)
    _, misses = jax.lax.scan(chunk, None, (_chunks(states), _chunks(batch.score_target)))
    return _sum_by_branch(misses, batch)


@jax.custom_vjp
def _token_logps(
    states: Float[Array, "K B C D"], head: Float[Array, "V D"], targets: Int[Array, "K B C"]
) -> Float[Array, "K B C"]:
    """The log-prob of each target, in nats and float32.

    JAX's own backward pass writes three arrays of the logits' size for each chunk. This one keeps
    the normaliser of each score and writes the gradient of the logits once.
    """
    return _token_logps_forward(states, head, targets)[0]


def _token_logps_forward(states: Array, head: Array, targets: Array) -> tuple[Array, tuple]:
    def chunk(_: None, scores: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
        states, targets = scores
        logits = _logits(states, head)
        largest = jnp.max(logits, axis=-1)
        rest = jnp.log(jnp.sum(jnp.exp(logits - largest[..., None]), axis=-1))
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return None, (chosen - largest - rest, largest + rest)

    _, (logps, normalisers) = jax.lax.scan(chunk, None, (states, targets))
    return logps, (states, head, targets, normalisers)


def _token_logps_backward(kept: tuple, cotangent: Float[Array, "K B C"]) -> tuple:
    states, head, targets, normalisers = kept

    def chunk(head_gradient: Array, scores: tuple[Array, ...]) -> tuple[Array, Array]:
        states, targets, normaliser, cotangent = scores
        logits = _logits(states, head)
        is_target = jax.lax.broadcasted_iota(targets.dtype, logits.shape, 2) == targets[..., None]
        slope = is_target - jnp.exp(logits - normaliser[..., None])
        gradient = (cotangent[..., None] * slope).astype(states.dtype)
        # Without the barrier XLA computes the gradient once for each of the two products. On CPU,
        # XLA copies the left operand when it contracts over scores: it should be the narrower one.
        gradient = jax.lax.optimization_barrier(gradient)
        of_head = jnp.einsum("BCD,BCV->DV", states, gradient, preferred_element_type=jnp.float32)
        of_states = jnp.einsum("BCV,VD->BCD", gradient, head.astype(states.dtype))
        return head_gradient + of_head, of_states

    start = jnp.zeros(head.shape[::-1], jnp.float32)
    of_head, of_states = jax.lax.scan(chunk, start, (states, targets, normalisers, cotangent))
    # Of a single chunk, XLA would turn the product round in place of its result. On a CPU there is
    # then no code for bfloat16.
    of_head = jax.lax.optimization_barrier(of_head).T
    return of_states, of_head.astype(head.dtype), None


_token_logps.defvjp(_token_logps_forward, _token_logps_backward)


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
    states = jnp.take_along_axis(hidden, position[..., None], axis=1)
    return jax.nn.log_softmax(_logits(states, head), axis=-1)


def _logits(states: Float[Array, "B C D"], head: Float[Array, "V D"]) -> Float[Array, "B C V"]:
    return jnp.einsum(
        "BCD,VD->BCV", states, head.astype(states.dtype), preferred_element_type=jnp.float32
    )


def _chunks(scores: Shaped[Array, "B S *rest"]) -> Shaped[Array, "K B C *rest"]:
    rows, count, *rest = scores.shape
    size = min(CHUNK, count)
    padded = jnp.pad(scores, ((0, 0), (0, -count % size), *((0, 0) for _ in rest)))
    return jnp.moveaxis(padded.reshape(rows, -1, size, *rest), 1, 0)


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
