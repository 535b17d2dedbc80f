"""Large checkpoints: in and out in bounded memory, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from eval.speed import files
from eval.speed.synthetic_checkpoint import differing_tensor
from tddpo_jax.commands.exit_status import run_command

# 494 MB of bfloat16, with `LAYERS`, in tensors of at most 6.3 MB: files of 80 MB hold many.
SHAPE = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_attention_heads": 12,
    "num_hidden_layers": 32,
    "vocab_size": 4096,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
LAYERS = 34


def files_command(tmp_path, *options):
    """The finished command for `SHAPE`."""
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    command = [sys.executable, "-m", "eval.speed.files", "--json", "--model", str(tmp_path)]
    layers = [] if "--layers" in options else ["--layers", str(LAYERS)]
    command += [*layers, "--folder", str(tmp_path / "files"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_checkpoint_goes_in_and_out_in_bounded_memory(dtype, tmp_path):
    """Eight devices, seven files: held are the sharded weights and at most one file.

    Expected: 2 x 4,096 x 768 + 34 x (4 x 768^2 + 3 x 768 x 2,048 + 2 x 768) + 768 parameters;
    sharded, the norms lie on every device.
    """
    norms = (2 * LAYERS + 1) * 768
    parameters = 2 * 4096 * 768 + LAYERS * (4 * 768**2 + 3 * 768 * 2048) + norms
    # The system also counts what threads and allocators keep for a moment. That can only add, so
    # the smallest of up to three measurements counts.
    for _ in range(3):
        done = files_command(tmp_path, "--dtype", dtype, "--shard-bytes", "80000000")
        figures = json.loads(done.stdout)
        most = figures["weight_bytes"] + figures["largest_shard_bytes"]
        if figures["held_bytes"] <= most:
            break
    assert figures["shard_files"] == 7
    assert 0 <= figures["checkpoint_bytes"] - 2 * parameters < 10_000 * figures["shard_files"]
    itemsize = jnp.dtype(dtype).itemsize
    assert figures["weight_bytes"] == itemsize * (parameters + 7 * norms)
    assert figures["held_bytes"] > figures["weight_bytes"]
    assert figures["held_bytes"] <= most
    assert figures["differing_tensor"] is None
    assert done.returncode == 0
    assert not list((tmp_path / "files").iterdir())


def test_what_memory_cannot_hold_is_refused(tmp_path):
    done = files_command(tmp_path, "--layers", "5000")
    assert done.returncode == 2
    # transformers may say before that it found no PyTorch.
    assert done.stderr.splitlines()[-1].startswith("error: --layers: 5000 in bfloat16 need ")
    assert not list((tmp_path / "files").iterdir())


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--layers", "0"], "--layers: must be above 0, got 0"),
        (["--shard-bytes", "-1"], "--shard-bytes: must be above 0, got -1"),
        (["--fsdp", "5"], "mesh.fsdp: 5 does not divide the model's width, 768"),
    ],
)
def test_wrong_numbers_are_refused_before_anything_is_written(option, said, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    folder = tmp_path / "files"
    options = ["--model", str(tmp_path), "--folder", str(folder), *option]
    assert run_command(files._command, options, resumes=True) == 2
    assert capsys.readouterr().err == f"error: {said}\n"
    assert not folder.exists()


def test_a_changed_bit_is_found(tmp_path):
    """Two folders of the same tensors, in one file and in two; then one sign differs."""
    tensors = {"a": np.arange(6).reshape(2, 3), "b": np.zeros(5)}
    tensors = {name: tensor.astype(jnp.bfloat16) for name, tensor in tensors.items()}
    single, sharded = tmp_path / "single", tmp_path / "sharded"
    single.mkdir()
    sharded.mkdir()
    save_file(tensors, single / "model.safetensors")
    files = {name: f"{name}.safetensors" for name in tensors}
    for name, file in files.items():
        save_file({name: tensors[name]}, sharded / file)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert differing_tensor(single, sharded) is None
    save_file({"b": -tensors["b"]}, sharded / files["b"])
    assert differing_tensor(single, sharded) == "b"
    save_file({"a": tensors["a"]}, single / "model.safetensors")
    assert differing_tensor(single, sharded) == "b"
