"""The model that is trained: its structure, its trained and frozen parameters, and its start."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from tddpo_jax.adapters import lora
from tddpo_jax.adapters.load import load_model, load_unmerged
from tddpo_jax.config.schema import Config
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.models.linear import LoraParam
from tddpo_jax.training.shared import Shared
from tddpo_jax.training.state import Frozen
from tddpo_jax.training.trained_part import trained_part
from tddpo_jax.weights.locate import ModelFiles


@dataclasses.dataclass
class Policy:
    """The model of an experiment, split into trained and frozen parameters.

    In full fine-tuning, the first run overwrites the loaded weights after the reference pass.
    `take` gives them away once. Later runs load them again.
    """

    shared: Shared
    graphdef: nnx.GraphDef
    trainable: nnx.State  # shapes of one member's trained parameters
    frozen: Frozen
    _loaded: nnx.State | None

    @property
    def loaded(self) -> nnx.State:
        """The trained parameters as the reference has them; not available after `take`."""
        assert self._loaded is not None, "the loaded parameters have been taken"
        return self._loaded

    def take(self) -> nnx.State | None:
        """Gives the loaded parameters away; None if an earlier call has done so."""
        loaded, self._loaded = self._loaded, None
        return loaded

    def fresh(self, seed: int) -> nnx.State:
        """The trained parameters at the start of a run with this seed."""
        config, mesh = self.shared.config, self.shared.mesh
        if config.train.mode != "full":
            return lora.fresh_adapters(self.model(self.trainable), config.lora, seed, mesh)
        loaded = self.take()
        if loaded is not None:
            return loaded
        return load_parts(config, self.shared.files, mesh, self.shared.how.dtype)[1]

    def model(self, trainable: nnx.State) -> Decoder:
        """The model with these trained parameters."""
        return nnx.merge(self.graphdef, trainable, self.frozen.base)


def load_policy(shared: Shared, *, with_reference: bool) -> Policy:
    """Loads the model onto the mesh, with fresh adapters unless all of its weights are trained.

    Args:
        shared: names the model and how it is trained.
        with_reference: whether a loss reads the exact KL. The reference then runs inside the step,
            and needs a copy of the trained parameters because training overwrites them.

    Raises:
        UserError: the model's files are damaged, or the model does not fit the mesh.
    """
    graphdef, trainable, base = load_parts(
        shared.config, shared.files, shared.mesh, shared.how.dtype
    )
    reference = jax.tree.map(jnp.copy, trainable) if with_reference else None
    shapes = jax.eval_shape(lambda: trainable)
    return Policy(shared, graphdef, shapes, Frozen(base, reference), trainable)


def load_parts(
    config: Config, files: ModelFiles, mesh: Mesh, dtype: Any
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The model at the start of a run as (structure, trained parameters, frozen parameters).

    Args:
        config: the settings of the run.
        files: the model's folders.
        mesh: where to place the weights.
        dtype: dtype of frozen weights; the four-bit ones come from those that are stored.
    """
    if config.train.mode == "full":
        # The master weights are float32 for every dtype of the computation.
        model = load_model(files, mesh, jnp.float32)
        return split_model(model, trained_part(config.train, model.config))
    model = load_unmerged(files, mesh, dtype, quantized=config.train.mode == "qlora")
    lora.freeze_adapters(model)
    lora.add_adapters(model, config.lora, config.seed, mesh)
    return split_model(model, LoraParam)


def split_model(
    model: Decoder, trained: type[nnx.Param] | Callable[..., bool]
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The model as (structure, trained parameters, frozen parameters)."""
    parts: Any = nnx.split(model, trained, ...)
    return parts
