"""Runs a layer's experts over many tokens, a part of them at a time.

A device has room for all choices of all tokens that it sees, because they may all fall on its own
experts. In one piece this room would be many times the hidden states of its own tokens. No token
depends on another, so the result is the same.

Letters: B rows, T stream positions, K choices of a token, D width, N tokens.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tddpo_jax.models.experts.experts import Bank, Banks, ExpertsShape, routed_sum
from tddpo_jax.models.experts.grouped import Implementation
from tddpo_jax.models.experts.routing import Route

# Rows of an expert in a part, on average: so many that its products take longer than reading its
# weights. A part of fewer choices than the second number would save no memory worth having.
ROWS_OF_EXPERT, LEAST_CHOICES = 512, 16384


def choices_of_part(experts: int) -> int:
    """The largest number of choices of tokens in one part, of all devices' experts together."""
    return max(LEAST_CHOICES, ROWS_OF_EXPERT * experts)


def in_parts(
    x: Float[Array, "B T D"],
    route: Route,
    banks: Banks,
    shape: ExpertsShape,
    *,
    implementation: Implementation = "tiles",
    first: Array | int = 0,
) -> Float[Array, "B T D"]:
    """`routed_sum`, in as few equal parts as keep each within `choices_of_part`.

    The backward pass computes each part again. If it computes the whole layer again anyway, it does
    so only once.
    """
    chosen = route.expert.shape[-1]
    tokens = x.shape[0] * x.shape[1]
    parts = math.ceil(tokens * chosen / choices_of_part(shape.experts))
    if parts <= 1:
        return routed_sum(x, route, banks, shape, implementation=implementation, first=first)
    size = math.ceil(tokens / parts)

    def divided(array: Array, fill: int = 0) -> Array:
        """The tokens of each part, each as a row of its own."""
        flat = array.reshape(tokens, *array.shape[2:])
        padding = [(0, parts * size - tokens)] + [(0, 0)] * (flat.ndim - 1)
        return jnp.pad(flat, padding, constant_values=fill).reshape(parts, size, 1, -1)

    def gate_of_tokens(bank: Bank) -> Array | None:
        if bank.gate is None:
            return None
        return divided(jnp.repeat(bank.gate, x.shape[1], axis=0)[:, None])[:, :, 0]

    @jax.checkpoint
    def part(one: tuple[Array, Route, list[Array | None]]) -> Array:
        x, route, gates = one
        own = Banks(*(bank._replace(gate=gate) for bank, gate in zip(banks, gates, strict=True)))
        return routed_sum(x, route, own, shape, implementation=implementation, first=first)

    # No expert has the number that padding chooses.
    expert = divided(route.expert, fill=shape.experts)
    gates = [gate_of_tokens(bank) for bank in banks]
    out = jax.lax.map(part, (divided(x), Route(expert, divided(route.weight)), gates))
    return out.reshape(parts * size, -1)[:tokens].reshape(x.shape)
