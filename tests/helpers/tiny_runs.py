"""Runs a tiny Llama over a few pairs: makes the inputs and reads the results."""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_models
from safetensors.numpy import load_file
from tensorboardX.proto.event_pb2 import Event
from tiny_tokenizers import sentencepiece

from tddpo_jax.commands import exit_status, logps
from tddpo_jax.config.dotted import with_value
from tddpo_jax.experiments.grid import run_experiment
from tddpo_jax.losses.metric_names import TIMING_METRICS
from tddpo_jax.placement.mesh import make_mesh
from tddpo_jax.system.console import Screen
from tddpo_jax.training import shared

# Two tensor-parallel or eight data-parallel devices can share every dimension evenly. The inputs of
# every linear layer are a multiple of 64, which QLoRA needs.
SHAPE: dict[str, Any] = {
    "vocab_size": 448,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
}


class Inputs(NamedTuple):
    """A model's folder with its tokenizer, training pairs and validation pairs of token ids."""

    model: Path
    train: Path
    validation: Path


def make_inputs(folder: Path) -> Inputs:
    """Writes a model, 18 training pairs and 7 validation pairs.

    With steps of at most 5 pairs, an epoch has steps of 4 and 5.
    """
    model = tiny_models.save(folder / "model", tiny_models.hugging_face(**SHAPE), sentencepiece())
    inputs = Inputs(model, folder / "train.jsonl", folder / "validation.jsonl")
    write_rows(inputs.train, random_rows(18, seed=1))
    write_rows(inputs.validation, random_rows(7, seed=2))
    return inputs


def random_rows(count: int, seed: int) -> list[dict[str, list[int]]]:
    """Rows of random token ids, prompts and responses of 2 to 11 tokens."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 12, (count, 3))
    pairs = tiny_models.random_examples(lengths, seed=seed, vocabulary=SHAPE["vocab_size"])
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    parts = ([ids.tolist() for ids in (pair.prompt, *pair.responses)] for pair in pairs)
    return [dict(zip(columns, three, strict=True)) for three in parts]


def write_rows(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def settings(inputs: Inputs, output: Path, changes: dict | None = None) -> dict:
    """Settings of a run of eight steps in two epochs, with validations after 3, 4, 6 and 8 steps.

    Micro-batches have one shape, because every shape needs a compilation. Adam's epsilon is large,
    so that rounding in a gradient near zero stays rounding in the weight.

    Args:
        inputs: the model and the data.
        output: directory of the run.
        changes: other values of settings, by dotted name.
    """
    mapping = {
        "model": {"path": str(inputs.model), "remat": "none"},
        "data": {
            "path": str(inputs.train),
            "validation": str(inputs.validation),
            "row_length": 64,
        },
        "train": {
            "learning_rate": 1e-3,
            "adam_eps": 1e-2,
            "batch_pairs": 5,
            "epochs": 2,
            "eval_every": 3,
            "sample_prompts": 0,  # their program, too, would need a compilation
        },
        "output": str(output),
    }
    for name, value in (changes or {}).items():
        mapping = with_value(mapping, name, value)
    return mapping


def run(inputs: Inputs, output: Path, changes: dict | None = None) -> list[dict]:
    """Trains, silently, and returns the summaries."""
    return run_experiment(settings(inputs, output, changes), Screen(quiet=True))


def use_devices(patch: pytest.MonkeyPatch, count: int) -> None:
    """Lets runs see only the first `count` of the eight devices.

    It also stops commands from setting XLA's flags. XLA has already started, and the flags are part
    of the key of every program that is kept on disk.
    """
    for module in (shared, logps):
        patch.setattr(module, "make_mesh", lambda config: make_mesh(config, jax.devices()[:count]))
    patch.setattr(exit_status, "set_flags", lambda: None)


def run_on_one_device(inputs: Inputs, output: Path, changes: dict | None = None) -> list[dict]:
    """Trains on the first device alone, silently, and returns the summaries.

    It is for fixtures of a whole module; tests have the fixture `one_device`.
    """
    with pytest.MonkeyPatch.context() as patch:
        use_devices(patch, 1)
        return run(inputs, output, changes)


@contextlib.contextmanager
def compilations() -> Iterator[collections.Counter]:
    """Counts how often each function is compiled inside the context, by name.

    Calling `clear` on the counter starts anew.
    """
    counts: collections.Counter = collections.Counter()

    class Counting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = re.match(r"Compiling (?:jit\()?([\w<>]+)", record.getMessage())
            if message:
                counts[message[1]] += 1

    handler, logger = Counting(), logging.getLogger("jax")
    logger.addHandler(handler)
    with jax.log_compiles():
        yield counts
    logger.removeHandler(handler)


def lines(directory: Path) -> list[dict]:
    """The lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def training_lines(directory: Path) -> list[dict]:
    return [line for line in lines(directory) if "loss" in line]


def validation_lines(directory: Path) -> list[dict]:
    return [line for line in lines(directory) if "eval_loss" in line]


def untimed(records: list[dict]) -> list[dict]:
    """The records without the values that depend on the clock."""
    return [{k: v for k, v in record.items() if k not in TIMING_METRICS} for record in records]


def weights(directory: Path) -> dict[str, np.ndarray]:
    """The tensors of `best/`."""
    (file,) = (directory / "best").glob("*.safetensors")
    return load_file(file)


def last_state(directory: Path) -> dict[str, np.ndarray]:
    """The newest training state by name: parameters, both moments, count."""
    folder = (directory / "checkpoints").absolute()
    with ocp.CheckpointManager(folder, item_handlers=ocp.StandardCheckpointHandler()) as manager:
        step = manager.latest_step()
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place)
            for name, array in manager.item_metadata(step).items()
        }
        saved = manager.restore(step, args=ocp.args.StandardRestore(like))
    return {name: np.asarray(value) for name, value in saved.items()}


def board(directory: Path) -> list[tuple[int, str, float]]:
    """The (step, name, value) of every number that TensorBoard shows, in the order of writing."""
    shown = (value for value in _on_board(directory) if value[1].WhichOneof("value") != "tensor")
    return [(step, value.tag, value.simple_value) for step, value in shown]


def board_texts(directory: Path) -> list[tuple[int, str, str]]:
    """The (step, name, text) of every text that TensorBoard shows, in the order of writing."""
    shown = (value for value in _on_board(directory) if value[1].WhichOneof("value") == "tensor")
    return [(step, value.tag, value.tensor.string_val[0].decode()) for step, value in shown]


def _on_board(directory: Path) -> list[tuple[int, Any]]:
    """The step and the summary of everything that TensorBoard shows.

    An event file is a sequence of records. Each record holds a length, its checksum, an event and
    its checksum. A session that starts at a step hides earlier values of this and later steps.
    """
    shown: list[tuple[int, Any]] = []
    for file in sorted((directory / "tensorboard").iterdir()):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 12 + length + 4
            if event.HasField("session_log"):
                shown = [value for value in shown if value[0] < event.step]
            shown += [
                (event.step, value)
                for value in event.summary.value
                if value.WhichOneof("value") is not None
            ]
    return shown


def untimed_board(directory: Path) -> list[tuple[int, str, float]]:
    """The values that TensorBoard shows, without those that depend on the clock."""
    return sorted(value for value in board(directory) if value[1] not in TIMING_METRICS)


def times(directory: Path) -> dict[str, int]:
    """The time of the last change of each file, in nanoseconds."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(file.relative_to(directory)): file.stat().st_mtime_ns for file in files}
