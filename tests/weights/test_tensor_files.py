"""The safetensors of a folder: what is refused by name, the hashes, and files written by tensor."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from tddpo_jax.weights.hugging_face import checkpoint_dtype
from tddpo_jax.weights.tensor_files import (
    WEIGHT_FILES,
    content_hash,
    fingerprint,
    write_tensors,
)

SINGLE, INDEX = WEIGHT_FILES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in one file, float32; tests change copies of it."""
    return tiny_models.save(tmp_path_factory.mktemp("files") / "model", tiny_models.hugging_face())


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


# ---- files that are refused ----------------------------------------------------------------------


def test_a_truncated_file_is_refused(copy):
    weights = (copy / SINGLE).read_bytes()
    for size in (5, 300, len(weights) - 4):
        (copy / SINGLE).write_bytes(weights[:size])
        with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file"):
            tiny_models.load(copy)


def test_a_folder_without_weights_is_refused(copy):
    (copy / SINGLE).unlink()
    with pytest.raises(ValueError, match=r"copy: holds neither model\.safetensors nor"):
        tiny_models.load(copy)


def test_a_dtype_that_is_not_understood_is_refused(copy):
    problem = r"\.safetensors: {} is stored as {}, but must be one of float32, bfloat16, float16"
    tiny_models.change_tensors(copy, model__norm__weight=np.ones(24, np.float64))
    with pytest.raises(ValueError, match=problem.format(r"model\.norm\.weight", "F64")):
        tiny_models.load(copy)
    for dtype, stored in ((np.float64, "F64"), (np.uint8, "U8")):
        tiny_models.change_tensors(copy, model__embed_tokens__weight=np.ones((61, 24), dtype))
        refused = problem.format(r"model\.embed_tokens\.weight", stored)
        with pytest.raises(ValueError, match=refused):
            checkpoint_dtype(copy)


@pytest.fixture
def shards(tmp_path):
    """A sharded folder, its index, and the files of the embedding and the head."""
    folder = tiny_models.save(tmp_path / "shards", tiny_models.hugging_face(), max_shard_size="6KB")
    index = json.loads((folder / INDEX).read_text())
    first, last = (index["weight_map"][n] for n in ("model.embed_tokens.weight", "lm_head.weight"))
    assert first != last
    return folder, index, first, last


def test_a_tensor_in_two_files_is_refused(shards):
    folder, _, first, last = shards
    again = load_file(folder / first) | load_file(folder / last)
    save_file(again, folder / last)
    with pytest.raises(ValueError, match=r"embed_tokens\.weight is in more than one file"):
        tiny_models.load(folder)


def test_an_index_that_does_not_tell_the_truth_is_refused(shards):
    folder, index, first, last = shards

    def assert_refused(changes, problem):
        changed = {**index["weight_map"], **changes}
        weight_map = {name: file for name, file in changed.items() if file is not None}
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ValueError, match=problem):
            tiny_models.load(folder)

    assert_refused({"lm_head.weight": first}, rf"{first}: tensor lm_head\.weight is missing")
    # Both files are still read; the names they hold are those of the index, but each elsewhere.
    swapped = {"lm_head.weight": first, "model.embed_tokens.weight": last}
    assert_refused(swapped, rf"{first}: tensor lm_head\.weight is missing")
    assert_refused(
        {"lm_head.weight": 5}, r"index\.json: weight_map: lm_head\.weight must name a file, got 5"
    )
    assert_refused({"lm_head.weight": "gone.safetensors"}, r"gone\.safetensors: not a whole")
    norm = {"model.norm.weight": None}
    assert_refused(norm, r"index\.json: tensor model\.norm\.weight is not in weight_map")
    assert_refused({"extra.weight": last}, rf"{last}: tensor extra\.weight is missing")
    (folder / INDEX).write_text("{}")
    with pytest.raises(ValueError, match=r"index\.json: weight_map is missing"):
        tiny_models.load(folder)
    (folder / INDEX).write_text('{"weight_map": {"lm_head.weight": "a", "lm_head.weight": "b"}}')
    with pytest.raises(ValueError, match=r"index\.json: duplicate key lm_head\.weight"):
        tiny_models.load(folder)


def test_a_fingerprint_is_of_the_weights(shards, tmp_path):
    """The same in one file or in several, another after one step of training."""
    folder, _, first, _ = shards
    whole = tiny_models.save(tmp_path / "whole", tiny_models.hugging_face())
    found = fingerprint(folder)
    trained = {name: tensor + 1e-6 for name, tensor in load_file(folder / first).items()}
    save_file(trained, folder / first)
    assert fingerprint(folder) != found
    assert fingerprint(whole) == found


def test_the_single_file_goes_before_an_index(shards, folder):
    """transformers reads model.safetensors where both are there; so do we."""
    sharded, *_ = shards
    changed = {name: tensor + 1 for name, tensor in tiny_models.tensors_of(folder).items()}
    save_file(changed, sharded / SINGLE)
    np.testing.assert_array_equal(
        tiny_models.load(sharded).norm.weight[...], changed["model.norm.weight"]
    )
    theirs = AutoModelForCausalLM.from_pretrained(sharded).model.norm.weight
    np.testing.assert_array_equal(theirs.detach(), changed["model.norm.weight"])


# ---- hashes --------------------------------------------------------------------------------------


def test_the_hash_says_what_the_outputs_depend_on(copy):
    """Config and weights change it, other files do not."""
    before = content_hash(copy)
    (copy / "tokenizer_config.json").write_text("{}")
    assert content_hash(copy) == before
    tiny_models.change_tensors(copy, model__norm__weight=np.ones(24, np.float32))
    changed = content_hash(copy)
    tiny_models.change_config(copy, rms_norm_eps=1e-6)
    assert len({before, changed, content_hash(copy)}) == 3


# ---- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_tensor_by_tensor_makes_the_same_file(dtype, tmp_path):
    """Expected: the bytes of safetensors' own writer."""
    rng = np.random.default_rng(0)
    shapes = {"model.b": (3, 5), "model.a.weight": (7,), "model.a10": (1, 2), "größe": (2, 0)}
    tensors = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    assert_same_file(tensors, tmp_path)


def test_wide_elements_come_first(tmp_path):
    """Expected: the bytes of safetensors' own writer, which aligns what it mixes."""
    tensors = {"a": np.ones(3, jnp.bfloat16), "b": np.ones(5, np.float32), "c": np.ones(1, "f2")}
    assert_same_file(tensors, tmp_path)


def assert_same_file(tensors, folder):
    specs = {name: jax.ShapeDtypeStruct(t.shape, t.dtype) for name, t in tensors.items()}
    write_tensors(folder / "ours", specs, tensors.__getitem__)
    save_file(tensors, folder / "theirs", metadata={"format": "pt"})
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()
