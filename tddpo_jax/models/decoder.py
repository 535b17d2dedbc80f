"""The decoder: embedding, layers, last norm, head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tddpo_jax.models.attention.ranges import attention
from tddpo_jax.models.llama.model import LINEAR_NAMES, NO_DROPOUT, Block, LlamaConfig
from tddpo_jax.models.norm import RMSNorm
from tddpo_jax.models.rope import rope_frequencies

Remat = Literal["none", "full", "dots"]


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
        angle = positions[:, :, None].astype(jnp.float32) * rope_frequencies(
            self.config.head_size, self.config.rope_theta, self.config.rope_scaling
        )

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
