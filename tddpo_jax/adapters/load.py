"""Loads a model together with its adapter."""

from __future__ import annotations

from typing import Any

from jax.sharding import Mesh

from tddpo_jax.adapters import lora
from tddpo_jax.adapters.peft_files import base_dtype, load_adapter
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.weights import hugging_face
from tddpo_jax.weights.locate import ModelFiles


def load_model(files: ModelFiles, mesh: Mesh, dtype: Any) -> Decoder:
    """Loads a model and merges its adapter into the weights, if it has one.

    Args:
        files: the model's folders.
        mesh: where to place the weights.
        dtype: dtype of the weights.
    """
    model = load_unmerged(files, mesh, dtype)
    return model if files.adapter is None else lora.merged(model, dtype)


def load_unmerged(files: ModelFiles, mesh: Mesh, dtype: Any) -> Decoder:
    """Loads a model and keeps its adapter, if it has one, beside the weights.

    Args:
        files: the model's folders.
        mesh: where to place the weights.
        dtype: dtype of the weights, unless the adapter needs them quantised (see `base_dtype`).
    """
    model = hugging_face.load(files.base, mesh, base_dtype(files.base, [files.adapter], dtype))
    if files.adapter is not None:
        load_adapter(model, files.adapter, mesh)
    return model
