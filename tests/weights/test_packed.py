"""What is refused of a folder with packed tensors, on copies of the golden gpt-oss."""

import shutil

import ml_dtypes
import numpy as np
import pytest
import tiny_models
from places import GOLDEN

FOLDER = GOLDEN / "gpt-oss" / "model"
DOWN = "model.layers.1.mlp.experts.down_proj"
BLOCKS, SCALES = f"{DOWN}_blocks", f"{DOWN}_scales"
# The golden model has 6 experts with a width of 96 and 64 hidden features.
WHOLE = (6, 64, 96)
BYTES = np.zeros((6, 96, 2), np.uint8)

REFUSED = {
    "a part is missing": ({SCALES: None}, f"tensor {SCALES} is missing"),
    "the first part is missing": ({BLOCKS: None}, f"tensor {BLOCKS} is missing"),
    "a part has another shape": (
        {SCALES: BYTES[:, :, :1]},
        rf"{SCALES} is \[6, 96, 1\] of U8, but config.json requires \[6, 96, 2\] of U8",
    ),
    "a part has another dtype": (
        {SCALES: BYTES.astype(np.float32)},
        rf"{SCALES} is \[6, 96, 2\] of F32, but config.json requires \[6, 96, 2\] of U8",
    ),
    "bytes that are no part": (
        {"model.norm.weight": np.ones(96, np.uint8)},
        "model.norm.weight is stored as U8, but it is no part of a packed tensor",
    ),
    "whole and packed": (
        {DOWN: np.zeros(WHOLE, ml_dtypes.bfloat16)},
        f"tensor {DOWN} is there twice, whole and in parts",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_is_not_what_it_says_is_refused(name, tmp_path):
    changes, message = REFUSED[name]
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    tiny_models.change_tensors(folder, **changes)
    with pytest.raises(ValueError, match=message):
        tiny_models.load(folder)


def test_whole_experts_are_read_as_well(tmp_path):
    """The same folder with one tensor unpacked, here to zeros."""
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    changes = {BLOCKS: None, SCALES: None, DOWN: np.zeros(WHOLE, ml_dtypes.bfloat16)}
    tiny_models.change_tensors(folder, **changes)
    down = tiny_models.load(folder).layers_0_1.experts.down.weight[...]
    assert not np.any(down[0])
    assert np.all(np.any(down[1] != 0, axis=(1, 2)))


def test_what_an_export_copies_must_have_a_dtype_that_it_can_hold(tmp_path):
    """That is said before the training, not after it."""
    folder = shutil.copytree(GOLDEN / "llama4-maverick" / "model", tmp_path / "model")
    name = "vision_model.layernorm_pre.weight"
    assert name in tiny_models.tensors_of(folder)
    tiny_models.change_tensors(folder, **{name: np.zeros(32, np.uint8)})
    with pytest.raises(ValueError, match=f"{name} is stored as U8, but must be one of float32"):
        tiny_models.load(folder)
