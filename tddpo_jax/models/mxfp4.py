"""MXFP4: numbers in four bits, of which 32 share a scale that is a power of two.

References:
    Open Compute Project, "OCP Microscaling Formats (MX) Specification" (2023), section 5.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
from jaxtyping import Float, Shaped, UInt8

from tddpo_jax.models.tensor_table import Packing

GROUP = 32  # numbers that share a scale
BYTES = GROUP // 2
BIAS = 127  # of the scales' exponents
# The value of every code: 0 to 7, and their negatives.
POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
VALUES = np.array([*POSITIVE, *(-value for value in POSITIVE)], np.float32)


def unpacked(
    blocks: UInt8[np.ndarray, "E O G 16"], scales: UInt8[np.ndarray, "E O G"]
) -> Float[np.ndarray, "E I O"]:
    """The numbers as bfloat16, which holds them exactly, with inputs before outputs.

    Args:
        blocks: two numbers in each byte, the first in its low half; G groups of inputs.
        scales: the exponent of each group's scale plus 127.
    """
    experts, outputs, groups, _ = blocks.shape
    numbers = np.empty((experts, outputs, groups, GROUP), ml_dtypes.bfloat16)
    for expert in range(experts):  # float32 needs twice the memory, for one expert at a time
        exponents = scales[expert].astype(np.int32)[..., None] - BIAS
        for place, codes in enumerate((blocks[expert] & 15, blocks[expert] >> 4)):
            numbers[expert, ..., place::2] = np.ldexp(VALUES[codes], exponents)
    return numbers.reshape(experts, outputs, -1).swapaxes(1, 2)


def four_bits(
    blocks: UInt8[np.ndarray, "E O G 16"], scales: UInt8[np.ndarray, "E O G"]
) -> tuple[Shaped[np.ndarray, "E I O"], Float[np.ndarray, "E G O"]]:
    """The numbers before they are scaled, in four bits, and the scales in bfloat16.

    Nothing is rounded. Arguments are as for `unpacked`.
    """
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:2], -1)
    # The exponent's bits are those of bfloat16 behind the sign. 2^-127 has no exponent there.
    bits = np.where(scales > 0, scales.astype(np.uint16) << 7, 0x40).astype(np.uint16)
    values = codes.view(ml_dtypes.float4_e2m1fn), bits.view(ml_dtypes.bfloat16)
    return values[0].swapaxes(1, 2), values[1].swapaxes(1, 2)


def _shapes(shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    experts, inputs, outputs = shape
    scales = (experts, outputs, inputs // GROUP)
    return (*scales, BYTES), scales


MXFP4 = Packing(("_blocks", "_scales"), ("U8", "U8"), _shapes, unpacked, four_bits)
