"""Loads a model together with its adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from tddpo_jax.adapters import lora
from tddpo_jax.adapters.nf4 import nf4
from tddpo_jax.adapters.peft_files import has_quantized_base, load_adapter
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.weights import hugging_face
from tddpo_jax.weights.hugging_face import checkpoint_dtype
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


def load_unmerged(files: ModelFiles, mesh: Mesh, dtype: Any, *, quantized: bool = False) -> Decoder:
    """Loads a model and keeps its adapter, if it has one, beside the weights.

    Args:
        files: the model's folders.
        mesh: where to place the weights.
        dtype: as for `load_base`.
        quantized: whether to quantise the base; one that its adapter needs quantised is so anyway.
    """
    quantized = quantized or has_quantized_base(files.adapter)
    model = load_base(files.base, mesh, dtype, quantized=quantized)
    if files.adapter is not None:
        load_adapter(model, files.adapter, mesh)
    return model


def load_base(folder: Path, mesh: Mesh, dtype: Any, *, quantized: bool) -> Decoder:
    """Loads a model without an adapter, in four bits if that is asked for.

    Four bits are those of the weights as they are stored, so every load gets the same. What is not
    quantised, such as a norm, has the checkpoint's own dtype then.

    Args:
        folder: the Hugging Face folder.
        mesh: where to place the weights.
        dtype: dtype of the weights of a model that is not quantised.
        quantized: whether to quantise linear layers and experts.
    """
    if not quantized:
        return hugging_face.load(folder, mesh, dtype)
    return hugging_face.load(folder, mesh, checkpoint_dtype(folder), nf4)
