"""Low-rank adapters beside a frozen base.

If a model comes with an adapter, that first adapter stays and is frozen like the base. The adapter
that is trained is a second one beside it. Merging the first adapter into the base would round it
with the base, and a base in four bits would lose it.

References:
    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, PRNGKeyArray
from qwix import QArray

from tddpo_jax.config.schema import LoraConfig
from tddpo_jax.errors import UserError
from tddpo_jax.models.architecture import DecoderConfig
from tddpo_jax.models.buffer import with_weights_in
from tddpo_jax.models.decoder import Decoder, adaptable_layers
from tddpo_jax.models.experts.experts import ExpertLinear
from tddpo_jax.models.linear import Adapter, Linear, LoraParam, dense
from tddpo_jax.models.tensor_table import adaptable_parameters, linear_parameters
from tddpo_jax.placement.shardings import parameter_specs, path_name


class SecondAdapter(Adapter):
    """An adapter that is trained on top of a first one. The first is frozen and has no dropout."""

    def __init__(self, first: Adapter, own: Adapter) -> None:
        self.a, self.b = own.a, own.b
        self.scale, self.dropout = own.scale, own.dropout
        self.gate = nnx.data(None)
        self.first = first

    def __call__(
        self, x: Float[Array, "B T I"], dropout_key: PRNGKeyArray | None
    ) -> Float[Array, "B T O"]:
        return self.first(x, None) + super().__call__(x, dropout_key)

    def factors(self) -> tuple[Array, Array]:
        first, own = self.first.factors(), super().factors()
        a, b = zip(first, own, strict=True)
        return jnp.concatenate(a, axis=-2), jnp.concatenate(b, axis=-1)

    def gate_of_ranks(self) -> Float[Array, "B R"] | None:
        gate = super().gate_of_ranks()
        if gate is None:
            return None
        always = jnp.ones((len(gate), self.first.a.shape[-2]), gate.dtype)
        return jnp.concatenate([always, gate], axis=1)


def target_paths(config: LoraConfig, model: DecoderConfig) -> list[str]:
    """The paths of the linear layers and experts that get adapters.

    By default these are all linear layers, and no experts.

    Raises:
        UserError: `lora.targets` has a name of nothing that can have an adapter, or experts are to
            have dropout.
    """
    weights = [
        weight
        for weight in adaptable_parameters(model.parameters)
        if weight.tensor.kind == "linear" or weight.tensor.target is not None
    ]
    names = list(dict.fromkeys(weight.name for weight in weights))
    for target in config.targets or ():
        if target not in names:
            raise UserError(
                f"lora.targets: {target} names nothing that can have an adapter here, only "
                f"{', '.join(names)}"
            )
    if config.targets is None:
        return [weight.module for weight in linear_parameters(weights)]
    chosen = [weight for weight in weights if weight.name in config.targets]
    if config.dropout and any(weight.tensor.kind == "experts" for weight in chosen):
        raise UserError("lora.dropout: must be 0 for adapters of experts")
    return [weight.module for weight in chosen]


def add_adapters(model: Decoder, config: LoraConfig, seed: int, mesh: Mesh) -> None:
    """Gives every target layer of the model a fresh adapter, stacked like the layers.

    If a target layer already has a frozen adapter, that one stays.

    Args:
        model: changed in place.
        config: rank, scale, dropout, targets.
        seed: seed of the random factor A.
        mesh: the devices; each holds the adapters whole, except those of other devices' experts.

    Raises:
        UserError: as for `target_paths`.
    """
    specs = parameter_specs(model.config)

    def sharding(path: Any, _: Any) -> NamedSharding:
        module, _, factor = path_name(path).rpartition(".")
        return NamedSharding(mesh, specs[f"{module}.adapter.{factor}"])

    def place(make: Callable) -> Callable:
        made = jax.eval_shape(make, jax.random.key(seed))
        return jax.jit(make, out_shardings=jax.tree_util.tree_map_with_path(sharding, made))

    attach(model, config, jax.random.key(seed), place)
    check_fresh(model)


def attach(
    model: Decoder,
    config: LoraConfig,
    key: PRNGKeyArray,
    place: Callable[[Callable], Callable] = lambda make: make,
) -> None:
    """Puts fresh adapters into the model.

    Args:
        model: changed in place.
        config: rank, scale, dropout, targets.
        key: random key for the factors A.
        place: wraps the function that makes all adapters, for example in a jit with shardings.
    """

    def make(key: PRNGKeyArray) -> dict[str, Adapter]:
        adapters: dict[str, Adapter] = {}
        for number, (path, linear) in enumerate(linears.items()):
            if path not in targets:
                continue
            adapters[path] = _fresh(linear, config, jax.random.fold_in(key, number))
        return adapters

    linears, targets = adaptable_layers(model), target_paths(config, model.config)
    first = frozen_adapters(model)
    for path, own in place(make)(key).items():
        linears[path].adapter = SecondAdapter(first[path], own) if path in first else own


def _fresh(linear: Linear | ExpertLinear, config: LoraConfig, key: PRNGKeyArray) -> Adapter:
    """A fresh adapter of every layer, and of every expert of it."""
    depth, shape = 1 if isinstance(linear, Linear) else 2, linear.weight.shape
    stacked, outputs, inputs = shape[:depth], shape[depth:-1], shape[-1]
    sizes = inputs, math.prod(outputs), config.rank, config.scale, config.dropout
    make: Any = functools.partial(Adapter, *sizes)
    for _ in stacked:
        make = jax.vmap(make)
    adapter = make(jax.random.split(key, stacked))
    adapter.b = LoraParam(adapter.b[...].reshape(*stacked, *outputs, config.rank))
    return adapter


def freeze_adapters(model: Decoder) -> None:
    """Makes the model's adapters part of its frozen base, in place."""
    for adapter in _adapters(model).values():
        for factor in ("a", "b"):
            setattr(adapter, factor, nnx.Param(getattr(adapter, factor)[...]))


def frozen_adapters(model: Decoder) -> dict[str, Adapter]:
    """The adapters that belong to the frozen base, by the path of their linear layer."""
    lowest = {
        path: adapter.first if isinstance(adapter, SecondAdapter) else adapter
        for path, adapter in _adapters(model).items()
    }
    return {path: each for path, each in lowest.items() if not isinstance(each.a, LoraParam)}


def whole_adapters(model: Decoder) -> dict[str, Adapter]:
    """For each adapted layer, by its path, one adapter that adds the same as all of its own.

    A first and a second adapter become one, side by side on the rank axis, with their scales
    multiplied into B. All layers get the same rank, so zeros pad those that have only one adapter.
    """
    adapters = _adapters(model)
    if not frozen_adapters(model):
        return adapters
    rank = max(adapter.factors()[0].shape[-2] for adapter in adapters.values())
    return {path: _of_rank(adapter, rank) for path, adapter in adapters.items()}


def _of_rank(adapter: Adapter, rank: int) -> Adapter:
    a, b = adapter.factors()
    missing = rank - a.shape[-2]
    sizes = a.shape[-1], b.shape[-2], rank, 1.0, adapter.dropout
    padded = jax.eval_shape(lambda key: Adapter(*sizes, key), jax.random.key(0))
    padded.a = LoraParam(jnp.pad(a, [(0, 0)] * (a.ndim - 2) + [(0, missing), (0, 0)]))
    padded.b = LoraParam(jnp.pad(b, [(0, 0)] * (b.ndim - 1) + [(0, missing)]))
    return padded


def _adapters(model: Decoder) -> dict[str, Adapter]:
    linears = adaptable_layers(model)
    return {path: linear.adapter for path, linear in linears.items() if linear.adapter is not None}


def check_fresh(model: Decoder) -> None:
    """Refuses trainable adapters that add something at the start, or that could never learn.

    An adapter adds nothing if one factor is zero. It can never learn if both are.

    Raises:
        ValueError: the number of zero factors of an adapter is not one.
    """
    for path, adapter in _adapters(model).items():
        if not isinstance(adapter.a, LoraParam):
            continue
        zero = [not bool(jnp.any(factor[...])) for factor in (adapter.a, adapter.b)]
        if sum(zero) != 1:
            raise ValueError(
                f"lora: {path} must start with exactly one zero factor, but has {sum(zero)}"
            )


def merged(model: Decoder, dtype: Any) -> Decoder:
    """A copy of the model whose adapters are added into its (dequantised) weights.

    Each weight of the copy is where that of the model is, and is computed layer by layer.

    Args:
        model: the model; it does not change.
        dtype: dtype of all weights of the copy.
    """
    copy = nnx.clone(model)
    adapters = whole_adapters(copy)
    for path, linear in adaptable_layers(copy).items():
        weight, adapter = linear.weight.get_value(), adapters.get(path)
        if adapter is not None or isinstance(weight, QArray):
            factors = None if adapter is None else (adapter.a[...], adapter.b[...], adapter.scale)
            place = weight.qvalue.sharding if isinstance(weight, QArray) else weight.sharding
            merge = jax.jit(_whole, static_argnames="dtype", out_shardings=place)
            linear.weight, linear.adapter = nnx.Param(merge(weight, factors, dtype=dtype)), None
    return with_weights_in(copy, dtype)


def _whole(
    stacked: Array | QArray, factors: tuple[Array, Array, Array | float] | None, *, dtype: Any
) -> Float[Array, "L *outputs I"]:
    """The dequantised weights of all layers, with what their adapters add.

    Args:
        stacked: the weights.
        factors: the adapters' factors and their scale.
        dtype: dtype of the result.
    """

    def of_layer(layer: Any) -> Array:
        weight, pair = layer
        weight = dense(weight)
        # XLA would leave out the rounding to the weight's own dtype before a sum in float32.
        own = jnp.finfo(weight.dtype)
        weight = jax.lax.reduce_precision(weight, own.nexp, own.nmant)
        if factors is None:
            return weight.astype(dtype)
        a, b = pair
        change = jnp.einsum("...OR,...RI->...OI", b.reshape(*a.shape[:-2], -1, b.shape[-1]), a)
        change = factors[2] * change.reshape(weight.shape)
        return (weight.astype(jnp.float32) + change).astype(dtype)

    # On CPU, XLA makes no slices of bfloat16. It converts the stack of this weight before the loop.
    return jax.lax.map(of_layer, (stacked, factors and factors[:2]))


def fresh_adapters(model: Decoder, config: LoraConfig, seed: int, mesh: Mesh) -> nnx.State:
    """Adds new adapters to the model, as a run with this seed does; returns their parameters."""
    add_adapters(model, config, seed, mesh)
    return nnx.state(model, LoraParam)
