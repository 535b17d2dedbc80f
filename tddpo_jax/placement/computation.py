"""How a model is computed: dtype, back-end of attention, rematerialisation, sharding of rows."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from tddpo_jax.config.schema import ModelConfig
from tddpo_jax.errors import UserError
from tddpo_jax.models.decoder import Remat
from tddpo_jax.placement.shardings import row_sharding


def compute_dtype(name: str, *, on_cpu: bool | None = None) -> Any:
    """`auto` is bfloat16 on accelerators and float32 on CPU, by default the devices at hand."""
    if name == "auto":
        on_cpu = jax.default_backend() == "cpu" if on_cpu is None else on_cpu
        return jnp.dtype("float32" if on_cpu else "bfloat16")
    return jnp.dtype(name)


# As their kinds begin: H100, H200 and their like, and GH200.
HOPPER = ("NVIDIA H", "NVIDIA GH")


def attention_implementation(config: ModelConfig, kind: str | None = None) -> str:
    """The back-end of attention that the settings mean on a kind of device, by default that here.

    `auto` is `cudnn` for bfloat16 on NVIDIA GPUs and `xla` everywhere else. What is asked for by
    name must be possible there; nothing else ever takes its place.

    Raises:
        UserError: it is not.
    """
    kind = kind or jax.devices()[0].device_kind
    dtype = compute_dtype(config.dtype, on_cpu=kind == "cpu")
    has_cudnn = kind.startswith("NVIDIA") and dtype == jnp.bfloat16
    if config.attention == "auto":
        return "cudnn" if has_cudnn else "xla"
    here = f"and bfloat16, here are {kind} and {dtype}"
    if config.attention == "cudnn" and not has_cudnn:
        raise UserError(f"model.attention: cudnn needs an NVIDIA GPU {here}")
    if config.attention == "tokamax" and not (has_cudnn and kind.startswith(HOPPER)):
        raise UserError(f"model.attention: tokamax needs a Hopper GPU {here}")
    if config.attention == "tokamax" and importlib.util.find_spec("tokamax") is None:
        raise UserError("model.attention: tokamax is not installed: pip install '.[tokamax]'")
    return config.attention


def computation(config: ModelConfig, mesh: Mesh) -> Computation:
    """How the settings say that the model is computed on this mesh."""
    attention = attention_implementation(config)
    return Computation(compute_dtype(config.dtype), attention, config.remat, row_sharding(mesh))


class Computation(NamedTuple):
    """How a model is computed; none of it changes the results beyond rounding."""

    dtype: Any
    attention: str
    remat: Remat
    rows: NamedSharding  # sharding of the stream between layers
