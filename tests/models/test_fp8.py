"""Numbers in eight bits with a scale for each block, beside their definition."""

import ml_dtypes
import numpy as np
import pytest

from tddpo_jax.models.fp8 import BLOCK, FP8, unpacked


def test_every_code_is_exact():
    """Expected: sign, exponent and mantissa of the format e4m3, written out; 127 and 255 are NaN.

    The scale is no power of two, so the product is rounded to float32, once."""
    codes = np.arange(256, dtype=np.uint8).reshape(2, 128)
    scale = np.float32(0.3)
    found = unpacked(codes.view(ml_dtypes.float8_e4m3fn), np.full((1, 1), scale))
    assert found.dtype == np.float32
    for code, number in zip(codes.flat, found.flat, strict=True):
        exponent, mantissa = int(code) >> 3 & 15, int(code) & 7
        if (exponent, mantissa) == (15, 7):
            assert np.isnan(number)
            continue
        value = 2.0 ** (exponent - 7) * (1 + mantissa / 8) if exponent else mantissa / 8 * 2.0**-6
        assert number == np.float32((-1) ** (int(code) >> 7) * value) * scale


@pytest.mark.parametrize("shape", [(200, 300), (128, 256), (1, 1), (64, 129), (576, 128)])
def test_blocks_are_cut_at_the_edges(shape):
    """Expected: the factor of row // 128 and column // 128, number by number."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=shape).astype(ml_dtypes.float8_e4m3fn)
    parts = FP8.shapes(shape)
    assert parts[0] == shape
    scales = rng.uniform(1e-3, 3, parts[1]).astype(np.float32)
    row, column = np.indices(shape) // BLOCK
    wanted = weight.astype(np.float32) * scales[row, column]
    np.testing.assert_array_equal(unpacked(weight, scales), wanted)
