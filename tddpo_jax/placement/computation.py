"""How a model is computed: dtype, attention back-end, rematerialisation, sharding of rows."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from tddpo_jax.config.schema import ModelConfig
from tddpo_jax.errors import UserError
from tddpo_jax.models.architecture import DecoderConfig, kinds_of_layers
from tddpo_jax.models.attention.kernels import HOPPER
from tddpo_jax.models.decoder import Remat
from tddpo_jax.models.experts.grouped import Implementation
from tddpo_jax.placement.shardings import row_sharding


def compute_dtype(name: str, *, on_cpu: bool | None = None) -> Any:
    """The dtype of the computation.

    Args:
        name: a dtype's name, or `auto`: bfloat16 on accelerators and float32 on CPU.
        on_cpu: whether the devices are CPUs; default: as on this machine.
    """
    if name == "auto":
        on_cpu = jax.default_backend() == "cpu" if on_cpu is None else on_cpu
        return jnp.dtype("float32" if on_cpu else "bfloat16")
    return jnp.dtype(name)


def attention_implementation(
    config: ModelConfig, kind: str | None = None, model: DecoderConfig | None = None
) -> str:
    """The attention back-end for a kind of device.

    `auto` is `cudnn` for bfloat16 on NVIDIA GPUs and `xla` everywhere else. It is also `xla` for a
    model with attention sinks, which no kernel supports. A back-end that the
    user names is used or refused, never replaced.

    Args:
        config: the settings.
        kind: the kind of device, as JAX names it; default: the kind on this machine.
        model: the model's shape; None: a model without sinks.

    Returns:
        `xla`, `cudnn` or `tokamax`.

    Raises:
        UserError: the named back-end does not run on this kind of device, or is not installed.
    """
    kind = kind or jax.devices()[0].device_kind
    dtype = compute_dtype(config.dtype, on_cpu=kind == "cpu")
    has_cudnn = kind.startswith("NVIDIA") and dtype == jnp.bfloat16
    if config.attention == "auto":
        layers = () if model is None else kinds_of_layers(model)
        has_sinks = any(layer.attention.sinks for _, layer in layers)
        return "cudnn" if has_cudnn and not has_sinks else "xla"
    here = f"and bfloat16, but this run uses {kind} and {dtype}"
    if config.attention == "cudnn" and not has_cudnn:
        raise UserError(f"model.attention: cudnn needs an NVIDIA GPU {here}")
    if config.attention == "tokamax" and not (has_cudnn and kind.startswith(HOPPER)):
        raise UserError(f"model.attention: tokamax needs a Hopper GPU {here}")
    if config.attention == "tokamax" and importlib.util.find_spec("tokamax") is None:
        raise UserError("model.attention: tokamax is not installed: pip install '.[tokamax]'")
    return config.attention


def computation(config: ModelConfig, mesh: Mesh, model: DecoderConfig) -> Computation:
    """How to compute the model on this mesh, according to the settings."""
    attention = attention_implementation(config, model=model)
    dtype = compute_dtype(config.dtype)
    experts = expert_implementation(dtype, mesh)
    return Computation(dtype, attention, config.remat, row_sharding(mesh), experts)


def expert_implementation(dtype: Any, mesh: Mesh) -> Implementation:
    """The grouped products of experts on the devices of a mesh.

    They are `tokamax` for bfloat16 on Hopper GPUs if it is installed, and `tiles` everywhere else.
    """
    is_installed = importlib.util.find_spec("tokamax") is not None
    is_fit = dtype == jnp.bfloat16 and mesh.devices.flat[0].device_kind.startswith(HOPPER)
    return "tokamax" if is_fit and is_installed else "tiles"


class Computation(NamedTuple):
    """How a model is computed. No field changes the results beyond rounding."""

    dtype: Any
    attention: str  # name of the back-end
    remat: Remat
    rows: NamedSharding  # sharding of the hidden states between layers
    experts: Implementation  # name of the grouped products
