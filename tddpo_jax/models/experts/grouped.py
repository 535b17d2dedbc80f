"""The product of rows with the weights of their experts, whose rows stand together.

There are two implementations. `tiles` is ours: a loop over tiles of rows, each of which belongs to
one expert. It costs as much as the rows, on any device. `tokamax` calls the kernels for Hopper GPUs
(Mosaic GPU). JAX's own grouped product computes every row with every expert on a CPU, and on a GPU
it holds all of these results in memory, so it is not used.

Letters: R rows, E experts, O outputs, I inputs, N tiles.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from qwix import QArray

from tddpo_jax.models.attention.kernels import set_tokamax_flags
from tddpo_jax.models.linear import dense

Implementation = Literal["tiles", "tokamax"]
SMALLEST_TILE, LARGEST_TILE = 16, 128  # rows


def tile_rows(implementation: Implementation, choices: int, experts: int) -> int:
    """The number of rows of a tile.

    A tile reads all weights of its expert, and an expert's last tile is half empty on average. So
    tiles grow with the number of rows that an expert has on average. The kernels need no tiles.
    """
    if implementation == "tokamax":
        return 1
    average = max(1, choices // experts)
    return min(LARGEST_TILE, max(SMALLEST_TILE, 1 << (average.bit_length() - 1)))


def grouped(
    x: Float[Array, "R I"],
    weight: Array | QArray,
    sizes: Int[Array, " E"],
    tile: int,
    implementation: Implementation,
) -> Float[Array, "R O"]:
    """`x W^T` in the dtype of x, where every row has the weight of its expert.

    Args:
        x: rows, expert by expert.
        weight: weights `[E, O, I]` of any dtype, quantised or not.
        sizes: number of rows of each expert, in whole tiles. Rows behind them have no expert, and
            what they get means nothing.
        tile: number of rows of a tile, as `tile_rows` gives it.
        implementation: `tiles` or `tokamax`; none of them ever replaces the other.
    """
    if implementation == "tokamax":
        return _tokamax(x, dense(weight).astype(x.dtype), sizes)
    return _tiles(x, weight, sizes, tile)


def _tokamax(x: Array, weight: Array, sizes: Array) -> Array:
    """The kernels leave anything in the rows behind the used ones, in the gradients as well.

    It may be NaN, and NaN times zero is NaN. So these rows are zeros at both ends.
    """
    import tokamax

    set_tokamax_flags()
    used = (jnp.arange(len(x)) < jnp.sum(sizes))[:, None]
    x, turned = jnp.where(used, x, 0), weight.swapaxes(1, 2)
    return jnp.where(used, tokamax.ragged_dot(x, turned, sizes, implementation="mosaic"), 0)


def _experts_of_tiles(sizes: Array, tiles: int, tile: int) -> tuple[Array, Array]:
    """The expert of every tile, and the number of tiles that have one."""
    ends = jnp.cumsum(sizes) // tile
    return jnp.searchsorted(ends, jnp.arange(tiles), side="right"), ends[-1]


def _tile(x: Array, number: Array, tile: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, number * tile, tile)


def _of_expert(weight: Array | QArray, expert: Array, dtype: jnp.dtype) -> Array:
    one = jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, expert, keepdims=False), weight
    )
    return dense(one).astype(dtype)


def _over_tiles(
    x: Array, weight: Array | QArray, sizes: Array, tile: int, product: str, features: int
) -> Array:
    """Multiplies every tile with its expert's weight."""
    expert, used = _experts_of_tiles(sizes, len(x) // tile, tile)

    def visit(number: Array, out: Array) -> Array:
        own = _of_expert(weight, expert[number], x.dtype)
        done = jnp.einsum(product, _tile(x, number, tile), own)
        return jax.lax.dynamic_update_slice_in_dim(out, done, number * tile, 0)

    # Deriving the zeros from x gives the loop one type inside shard_map and vmap.
    zeros = jnp.broadcast_to(jnp.zeros_like(x[:, :1]), (len(x), features))
    return jax.lax.fori_loop(jnp.zeros_like(used), used, visit, zeros)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _tiles(x: Array, weight: Array | QArray, sizes: Array, tile: int) -> Array:
    return _over_tiles(x, weight, sizes, tile, "RI,OI->RO", weight.shape[1])


def _tiles_forward(
    x: Array, weight: Array | QArray, sizes: Array, tile: int
) -> tuple[Array, tuple]:
    return _tiles(x, weight, sizes, tile), (x, weight, sizes)


def _tiles_backward(tile: int, saved: tuple, d_out: Array) -> tuple[Array, Array | None, None]:
    """The two loops are apart, so that the second one vanishes where weights are frozen."""
    x, weight, sizes = saved
    d_x = _over_tiles(d_out, weight, sizes, tile, "RO,OI->RI", x.shape[1])
    if isinstance(weight, QArray):  # frozen
        return d_x, None, None
    expert, used = _experts_of_tiles(sizes, len(x) // tile, tile)

    def visit(number: Array, d_weight: Array) -> Array:
        more = jnp.einsum(
            "RO,RI->OI",
            _tile(d_out, number, tile),
            _tile(x, number, tile),
            preferred_element_type=d_weight.dtype,
        )
        own = jax.lax.dynamic_index_in_dim(d_weight, expert[number], keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(d_weight, own + more, expert[number], 0)

    sums = jnp.zeros_like(weight, dtype=jnp.promote_types(x.dtype, jnp.float32))
    d_weight = jax.lax.fori_loop(jnp.zeros_like(used), used, visit, sums)
    return d_x, d_weight.astype(weight.dtype), None


_tiles.defvjp(_tiles_forward, _tiles_backward)
