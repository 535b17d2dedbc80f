"""FP8 in blocks: weights in eight bits, of which 128 x 128 share a scale in float32.

References:
    Micikevicius et al., "FP8 Formats for Deep Learning" (2022): the format e4m3.
    DeepSeek-AI, "DeepSeek-V3 Technical Report" (2024), section 3.3: the blocks.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from tddpo_jax.models.tensor_table import Packing

BLOCK = 128  # rows, and columns, that share a scale


def unpacked(
    weight: Float[np.ndarray, "O I"], scales: Float[np.ndarray, "rows columns"]
) -> Float[np.ndarray, "O I"]:
    """The numbers times their scales, rounded to float32 once.

    The last block of rows and that of columns may be smaller than the others.

    Args:
        weight: numbers of the format e4m3.
        scales: the factor of each block, float32. The hub calls them inverse scales.
    """
    numbers = weight.astype(np.float32)
    for block, row in enumerate(scales):
        factors = np.repeat(row, BLOCK)[: weight.shape[1]]
        numbers[block * BLOCK : (block + 1) * BLOCK] *= factors[None]
    return numbers


def _shapes(shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    return shape, tuple(-(-size // BLOCK) for size in shape)


# The numbers have the tensor's own name.
FP8 = Packing(("", "_scale_inv"), ("F8_E4M3", "F32"), _shapes, unpacked)
