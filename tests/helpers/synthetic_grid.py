"""Makes run directories with numpy, so that their true accuracies are known."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from eval.experiment import read_experiment
from eval.quality.quality_file import standing_of
from tddpo_jax.config.cells import cell_name, expand, varying_axes
from tddpo_jax.config.reading import resolve
from tddpo_jax.config.schema import Config
from tddpo_jax.runs.run_directory import EVEN_STEPS, RunDirectory

NORMAL = statistics.NormalDist()
STEPS = 20
EVERY = 5  # steps between validations

Accuracy = Callable[[Config], float]


def probit(share: float) -> float:
    return NORMAL.inv_cdf(share)


def experiment_cells(**axes: object) -> list[Config]:
    """The 60 cells of the experiment's grid, or a grid with other values on some axes."""
    values = {
        "loss": ["td_dpo", "dpo", "discopop"],
        "beta": [0.01, 0.05, 0.5, 2.5],
        "tau": [0.5, 1.0, 2.0],
        "seed": [0, 1, 2],
        **axes,
    }
    loss = {"name": values["loss"], "beta": values["beta"], "tau": values["tau"]}
    return [resolve(cell) for cell in expand({"loss": loss, "seed": values["seed"]})]


def steady(config: Config) -> float:
    """An accuracy that depends on tau alone for td_dpo; other losses are best at beta 0.05."""
    if config.loss.name == "td_dpo":
        return {0.5: 0.74, 1.0: 0.78, 2.0: 0.76}[config.loss.tau]
    lost = 0.08 * abs(math.log10(config.loss.beta / 0.05))
    return 0.79 - lost - (0.03 if config.loss.name == "discopop" else 0.0)


def write_grid(
    folder: Path,
    cells: Iterable[Config],
    accuracy: Accuracy = steady,
    *,
    pairs: int = 200,
    spread: float = 0.03,
    shared: float = 0.8,
    diverged: Mapping[str, int] | None = None,
    unfinished: Iterable[str] = (),
    missing: Iterable[str] = (),
    numbers: int = 0,
) -> Path:
    """Writes a grid directory.

    Args:
        folder: the directory to write.
        cells: settings of the cells.
        accuracy: gives the true share of pairs that a cell's last policy orders correctly.
        pairs: number of validation pairs.
        spread: standard deviation of the seeds around that accuracy, in probits.
        shared: share of the variance of a pair's margin that is common to all cells.
        diverged: the step, out of 20, at which a cell diverged, by the cell's name.
        unfinished: names of cells without a summary.
        missing: names of cells without a directory.
        numbers: seed of all random numbers.
    """
    cells = list(cells)
    folder.mkdir(parents=True)
    axes = varying_axes(cells)
    names = [cell_name(cell, axes) for cell in cells]
    settings = cells[0].model_dump(mode="json", exclude={"seed": True, "output": True})
    grid = {"cells": names, "axes": axes, "settings": settings}
    (folder / "grid.json").write_text(json.dumps(grid))
    hard = np.random.default_rng(numbers).normal(size=pairs)
    for number, (name, cell) in enumerate(zip(names, cells, strict=True)):
        if name in set(missing):
            continue
        generator = np.random.default_rng([numbers, number])
        directory = RunDirectory(folder / name, cell)
        directory.create(facts(pairs))
        level = probit(accuracy(cell)) + spread * generator.normal()
        last = (diverged or {}).get(name, STEPS)
        _train(directory, cell, last, level + _margins(hard, shared, generator))
        if last < STEPS:
            reason = f"loss is not finite at step {last}; rows of the data: 3"
            directory.diverge({"step": last, "reason": reason, "rows": [3], "metrics": {}})
        if name not in set(unfinished):
            directory.finish({"state": "diverged" if last < STEPS else "finished", "steps": last})
            if last >= EVERY:
                (folder / name / "best").mkdir()
    return folder


def _margins(hard: np.ndarray, shared: float, generator: np.random.Generator) -> np.ndarray:
    """Standard normal margins of pairs, which correlate with the pairs' difficulty `hard`."""
    own = generator.normal(size=len(hard))
    return math.sqrt(shared) * hard + math.sqrt(1 - shared) * own


def _train(
    directory: RunDirectory,
    cell: Config,
    last: int,
    signal: np.ndarray,
) -> None:
    generator = np.random.default_rng(7)
    lengths = generator.integers(20, 31, (len(signal), 2)).astype(np.float32)
    reference = (-2.0 * lengths).astype(np.float32)
    for step in range(last + 1):
        share = step / STEPS
        if step % EVERY == 0:
            half = share * signal / (1 + cell.loss.beta)
            drift = share * 2.0 / (0.3 + cell.loss.beta)
            ratios = np.stack([half - drift, -half - drift], axis=1)
            logps = (reference + ratios).astype(np.float32)
            right = float(np.mean(half > 0)) if step else 0.5
            directory.log(
                {
                    "step": step,
                    "epoch": step / 10,
                    "eval_loss": 0.7 - 0.3 * share,
                    "eval_rewards/accuracies": right,
                    "eval_kl": float(np.mean(0.5 * (ratios**2).sum(axis=1))),
                }
            )
            directory.save_evaluation(step, logps)
            if step == 0:
                directory.save_evaluation("reference", reference)
                directory.save_evaluation("lengths", lengths)
        if step < last:
            noise = generator.normal(size=3)
            directory.log(
                {
                    "step": step,
                    "epoch": step / 10,
                    "loss": 0.7 - 0.3 * share + 0.02 * noise[0],
                    "rewards/accuracies": 0.5 + 0.3 * share + 0.02 * noise[1],
                    "grad_norm": math.exp(2 - share + 0.3 * noise[2]),
                    "learning_rate": 1e-5,
                    "num_tokens": 1000 * (step + 1),
                    "pairs_per_second": 100.0,
                    "mfu": 0.4,
                }
            )


def facts(pairs: int) -> dict[str, object]:
    """The content of `run.json`."""
    return {
        "versions": {"jax": "0.10.2", "tddpo_jax": "0.1.0", "python": "3.11.7"},
        "git_commit": "0" * 40,
        "device": {"kind": "cpu", "count": 1},
        "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
        "model": {"path": "embedded", "sha256": "a" * 64, "parameters": 106176},
        "data": {
            "path": "embedded",
            "sha256": "b" * 64,
            "template": "plain",
            "train_rows": 900,
            "validation_rows": pairs,
            "dropped": {},
        },
        "step_sizes": EVEN_STEPS,
    }


def write_quality(folder: Path, quality: Callable[[str], float], prompts: int = 40) -> None:
    """Writes `quality.json` for every finished run, as `eval.quality` does."""
    for cell in read_experiment(folder).cells:
        standing = standing_of(cell)
        if standing is None:
            continue
        level = quality(cell.name)
        generator = np.random.default_rng(len(cell.name))
        scores = np.clip(level + 0.1 * generator.normal(size=prompts), 0, 1).round(3).tolist()
        found = {
            **standing._asdict(),
            "asked": {"prompts": prompts, "seed": 0},
            "score": float(np.mean(scores)),
            "kl_per_token": 0.02,
            "scores": scores,
        }
        (cell.folder / "quality.json").write_text(json.dumps(found))


SMALL = experiment_cells(loss=["td_dpo", "dpo"], beta=[0.01, 2.5], tau=[0.5], seed=[0, 1])
NAMES = [cell_name(cell) for cell in SMALL]


def write_small_grid(folder: Path) -> Path:
    """Writes a grid of eight cells: two diverged, one unfinished, one missing, four finished."""
    return write_grid(
        folder,
        SMALL,
        pairs=30,
        diverged={NAMES[0]: 12, NAMES[1]: 3},
        unfinished=[NAMES[2]],
        missing=[NAMES[3]],
    )
