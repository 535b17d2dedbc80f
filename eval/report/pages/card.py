"""The experiment's card: the question, the runs and the results as one JSON mapping."""

from __future__ import annotations

import math
from typing import Any

from tddpo_jax.losses.catalogue import DEFAULT_LOSS, LOSSES

from ...experiment import Experiment
from ..analysis import Analysis
from ..answer import Answer, axes_of
from ..read.settings import learning_rates
from ..statistics.estimates import Estimate
from ..statistics.study import Study


def card(analysis: Analysis, answer: Answer) -> dict[str, Any]:
    """The card. Infinities and unknown numbers are null."""
    experiment, studies = analysis.experiment, analysis.studies
    axes = axes_of(experiment) | {"seed": list(experiment.seeds)}
    losses = axes["loss"]
    proposed = DEFAULT_LOSS if DEFAULT_LOSS in losses else losses[0]
    facts = [cell.facts for cell in experiment.cells if cell.facts]
    return {
        "experiment_summary": " ".join(answer.lines),
        "evaluation_metrics": [f"{s.score.name}: {s.score.title}" for s in studies.values()],
        "models_to_use": list(dict.fromkeys(_text(one["model"]) for one in facts)),
        "datasets_to_use": list(dict.fromkeys(_text(one["data"]) for one in facts)),
        "proposed_method": _method(experiment, proposed),
        "comparative_methods": [_method(experiment, loss) for loss in losses if loss != proposed],
        "hyperparameters_to_search": [
            {"name": name, "range": values} for name, values in axes.items() if values
        ],
        "results": {
            "cells": {cell.name: cell.state for cell in experiment.cells},
            "learning_rates": learning_rates(experiment),
            "answer": answer.lines,
            "command": answer.command,
            "notes": list(analysis.notes),
            "scores": {name: _score(study) for name, study in studies.items()},
            "leads": [
                {"over": rival.arm.point.text, "p_corrected": _finite(rival.chance)}
                | (_estimate(rival.lead) if rival.lead else {})
                for rival in analysis.rivals
            ],
            "claims": [
                {"number": claim.number, "text": claim.text, "verdict": claim.verdict}
                | {"parts": [[part.text, part.verdict, part.numbers] for part in claim.parts]}
                for claim in analysis.claims
            ],
        },
    }


def _text(facts: dict[str, Any]) -> str:
    keys = ("path", "sha256", "parameters", "train_rows", "validation_rows")
    return ", ".join(f"{key} {facts[key]}" for key in keys if key in facts)


def _method(experiment: Experiment, loss: str) -> str:
    """The first line of the loss's own documentation."""
    configs = [cell.config for cell in experiment.cells if cell.point.loss == loss and cell.config]
    known = LOSSES.get(configs[0].loss.name if configs else loss)
    lines = ((known and known.function.__doc__) or loss).strip().splitlines()
    return f"{loss}: {lines[0]}"


def _score(study: Study) -> dict[str, Any]:
    return {
        "unit": study.score.unit,
        "higher_is_better": study.score.higher,
        "before_training": study.score.base,
        "settings": [
            {**point._asdict(), "others": dict(point.others), **_estimate(found)}
            for point, found in study.estimates.items()
        ],
        "across_beta": {
            found.name: {"mean": _estimate(found.mean), "variance": _estimate(found.variance)}
            for found in study.across.values()
        },
    }


def _estimate(found: Estimate) -> dict[str, Any]:
    ends = found.interval
    interval = None if ends is None else [_finite(end) for end in ends]
    return {"mean": _finite(found.mean), "interval": interval, "seeds": found.seeds}


def _finite(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
