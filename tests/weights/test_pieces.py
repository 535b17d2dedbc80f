"""A checkpoint with one tensor for each expert, in eight bits: what is refused, and what an export
holds. The folders are copies of the golden DeepSeek."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import torch
from places import GOLDEN
from safetensors.torch import load_file, save_file

from tddpo_jax.models.tensor_table import hub_tensors
from tddpo_jax.weights import hugging_face

pytestmark = pytest.mark.filterwarnings("ignore:.*predicts further tokens")

FOLDER = GOLDEN / "deepseek-v3" / "model"
UP = "model.layers.2.mlp.experts.5.up_proj.weight"
SCALES = f"{UP}_scale_inv"
QUERIES = "model.layers.0.self_attn.q_a_proj.weight"


def changed(folder, changes):
    """A copy of the golden folder with these tensors; None removes one."""
    shutil.copytree(FOLDER, folder)
    tensors = {**load_file(folder / "model.safetensors"), **changes}
    kept = {name: each for name, each in tensors.items() if each is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


REFUSED = {
    "a piece is missing": ({UP: None, SCALES: None}, f"tensor {UP} is missing"),
    "scales are missing": ({SCALES: None}, f"{UP} is stored as F8_E4M3, but it is no part of"),
    "numbers are missing": ({UP: None}, f"tensor {UP} is missing"),
    "a piece has another shape": (
        {UP: torch.zeros(64, 128, dtype=torch.bfloat16), SCALES: None},
        rf"{UP} has shape \[64, 128\], but config.json requires \[64, 256\]",
    ),
    "scales of other blocks": (
        {SCALES: torch.ones(2, 2)},
        rf"{SCALES} is \[2, 2\] of F32, but config.json requires \[1, 2\] of F32",
    ),
    "numbers of another dtype": (
        {QUERIES: torch.zeros(96, 256, dtype=torch.bfloat16)},
        rf"{QUERIES} is \[96, 256\] of BF16, but config.json requires \[96, 256\] of F8_E4M3",
    ),
    "an expert too many": (
        {UP.replace("5", "8"): torch.zeros(64, 256)},
        "tensor model.layers.2.mlp.experts.8.up_proj.weight is unknown",
    ),
    "whole and in pieces": (
        {"model.layers.2.mlp.experts.down_proj": torch.zeros(8, 256, 64)},
        "tensor model.layers.2.mlp.experts.down_proj is there twice, whole and in parts",
    ),
    "a layer too many": (
        {"model.layers.5.enorm.weight": torch.ones(256)},
        "tensor model.layers.5.enorm.weight is unknown",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_is_not_what_it_says_is_refused(name, tmp_path):
    changes, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        tiny_models.load(changed(tmp_path / "model", changes))


@pytest.mark.parametrize("family", ["deepseek-v3", "deepseek-v32"])
def test_an_export_holds_rounded_pieces_and_buffers_as_they_are(family, tmp_path):
    """In bfloat16, as a run exports: each expert's tensors are what the folder's mean, rounded. The
    correction of a router's choice, and what chooses keys, stay as they are. Nothing is said of
    packing, and no layer that predicts further tokens is counted. What is read from there is
    exported once more, bit for bit.
    """
    folder = GOLDEN / family / "model"
    model = tiny_models.load(folder, jnp.float32)
    first, second = tmp_path / "first", tmp_path / "second"
    hugging_face.export(model, folder, first, jnp.bfloat16)
    written, stored = (tiny_models.tensors_of(each) for each in (first, folder))
    kept = {name for name in stored if not name.startswith(model.config.dropped)}
    assert written.keys() == {name for name in kept if not name.endswith("_scale_inv")}
    buffers = {
        name
        for name, (each, _) in hub_tensors(model.config.parameters).items()
        if each.tensor.kind == "buffer"
    }
    packed = {name for name in written if f"{name}_scale_inv" in stored}
    assert bool(buffers & packed) == (family == "deepseek-v32")
    for name, tensor in written.items():
        wanted = stored[name]
        if name in packed:
            row, column = np.indices(wanted.shape) // 128
            wanted = wanted.astype(np.float32) * stored[f"{name}_scale_inv"][row, column]
        wanted = wanted if name in buffers else wanted.astype(jnp.bfloat16)
        assert tensor.dtype == wanted.dtype
        np.testing.assert_array_equal(tensor, wanted)
    config = json.loads((first / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["num_nextn_predict_layers"] == 0
    hugging_face.export(tiny_models.load(first), first, second)
    again = tiny_models.tensors_of(second)
    assert all(again[name].tobytes() == tensor.tobytes() for name, tensor in written.items())


def test_what_is_left_out_is_said():
    with pytest.warns(
        UserWarning, match=r"model\.layers\.4\.\* predicts further tokens; it is not"
    ):
        tiny_models.load(FOLDER)
