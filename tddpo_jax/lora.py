"""Adapters beside a frozen base, and the base in four bits.

References:
    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021).
    Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs" (2023); NF4 in appendix E.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import qwix
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PRNGKeyArray

from tddpo_jax.config import LoraConfig
from tddpo_jax.model import LINEAR_NAMES, Adapter, Linear, Llama, LoraParam, dense
from tddpo_jax.sharding import replicated

NF4_BLOCK = 64


def add_adapters(model: Llama, config: LoraConfig, seed: int, mesh: Mesh) -> None:
    """Gives every target layer of the model a fresh adapter, stacked like the layers.

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
    """Puts fresh adapters into the model, each made by a function that went through `place`."""
    for number, name in enumerate(LINEAR_NAMES):
        if name not in config.targets:
            continue
        linear: Linear = getattr(model.layers, name)
        outputs, inputs = linear.weight.shape[1:]
        keys = jax.random.split(jax.random.fold_in(key, number), model.config.layers)
        fresh = functools.partial(
            Adapter, inputs, outputs, config.rank, config.alpha / config.rank, config.dropout
        )
        linear.adapter = place(jax.vmap(fresh))(keys)


def check_fresh(model: Llama) -> None:
    """Refuses adapters that do not start as nothing, or that could never learn.

    Raises:
        ValueError: not exactly one factor of an adapter is zero.
    """
    for name in LINEAR_NAMES:
        adapter = getattr(model.layers, name).adapter
        if adapter is None:
            continue
        zero = [not bool(jnp.any(factor[...])) for factor in (adapter.a, adapter.b)]
        if sum(zero) != 1:
            raise ValueError(
                f"lora: {name} must start with exactly one zero factor, has {sum(zero)}"
            )


def quantize(model: Llama) -> None:
    """Stores the linear layers of the blocks as NF4, in place: 4 bits, one scale per 64 inputs.

    Raises:
        ValueError: a layer's inputs are not a multiple of the block size.
    """
    for name in LINEAR_NAMES:
        linear: Linear = getattr(model.layers, name)
        inputs = linear.weight.shape[-1]
        if inputs % NF4_BLOCK:
            raise ValueError(
                f"train.mode qlora: {name} has {inputs} inputs, no multiple of {NF4_BLOCK}"
            )
        linear.weight = nnx.Param(_nf4(linear.weight.get_value()))


def _nf4(weight: Array) -> qwix.QArray:
    """The weight in four bits; values and scales lie where the weight lies.

    Left to itself the compiler would hold them whole on every device.
    """
    quantized = functools.partial(
        qwix.quantize, qtype="nf4", channelwise_axes=(0, 1), tiled_axes={2: NF4_BLOCK}
    )
    place = getattr(weight, "sharding", None)
    if not isinstance(place, NamedSharding):
        return jax.jit(quantized)(weight)
    # Blocks that do not divide among the devices that share the inputs are whole on each of them.
    sharing_inputs = weight.shape[2] // place.shard_shape(weight.shape)[2]
    whole = NamedSharding(place.mesh, PartitionSpec(*place.spec[:2]))
    places = jax.tree.map(
        lambda part: whole if part.shape[2] % sharing_inputs else place,
        jax.eval_shape(quantized, weight),
    )
    return jax.jit(quantized, out_shardings=places)(weight)


def merged(model: Llama) -> Llama:
    """The model with its adapters added into (dequantised) weights, in the base's dtype."""
    graphdef, state = nnx.split(model)
    copy = nnx.merge(graphdef, state)
    for name in LINEAR_NAMES:
        linear: Linear = getattr(copy.layers, name)
        weight = dense(linear.weight.get_value())
        if linear.adapter is not None:
            a, b = linear.adapter.a[...], linear.adapter.b[...]
            change = linear.adapter.scale * jnp.einsum("LOR,LRI->LOI", b, a)
            weight = (weight.astype(jnp.float32) + change).astype(weight.dtype)
        linear.weight, linear.adapter = nnx.Param(weight), None
    return copy


def fresh_adapters(model: Llama, config: LoraConfig, seed: int, mesh: Mesh) -> nnx.State:
    """The parameters of new adapters for the model, as a run with this seed starts with them."""
    add_adapters(model, config, seed, mesh)
    return nnx.state(model, LoraParam)
