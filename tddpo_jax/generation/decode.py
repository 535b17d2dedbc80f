"""One program that continues a batch of prompts token by token with a key-value cache.

Prompts are padded on the left, so they all end at the same slot of the cache. So step n writes the
same slot for all rows, and the last prompt position predicts for all of them. Every row has its own
rotary positions. The prompts are computed in one pass. Then a loop runs until every row has
finished. User settings are array arguments and there are few shapes, so few programs are compiled.

A row's result does not depend on the other rows, on their order or on the number of devices (beyond
the rounding of sums). Its random key depends only on its own numbers and on the token's number.

Letters: L layers, B rows, T prompt slots, S slots of the cache, N new tokens, E stop ids, D width,
H heads, K key/value heads, G queries per key/value head, V vocabulary, s features of a head.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from tddpo_jax.generation.sampling import Sampler, next_token
from tddpo_jax.models.attention.choice import Choice, best, index_scores
from tddpo_jax.models.attention.latent import Latent
from tddpo_jax.models.attention.ranges import MASKED, attention
from tddpo_jax.models.attention.view import View, oldest_position
from tddpo_jax.models.buffer import with_weights_in
from tddpo_jax.models.decoder import Decoder, Where
from tddpo_jax.placement.computation import expert_implementation
from tddpo_jax.placement.embedding import embed_over
from tddpo_jax.placement.expert_parallel import experts_over
from tddpo_jax.placement.shardings import (
    ROWS,
    VECTOR_OF_HEADS,
    head_parallel,
    replicated,
    row_sharding,
)

SMALLEST_BLOCK = 128  # slots
AS_WRITTEN = Layout(major_to_minor=tuple(range(5)))
CACHE_SPEC = PartitionSpec(None, ROWS, "tensor")  # axes L, B, K
LATENT_SPEC = PartitionSpec(None, ROWS)  # all heads share a latent


class Cache(NamedTuple):
    """Rotated keys, and values, of every slot, for all layers of a stack or for one layer.

    Where both are made of latents, it holds these in place of the keys.
    """

    keys: Float[Array, "*L B K S size"]
    values: Float[Array, "*L B K S value_size"] | None  # None: the keys are these too
    indexed: Float[Array, "*L B 1 S features"] | None = None  # keys of an indexer

    @property
    def spec(self) -> PartitionSpec:
        """The placement of the cache of all layers of a stack."""
        return LATENT_SPEC if self.values is None else CACHE_SPEC


Caches = tuple[Cache, ...]  # one cache for each stack of layers


class State(NamedTuple):
    """The state of the loop."""

    number: Int[Array, ""]  # number of steps so far
    logits: Float[Array, "B V"]  # logits of the next token
    tokens: Int[Array, "B N"]  # new tokens; those behind a row's count mean nothing
    counts: Int[Array, " B"]  # number of each row's new tokens, including its end of turn
    done: Bool[Array, " B"]  # whether a row has finished
    caches: Caches


class Prompts(NamedTuple):
    """Prompts that are padded on the left."""

    tokens: Int[Array, "B T"]
    lengths: Int[Array, " B"]  # number of tokens of each prompt


def cache_slots(length: int, new: int) -> int:
    """Number of slots of a cache, in whole blocks if it needs more than one.

    Args:
        length: places for prompt tokens.
        new: places for new tokens.
    """
    needed = length + new
    unit = _block() if needed > _block() else SMALLEST_BLOCK
    return unit * math.ceil(needed / unit)


def _block() -> int:
    """The largest number of slots that attention reads at once.

    It is larger on accelerators, where every turn of a loop costs a launch. The value there has not
    been tuned by measurement.
    """
    return SMALLEST_BLOCK if jax.default_backend() == "cpu" else 512


@functools.partial(jax.jit, static_argnames=("new", "dtype", "mesh"))
def generate_rows(
    model: Decoder,
    prompts: Prompts,
    sampler: Sampler,
    limits: Int[Array, " B"],
    stops: Int[Array, " E"],
    *,
    new: int,
    dtype: Any,
    mesh: Mesh,
) -> tuple[Int[Array, "B N"], Int[Array, " B"]]:
    """Continues every row until its end of turn or its limit.

    Args:
        model: any model; adapters are applied beside the weights, never merged.
        prompts: the prompts; every row has at least one token.
        sampler: the rows' settings and keys.
        limits: largest number of new tokens of each row, at most `new`; 0 for a padding row.
        stops: token ids that end a row.
        new: number of places for new tokens.
        dtype: dtype of the computation; logits and the softmax are float32.
        mesh: the devices; rows are spread over data and fsdp, key/value heads over tensor.

    Returns:
        The new tokens of every row, and their number. Tokens behind a row's number mean nothing.
    """
    model = with_weights_in(model, dtype)  # so that no step has to cast them
    rows, length = prompts.tokens.shape
    start = length - prompts.lengths
    constrain = functools.partial(jax.lax.with_sharding_constraint, shardings=row_sharding(mesh))
    slots = cache_slots(length, new)
    caches, logits = _prefill(model, prompts, slots, dtype, mesh)
    places = tuple(NamedSharding(mesh, cache.spec) for cache in caches)
    caches = jax.lax.with_sharding_constraint(caches, places)

    def step(state: State) -> State:
        token = next_token(state.logits, sampler, state.number).astype(jnp.int32)
        slot = length + state.number
        logits, caches = _decode(model, token, slot, start, state.caches, dtype, mesh)
        return State(
            number=state.number + 1,
            logits=constrain(logits),
            tokens=jax.lax.dynamic_update_slice(state.tokens, token[:, None], (0, state.number)),
            counts=state.counts + ~state.done,
            done=state.done | jnp.isin(token, stops) | (state.number + 1 >= limits),
            caches=caches,
        )

    state = State(
        number=jnp.int32(0),
        logits=constrain(logits),
        tokens=jnp.zeros((rows, new), jnp.int32),
        counts=jnp.zeros(rows, jnp.int32),
        done=limits <= 0,
        caches=caches,
    )
    state = jax.lax.while_loop(lambda state: ~jnp.all(state.done), step, state)
    return jax.lax.with_sharding_constraint((state.tokens, state.counts), replicated(mesh))


def _prefill(
    model: Decoder,
    prompts: Prompts,
    slots: int,
    dtype: Any,
    mesh: Mesh,
) -> tuple[Caches, Float[Array, "B V"]]:
    """The caches after the prompts, padded to `slots`, and the logits of the first new token."""
    length = prompts.tokens.shape[1]
    slot = jnp.arange(length)[None]
    start = (length - prompts.lengths)[:, None]
    # Padding sees the empty range [slot, slot).
    live = slot >= start
    view = View(jnp.where(live, start, slot), slot + live, jnp.maximum(slot - start, 0))

    def attend(
        _: Where,
        q: Array,
        k: Array,
        v: Array,
        *,
        latent: Latent | None = None,
        choice: Choice | None = None,
        **settings: Any,
    ) -> tuple[Array, Cache]:
        out = attention(q, k, v, view, choice=choice, **settings)
        room = ((0, 0), (0, 0), (0, slots - length), (0, 0))
        return out, jax.tree.map(lambda x: jnp.pad(x, room), _entries(k, v, latent, choice))

    return _through_layers(model, prompts.tokens, view.position, attend, dtype, mesh, ROWS)


def _entries(k: Array, v: Array, latent: Latent | None, choice: Choice | None) -> Cache:
    """What a layer's cache holds for some tokens."""
    entries = Cache(k, v) if latent is None else Cache(latent.vector, None)
    if choice is not None:
        entries = entries._replace(indexed=choice.keys)
    return jax.tree.map(lambda x: x.swapaxes(1, 2), entries)


def _decode(
    model: Decoder,
    token: Int[Array, " B"],
    slot: Int[Array, ""],
    start: Int[Array, " B"],
    caches: Caches,
    dtype: Any,
    mesh: Mesh,
) -> tuple[Float[Array, "B V"], Caches]:
    """Adds a new token to `slot` of the caches, and gives the logits of the token after it.

    The hidden states of one token of every row are far smaller than the weights. So between layers
    all fsdp devices hold the same rows, and each multiplies them by the weights that it holds.
    """
    heads, rows, whole = head_parallel(mesh).spec, row_sharding(mesh).spec, PartitionSpec()

    def attend(
        where: Where,
        q: Array,
        k: Array,
        v: Array,
        *,
        sinks: Array | None = None,
        latent: Latent | None = None,
        choice: Choice | None = None,
        **settings: Any,
    ) -> tuple[Array, Cache]:
        own, cache = _entries(k, v, latent, choice), caches[where.stack]
        if latent is not None:
            q = latent.absorb(q)
        # Each device attends over its own rows and heads. The compiler would gather the cache.
        on_each: Callable[..., Array] = jax.shard_map(
            functools.partial(_attend_cached, **settings),
            mesh=mesh,
            in_specs=(
                *(heads, PartitionSpec(*cache.spec[1:]), cache.spec),
                *(whole, rows, whole, VECTOR_OF_HEADS, rows),
            ),
            out_specs=heads,
        )
        out = on_each(q, own, cache, where.place, start, slot, sinks, choice)
        return out if latent is None else latent.expand(out), own

    new, logits = _through_layers(
        model, token[:, None], (slot - start)[:, None], attend, dtype, mesh, "data"
    )
    # All layers read before this one write, so the loop needs a single cache and copies nothing.
    write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=slot, axis=3)
    return logits, jax.tree.map(write, caches, new)


def _through_layers(
    model: Decoder,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    attend: Callable[..., tuple[Array, Cache]],
    dtype: Any,
    mesh: Mesh,
    rows: str | tuple[str, ...],
) -> tuple[Caches, Float[Array, "B V"]]:
    """The caches that `attend` returns for every layer, and the logits at the last position.

    Between layers, rows are spread over the mesh axes `rows`. The logits travel, not the head.
    """

    def placed(x: Array, *axes: Any) -> Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*axes)))

    products = expert_implementation(dtype, mesh)
    x, kept, _ = model.through_layers(
        tokens,
        positions,
        attend,
        dtype=dtype,
        embed=functools.partial(embed_over, mesh),
        experts=experts_over(mesh, products, rows),
        constrain=lambda x: placed(x, rows),
    )
    last = placed(model.norm(x[:, -1:])[:, 0], "data", "fsdp")
    with jax.named_scope("head"):
        head = model.head_weight.astype(dtype)
        logits = jnp.einsum("BD,VD->BV", last, head, preferred_element_type=jnp.float32)
        return kept, placed(placed(logits, "data", "tensor"), "data")


def _attend_cached(
    q: Float[Array, "B 1 H size"],
    own: Cache,
    cache: Cache,
    layer: Int[Array, ""],
    start: Int[Array, " B"],
    end: Int[Array, ""],
    sinks: Float[Array, " H"] | None = None,
    choice: Choice | None = None,
    *,
    window: int | None = None,
    chunk: int | None = None,
    scale: float | None = None,
) -> Float[Array, "B 1 H value_size"]:
    """Attention of one new token over itself and over slots `[start, end)` of a layer's cache.

    It reads only the blocks that some row sees, with the running softmax of FlashAttention (see
    `models/attention/ranges.py`). The running softmax begins with the token itself.

    Args:
        q: the new token's queries.
        own: the new token's key and value, as one slot.
        cache: the cache of all layers of the stack.
        layer: place of the layer in the stack.
        start: first slot of each row.
        end: one past the last slot, which will be the new token's own slot.
        sinks: as for `attention`.
        choice: what an indexer makes of the new token, if it chooses among the slots.
        window: number of newest slots that the token sees, including its own; None: all.
        chunk: size of the chunks into which a row's positions are cut; None: one chunk.
        scale: factor of the scores; None: 1/sqrt(size).
    """
    rows, key_value_heads, _, size = own.keys.shape
    slots = cache.keys.shape[3]
    block = min(slots, _block())
    start = start + oldest_position(end - start, window, chunk)
    chosen = None if choice is None else _chosen_slots(choice, cache, layer, start, end)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scaled = q * (size**-0.5 if scale is None else scale)
    grouped = scaled.reshape(rows, key_value_heads, -1, size)

    def visit(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        out, total, largest = carry

        def read(x: Array) -> Array:
            where, shape = (layer, 0, 0, j * block, 0), (1, rows, key_value_heads, block)
            part = jax.lax.dynamic_slice(x, where, (*shape, x.shape[-1]))
            # Fix the layout. Otherwise XLA for GPUs transposes the whole cache for every token.
            return with_layout_constraint(part, AS_WRITTEN)[0]

        keys = read(cache.keys)
        values = keys if cache.values is None else read(cache.values)
        slot = (j * block + jnp.arange(block))[None]
        seen = (slot >= start[:, None]) & (slot < end)
        if chosen is not None:
            seen &= jax.lax.dynamic_slice_in_dim(chosen, j * block, block, axis=1)
        scores = product("BKGs,BKSs->BKGS", grouped, keys)
        scores = jnp.where(seen[:, None, None], scores, MASKED)
        new_largest = jnp.maximum(largest, jnp.max(scores, axis=-1))
        weights, shrink = jnp.exp(scores - new_largest[..., None]), jnp.exp(largest - new_largest)
        mixed = product("BKGS,BKSs->BKGs", weights.astype(values.dtype), values)
        return (
            out * shrink[..., None] + mixed,
            total * shrink + jnp.sum(weights, axis=-1),
            new_largest,
        )

    score = product("BKGs,BKSs->BKGS", grouped, own.keys)[..., 0]
    if chosen is not None:
        score = jnp.where(chosen[:, -1:, None], score, MASKED)
    value = own.keys if own.values is None else own.values
    value = jnp.broadcast_to(value.astype(jnp.float32), (*score.shape, value.shape[-1]))
    itself = value, jnp.ones_like(score), score
    first, last = jnp.min(start) // block, (end + block - 1) // block
    out, total, largest = (
        visit(jnp.int32(0), itself)
        if slots == block
        else jax.lax.fori_loop(first, last, visit, itself)
    )
    if sinks is not None:
        total += jnp.exp(sinks.astype(jnp.float32).reshape(1, key_value_heads, -1) - largest)
    return (out / total[..., None]).reshape(rows, 1, -1, out.shape[-1]).astype(q.dtype)


def _chosen_slots(
    choice: Choice,
    cache: Cache,
    layer: Int[Array, ""],
    start: Int[Array, " B"],
    end: Int[Array, ""],
) -> Bool[Array, "B S"] | None:
    """The slots that an indexer leaves to a new token.

    The last column says whether it leaves the token itself. The arguments are those of
    `_attend_cached`. None: it leaves all of a cache of this size.
    """
    assert cache.indexed is not None
    index = jax.lax.dynamic_index_in_dim(cache.indexed, layer, keepdims=False)[:, 0]
    slots = index.shape[1]
    if slots < choice.most:
        return None
    slot = jnp.arange(slots + 1)[None]
    seen = (slot >= start[:, None]) & (slot < end) | (slot == slots)
    keys = jnp.concatenate([index, choice.keys[:, :, 0].astype(index.dtype)], axis=1)
    return best(index_scores(choice.queries, choice.weights, keys)[:, 0], seen, choice.most)
