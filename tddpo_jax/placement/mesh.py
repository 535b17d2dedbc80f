"""The device mesh, `data x fsdp x tensor`, and which models it can share evenly."""

from __future__ import annotations

import math

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from tddpo_jax.config.schema import MeshConfig
from tddpo_jax.errors import UserError
from tddpo_jax.models.llama.model import LlamaConfig


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The device mesh with axes `data`, `fsdp`, `tensor`.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": config.data, "fsdp": config.fsdp, "tensor": config.tensor}
    open_axes = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if open_axes and len(devices) % fixed == 0:
        sizes[open_axes[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        product = " x ".join(f"{name} {size}" for name, size in sizes.items())
        count = f"{len(devices)} devices"
        problem = f"does not divide {count}" if open_axes else f"makes {fixed}, there are {count}"
        raise UserError(f"mesh: {product} {problem}")
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 3, devices=devices
    )


def check_mesh(mesh: Mesh | AbstractMesh, config: LlamaConfig) -> None:
    """Refuses a mesh that cannot share this model evenly.

    Raises:
        UserError: an axis of the mesh does not divide a dimension of the model.
    """
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    divided = [
        ("fsdp", fsdp, {"width": config.width}),
        (
            "tensor",
            tensor,
            {
                "heads": config.heads,
                "key/value heads": config.key_value_heads,
                "vocabulary": config.vocabulary,
            },
        ),
        (
            "fsdp x tensor",
            fsdp * tensor,
            {
                "queries": config.heads * config.head_size,
                "keys": config.key_value_heads * config.head_size,
                "feed-forward": config.feed_forward,
            },
        ),
    ]
    for axis, devices, dimensions in divided:
        for name, size in dimensions.items():
            if size % devices:
                raise UserError(
                    f"mesh.{axis}: {devices} does not divide the model's {name}, {size}"
                )


def row_devices(mesh: Mesh) -> int:
    """Devices over which the rows of a batch are spread."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
