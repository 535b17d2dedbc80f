"""The shape of the model that is measured."""

from __future__ import annotations

from pathlib import Path

from tddpo_jax.errors import UserError
from tddpo_jax.models.llama.model import LlamaConfig
from tddpo_jax.weights.hugging_face import read_config


def read_llama(folder: Path) -> LlamaConfig:
    """The shape of a Llama, the one family whose pieces are measured and whose peers are known.

    Raises:
        UserError: the model is of another family.
    """
    model = read_config(folder)
    if not isinstance(model, LlamaConfig):
        raise UserError(f"--model: {folder}: only Llamas are measured")
    return model
