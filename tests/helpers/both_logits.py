"""The logits of plain sequences, by us and by transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import tiny_models
import torch

from tddpo_jax.models.decoder import Decoder


def our_logits(model: Decoder, tokens: np.ndarray) -> np.ndarray:
    """Those of our model."""
    return np.asarray(tiny_models.hidden_states(model, tokens) @ model.head_weight.T)


def their_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    """Those of transformers' or PEFT's model."""
    with torch.no_grad():
        logits: np.ndarray = model(torch.from_numpy(tokens)).logits.numpy()
    return logits
