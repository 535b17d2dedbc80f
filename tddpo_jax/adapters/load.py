"""A model with its adapters, from the files that a name stands for."""

from __future__ import annotations

from typing import Any

from jax.sharding import Mesh

from tddpo_jax.adapters import lora
from tddpo_jax.adapters.peft_files import base_dtype, load_adapter
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.weights import hugging_face
from tddpo_jax.weights.locate import ModelFiles


def load_model(files: ModelFiles, mesh: Mesh, dtype: Any) -> Decoder:
    """The model of a folder; an adapter that lies on top of it is merged in."""
    model = load_unmerged(files, mesh, dtype)
    return model if files.adapter is None else lora.merged(model, dtype)


def load_unmerged(files: ModelFiles, mesh: Mesh, dtype: Any) -> Decoder:
    model = hugging_face.load(files.base, mesh, base_dtype(files.base, [files.adapter], dtype))
    if files.adapter is not None:
        load_adapter(model, files.adapter, mesh)
    return model
