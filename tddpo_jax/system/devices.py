"""The accelerators that `plan` knows, with the numbers of their data sheets.

The numbers come from NVIDIA's data sheets and from the device descriptions in OpenXLA's source
(`xla/backends/gpu/target_config/specs`). XLA reads such a description to compile for a GPU that
the machine does not have.
"""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Device:
    """One accelerator."""

    kind: str  # beginning of JAX's `device_kind`
    rate: float  # operations per second, dense products in bfloat16
    memory: int  # bytes
    bandwidth: float  # bytes per second of the memory
    link: float  # bytes per second each way to the other devices of the machine
    capability: tuple[int, int]  # CUDA compute capability
    cores: int  # number of streaming multiprocessors
    lanes: int  # number of float32 units per core
    clock: float  # GHz
    shared_memory: int  # bytes per core
    cache: int  # bytes of the level-2 cache


_A100 = Device(
    kind="NVIDIA A100",
    rate=312e12,
    memory=85_100_068_864,
    bandwidth=2.039e12,
    link=300e9,
    capability=(8, 0),
    cores=108,
    lanes=64,
    clock=1.41,
    shared_memory=167_936,
    cache=41_943_040,
)
_H100 = Device(
    kind="NVIDIA H100",
    rate=989e12,
    memory=84_942_979_072,
    bandwidth=3.352e12,
    link=450e9,
    capability=(9, 0),
    cores=132,
    lanes=128,
    clock=1.98,
    shared_memory=233_472,
    cache=52_428_800,
)
_B200 = Device(
    kind="NVIDIA B200",
    rate=2250e12,
    memory=191_514_411_008,
    bandwidth=7.672e12,
    link=900e9,
    capability=(10, 0),
    cores=148,
    lanes=128,
    clock=1.965,
    shared_memory=233_472,
    cache=132_644_864,
)
DEVICES = {
    "a100-40": dataclasses.replace(_A100, memory=42_331_013_120, bandwidth=1.555e12),
    "a100-80": _A100,
    "h100-80": _H100,
    "h200-141": dataclasses.replace(
        _H100, kind="NVIDIA H200", memory=151_397_597_184, bandwidth=4.8e12
    ),
    "b200-180": _B200,
}
# Rates of accelerators that `plan` does not know, by kind.
OTHER_RATES = {"TPU v4": 275e12, "TPU v5p": 459e12}


def data_sheet_rate(device_kind: str) -> float | None:
    """Dense bfloat16 operations per second of a device by its JAX name; None if unknown."""
    rates = {device.kind: device.rate for device in DEVICES.values()} | OTHER_RATES
    return next((rate for kind, rate in rates.items() if device_kind.startswith(kind)), None)


def target_config(device: Device) -> str:
    """The description of a device for XLA's compiler, as the text of a `GpuTargetConfigProto`."""
    major, minor = device.capability
    return f"""
    platform_name: "CUDA"
    device_description_str: "{device.kind}"
    dnn_version_info {{ major: 9 minor: 10 }}
    gpu_device_info {{
      cuda_compute_capability {{ major: {major} minor: {minor} }}
      core_count: {device.cores}
      fpus_per_core: {device.lanes}
      clock_rate_ghz: {device.clock}
      device_memory_size: {device.memory}
      memory_bandwidth: {int(device.bandwidth)}
      l2_cache_size: {device.cache}
      shared_memory_per_core: {device.shared_memory}
      shared_memory_per_block: 49152
      shared_memory_per_block_optin: {device.shared_memory - 1024}
      threads_per_warp: 32
      threads_per_block_limit: 1024
      threads_per_core_limit: 2048
      registers_per_core_limit: 65536
      registers_per_block_limit: 65536
      block_dim_limit_x: 2147483647
      block_dim_limit_y: 65535
      block_dim_limit_z: 65535
      thread_dim_limit_x: 1024
      thread_dim_limit_y: 1024
      thread_dim_limit_z: 64
    }}
    """
