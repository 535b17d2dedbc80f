"""Linear layers, quantised or not, and the low-rank adapters beside them.

Letters: B rows, T stream positions, I inputs, O outputs, R ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, PRNGKeyArray
from qwix import QArray
from qwix import dequantize as qwix_dequantize


def dense(weight: Array | QArray) -> Array:
    """A weight as an ordinary array, dequantised if necessary."""
    return qwix_dequantize(weight) if isinstance(weight, QArray) else weight


@jax.custom_vjp
def linear(x: Float[Array, "B T I"], weight: Array | QArray) -> Float[Array, "B T O"]:
    """`x W^T` in the dtype of x, for a weight `[O, I]` of any dtype, quantised or not.

    The backward pass dequantises and casts the weight again. So only the stored weight is kept.
    """
    return jnp.einsum("BTI,OI->BTO", x, dense(weight).astype(x.dtype))


def _linear_forward(x: Array, weight: Array | QArray) -> tuple[Array, tuple]:
    return linear(x, weight), (x, weight)


def _linear_backward(saved: tuple, d_out: Array) -> tuple[Array, Array | None]:
    x, weight = saved
    d_x = jnp.einsum("BTO,OI->BTI", d_out, dense(weight).astype(x.dtype))
    if isinstance(weight, QArray):  # frozen
        return d_x, None
    # On CPU, XLA copies the left operand when it contracts over tokens. Put the narrower one there;
    # JAX's own gradient would always put d_out there.
    if x.shape[-1] <= d_out.shape[-1]:
        d_weight = jnp.einsum("BTI,BTO->IO", x, d_out).T
    else:
        d_weight = jnp.einsum("BTO,BTI->OI", d_out, x)
    return d_x, d_weight.astype(weight.dtype)


linear.defvjp(_linear_forward, _linear_backward)


class LoraParam(nnx.Param):
    """A trainable factor of an adapter. Its type separates it from the frozen base."""


class Adapter(nnx.Module):
    """A low-rank addition to a linear layer, `scale * x A^T B^T` (Hu et al., "LoRA", 2021).

    A starts random and B starts as zeros, so a fresh adapter adds nothing.
    """

    def __init__(
        self, inputs: int, outputs: int, rank: int, scale: float, dropout: float, key: PRNGKeyArray
    ) -> None:
        # A is uniform in +-1/sqrt(inputs), as in PEFT (Kaiming with a = sqrt(5)).
        bound = inputs**-0.5
        self.a = LoraParam(jax.random.uniform(key, (rank, inputs), minval=-bound, maxval=bound))
        self.b = LoraParam(jnp.zeros((outputs, rank)))
        self.scale = scale
        self.dropout = dropout
        # If the rows of a batch have different adapters: the factor of each rank in each row,
        # `[B, R]`.
        self.gate: nnx.Variable | None = nnx.data(None)

    def __call__(
        self, x: Float[Array, "B T I"], dropout_key: PRNGKeyArray | None
    ) -> Float[Array, "B T O"]:
        if dropout_key is not None and self.dropout > 0:
            kept = jax.random.bernoulli(dropout_key, 1 - self.dropout, x.shape)
            x = jnp.where(kept, x / (1 - self.dropout), 0).astype(x.dtype)
        down = linear(x, self.a[...])
        if self.gate is not None:
            down = down * self.gate[...][:, None].astype(x.dtype)
        return linear(self.scale * down, self.b[...])

    def factors(self) -> tuple[Array, Array]:
        """A, and B with the scale in it."""
        return self.a[...], self.scale * self.b[...]

    def gate_of_ranks(self) -> Float[Array, "B R"] | None:
        """The factor of each rank in each row, if rows have different adapters."""
        return None if self.gate is None else self.gate[...]


class Linear(nnx.Module):
    """`x W^T`, computed in the dtype of x, plus a bias and the output of its adapter, if any.

    A quantised weight is dequantised here, layer by layer, and the result is never kept. The bias
    is never quantised.
    """

    def __init__(
        self, inputs: int, outputs: int, key: PRNGKeyArray, *, has_bias: bool = False
    ) -> None:
        self.weight = nnx.Param(0.02 * jax.random.normal(key, (outputs, inputs)))
        self.bias: nnx.Param | None = nnx.data(nnx.Param(jnp.zeros(outputs)) if has_bias else None)
        self.adapter: Adapter | None = nnx.data(None)

    def __call__(
        self, x: Float[Array, "B T I"], dropout_key: PRNGKeyArray | None = None
    ) -> Float[Array, "B T O"]:
        y = linear(x, self.weight.get_value())
        if self.bias is not None:
            y = y + self.bias[...][None, None].astype(x.dtype)
        return y if self.adapter is None else y + self.adapter(x, dropout_key)


# One key for each linear layer of a block. None: no dropout.
DropoutKeys = Sequence[PRNGKeyArray | None]


def dropout_keys(key: PRNGKeyArray | None, count: int) -> DropoutKeys:
    """Splits a block's key for the dropout of its adapters."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def gated(activation: Callable[[Array], Array], gate: Array, up: Array) -> Array:
    """`activation(gate) * up`, for the results of two products."""
    # Several products read these arrays and their gradients. On CPU, without the barrier, XLA would
    # fuse the activation into the transpose that one of the products needs, and compute it column
    # by column. On GPU the barrier costs nothing, because products write to memory anyway.
    gate, up = jax.lax.optimization_barrier((mark_product(gate), mark_product(up)))
    return activation(gate) * up


def mark_product(x: Array) -> Array:
    """Marks the result of a large product, so that the remat policy `dots` keeps it."""
    return checkpoint_name(x, "product")
