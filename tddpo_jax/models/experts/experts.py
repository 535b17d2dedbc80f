"""A feed-forward layer of many experts, of which every token uses a few.

The products run over the choices of tokens alone, without a capacity. A dropped token would differ
between the policy and the kept reference. Padding is routed like any token, which is harmless.

Letters: B rows, T stream positions, K choices of a token, E experts, D width, F feed-forward.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray
from qwix import QArray

from tddpo_jax.models.experts.grouped import Implementation, grouped, tile_rows
from tddpo_jax.models.experts.routing import Route
from tddpo_jax.models.experts.tiles import Rows, collected, placed, rows_of_experts, spread
from tddpo_jax.models.linear import Adapter

# Computes the hidden part from the results of the gate and of the up product.
Activation = Callable[[Array, Array], Array]


def silu_gated(gate: Array, up: Array) -> Array:
    """The hidden part of an expert whose gate is SiLU."""
    return jax.nn.silu(gate) * up


@dataclasses.dataclass(frozen=True)
class ExpertsShape:
    """The sizes and settings of a layer's experts."""

    experts: int
    chosen: int  # number of experts that a token uses
    width: int
    feed_forward: int  # hidden features of each expert
    activation: Activation
    biases: bool = False
    weighs_input: bool = False  # whether a choice's weight scales what its expert reads

    @property
    def axes(self) -> dict[str, int]:
        """The sizes of the axes of its weights, by the names that the tensor table has for them."""
        return {
            "experts": self.experts,
            "halves": 2,  # gate and up
            "feed_forward": self.feed_forward,
            "routes": self.experts,
            "routed": self.width,
        }


class Bank(NamedTuple):
    """What one product of all experts multiplies with."""

    weight: Array | QArray
    bias: Array | None
    a: Array | None  # the factors of an adapter; the second has its scale in it
    b: Array | None
    gate: Array | None = None  # `[B, R]`: factors of the adapter's ranks in each row of the batch


class Banks(NamedTuple):
    """The weights of all experts, or of those that a device holds."""

    gate_up: Bank  # weight [E, 2, F, D]: gate, then up
    down: Bank  # weight [E, D, F]


class ExpertLinear(nnx.Module):
    """The weights `[E, *outputs, inputs]` of one product of all experts."""

    def __init__(
        self,
        experts: int,
        outputs: tuple[int, ...],
        inputs: int,
        key: PRNGKeyArray,
        *,
        has_bias: bool,
    ) -> None:
        shape = (experts, *outputs, inputs)
        self.weight = nnx.Param(0.02 * jax.random.normal(key, shape))
        self.bias: nnx.Param | None = nnx.data(
            nnx.Param(jnp.zeros(shape[:-1])) if has_bias else None
        )
        self.adapter: Adapter | None = nnx.data(None)

    @property
    def bank(self) -> Bank:
        bias = None if self.bias is None else self.bias[...]
        weight = self.weight.get_value()
        if self.adapter is None:
            return Bank(weight, bias, None, None)
        return Bank(weight, bias, *self.adapter.factors(), self.adapter.gate_of_ranks())


def routed_sum(
    x: Float[Array, "B T D"],
    route: Route,
    banks: Banks,
    shape: ExpertsShape,
    *,
    implementation: Implementation = "tiles",
    first: Array | int = 0,
) -> Float[Array, "B T D"]:
    """The sum of the outputs of every token's experts, without the bias of their last product.

    Args:
        x: what the experts read.
        route: the experts of every token, and their weights.
        banks: the weights of the experts `first` and following; other experts add nothing.
        shape: settings of the layer.
        implementation: of the products.
        first: number of the first expert whose weights are in `banks`.
    """
    tokens, chosen = x.reshape(-1, x.shape[-1]), route.expert.reshape(-1, route.expert.shape[-1])
    weight = route.weight.reshape(chosen.shape)
    here = banks.down.weight.shape[0]
    tile = tile_rows(implementation, chosen.size, shape.experts)
    rows = rows_of_experts(chosen, here, tile, first)
    inner = spread(tokens, rows)
    if shape.weighs_input:
        inner = inner * placed(weight, rows)[:, None].astype(inner.dtype)
    length = x.shape[1]
    gate_up = _product(inner, banks.gate_up, rows, length, tile, implementation)
    gate, up = jnp.split(gate_up, 2, axis=1)
    y = _product(shape.activation(gate, up), banks.down, rows, length, tile, implementation)
    of_choices = collected(y, rows)
    if shape.weighs_input:
        out = jnp.sum(of_choices, axis=1)
    else:
        sums = jnp.promote_types(x.dtype, jnp.float32)
        out = jnp.einsum("NKD,NK->ND", of_choices.astype(sums), weight.astype(sums))
    return out.astype(x.dtype).reshape(x.shape)


def _product(
    x: Array, bank: Bank, rows: Rows, length: int, tile: int, implementation: Implementation
) -> Float[Array, "R O"]:
    """The product with a bank's weights, plus what its adapter adds, plus its bias."""

    def times(x: Array, weight: Any) -> Array:
        flat = jax.tree.map(lambda leaf: leaf.reshape(len(leaf), -1, leaf.shape[-1]), weight)
        return grouped(x, flat, rows.sizes, tile, implementation)

    y = times(x, bank.weight)
    if bank.a is not None:
        narrow = times(x, bank.a)
        if bank.gate is not None:
            of_tokens = jnp.repeat(bank.gate, length, axis=0)
            narrow = narrow * spread(of_tokens, rows).astype(narrow.dtype)
        y = y + times(narrow, bank.b)
    if bank.bias is None:
        return y
    return y + _bias_of_rows(bank.bias.reshape(len(bank.bias), -1), rows).astype(y.dtype)


def _bias_of_rows(bias: Float[Array, "E O"], rows: Rows) -> Float[Array, "R O"]:
    """The bias of every row's expert. It is a product, because a gather's gradient is slow."""
    expert = jnp.searchsorted(jnp.cumsum(rows.sizes), jnp.arange(len(rows.choice)), side="right")
    return jax.nn.one_hot(expert, len(bias), dtype=bias.dtype) @ bias


class Experts(nnx.Module):
    """The weights of all experts of a layer. The router is the family's own."""

    def __init__(self, shape: ExpertsShape, key: PRNGKeyArray) -> None:
        first, second = jax.random.split(key)
        self.shape = shape
        count, width, inner = shape.experts, shape.width, shape.feed_forward
        has_bias = shape.biases
        self.gate_up = ExpertLinear(count, (2, inner), width, first, has_bias=has_bias)
        self.down = ExpertLinear(count, (width,), inner, second, has_bias=has_bias)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        route: Route,
        run: Callable[..., Array] = routed_sum,
    ) -> Float[Array, "B T D"]:
        """The sum over every token's experts.

        Args:
            x: what the experts read.
            route: the experts of every token, and their weights.
            run: computes the products, as `routed_sum`.
        """
        down = self.down.bank
        out = run(x, route, Banks(self.gate_up.bank, down._replace(bias=None)), self.shape)
        if down.bias is None:
            return out
        # Every expert's share in a token: a narrow product over all experts, on every device alike.
        hot = jax.nn.one_hot(route.expert, self.shape.experts, dtype=route.weight.dtype)
        share = hot if self.shape.weighs_input else hot * route.weight[..., None]
        bias = down.bias.astype(share.dtype)
        return out + jnp.einsum("BTKE,ED->BTD", share, bias).astype(out.dtype)


def router_logits(
    x: Float[Array, "B T D"], weight: Float[Array, "E D"], bias: Float[Array, " E"] | None = None
) -> Float[Array, "B T E"]:
    """The scores of all experts, at least in float32.

    In bfloat16, the choice at a near tie would change with the shape of the batch.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    logits = jnp.einsum(
        "BTD,ED->BTE", x.astype(wide), weight.astype(wide), precision=jax.lax.Precision.HIGHEST
    )
    return logits if bias is None else logits + bias.astype(wide)[None, None]
