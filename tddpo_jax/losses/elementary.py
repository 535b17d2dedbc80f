"""What losses are written in: types, and functions of JAX that import it when they are called.

The rows of the losses are read for `--help` and to check a configuration. So a file of losses
imports neither JAX nor jaxtyping, for which `--help` would wait.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

# Only tests check shapes, and they load JAX first. Elsewhere these types are not read, and
# importing them would load JAX.
if TYPE_CHECKING or "jax" in sys.modules:
    from jaxtyping import Array, Float

    Numbers = Float[Array, "..."] | float | int
    # A traced scalar inside a compiled step; a Python number is welcome outside of one.
    Scalar = Float[Array, ""] | float
    PerPair = Float[Array, "P"]
    # Of numpy or of JAX; N is 1, or 2 for (chosen, rejected).
    PerResponse = Float[Any, "*axes N"]
    # The same, perhaps with the values of N tails behind those of the responses.
    PerResponseAndTail = Float[Any, "*axes values"]
else:
    Array = Numbers = Scalar = PerPair = PerResponse = PerResponseAndTail = Any


def exp(x: Numbers) -> Array:
    """e^x."""
    import jax.numpy as jnp

    return jnp.exp(x)


def log(x: Numbers) -> Array:
    """The natural logarithm."""
    import jax.numpy as jnp

    return jnp.log(x)


def log1p(x: Numbers) -> Array:
    """log(1 + x), exact for small x too."""
    import jax.numpy as jnp

    return jnp.log1p(x)


def log_sigmoid(x: Numbers) -> Array:
    """log(sigmoid(x)) = -softplus(-x)."""
    import jax

    return jax.nn.log_sigmoid(x)


def maximum(x: Numbers, y: Numbers) -> Array:
    """The larger of two numbers, element by element."""
    import jax.numpy as jnp

    return jnp.maximum(x, y)


def relu(x: Numbers) -> Array:
    """max(0, x), whose gradient at 0 is 0."""
    import jax

    return jax.nn.relu(x)


def sigmoid(x: Numbers) -> Array:
    """1 / (1 + e^-x)."""
    import jax

    return jax.nn.sigmoid(x)


def softplus(x: Numbers) -> Array:
    """log(1 + e^x), without overflow."""
    import jax

    return jax.nn.softplus(x)


def where(condition: Any, x: Numbers, y: Numbers) -> Array:
    """x where the condition holds, else y."""
    import jax.numpy as jnp

    return jnp.where(condition, x, y)
