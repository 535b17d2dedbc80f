"""Llama as flax.nnx modules: shapes and mathematics, no mesh, no files, no loss.

Einsum letters: B rows, T stream positions, D width, H heads, K key/value heads, I and O the inputs
and outputs of a linear layer.

Weights keep the orientation of the Hugging Face checkpoint, `[outputs, inputs]`, and the layers are
stacked on a leading axis, so that conversion is renaming and stacking and nothing else.

References:
    Touvron et al., "Llama 2: Open Foundation and Fine-Tuned Chat Models" (2023).
    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, PRNGKeyArray
from qwix import QArray
from qwix import dequantize as qwix_dequantize

from tddpo_jax.models.attention.ranges import attention

Remat = Literal["none", "full", "dots"]
LINEAR_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama-3's stretching of the slow rotary frequencies (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The shape of a Llama; nothing here has a default, for a wrong default would be silent."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    feed_forward: int
    context: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    norm_epsilon: float
    tied: bool


def rope_frequencies(config: LlamaConfig) -> Float[Array, " half"]:
    """Radians per position of each rotated pair of features, float32 `[head_size / 2]`."""
    exponent = jnp.arange(0, config.head_size, 2, dtype=jnp.float32) / config.head_size
    frequency = 1.0 / config.rope_theta**exponent
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    turns = scaling.original_context * frequency / (2 * jnp.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequency * (smooth + (1 - smooth) / scaling.factor)


def rotate(
    x: Float[Array, "B T H size"], angle: Float[Array, "B T half"]
) -> Float[Array, "B T H size"]:
    """Rotates feature i against feature i + size/2 (the layout of Hugging Face's checkpoints)."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


class RMSNorm(nnx.Module):
    def __init__(self, width: int, epsilon: float) -> None:
        self.weight = nnx.Param(jnp.ones(width))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        x32 = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        normed = (x32 * jax.lax.rsqrt(mean_square + self.epsilon)).astype(x.dtype)
        return normed * self.weight[...].astype(x.dtype)


def dense(weight: Array | QArray) -> Array:
    """A weight as an ordinary array, whether it is stored quantised or not."""
    return qwix_dequantize(weight) if isinstance(weight, QArray) else weight


@jax.custom_vjp
def linear(x: Float[Array, "B T I"], weight: Array | QArray) -> Float[Array, "B T O"]:
    """`x W^T` in the dtype of x, for a weight `[O, I]` of any dtype, quantised or not.

    Backward makes the weight whole again, so nothing holds it but as it is stored.
    """
    return jnp.einsum("BTI,OI->BTO", x, dense(weight).astype(x.dtype))


def _linear_forward(x: Array, weight: Array | QArray) -> tuple[Array, tuple]:
    return linear(x, weight), (x, weight)


def _linear_backward(saved: tuple, d_out: Array) -> tuple[Array, Array | None]:
    x, weight = saved
    d_x = jnp.einsum("BTO,OI->BTI", d_out, dense(weight).astype(x.dtype))
    if isinstance(weight, QArray):  # frozen
        return d_x, None
    # XLA copies its left operand to sum over tokens on a CPU; JAX alone would put d_out there.
    if x.shape[-1] <= d_out.shape[-1]:
        d_weight = jnp.einsum("BTI,BTO->IO", x, d_out).T
    else:
        d_weight = jnp.einsum("BTO,BTI->OI", d_out, x)
    return d_x, d_weight.astype(weight.dtype)


linear.defvjp(_linear_forward, _linear_backward)


class LoraParam(nnx.Param):
    """A trainable factor of an adapter, told from the frozen base by its type."""


class Adapter(nnx.Module):
    """A low-rank addition to a linear layer, `scale * x A^T B^T` (Hu et al., "LoRA", 2021).

    A starts random and B zero, so that a fresh adapter adds nothing.
    """

    def __init__(
        self, inputs: int, outputs: int, rank: int, scale: float, dropout: float, key: PRNGKeyArray
    ) -> None:
        # Uniform in +-1/sqrt(inputs), as PEFT starts it (Kaiming with a = sqrt(5)).
        bound = inputs**-0.5
        self.a = LoraParam(jax.random.uniform(key, (rank, inputs), minval=-bound, maxval=bound))
        self.b = LoraParam(jnp.zeros((outputs, rank)))
        self.scale = scale
        self.dropout = dropout
        # What each row of a batch makes of each rank, `[B, R]`, where rows have different adapters.
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


class Linear(nnx.Module):
    """`x W^T`, computed in the dtype of x, plus what its adapter adds.

    A quantised weight is made whole here, layer by layer, and never kept.
    """

    def __init__(self, inputs: int, outputs: int, key: PRNGKeyArray) -> None:
        self.weight = nnx.Param(0.02 * jax.random.normal(key, (outputs, inputs)))
        self.adapter: Adapter | None = nnx.data(None)

    def __call__(
        self, x: Float[Array, "B T I"], dropout_key: PRNGKeyArray | None = None
    ) -> Float[Array, "B T O"]:
        y = linear(x, self.weight.get_value())
        return y if self.adapter is None else y + self.adapter(x, dropout_key)


# One key per linear layer, in the order of LINEAR_NAMES.
DropoutKeys = tuple[PRNGKeyArray | None, ...]
NO_DROPOUT: DropoutKeys = (None,) * len(LINEAR_NAMES)


class Block(nnx.Module):
    """One layer: attention and a gated feed-forward, each behind a norm and beside the stream."""

    def __init__(self, config: LlamaConfig, key: PRNGKeyArray) -> None:
        keys = jax.random.split(key, len(LINEAR_NAMES))
        query, key_value = (n * config.head_size for n in (config.heads, config.key_value_heads))
        self.config = config
        self.attention_norm = RMSNorm(config.width, config.norm_epsilon)
        self.q_proj = Linear(config.width, query, keys[0])
        self.k_proj = Linear(config.width, key_value, keys[1])
        self.v_proj = Linear(config.width, key_value, keys[2])
        self.o_proj = Linear(query, config.width, keys[3])
        self.mlp_norm = RMSNorm(config.width, config.norm_epsilon)
        self.gate_proj = Linear(config.width, config.feed_forward, keys[4])
        self.up_proj = Linear(config.width, config.feed_forward, keys[5])
        self.down_proj = Linear(config.feed_forward, config.width, keys[6])

    def queries_keys_values(
        self,
        x: Float[Array, "B T D"],
        angle: Float[Array, "B T half"],
        keys: DropoutKeys = NO_DROPOUT,
    ) -> tuple[Float[Array, "B T H size"], Float[Array, "B T K size"], Float[Array, "B T K size"]]:
        """The rotated queries and keys, and the values, of normed input."""
        heads = (*x.shape[:2], -1, self.config.head_size)
        q = rotate(_product(self.q_proj(x, keys[0])).reshape(heads), angle)
        k = rotate(_product(self.k_proj(x, keys[1])).reshape(heads), angle)
        return q, k, _product(self.v_proj(x, keys[2])).reshape(heads)

    def feed_forward(
        self, x: Float[Array, "B T D"], keys: DropoutKeys = NO_DROPOUT
    ) -> Float[Array, "B T D"]:
        # Behind a barrier, and so are their gradients: each is the operand of several products, and
        # fused into the transpose that one of them wants, the activation would be computed down
        # columns (on CPU; on a GPU products read and write memory in any case).
        gate, up = jax.lax.optimization_barrier(
            (_product(self.gate_proj(x, keys[4])), _product(self.up_proj(x, keys[5])))
        )
        return self.down_proj(jax.nn.silu(gate) * up, keys[6])

    def __call__(
        self,
        x: Float[Array, "B T D"],
        angle: Float[Array, "B T half"],
        attend: Callable[[Array, Array, Array], Array],
        keys: DropoutKeys = NO_DROPOUT,
    ) -> Float[Array, "B T D"]:
        q, k, v = self.queries_keys_values(self.attention_norm(x), angle, keys)
        attended = attend(q, k, v).reshape(*x.shape[:2], -1)
        x = _product(x + self.o_proj(attended, keys[3]))
        return x + self.feed_forward(self.mlp_norm(x), keys)


def _product(x: Array) -> Array:
    """Marks a large product, which the remat policy `dots` keeps."""
    return checkpoint_name(x, "product")


def _rematerialised(function: Callable, remat: Remat) -> Callable:
    if remat == "none":
        return function
    policies = jax.checkpoint_policies
    policy = {
        "full": policies.nothing_saveable,
        "dots": policies.save_only_these_names("product", "attention"),
    }[remat]
    # Within a scan nothing can be merged across the two passes, so nothing need prevent it.
    return jax.checkpoint(function, policy=policy, prevent_cse=False)


class Llama(nnx.Module):
    """A decoder that returns hidden states; `logprobs.py` applies the head where it is needed."""

    def __init__(self, config: LlamaConfig, key: PRNGKeyArray) -> None:
        embed_key, head_key, layers_key = jax.random.split(key, 3)
        self.config = config
        shape = (config.vocabulary, config.width)
        self.embed = nnx.Param(0.02 * jax.random.normal(embed_key, shape))
        layer_keys = jax.random.split(layers_key, config.layers)
        self.layers = jax.vmap(lambda layer_key: Block(config, layer_key))(layer_keys)
        self.norm = RMSNorm(config.width, config.norm_epsilon)
        if not config.tied:
            self.head = nnx.Param(0.02 * jax.random.normal(head_key, shape))

    @property
    def head_weight(self) -> Float[Array, "V D"]:
        return self.embed[...] if self.config.tied else self.head[...]

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        key_start: Int[Array, "B T"],
        key_end: Int[Array, "B T"],
        *,
        dtype: jnp.dtype | type,
        attend: Callable[..., Array] = attention,
        remat: Remat = "none",
        constrain: Callable[[Array], Array] = lambda x: x,
        dropout_key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B T D"]:
        """The hidden state of every stream position, after the last norm.

        Args:
            tokens: token ids `[B, T]`.
            positions: rotary position of each token; the storage order is free.
            key_start: first stream position each token sees.
            key_end: one past the last stream position each token sees.
            dtype: of the computation; weights are cast at use.
            attend: takes queries, keys, values, key_start and key_end, as `attention` does.
            remat: what the backward pass recomputes.
            constrain: applied to the stream between layers, to pin its sharding.
            dropout_key: of the adapters' dropout; none: no dropout.
        """
        angle = positions[:, :, None].astype(jnp.float32) * rope_frequencies(self.config)

        def in_range(q: Array, k: Array, v: Array) -> Array:
            return attend(q, k, v, key_start, key_end)

        def layer(x: Array, block_and_key: tuple[Block, Array | None]) -> tuple[Array, None]:
            block, key = block_and_key
            keys = NO_DROPOUT if key is None else tuple(jax.random.split(key, len(LINEAR_NAMES)))
            return constrain(block(x, angle, in_range, keys)), None

        x = constrain(self.embed[...][tokens].astype(dtype))
        layer_keys = None
        if dropout_key is not None:
            layer_keys = jax.random.split(dropout_key, self.config.layers)
        x, _ = jax.lax.scan(_rematerialised(layer, remat), x, (self.layers, layer_keys))
        return self.norm(x)


def count_parameters(model: Llama) -> int:
    """Number of weights, of a real model or of one from `jax.eval_shape`."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
