"""A family that is not Llama: five layers of two kinds, which no other code knows.

A period of a layer with a window and a layer without one comes twice, then half a period. The kinds
differ in the number of heads, in the sizes of keys and values, in rope and in the scale of scores.
The checkpoint holds the weights of values transposed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray
from safetensors.numpy import save_file
from tiny_models import random_weight

from tddpo_jax.models.architecture import Layer, Segment, layer_parameters
from tddpo_jax.models.attention.view import AttentionShape
from tddpo_jax.models.families import Family
from tddpo_jax.models.linear import Linear, dropout_keys
from tddpo_jax.models.norm import RMSNorm
from tddpo_jax.models.rope import rope_angles, rope_frequencies, rotate
from tddpo_jax.models.tensor_table import Parameter, Tensor, Transform, hub_tensors, parameter

NAMES = ("ask", "know", "tell", "mix", "grow", "shrink")
STORED_AS = {"mix": "blend"}  # our name of a layer, and the checkpoint's where it differs
TURNED = Transform(np.transpose, np.transpose)
BLOCK_TENSORS = (
    Tensor("zebra.{}.norm", "norm.weight", ("width",), "norm"),
    Tensor("zebra.{}.ask.weight", "ask.weight", ("queries", "width"), "linear"),
    Tensor("zebra.{}.know.weight", "know.weight", ("keys", "width"), "linear"),
    Tensor("zebra.{}.tell.weight", "tell.weight", ("values", "width"), "linear", TURNED),
    Tensor("zebra.{}.blend.weight", "mix.weight", ("width", "attended"), "linear"),
    Tensor("zebra.{}.grow.weight", "grow.weight", ("feed_forward", "width"), "linear"),
    Tensor("zebra.{}.shrink.weight", "shrink.weight", ("width", "feed_forward"), "linear"),
)
LOCAL = AttentionShape(4, 2, 32, value_size=16, window=9)
WHOLE = AttentionShape(4, 4, 16, value_size=48, scale=0.11)
THETAS = {32: 100.0, 16: 5000.0}


@dataclasses.dataclass(frozen=True)
class ZebraConfig:
    """The shape of a model of this family."""

    vocabulary: int
    width: int
    context: int
    feed_forward: int
    tied: bool = True
    layers: int = 5
    derived: tuple[str, ...] = ("stripes",)
    carried: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    not_text: tuple[int, ...] = ()
    embedding_scale: float = 1.0

    def _layer(self, shape: AttentionShape) -> Layer:
        sizes = {"width": self.width, "feed_forward": self.feed_forward, **shape.axes}
        block = functools.partial(ZebraBlock, sizes, shape)
        return Layer(block, shape, BLOCK_TENSORS, sizes)

    @functools.cached_property
    def segments(self) -> tuple[Segment, ...]:
        local, whole = self._layer(LOCAL), self._layer(WHOLE)
        return Segment(2, (local, whole)), Segment(1, (local,))

    @functools.cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        sizes = {"vocabulary": self.vocabulary, "width": self.width}
        embed = Tensor("zebra.words", "embed", ("vocabulary", "width"), "embedding")
        norm = Tensor("zebra.last", "norm.weight", ("width",), "norm")
        return (
            parameter(embed, sizes),
            *layer_parameters(self.segments),
            parameter(norm, sizes),
        )

    def last_norm(self) -> RMSNorm:
        return RMSNorm(self.width, 1e-3)

    def angles(self, positions: Int[Array, "B T"]) -> dict[int, Array]:
        return {
            size: rope_angles(positions, rope_frequencies(size, theta, None))
            for size, theta in THETAS.items()
        }


class ZebraBlock(nnx.Module):
    """One norm, behind it attention and feed-forward beside each other."""

    ask: Linear
    know: Linear
    tell: Linear
    mix: Linear
    grow: Linear
    shrink: Linear

    def __init__(self, sizes: Mapping[str, int], shape: AttentionShape, key: PRNGKeyArray) -> None:
        linears = [tensor for tensor in BLOCK_TENSORS if tensor.kind == "linear"]
        for tensor, one in zip(linears, jax.random.split(key, len(linears)), strict=True):
            outputs, inputs = (sizes[axis] for axis in tensor.axes)
            setattr(self, tensor.path.removesuffix(".weight"), Linear(inputs, outputs, one))
        self.norm = RMSNorm(sizes["width"], 1e-3)
        self.shape = shape

    def __call__(
        self,
        x: Float[Array, "B T D"],
        angles: dict[int, Array],
        attend: Callable[..., tuple[Array, Any]],
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        keys = dropout_keys(key, len(NAMES))
        normed, angle = self.norm(x), angles[self.shape.size]
        q, k, v = (
            linear(normed, one).reshape(*x.shape[:2], heads, -1)
            for linear, one, heads in (
                (self.ask, keys[0], self.shape.heads),
                (self.know, keys[1], self.shape.key_value_heads),
                (self.tell, keys[2], self.shape.key_value_heads),
            )
        )
        mixed, kept = attend(rotate(q, angle), rotate(k, angle), v)
        out = self.mix(mixed.reshape(*x.shape[:2], -1), keys[3])
        return x + out + self.shrink(jax.nn.gelu(self.grow(normed, keys[4])), keys[5]), kept


def read_config(attributes: Mapping[str, Any], path: str) -> ZebraConfig:
    return ZebraConfig(**{name: each for name, each in attributes.items() if name != "model_type"})


FAMILY = Family(read_config, NAMES)
SIZES = {"vocabulary": 62, "width": 128, "context": 256, "feed_forward": 64}
CONFIG = ZebraConfig(**SIZES)  # type: ignore[arg-type]


def save(folder: Path, seed: int = 0) -> Path:
    """Writes a checkpoint with random weights; the family must be known where it is read."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "zebra", **SIZES}))
    rng = np.random.default_rng(seed)
    tensors = {
        name: random_weight(rng, parameter.hub_shape, parameter.tensor.kind == "norm").astype(
            np.float32
        )
        for name, (parameter, _) in hub_tensors(CONFIG.parameters).items()
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


def weights_of_layer(shape: AttentionShape) -> int:
    """Numbers of the six products of a layer, written out."""
    queries, keys = shape.heads * shape.size, shape.key_value_heads * shape.size
    values, attended = shape.key_value_heads * shape.value_size, shape.heads * shape.value_size
    return SIZES["width"] * (queries + keys + values + attended + 2 * SIZES["feed_forward"])
