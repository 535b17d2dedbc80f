"""Numbers in four bits beside their definition."""

import ml_dtypes
import numpy as np

from tddpo_jax.models.mxfp4 import MXFP4, unpacked


def test_every_code_with_every_exponent_is_exact():
    """Expected: sign, exponent and mantissa of the format e2m1, written out."""
    codes = np.arange(32, dtype=np.uint8) % 16
    blocks = (codes[0::2] | codes[1::2] << 4).reshape(1, 1, 1, 16)
    exponents = np.arange(1, 252, dtype=np.uint8)
    found = unpacked(
        np.broadcast_to(blocks, (1, len(exponents), 1, 16)), exponents.reshape(1, -1, 1)
    )
    assert found.dtype == ml_dtypes.bfloat16
    for code in range(16):
        exponent, mantissa = code >> 1 & 3, code & 1
        value = mantissa / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + mantissa / 2)
        wanted = [(-1) ** (code >> 3) * value * 2.0 ** (int(each) - 127) for each in exponents]
        np.testing.assert_array_equal(found[0, code].astype(np.float64), wanted)
        np.testing.assert_array_equal(found[0, code + 16], found[0, code])


def test_parts_have_the_shapes_of_the_hub():
    assert MXFP4.shapes((6, 96, 128)) == ((6, 128, 3, 16), (6, 128, 3))
