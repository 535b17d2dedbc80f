"""Damaged files of a model's folder: the facts they hold, or one line that says what is wrong."""

import json

import numpy as np
import pytest
from damage import flips, odd_json, read_damaged, truncations
from places import GOLDEN
from safetensors.numpy import save_file

from tddpo_jax.system.paths import EMBEDDED
from tddpo_jax.weights.hugging_face import read_config
from tddpo_jax.weights.tensor_files import fingerprint

LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
DEEPSEEK = GOLDEN / "deepseek-v32" / "model"
TENSORS = {"a": np.ones((2, 3), np.float32), "b": np.ones(2, np.float16)}


@pytest.mark.parametrize("name", ["llama", "deepseek"])
def test_config(tmp_path, name):
    """Whatever is taken for a shape lists its parameters."""
    folder = EMBEDDED if name == "llama" else DEEPSEEK
    attributes = json.loads((folder / "config.json").read_text())
    if name == "llama":
        attributes["rope_parameters"] = LLAMA_3
    file = tmp_path / "config.json"
    file.write_text(json.dumps(attributes))
    content = file.read_bytes()
    for contents in (truncations(content, 2), flips(content, 29), odd_json(content)):
        usable, tried = read_damaged(file, contents, lambda: read_config(tmp_path).parameters)
        assert usable < tried


def test_safetensors(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(TENSORS, file)
    content = file.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    heads = (
        len(head).to_bytes(8, "little") + head + content[size:]
        for head in odd_json(content[8:size])
    )
    for contents in (truncations(content), flips(content, 3), heads):
        usable, tried = read_damaged(file, contents, lambda: fingerprint(tmp_path))
        assert usable < tried


def test_index(tmp_path):
    save_file(TENSORS, tmp_path / "part.safetensors")
    file = tmp_path / "model.safetensors.index.json"
    file.write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys("ab", "part.safetensors")})
    )
    content = file.read_bytes()
    places = ("", ".", "..", "\0", "x" * 300, "/dev/null")
    named = (json.dumps({"weight_map": {"a": place}}).encode() for place in places)
    for contents in (truncations(content), flips(content, 3), odd_json(content), named):
        usable, tried = read_damaged(file, contents, lambda: fingerprint(tmp_path))
        assert usable < tried


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_in_the_place_of_a_file_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    read = read_config if name == "config.json" else fingerprint
    with pytest.raises(ValueError, match=name):
        read(tmp_path)
