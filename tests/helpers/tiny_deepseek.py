"""Writes a tiny random DeepSeek as the hub has it: experts one by one, linear layers in FP8."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from places import GOLDEN
from safetensors.torch import save_file

from tddpo_jax.models.families import read_config
from tddpo_jax.models.tensor_table import hub_tensors, stored_tensors_of
from tddpo_jax.weights.tensor_files import WEIGHT_FILES

# The inputs of every layer are whole blocks of 64. A block of FP8 is not always whole.
SIZES = {
    "hidden_size": 192,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "v_head_dim": 16,
    "num_hidden_layers": 2,
    "n_routed_experts": 4,
    "n_group": 2,
    "num_experts_per_tok": 2,
    "vocab_size": 61,
    "num_nextn_predict_layers": 0,
}


def write(folder: Path) -> Path:
    """Writes the folder of a model."""
    rng = np.random.default_rng(0)
    config = GOLDEN / "deepseek-v3" / "model" / "config.json"
    attributes = {**json.loads(config.read_text()), **SIZES}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(attributes))
    parameters = read_config(attributes, "config.json").parameters
    wholes = hub_tensors(parameters)
    tensors: dict[str, torch.Tensor] = {}
    for name, of in stored_tensors_of(parameters).items():
        parameter, _ = wholes[of.whole]
        values = torch.from_numpy(rng.normal(size=parameter.piece_shape))
        if (packing := parameter.tensor.packing) is None:
            is_buffer = parameter.tensor.kind == "buffer"
            tensors[name] = values.to(torch.float32 if is_buffer else torch.bfloat16)
            continue
        numbers, scales = packing.shapes(parameter.piece_shape)
        assert numbers == tuple(values.shape)
        tensors[name] = (100 * values).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.from_numpy(
            rng.uniform(0.001, 0.002, scales).astype(np.float32)
        )
    save_file(tensors, folder / WEIGHT_FILES[0], metadata={"format": "pt"})
    return folder
