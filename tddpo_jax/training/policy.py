"""The model that is trained: its structure, what of it is trained, and how a run starts with it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from tddpo_jax.adapters import lora
from tddpo_jax.adapters.load import load_model, load_unmerged
from tddpo_jax.adapters.nf4 import quantize
from tddpo_jax.config.schema import Config
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.models.linear import LoraParam
from tddpo_jax.training.shared import Shared
from tddpo_jax.training.state import Frozen
from tddpo_jax.weights.hugging_face import checkpoint_dtype
from tddpo_jax.weights.locate import ModelFiles


@dataclasses.dataclass
class Policy:
    """The model of an experiment, split into what is trained and what is not.

    After full fine-tuning's reference pass its weights are handed to the first run, which
    overwrites them: `take` gives them away once, and who comes later loads them again.
    """

    shared: Shared
    graphdef: nnx.GraphDef
    trainable: nnx.State  # shapes of the trained parameters of one member
    frozen: Frozen
    _loaded: nnx.State | None

    @property
    def loaded(self) -> nnx.State:
        """The trained parameters as the reference has them, until `take` has given them away."""
        assert self._loaded is not None, "the loaded parameters have been taken"
        return self._loaded

    def take(self) -> nnx.State | None:
        """Gives the loaded parameters away; None if they have been given away before."""
        loaded, self._loaded = self._loaded, None
        return loaded

    def fresh(self, seed: int) -> nnx.State:
        """The trained parameters with which a run of this seed starts."""
        config, mesh = self.shared.config, self.shared.mesh
        if config.train.mode != "full":
            return lora.fresh_adapters(self.model(self.trainable), config.lora, seed, mesh)
        loaded = self.take()
        if loaded is not None:
            return loaded
        model = load_model(self.shared.files, mesh, jnp.float32)
        return split_model(model, nnx.Param)[1]

    def model(self, trainable: nnx.State) -> Decoder:
        """The model with these trained parameters."""
        return nnx.merge(self.graphdef, trainable, self.frozen.base)


def load_policy(shared: Shared, *, with_reference: bool) -> Policy:
    """Loads the model onto the mesh, with fresh adapters unless all of its weights are trained.

    Args:
        shared: says which model, and how it is trained.
        with_reference: whether a loss reads the exact KL, for which the reference runs inside the
            step. Then the trained parameters are copied, for training overwrites them.
    """
    graphdef, trainable, base = _load(shared.config, shared.files, shared.mesh, shared.how.dtype)
    reference = jax.tree.map(jnp.copy, trainable) if with_reference else None
    shapes = jax.eval_shape(lambda: trainable)
    return Policy(shared, graphdef, shapes, Frozen(base, reference), trainable)


def _load(
    config: Config, files: ModelFiles, mesh: Mesh, dtype: Any
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    if config.train.mode == "full":
        # Master weights are float32, whatever the dtype of the computation.
        return split_model(load_model(files, mesh, jnp.float32), nnx.Param)
    quantized = config.train.mode == "qlora"
    stored = checkpoint_dtype(files.base) if quantized else dtype
    model = load_unmerged(files, mesh, stored)
    lora.freeze_adapters(model)
    if quantized:
        quantize(model)
    lora.add_adapters(model, config.lora, config.seed, mesh)
    return split_model(model, LoraParam)


def split_model(
    model: Decoder, trained: type[nnx.Param]
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The model as (structure, trained parameters, frozen parameters)."""
    parts: Any = nnx.split(model, trained, ...)
    return parts
