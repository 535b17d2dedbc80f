"""The policies that a run keeps, by their steps: the best one, and those of its last states."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from tddpo_jax.config.reading import read_yaml, resolve
from tddpo_jax.config.schema import Config, MeshConfig
from tddpo_jax.data.tokenizer import load_tokenizer_if_any
from tddpo_jax.errors import UserError
from tddpo_jax.placement.mesh import make_mesh
from tddpo_jax.runs.model_card import model_card
from tddpo_jax.runs.records import best_record, read_records
from tddpo_jax.runs.run_directory import read_part
from tddpo_jax.training.checkpoints import read_policy, saved_steps
from tddpo_jax.training.outcome import write_policy
from tddpo_jax.training.policy import load_parts
from tddpo_jax.training.shared import chat_of
from tddpo_jax.weights import locate
from tddpo_jax.weights.companions import Companions
from tddpo_jax.weights.tensor_files import content_hash, fingerprint

# What of a run's settings decides what its states hold. The loss does not.
SECTIONS = ("model", "data", "train", "lora", "seed")


@dataclasses.dataclass(frozen=True)
class KeptPolicies:
    """The steps of a run whose policies it keeps."""

    run: Path
    config: Config  # without the loss
    best: int | None  # the step of `best/`
    saved: set[int]  # the steps of whole states

    def check(self, step: int) -> None:
        """Raises UserError if the run does not keep the policy of a step."""
        if step == self.best or step in self.saved:
            return
        kept = [f"{n} (best)" if n == self.best else str(n) for n in sorted(self._steps)]
        there = f"of step {', '.join(kept)}" if kept else "of no step"
        raise UserError(f"step: {self.run} keeps the policies {there}, not of {step}")

    @property
    def _steps(self) -> set[int]:
        return self.saved | ({self.best} if self.best is not None else set())


def kept_policies(run: Path) -> KeptPolicies:
    """The policies that a run keeps.

    Args:
        run: the run's directory.

    Raises:
        UserError: the directory holds no run, or a file of it is damaged.
    """
    if not (run / "run.json").is_file():
        raise UserError(f"run: {run} holds no run, so it has no steps")
    settings = read_yaml(run / "config.yaml")
    config = resolve({name: settings[name] for name in SECTIONS if name in settings})
    saved = saved_steps(run / "checkpoints")
    return KeptPolicies(run, config, _best(run, config, saved), saved)


def _best(run: Path, config: Config, saved: set[int]) -> int | None:
    """The step of `best/`, which is written between a validation and the save of its state."""
    summary = read_part(run, "summary.json")
    last = summary["steps"] if summary is not None else max(saved, default=0)
    records = [each for each in read_records(run / "metrics.jsonl") if each["step"] <= last]
    best = best_record(records, config.train.best_metric)
    if best is not None:
        return int(best["step"])
    # Without validation data, the policy after the last step is the best.
    return last if summary is not None and summary["state"] == "finished" else None


def write_kept_policy(kept: KeptPolicies, step: int, folder: Path) -> None:
    """Writes the policy of a saved state, as training writes `best/`.

    Args:
        kept: the policies of the run.
        step: one of `kept.saved`.
        folder: the folder to write.

    Raises:
        UserError: the state is damaged, or the model is no longer what the run began with.
    """
    run, config = kept.run, kept.config
    files, facts = locate.resolve(config.model.path), read_part(run, "run.json")
    assert facts is not None
    if content_hash(files.base) != facts["model"]["sha256"]:
        raise UserError(f"model.path: {config.model.path} has changed since {run} began")
    mesh = make_mesh(MeshConfig())
    graphdef, start, frozen = load_parts(config, files, mesh, jnp.float32)
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), start
    )
    del start  # so that the saved ones have room
    trained = read_policy(run / "checkpoints", step, like)
    model = nnx.merge(graphdef, trained, frozen)
    chat = chat_of(config, load_tokenizer_if_any(files.tokenizer), facts["data"]["template"])
    card = model_card(run, adapter=config.train.mode != "full", step=step)
    companions = Companions(files.base, files.tokenizer, chat, card)
    write_policy(model, folder, config, files, fingerprint(files.base), companions)
