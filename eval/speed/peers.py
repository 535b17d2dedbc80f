"""Our step beside a peer's: the same shapes, pairs, dtype and threads, taking turns in one call."""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from eval.speed.training import WARM_UP, Case, Trainer, load_pairs
from tddpo_jax import convert
from tddpo_jax.layout import Pair


def measure_against(case: Case, peer: str, python: str, settings: str) -> dict[str, Any]:
    """Median step times of ours and the peer's, and their ratio, from steps that take turns.

    Both take the same pairs in the same order.

    Raises:
        ValueError: the peer's Python cannot be run, or its trainer failed.
    """
    pairs = load_pairs(case)
    order = np.random.default_rng(0).permutation(len(pairs))
    needed = (case.steps + WARM_UP) * case.batch_pairs
    chosen = [pairs[number] for number in np.resize(order, needed)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(case, chosen)
        job = _write_job(case, trainer, chosen, Path(folder), settings)
        worker = Path(__file__).with_name(f"{peer}_worker.py")
        process = _start([python, str(worker), str(job)])
        assert process.stdin is not None
        assert process.stdout is not None
        ours, theirs = [], []
        try:
            for step in range(case.steps + WARM_UP):
                ours.append(trainer.step(step))
                theirs.append(_peer_step(process.stdin, process.stdout, peer))
        finally:
            process.kill()
            process.wait()
    our, their = (statistics.median(seconds[WARM_UP:]) for seconds in (ours, theirs))
    return {
        "peer": peer,
        "peer_settings": settings,
        "mode": case.mode,
        "our_step_seconds": our,
        "peer_step_seconds": their,
        "our_pairs_per_second": case.batch_pairs / our,
        "peer_pairs_per_second": case.batch_pairs / their,
        "times_faster": their / our,
        "our_seconds": ours,
        "peer_seconds": theirs,
        **trainer.rates(),
    }


def _write_job(
    case: Case, trainer: Trainer, pairs: list[Pair], folder: Path, settings: str
) -> Path:
    """The random weights as a Hugging Face folder, and a file that says what to do with them."""
    shape = folder / "shape"
    shape.mkdir()
    (shape / "config.json").write_text(json.dumps(_config_json(case)))
    convert.export(trainer.base_model(), shape, folder / "model")
    rows = [
        {f"{name}_ids": getattr(pair, name).tolist() for name in ("prompt", "chosen", "rejected")}
        for pair in pairs
    ]
    job = {
        "folder": str(folder / "model"),
        "tokenizer": str(case.tokenizer.absolute()),
        "mode": case.mode,
        "settings": settings,
        "batch_pairs": case.batch_pairs,
        "max_length": case.max_length,
        "steps": case.steps + WARM_UP,
        "pairs": rows,
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    return path


def _config_json(case: Case) -> dict[str, Any]:
    model = case.model
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": model.width,
        "intermediate_size": model.feed_forward,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.key_value_heads,
        "head_dim": model.head_size,
        "vocab_size": model.vocabulary,
        "max_position_embeddings": model.context,
        "rms_norm_eps": model.norm_epsilon,
        "rope_theta": model.rope_theta,
        "tie_word_embeddings": model.tied,
    }


def _start(command: list[str]) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    except OSError as error:
        raise ValueError(f"--peer-python: {command[0]}: {error.strerror}") from None


def _peer_step(commands: IO[str], answers: IO[str], peer: str) -> float:
    commands.write("step\n")
    commands.flush()
    line = answers.readline()
    if not line:
        raise ValueError(f"--against: the trainer of {peer} stopped; its own words are above")
    return json.loads(line)["seconds"]
