"""Keys and values in the small form that a cache holds where both are made of one latent.

References:
    DeepSeek-AI, "DeepSeek-V2" (2024), section 2.1: multi-head latent attention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float


class Latent(NamedTuple):
    """One short vector for each token, which stands for the keys and values of all heads.

    Instead of expanding it, decoding brings every query into its space. There it is both the key
    and the value.
    """

    vector: Float[Array, "B T 1 L"]
    # From queries `[B, T, H, size]` to queries `[B, T, H, L]` that have the same scores.
    absorb: Callable[[Float[Array, "B T H size"]], Float[Array, "B T H L"]]
    # From attention's output over the vectors `[B, T, H, L]` to that over the heads' own values.
    expand: Callable[[Float[Array, "B T H L"]], Float[Array, "B T H value_size"]]
