"""The accelerators that `plan` knows, with the numbers of their data sheets.

The numbers come from NVIDIA's data sheets, without sparsity, and from the device descriptions in
OpenXLA's source (`xla/backends/gpu/target_config/specs`). XLA reads such a description to compile
for a GPU that the machine does not have.
"""

from __future__ import annotations

import dataclasses
import math

from tddpo_jax.config.spelling import did_you_mean
from tddpo_jax.errors import UserError

GIB = 2**30
# GPUs with GDDR6 and error correction keep the check bits in a sixteenth of their memory.
CHECKED = 15 / 16
# Bytes per second each way over 16 lanes of PCI Express, by its generation.
PCIE_4, PCIE_5 = 32e9, 63e9


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
    threads: int = 2048  # most threads of a core


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
# "NVIDIA Ampere GA102 GPU Architecture" (whitepaper), tables of the GeForce RTX 3090.
_RTX_3090 = Device(
    kind="NVIDIA GeForce RTX 3090",
    rate=71e12,
    memory=24 * GIB,
    bandwidth=936e9,
    link=PCIE_4,
    capability=(8, 6),
    cores=82,
    lanes=128,
    clock=1.695,
    shared_memory=102_400,
    cache=6_291_456,
    threads=1536,
)
# "NVIDIA Ada GPU Architecture" (whitepaper), table of the GeForce RTX 4090.
_RTX_4090 = Device(
    kind="NVIDIA GeForce RTX 4090",
    rate=165.2e12,
    memory=24 * GIB,
    bandwidth=1.008e12,
    link=PCIE_4,
    capability=(8, 9),
    cores=128,
    lanes=128,
    clock=2.52,
    shared_memory=102_400,
    cache=75_497_472,
    threads=1536,
)
# "NVIDIA RTX Blackwell GPU Architecture" (whitepaper), table of the GeForce RTX 5090.
_RTX_5090 = dataclasses.replace(
    _RTX_4090,
    kind="NVIDIA GeForce RTX 5090",
    rate=209.5e12,
    memory=32 * GIB,
    bandwidth=1.792e12,
    link=PCIE_5,
    capability=(12, 0),
    cores=170,
    clock=2.407,
    cache=100_663_296,
)
# "NVIDIA L4 Tensor Core GPU" (data sheet), which gives 242 TFLOP/s with sparsity: half without.
_L4 = dataclasses.replace(
    _RTX_4090,
    kind="NVIDIA L4",
    rate=121e12,
    memory=int(24 * GIB * CHECKED),
    bandwidth=300e9,
    cores=58,
    clock=2.04,
    cache=50_331_648,
)
# "NVIDIA L40S" (data sheet).
_L40S = dataclasses.replace(
    _RTX_4090,
    kind="NVIDIA L40S",
    rate=362e12,
    memory=int(48 * GIB * CHECKED),
    bandwidth=864e9,
    cores=142,
    cache=100_663_296,
)
# "NVIDIA A10G" (data sheet of the GPU of AWS's G5 instances): slower than an A10.
_A10G = dataclasses.replace(
    _RTX_3090,
    kind="NVIDIA A10G",
    rate=70e12,
    memory=int(24 * GIB * CHECKED),
    bandwidth=600e9,
    cores=72,
    clock=1.71,
)
# There is no T4 here: GPUs of that generation have no bfloat16 products.
DEVICES = {
    "rtx-3090": _RTX_3090,
    "rtx-4090": _RTX_4090,
    "rtx-5090": _RTX_5090,
    "l4": _L4,
    "l40s": _L40S,
    "a10g": _A10G,
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
    return next((rate for kind, rate in rates.items() if _is_kind(device_kind, kind)), None)


def _is_kind(device_kind: str, kind: str) -> bool:
    """Whether a JAX name is that of a kind: `NVIDIA A100-SXM4-40GB` is, `NVIDIA L40S` is no L4.

    A GeForce with one more word, such as Ti or Laptop, is another GPU.
    """
    if device_kind == kind:
        return True
    return device_kind.startswith((f"{kind} ", f"{kind}-")) and "GeForce" not in kind


def find_device(
    name: str, memory: float | None = None, tflops: float | None = None
) -> tuple[str, Device]:
    """A device by its name, and what to call it.

    Args:
        name: a name in `DEVICES`.
        memory: GiB of memory in place of the device's own.
        tflops: 10^12 operations per second, dense in bfloat16, in place of the device's own.

    Raises:
        UserError: there is no such device, or a number is not above 0.
    """
    if name not in DEVICES:
        begun = [known for known in DEVICES if known.startswith(name.lower())]
        meant = did_you_mean(name, DEVICES)
        guess = f"; did you mean {' or '.join(begun)}?" if begun else meant
        raise UserError(
            f"device: there is no device {name!r}{guess} (known: {', '.join(DEVICES)}; for any "
            "other, give --device-memory and --device-tflops)"
        )
    for option, value in (("device-memory", memory), ("device-tflops", tflops)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{option}: must be a number above 0, got {value}")
    device, other = DEVICES[name], []
    if memory is not None:
        device, other = dataclasses.replace(device, memory=int(memory * GIB)), [f"{memory:g} GiB"]
    if tflops is not None:
        device = dataclasses.replace(device, rate=tflops * 1e12)
        other.append(f"{tflops:g} TFLOP/s")
    return (f"{name} with {' and '.join(other)}" if other else name), device


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
      threads_per_core_limit: {device.threads}
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
