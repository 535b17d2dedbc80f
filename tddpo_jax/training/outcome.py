"""Writes how a run ends: its best policy, its divergence, its summary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from tddpo_jax.adapters.peft_files import export_adapter
from tddpo_jax.batches.layout import Example
from tddpo_jax.config.schema import Config
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.runs.model_card import model_card
from tddpo_jax.runs.records import best_metric, best_record
from tddpo_jax.runs.run_directory import RunDirectory
from tddpo_jax.system.agreement import agree
from tddpo_jax.training.population import Member, Population
from tddpo_jax.training.result_warnings import result_warnings
from tddpo_jax.training.state import TrainState
from tddpo_jax.training.step_order import Order
from tddpo_jax.weights import hugging_face
from tddpo_jax.weights.companions import Companions
from tddpo_jax.weights.hugging_face import checkpoint_dtype
from tddpo_jax.weights.locate import ModelFiles, base_name


def export_best(population: Population, state: TrainState, step: int) -> None:
    """Writes `best/` of every member whose newest validation is its best so far.

    Without validation data, the policy after the last step counts as the best.

    Args:
        population: the runs.
        state: the state of all members.
        step: optimiser steps so far.
    """
    experiment, members = population.experiment, population.members
    files, last = experiment.shared.files, step == population.order.total_steps
    newest_is_best = agree(lambda: [_newest_is_best(run, step, last) for run in members])
    for number, run in enumerate(members):
        if run.diverged or not newest_is_best[number]:
            continue
        model = experiment.policy.model(population.state_of(state.trainable, number))
        folder = run.directory.path / "best"
        card = model_card(run.directory.path, adapter=run.config.train.mode != "full")
        companions = Companions(files.base, files.tokenizer, experiment.shared.chat, card)
        known_by = experiment.shared.hashes.fingerprint
        write_policy(model, folder, run.config, files, known_by, companions)


def write_policy(
    model: Decoder,
    folder: Path,
    config: Config,
    files: ModelFiles,
    known_by: str,
    companions: Companions,
) -> None:
    """Writes a policy as a Hugging Face folder, or as a PEFT folder if it has adapters.

    Args:
        model: the policy.
        folder: the folder to write; replaced if it exists.
        config: the settings of the run.
        files: the model that was trained.
        known_by: the fingerprint of its base.
        companions: what to write beside the weights.
    """
    if config.train.mode == "full":
        dtype = checkpoint_dtype(files.base)
        hugging_face.export(model, files.base, folder, dtype, companions)
        return
    name = base_name(config.model.path, files)
    export_adapter(model, folder, name, known_by, companions, rslora=config.lora.rslora)


def _newest_is_best(run: Member, step: int, last: bool) -> bool:
    best = best_record(run.directory.records(), run.config.train.best_metric)
    return last if best is None else best["step"] == step


def record_divergence(
    population: Population, state: TrainState, number: int, step: int, metrics: dict[str, float]
) -> str:
    """Ends a member whose loss or gradient was not finite; returns a line that names the rows.

    That step and all later ones left the member's policy unchanged. So the policy's log-probs still
    show which rows are the cause.

    Args:
        population: the runs.
        state: the state of all members.
        number: number of the member.
        step: number of the step.
        metrics: the member's metrics of that step.
    """
    examples = population.examples_of(step)
    logps, _ = population.log_probs(state, examples)
    what = "gradient" if math.isfinite(metrics["loss"]) else "loss"
    reason = f"{what} is not finite at step {step}; rows of the data"
    rows = rows_behind(examples, logps[number])
    return end_diverged(population.members[number], step, reason, rows, population.order)


def rows_behind(
    examples: Sequence[Example], logps: Float[np.ndarray, "examples N"]
) -> list[int | str]:
    """The rows of the data whose log-probs are not finite; all rows if every log-prob is finite."""
    finite = np.isfinite(logps).all(axis=-1)
    rows = [example.place for example, good in zip(examples, finite, strict=True) if not good]
    return rows or [example.place for example in examples]


def end_diverged(run: Member, step: int, what: str, rows: list[int | str], order: Order) -> str:
    """Ends a run as diverged; returns a line with the reason.

    Args:
        run: the member.
        step: number of the step.
        what: the reason.
        rows: the rows of the data that are the cause.
        order: the order of the run's steps.
    """
    shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
    reason = f"{what}: {shown}"
    last_good = agree(lambda: _last_training_line(run.directory))
    run.diverged = True
    run.directory.diverge({"step": step, "reason": reason, "rows": rows, "metrics": last_good})
    summarise(run, order.total_steps)
    return f"{run.directory.path.name} diverged: {reason}"


def _last_training_line(directory: RunDirectory) -> dict[str, Any]:
    """The last training line of `metrics.jsonl`, whose loss and gradient were finite; or {}."""
    return next((line for line in reversed(directory.records()) if "loss" in line), {})


def summarise(run: Member, steps: int) -> dict[str, Any]:
    """Writes and returns `summary.json`: how the run ended, its best validation, its warnings.

    Args:
        run: the member.
        steps: the steps of a whole run.
    """
    return agree(lambda: _summarise(run, steps))


def _summarise(run: Member, steps: int) -> dict[str, Any]:
    records = run.directory.records()
    metric = best_metric(run.config.train.best_metric, records)
    tested = [record for record in records if "eval_loss" in record]
    divergence = run.directory.divergence
    exported = (run.directory.path / "best").exists()
    best = best_record(tested, metric)
    summary = {
        "state": "diverged" if run.diverged else "finished",
        "steps": divergence["step"] if divergence else steps,
        "best_metric": metric,
        "best": best,
        "first": tested[0] if tested else None,
        "last": tested[-1] if tested else None,
        "divergence": divergence,
        "export": "best" if exported else None,
        "warnings": result_warnings(tested[0], best, run.directory.lengths) if best else [],
    }
    run.directory.finish(summary)
    return summary
