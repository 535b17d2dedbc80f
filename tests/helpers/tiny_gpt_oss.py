"""Writes a tiny random gpt-oss as the hub has it: experts in MXFP4, the rest in bfloat16."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
from places import GOLDEN
from safetensors.numpy import save_file

from tddpo_jax.models.families import read_config
from tddpo_jax.models.tensor_table import hub_tensors
from tddpo_jax.weights.tensor_files import WEIGHT_FILES

FOLDER = GOLDEN / "gpt-oss" / "model"
# Four devices can share every matrix, and the inputs of every layer are whole blocks of 64.
SIZES = {
    "vocab_size": 448,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "experts_per_token": 2,
}


def write(folder: Path, layers: int = 1) -> Path:
    """Writes the folder of a model.

    Args:
        folder: the folder.
        layers: number of layers; the first has a window, and every other one.
    """
    rng = np.random.default_rng(0)
    types = [("sliding_attention", "full_attention")[layer % 2] for layer in range(layers)]
    depth = {"num_hidden_layers": layers, "layer_types": types}
    attributes = {**json.loads((FOLDER / "config.json").read_text()), **SIZES, **depth}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(attributes))
    tensors: dict[str, np.ndarray] = {}
    for name, (parameter, _) in hub_tensors(
        read_config(attributes, "config.json").parameters
    ).items():
        shape, packing = parameter.hub_shape, parameter.tensor.packing
        if packing is None:
            noise = rng.normal(size=shape)
            weight = 1 + 0.2 * noise if parameter.tensor.kind == "norm" else 0.15 * noise
            tensors[name] = weight.astype(ml_dtypes.bfloat16)
            continue
        blocks, scales = packing.shapes(shape)
        tensors[f"{name}_blocks"] = rng.integers(0, 256, blocks, np.uint8)
        tensors[f"{name}_scales"] = rng.integers(121, 125, scales, np.uint8)
    save_file(tensors, folder / WEIGHT_FILES[0])
    return folder
