"""The decoder: embedding, layers, last norm, head. It knows no family.

Training and decoding share one pass over the layers. A layer may keep something for later, such as
the entries of a cache: its `attend` returns that beside attention's output. Training keeps nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tddpo_jax.models.architecture import DecoderConfig, Layer, Stack, stacks
from tddpo_jax.models.attention.latent import Latent
from tddpo_jax.models.attention.ranges import attention
from tddpo_jax.models.attention.view import View
from tddpo_jax.models.experts.experts import ExpertLinear, routed_sum
from tddpo_jax.models.experts.routing import Route
from tddpo_jax.models.linear import Linear
from tddpo_jax.models.tensor_table import Parameter, adaptable_parameters, linear_parameters

Remat = Literal["none", "full", "dots"]


class Where(NamedTuple):
    """Identifies a layer."""

    stack: int  # number of its stack, counted over all segments
    place: Int[Array, ""]  # its place on the stacked axis


def _rematerialised(function: Callable, remat: Remat) -> Callable:
    if remat == "none":
        return function
    policies = jax.checkpoint_policies
    policy = {
        "full": policies.nothing_saveable,
        "dots": policies.save_only_these_names("product", "attention"),
    }[remat]
    # A scan already keeps XLA from merging the two passes, so nothing else needs to prevent it.
    return jax.checkpoint(function, policy=policy, prevent_cse=False)


def _nothing(_: Route) -> None:
    """Notes nothing of a layer's routes."""


def look_up(
    table: Float[Array, "V D"], tokens: Int[Array, "B T"], dtype: Any
) -> Float[Array, "B T D"]:
    """The table's entry for every token, in `dtype`."""
    return table[tokens].astype(dtype)


class Decoder(nnx.Module):
    """A decoder that returns hidden states.

    `losses/logprobs.py` applies the head at the positions that need it.
    """

    def __init__(self, config: DecoderConfig, key: PRNGKeyArray) -> None:
        embed_key, head_key, layers_key = jax.random.split(key, 3)
        self.config = config
        shape = (config.vocabulary, config.width)
        self.embed = nnx.Param(0.02 * jax.random.normal(embed_key, shape))
        layer_keys = jax.random.split(layers_key, config.layers)
        for segment in stacks(config.segments):
            for stack in segment:
                keys = layer_keys[jnp.array(stack.numbers)]
                setattr(self, stack.name, jax.vmap(stack.layer.block)(keys))
        self.norm = config.last_norm()
        if not config.tied:
            self.head = nnx.Param(0.02 * jax.random.normal(head_key, shape))

    @property
    def head_weight(self) -> Float[Array, "V D"]:
        """The head's weight, which is the embedding in a tied model."""
        return self.embed[...] if self.config.tied else self.head[...]

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        view: View,
        *,
        dtype: jnp.dtype | type,
        attend: Callable[..., Array] = attention,
        embed: Callable[..., Array] = look_up,
        experts: Callable[..., Array] = routed_sum,
        note: Callable[[Route], Any] = _nothing,
        remat: Remat = "none",
        constrain: Callable[[Array], Array] = lambda x: x,
        dropout_key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[Any, ...]]:
        """The hidden state of every stream position, after the last norm.

        Args:
            tokens: token ids, stored in any order.
            view: the keys that each token sees, and its rotary position.
            dtype: dtype of the computation; weights are cast when they are used.
            attend: takes queries, keys, values, the view and a layer's settings, as `attention`.
            embed: takes the embedding's table, the tokens and `dtype`, as `look_up`.
            experts: computes a layer's experts, as `routed_sum`.
            note: takes the route of a layer with experts and gives what to keep of it.
            remat: what the backward pass recomputes: "none", "full" (everything) or "dots"
                (everything but large products and attention's output).
            constrain: applied to the hidden states between layers, to pin their sharding.
            dropout_key: random key for the adapters' dropout; None: no dropout.

        Returns:
            The hidden states, in `dtype`, and what `note` gave: one tree for each stack of layers
            with experts, with its layers on the leading axis.
        """

        def attend_and_forget(
            _: Where, q: Array, k: Array, v: Array, *, latent: Latent | None = None, **settings: Any
        ) -> tuple[Array, None]:
            return attend(q, k, v, view, **settings), None  # only a cache needs the latent

        x, _, notes = self.through_layers(
            tokens,
            view.position,
            attend_and_forget,
            dtype=dtype,
            embed=embed,
            experts=experts,
            note=note,
            remat=remat,
            constrain=constrain,
            dropout_key=dropout_key,
        )
        return self.norm(x), notes

    def through_layers(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        attend: Callable[..., tuple[Array, Any]],
        *,
        dtype: jnp.dtype | type,
        embed: Callable[..., Array] = look_up,
        experts: Callable[..., Array] = routed_sum,
        note: Callable[[Route], Any] = _nothing,
        remat: Remat = "none",
        constrain: Callable[[Array], Array] = lambda x: x,
        dropout_key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[Any, ...], tuple[Any, ...]]:
        """Runs all layers, without the last norm.

        Args:
            tokens: token ids.
            positions: rotary position of each token.
            attend: takes the layer's `Where`, queries, keys, values and, by keyword, the layer's
                window, chunk and scale, and its sinks, `Latent` and `Choice` if it has them. It
                gives attention's output and what to keep.
            dtype: as for `__call__`.
            embed: as for `__call__`.
            experts: as for `__call__`.
            note: as for `__call__`.
            remat: as for `__call__`.
            constrain: as for `__call__`.
            dropout_key: as for `__call__`.

        Returns:
            The hidden states after the last layer, what `attend` kept, and what `note` gave: one
            tree for each stack, with its layers on the leading axis. Stacks without experts have
            no note.
        """
        angles = self.config.angles(positions)

        def layer(
            stack: int,
            kind: Layer,
            x: Array,
            block: Any,
            place: Array,
            key: PRNGKeyArray | None,
        ) -> tuple[Array, Any]:
            where = Where(stack, place)
            shape = kind.attention
            own = functools.partial(
                attend, where, window=shape.window, chunk=shape.chunk, scale=shape.scale
            )
            notes = []

            def noted(x: Array, route: Route, *rest: Any) -> Array:
                notes.append(note(route))
                return experts(x, route, *rest)

            more = () if kind.experts is None else (noted,)
            x, kept = block(x, angles, own, key, *more)
            return constrain(x), (kept, *notes)

        def period(
            segment: list[Stack], first: int, x: Array, one: tuple[Any, Array, Any]
        ) -> tuple[Array, Any]:
            blocks, place, keys = one
            kept = []
            for number, stack in enumerate(segment):
                run = functools.partial(layer, first + number, stack.layer)
                x, keep = _rematerialised(run, remat)(x, blocks[number], place, keys[number])
                kept.append(keep)
            return x, tuple(kept)

        with jax.named_scope("embed"):
            x = embed(self.embed[...], tokens, dtype)
            if self.config.embedding_scale != 1.0:
                x = x * jnp.asarray(self.config.embedding_scale, dtype)
        layer_keys = None
        if dropout_key is not None:
            layer_keys = jax.random.split(dropout_key, self.config.layers)
        found: tuple[Any, ...] = ()
        for segment in stacks(self.config.segments):
            blocks = tuple(getattr(self, stack.name) for stack in segment)
            keys = tuple(
                None if layer_keys is None else layer_keys[jnp.array(stack.numbers)]
                for stack in segment
            )
            places = jnp.arange(len(segment[0].numbers))
            x, of_segment = jax.lax.scan(
                functools.partial(period, segment, len(found)), x, (blocks, places, keys)
            )
            found += of_segment
        notes = tuple(note for _, *of_stack in found for note in of_stack)
        return x, tuple(kept for kept, *_ in found), notes


def linear_layers(model: Decoder) -> dict[str, Linear]:
    """The stacked linear layers of the model's blocks, by their paths."""
    return _modules_of(model, linear_parameters(model.config.parameters))


def adaptable_layers(model: Decoder) -> dict[str, Linear | ExpertLinear]:
    """The stacked linear layers by their paths, and behind them the products of all experts."""
    weights = adaptable_parameters(model.config.parameters)
    return _modules_of(model, sorted(weights, key=lambda weight: weight.tensor.kind == "experts"))


def _modules_of(model: Decoder, weights: Iterable[Parameter]) -> dict[str, Any]:
    paths = [weight.module for weight in weights]
    return {path: functools.reduce(getattr, path.split("."), model) for path in paths}
