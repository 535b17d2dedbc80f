"""The experiment's card: the question, the runs and the results as one JSON mapping."""

from __future__ import annotations

import math
from typing import Any

from tddpo_jax.losses.catalogue import DEFAULT_LOSS, LOSSES

from ...experiment import Cell, Experiment
from ..analysis import Analysis, Rival
from ..answer import Answer
from ..read.settings import learning_rates
from ..statistics.claims import Claim
from ..statistics.estimates import Estimate
from ..statistics.study import Study


def card(analysis: Analysis, answer: Answer) -> dict[str, Any]:
    """The card. Infinities and unknown numbers are null."""
    experiment = analysis.experiment
    losses = list(dict.fromkeys(point.loss for point in experiment.points))
    proposed = DEFAULT_LOSS if DEFAULT_LOSS in losses else losses[0]
    return {
        "experiment_summary": " ".join([_setup(experiment), *answer.lines]),
        "evaluation_metrics": [
            f"{study.score.name}: {study.score.title} ({study.score.unit})"
            for study in analysis.studies.values()
        ],
        "models_to_use": _distinct(experiment, _model),
        "datasets_to_use": _distinct(experiment, _data),
        "proposed_method": _method(experiment, proposed),
        "comparative_methods": [_method(experiment, loss) for loss in losses if loss != proposed],
        "hyperparameters_to_search": _searched(experiment),
        "results": {
            "cells": {cell.name: cell.state for cell in experiment.cells},
            "learning_rates": learning_rates(experiment),
            "answer": answer.lines,
            "command": answer.command,
            "notes": list(analysis.notes),
            "scores": {name: _score(study) for name, study in analysis.studies.items()},
            "best_against": [_rival(rival) for rival in analysis.rivals],
            "claims": [_claim(claim) for claim in analysis.claims],
        },
    }


def _setup(experiment: Experiment) -> str:
    losses = ", ".join(dict.fromkeys(point.loss for point in experiment.points))
    betas = ", ".join(f"{beta:g}" for beta in experiment.betas)
    return (
        f"{len(experiment.cells)} runs of {losses} over beta {betas} and seeds "
        f"{', '.join(map(str, experiment.seeds))}."
    )


def _method(experiment: Experiment, loss: str) -> str:
    """The first line of the loss's own documentation."""
    configs = [cell.config for cell in experiment.cells if cell.point.loss == loss and cell.config]
    known = LOSSES.get(configs[0].loss.name if configs else loss)
    lines = ((known and known.function.__doc__) or loss).strip().splitlines()
    return f"{loss}: {lines[0]}"


def _distinct(experiment: Experiment, describe: Any) -> list[str]:
    return list(dict.fromkeys(describe(cell) for cell in experiment.cells if cell.facts))


def _model(cell: Cell) -> str:
    model = cell.facts["model"]
    return f"{model['path']} ({model['parameters']:,} parameters, sha256 {model['sha256']})"


def _data(cell: Cell) -> str:
    data = cell.facts["data"]
    return (
        f"{data['path']} ({data['train_rows']} training and {data['validation_rows']} validation "
        f"pairs, sha256 {data['sha256']})"
    )


def _searched(experiment: Experiment) -> list[dict[str, Any]]:
    points = experiment.points
    axes = {
        "loss": [*dict.fromkeys(point.loss for point in points)],
        "beta": list(experiment.betas),
        "tau": sorted({float(point.tau) for point in points if point.tau is not None}),
        "seed": list(experiment.seeds),
        **{
            name: sorted(
                {dict(point.others)[name] for point in points if name in dict(point.others)}
            )
            for name in experiment.other_axes
        },
    }
    return [{"name": name, "range": values} for name, values in axes.items() if values]


def _score(study: Study) -> dict[str, Any]:
    score = study.score
    return {
        "title": score.title,
        "unit": score.unit,
        "higher_is_better": score.higher,
        "before_training": score.base,
        "margins": score.margins._asdict() if score.margins else None,
        "settings": [
            {
                **point._asdict(),
                "others": dict(point.others),
                **_estimate(found),
                "chosen_by_the_halves": [one.text for one in study.arms[point].chosen],
            }
            for point, found in study.estimates.items()
        ],
        "best_setting": {loss: arm.point.text for loss, arm in study.best_of_losses.items()},
        "across_beta": [
            {
                "series": found.name,
                "betas": found.betas,
                "mean": _estimate(found.mean),
                "worst": {"beta": found.worst.point.beta, "mean": _finite(found.worst.mean)},
                "variance": _estimate(found.variance),
            }
            for found in study.across.values()
        ],
        "ratios_of_variance": [
            {
                "series": study.across[over].name,
                "baseline": study.across[under].name,
                "betas": found.betas,
                "ratio": _finite(found.value),
                "interval": _both(found.interval),
                "difference_of_means": _estimate(found.means),
            }
            for (over, under), found in study.ratios.items()
        ],
    }


def _rival(rival: Rival) -> dict[str, Any]:
    return {
        "setting": rival.arm.point.text,
        "lead": _estimate(rival.lead) if rival.lead else None,
        "detectable": _finite(rival.lead.detectable) if rival.lead else None,
        "p_corrected": _finite(rival.chance),
        "told_apart": rival.is_told_apart,
    }


def _claim(claim: Claim) -> dict[str, Any]:
    return {
        "number": claim.number,
        "text": claim.text,
        "verdict": claim.verdict,
        "parts": [
            {
                "text": part.text,
                "verdict": part.verdict,
                "numbers": part.numbers,
                "advantage": _estimate(part.advantage) if part.advantage else None,
            }
            for part in claim.parts
        ],
    }


def _estimate(found: Estimate) -> dict[str, Any]:
    return {"mean": _finite(found.mean), "interval": _both(found.interval), "seeds": found.seeds}


def _both(interval: tuple[float, float] | None) -> list[float | None] | None:
    return None if interval is None else [_finite(end) for end in interval]


def _finite(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
