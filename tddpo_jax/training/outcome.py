"""How a run ends: its best policy, its divergence, its summary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from tddpo_jax.adapters.peft_files import export_adapter
from tddpo_jax.batches.layout import Pair
from tddpo_jax.runs.records import best_record
from tddpo_jax.runs.run_directory import RunDirectory
from tddpo_jax.system.agreement import agree
from tddpo_jax.training.population import Member, policy_log_probs
from tddpo_jax.training.prepare import Prepared
from tddpo_jax.training.state import TrainState, member
from tddpo_jax.training.step_order import Order
from tddpo_jax.weights import hugging_face
from tddpo_jax.weights.hugging_face import checkpoint_dtype
from tddpo_jax.weights.locate import base_name


def export_best(
    prepared: Prepared,
    state: TrainState,
    members: Sequence[Member],
    step: int,
    *,
    last: bool,
) -> None:
    """Writes `best/` of every member whose newest validation is its best; without any, the last."""
    newest_is_best = agree(lambda: [_newest_is_best(run, step, last) for run in members])
    for number, run in enumerate(members):
        if run.diverged or not newest_is_best[number]:
            continue
        model = prepared.model(member(state.trainable, number, len(members)))
        folder = run.directory.path / "best"
        if run.config.train.mode == "full":
            dtype = checkpoint_dtype(prepared.files.base)
            hugging_face.export(model, prepared.files.base, folder, dtype)
        else:
            name = base_name(prepared.config.model.path, prepared.files)
            export_adapter(model, folder, name, prepared.base_fingerprint)


def _newest_is_best(run: Member, step: int, last: bool) -> bool:
    best = best_record(run.directory.records(), run.config.train.best_metric)
    return last if best is None else best["step"] == step


def record_divergence(
    prepared: Prepared,
    state: TrainState,
    members: Sequence[Member],
    number: int,
    step: int,
    metrics: dict[str, float],
    order: Order,
) -> str:
    """Ends a run whose step had no finite loss or gradient; returns one line that names the rows.

    Neither the step nor any later one changed the policy, which still tells the rows behind it.
    """
    run = members[number]
    pairs = order.pairs_of(prepared.dataset.train, step)
    logps, _ = policy_log_probs(prepared, state, len(members), pairs)
    what = "gradient" if math.isfinite(metrics["loss"]) else "loss"
    reason = f"{what} is not finite at step {step}; rows of the data"
    return end_diverged(run, step, reason, rows_behind(pairs, logps[number]), order)


def rows_behind(pairs: Sequence[Pair], logps: Float[np.ndarray, "pairs 2"]) -> list[int]:
    """The rows of the data whose log-probs are not finite; all, if none of them stands out."""
    finite = np.isfinite(logps).all(axis=-1)
    rows = [pair.row for pair, good in zip(pairs, finite, strict=True) if not good]
    return rows or [pair.row for pair in pairs]


def end_diverged(run: Member, step: int, what: str, rows: list[int], order: Order) -> str:
    """The run is over; returns the line that says why."""
    shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
    reason = f"{what}: {shown}"
    last_good = agree(lambda: _last_training_line(run.directory))
    run.diverged = True
    run.directory.diverge({"step": step, "reason": reason, "rows": rows, "metrics": last_good})
    summarise(run, order.total_steps)
    return f"{run.directory.path.name} diverged: {reason}"


def _last_training_line(directory: RunDirectory) -> dict[str, Any]:
    """Of the last step that was logged, which only steps of finite loss and gradient are, or {}."""
    return next((line for line in reversed(directory.records()) if "loss" in line), {})


def summarise(run: Member, steps: int) -> dict[str, Any]:
    """Writes and returns `summary.json`: how the run ended, its best validation, its export."""
    return agree(lambda: _summarise(run, steps))


def _summarise(run: Member, steps: int) -> dict[str, Any]:
    metric = run.config.train.best_metric
    tested = [record for record in run.directory.records() if "eval_loss" in record]
    exported = (run.directory.path / "best").exists()
    summary = {
        "state": "diverged" if run.diverged else "finished",
        "steps": run.directory.divergence["step"] if run.directory.divergence else steps,
        "best_metric": metric,
        "best": best_record(tested, metric),
        "first": tested[0] if tested else None,
        "last": tested[-1] if tested else None,
        "divergence": run.directory.divergence,
        "export": "best" if exported else None,
    }
    run.directory.finish(summary)
    return summary
