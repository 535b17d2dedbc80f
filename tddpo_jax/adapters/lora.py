"""Adapters beside a frozen base, and the base in four bits.

A model that comes with an adapter keeps it, frozen like the base, below the one that is trained:
merged into the base it would be rounded with it, and in four bits lost.

References:
    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021).
    Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs" (2023); NF4 in appendix E.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from tddpo_jax.config.schema import LoraConfig
from tddpo_jax.models.decoder import Llama
from tddpo_jax.models.linear import Adapter, Linear, LoraParam, dense
from tddpo_jax.models.llama.model import LINEAR_NAMES
from tddpo_jax.placement.shardings import replicated


class SecondAdapter(Adapter):
    """An adapter that is trained on top of a first one, which is frozen and sees no dropout."""

    def __init__(self, first: Adapter, own: Adapter) -> None:
        self.a, self.b = own.a, own.b
        self.scale, self.dropout = own.scale, own.dropout
        self.gate = nnx.data(None)
        self.first = first

    def __call__(
        self, x: Float[Array, "B T I"], dropout_key: PRNGKeyArray | None
    ) -> Float[Array, "B T O"]:
        return self.first(x, None) + super().__call__(x, dropout_key)


def add_adapters(model: Llama, config: LoraConfig, seed: int, mesh: Mesh) -> None:
    """Gives every target layer of the model a fresh adapter, stacked like the layers.

    A frozen adapter of such a layer stays below it.

    Args:
        model: changed in place.
        config: rank, alpha, dropout, targets.
        seed: of the random factor A.
        mesh: adapters are whole on every device.
    """
    place = functools.partial(jax.jit, out_shardings=replicated(mesh))
    attach(model, config, jax.random.key(seed), place)
    check_fresh(model)


def attach(
    model: Llama,
    config: LoraConfig,
    key: PRNGKeyArray,
    place: Callable[[Callable], Callable] = lambda make: make,
) -> None:
    """Puts fresh adapters into the model, all made by one function that went through `place`."""

    def make(key: PRNGKeyArray) -> dict[str, Adapter]:
        adapters: dict[str, Adapter] = {}
        for number, name in enumerate(LINEAR_NAMES):
            if name not in config.targets:
                continue
            outputs, inputs = getattr(model.layers, name).weight.shape[1:]
            keys = jax.random.split(jax.random.fold_in(key, number), model.config.layers)
            fresh = functools.partial(
                Adapter, inputs, outputs, config.rank, config.alpha / config.rank, config.dropout
            )
            adapters[name] = jax.vmap(fresh)(keys)
        return adapters

    first = frozen_adapters(model)
    for name, own in place(make)(key).items():
        linear: Linear = getattr(model.layers, name)
        linear.adapter = SecondAdapter(first[name], own) if name in first else own


def freeze_adapters(model: Llama) -> None:
    """Makes the model's adapters part of its frozen base, in place."""
    for adapter in _adapters(model).values():
        for factor in ("a", "b"):
            setattr(adapter, factor, nnx.Param(getattr(adapter, factor)[...]))


def frozen_adapters(model: Llama) -> dict[str, Adapter]:
    """By the name of the linear layer, the adapters that belong to the frozen base."""
    lowest = {
        name: adapter.first if isinstance(adapter, SecondAdapter) else adapter
        for name, adapter in _adapters(model).items()
    }
    return {name: each for name, each in lowest.items() if not isinstance(each.a, LoraParam)}


def whole_adapters(model: Llama) -> dict[str, Adapter]:
    """By the name of the linear layer, all that is added to it, as one adapter of one rank.

    A first and a second adapter stand side by side on the rank axis, their scales in B; zeros fill
    up the ranks of layers that have only one of them.
    """
    adapters = _adapters(model)
    if not frozen_adapters(model):
        return adapters
    parts = {
        name: [adapter.first, adapter] if isinstance(adapter, SecondAdapter) else [adapter]
        for name, adapter in adapters.items()
    }
    rank = max(sum(part.a.shape[1] for part in layer) for layer in parts.values())
    return {name: _side_by_side(layer, rank) for name, layer in parts.items()}


def _side_by_side(parts: Sequence[Adapter], rank: int) -> Adapter:
    a = jnp.concatenate([part.a[...] for part in parts], axis=1)
    b = jnp.concatenate([part.scale * part.b[...] for part in parts], axis=2)
    missing = rank - a.shape[1]
    sizes = a.shape[2], b.shape[1], rank, 1.0, parts[-1].dropout
    adapter = jax.eval_shape(lambda key: Adapter(*sizes, key), jax.random.key(0))
    adapter.a = LoraParam(jnp.pad(a, ((0, 0), (0, missing), (0, 0))))
    adapter.b = LoraParam(jnp.pad(b, ((0, 0), (0, 0), (0, missing))))
    return adapter


def _adapters(model: Llama) -> dict[str, Adapter]:
    linears = {name: getattr(model.layers, name) for name in LINEAR_NAMES}
    return {name: linear.adapter for name, linear in linears.items() if linear.adapter is not None}


def check_fresh(model: Llama) -> None:
    """Refuses adapters that do not start as nothing, or that could never learn.

    Raises:
        ValueError: not exactly one factor of an adapter is zero.
    """
    for name, adapter in _adapters(model).items():
        if not isinstance(adapter.a, LoraParam):
            continue
        zero = [not bool(jnp.any(factor[...])) for factor in (adapter.a, adapter.b)]
        if sum(zero) != 1:
            raise ValueError(
                f"lora: {name} must start with exactly one zero factor, has {sum(zero)}"
            )


def merged(model: Llama, dtype: Any) -> Llama:
    """The model with its adapters added into (dequantised) weights, all of it in this dtype."""
    graphdef, state = nnx.split(model)
    copy = nnx.merge(graphdef, state)
    adapters = whole_adapters(copy)
    for name in LINEAR_NAMES:
        linear: Linear = getattr(copy.layers, name)
        weight = dense(linear.weight.get_value())
        if name in adapters:
            adapter = adapters[name]
            a, b = adapter.a[...], adapter.b[...]
            change = adapter.scale * jnp.einsum("LOR,LRI->LOI", b, a)
            weight = weight.astype(jnp.float32) + change
        linear.weight, linear.adapter = nnx.Param(weight.astype(dtype)), None
    return jax.tree.map(lambda weight: weight.astype(dtype), copy)


def fresh_adapters(model: Llama, config: LoraConfig, seed: int, mesh: Mesh) -> nnx.State:
    """The parameters of new adapters for the model, as a run with this seed starts with them."""
    add_adapters(model, config, seed, mesh)
    return nnx.state(model, LoraParam)
