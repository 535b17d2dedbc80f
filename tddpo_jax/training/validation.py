"""Validation, the choice and the export of the best policy, and what to say when a run diverges."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from tddpo_jax.adapters.peft_files import export_adapter
from tddpo_jax.batches.layout import Pair
from tddpo_jax.config.schema import Config
from tddpo_jax.errors import UserError
from tddpo_jax.losses.dpo import PairLogps
from tddpo_jax.losses.metrics import best_record
from tddpo_jax.runs.metric_writers import Writer
from tddpo_jax.runs.run_directory import RunDirectory
from tddpo_jax.scoring.reference import Progress, log_probs
from tddpo_jax.system.console import Screen
from tddpo_jax.system.hosts import agree
from tddpo_jax.training.prepare import Prepared
from tddpo_jax.training.step import Knobs, TrainState, member
from tddpo_jax.training.step_order import Order
from tddpo_jax.weights import hugging_face
from tddpo_jax.weights.locate import base_name
from tddpo_jax.weights.tensor_files import checkpoint_dtype

# Policy and reference are the same numbers through the same program; what is left is rounding.
STEP_0_NATS = {"float32": 1e-3, "bfloat16": 0.5}


@dataclasses.dataclass
class Member:
    """One run of the population that is being trained."""

    config: Config
    directory: RunDirectory
    writer: Writer
    diverged: bool


def policy_log_probs(
    prepared: Prepared,
    state: TrainState,
    members: int,
    pairs: Sequence[Pair],
    progress: Progress | None = None,
) -> tuple[Float[np.ndarray, "M pairs 2"], Float[np.ndarray, "M pairs 2"]]:
    """Log-probs and exact KLs (or zeros) of all pairs under every member's policy, in nats."""
    return log_probs(
        prepared.program(members).log_probs,
        state.trainable,
        prepared.frozen,
        pairs,
        prepared.shapes,
        prepared.mesh,
        progress,
    )


def check_step_0(
    prepared: Prepared, state: TrainState, members: int, order: Order, screen: Screen
) -> None:
    """Policy and reference are one model before the first step; says how far they are apart.

    Raises:
        UserError: they differ by more than rounding.
    """
    numbers = order.numbers(0)
    pairs = order.pairs_of(prepared.dataset.train, 0)
    logps, _ = policy_log_probs(prepared, state, members, pairs)
    reference = np.broadcast_to(prepared.reference[numbers], logps.shape)
    # A log-prob that is not finite is left to the first step, which names its rows.
    scored = np.isfinite(logps) & np.isfinite(reference)
    difference = float(np.max(np.abs(logps[scored] - reference[scored]), initial=0.0))
    bound = STEP_0_NATS[str(prepared.dtype)]
    text = f"policy against reference before the first step: |log-ratio| <= {difference:.1e} nats"
    screen.say(f"{text} (bound {bound:g})")
    if not difference <= bound:
        raise UserError(f"model: policy and reference differ by {difference:.3g} nats at step 0")


def evaluate(
    prepared: Prepared,
    state: TrainState,
    knobs: Knobs,
    members: Sequence[Member],
    step: int,
    order: Order,
    screen: Screen,
) -> None:
    """Logs the metrics of the whole validation set, means over pairs, for every member.

    A member with a number among them that is not finite has no policy any more: it has diverged,
    and what it saved before stays as it was.
    """
    validation = prepared.dataset.validation
    if not validation:
        if step:
            _check_weights(prepared, state, members, step, order, screen)
        return
    with screen.stage("validation") as update:
        logps, kls = policy_log_probs(prepared, state, len(members), validation, update)
    reference = prepared.validation_reference
    lengths = np.array([[len(p.chosen), len(p.rejected)] for p in validation], np.float32)
    whole = [np.broadcast_to(x, logps.shape) for x in (logps, reference, lengths, kls)]
    # Left on the host, where all hosts have the same: an array on a device would be one host's own.
    columns: Any = (x[..., branch] for x in whole for branch in (0, 1))
    pairs = PairLogps(*columns)
    values = jax.device_get(prepared.program(len(members)).summary(knobs, pairs))
    for number, run in enumerate(members):
        if run.diverged:
            continue
        metrics = {f"eval_{name}": float(value[number]) for name, value in values.items()}
        if not all(map(math.isfinite, metrics.values())):
            what = f"validation is not finite after step {step}; rows of the validation data"
            screen.say(_diverge(run, step, what, _rows_behind(validation, logps[number]), order))
            continue
        run.writer.log({"step": step, "epoch": order.epoch(step), **metrics})
        run.directory.save_evaluation(step, logps[number])
        if step == 0:
            run.directory.save_evaluation("reference", reference)
            run.directory.save_evaluation("lengths", lengths)
        screen.say(
            f"{run.directory.path.name} step {step}: eval_loss {metrics['eval_loss']:.4f}  "
            f"eval_rewards/accuracies {metrics['eval_rewards/accuracies']:.4f}  "
            f"eval_kl {metrics['eval_kl']:.3g}"
        )


def _check_weights(
    prepared: Prepared,
    state: TrainState,
    members: Sequence[Member],
    step: int,
    order: Order,
    screen: Screen,
) -> None:
    """What validation would show, without one: a policy that its last step broke."""
    rows = [pair.row for pair in order.pairs_of(prepared.dataset.train, step - 1)]
    for number, run in enumerate(members):
        weights = jax.tree.leaves(member(state.trainable, number, len(members)))
        if run.diverged or all(bool(jnp.isfinite(weight).all()) for weight in weights):
            continue
        what = f"weights are not finite after step {step}; rows of the data"
        screen.say(_diverge(run, step, what, rows, order))


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
    return _diverge(run, step, reason, _rows_behind(pairs, logps[number]), order)


def _rows_behind(pairs: Sequence[Pair], logps: Float[np.ndarray, "pairs 2"]) -> list[int]:
    """The rows of the data whose log-probs are not finite; all, if none of them stands out."""
    finite = np.isfinite(logps).all(axis=-1)
    rows = [pair.row for pair, good in zip(pairs, finite, strict=True) if not good]
    return rows or [pair.row for pair in pairs]


def _diverge(run: Member, step: int, what: str, rows: list[int], order: Order) -> str:
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
