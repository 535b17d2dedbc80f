"""The device mesh `data x fsdp x tensor`, and the check that it can share a model evenly."""

from __future__ import annotations

import math

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from tddpo_jax.config.schema import MeshConfig
from tddpo_jax.errors import UserError
from tddpo_jax.models.architecture import DecoderConfig, kinds_of_layers
from tddpo_jax.placement.shardings import axis_devices


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The device mesh with axes `data`, `fsdp`, `tensor`.

    Args:
        config: sizes of the axes; one of them may be -1, which means all remaining devices.
        devices: the devices to use; default: all.

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
        problem = (
            f"does not divide {count}"
            if open_axes
            else f"needs {fixed} devices; available: {len(devices)}"
        )
        raise UserError(f"mesh: {product} {problem}")
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 3, devices=devices
    )


def check_mesh(mesh: Mesh | AbstractMesh, config: DecoderConfig) -> None:
    """Refuses a mesh that cannot share this model evenly.

    Raises:
        UserError: an axis of the mesh does not divide a dimension of the model.
    """
    for _, layer in kinds_of_layers(config):
        # Attention shares whole heads, so the number of heads must be divisible too.
        _check_divides(mesh, ("tensor",), "heads", layer.attention.heads)
        _check_divides(mesh, ("tensor",), "key/value heads", layer.attention.key_value_heads)
    for parameter in config.parameters:
        sharing = axis_devices(parameter)
        for axis, names, size in zip(parameter.tensor.axes, sharing, parameter.shape, strict=True):
            _check_divides(mesh, names, axis.replace("_", "-"), size)


def _check_divides(
    mesh: Mesh | AbstractMesh, names: tuple[str, ...], dimension: str, size: int
) -> None:
    devices = math.prod(mesh.shape[name] for name in names)
    if size % devices:
        axes = " x ".join(name for name in mesh.axis_names if name in names)
        raise UserError(f"mesh.{axes}: {devices} does not divide the model's {dimension}, {size}")


def row_devices(mesh: Mesh | AbstractMesh) -> int:
    """Number of devices over which the rows of a batch are spread."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
