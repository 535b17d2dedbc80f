"""The sections of the page, in order, with their tables and pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ...experiment import Cell
from ...quality.quality_file import quality_of
from ..analysis import Analysis, Tested
from ..figures.beta_plots import against_beta, sensitivities
from ..figures.curves import MOST_POINTS, gradient_norms, learning_curves
from ..figures.drawing import EXTREMES, Picture
from ..figures.frontier import frontier
from ..figures.heat_maps import heat_map
from ..number_formats import beta_or_tau
from ..read.scores import Score
from . import comparison_tables, run_tables
from .diagnosis import diagnosis_tables
from .tables import Table


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report: a heading, a few sentences, a list, tables, pictures."""

    title: str
    text: str = ""
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


def sections_of(analysis: Analysis) -> list[Section]:
    """All sections in the order of the page. Some may have nothing to show."""
    experiment, studies = analysis.experiment, analysis.studies
    return [
        *(_verdict(analysis) if analysis.compares else []),
        Section("Before you believe it", notes=analysis.notes),
        *(_numbers(analysis) if analysis.compares else []),
        Section(
            "Best settings and the two extremes",
            tables=_if_comparing(
                analysis,
                comparison_tables.best_table(list(studies.values())),
                comparison_tables.extremes_table(experiment, list(studies.values())),
            ),
        ),
        Section(
            "Heat maps",
            "A tile shows the mean over seeds, and below it the 95 % interval with items and seeds "
            f"resampled together. Beta {' and '.join(map(beta_or_tau, EXTREMES))} are framed.",
            pictures=_heat_maps(analysis) if analysis.compares else [],
        ),
        Section(
            "Score and loss against beta",
            "Means over seeds with 95 % intervals. The values of different losses cannot be "
            "compared, so each loss has its own picture.",
            pictures=_against_beta(analysis) if len(experiment.betas) > 1 else [],
        ),
        Section(
            "Sensitivity to beta",
            "A dot is the variance less noise, with its 95 % interval. An upright line is the "
            "variance as observed.",
            tables=[comparison_tables.sensitivity_table(one.study) for one in _sensitive(analysis)],
            pictures=[sensitivities(one.study) for one in _sensitive(analysis)],
        ),
        Section(
            "Why",
            "How the losses moved the log-probs of the validation pairs.",
            tables=diagnosis_tables(experiment),
        ),
        Section(
            "Reward against KL",
            "A small mark is a cell, a large mark a setting at its beta. Up and to the left is "
            "better: a higher score at less distance from the reference.",
            pictures=_frontiers(analysis) if analysis.compares else [],
        ),
        Section(
            "Learning curves",
            "Each line is a seed, and × marks where a run diverged. Long runs are averaged in "
            f"{MOST_POINTS} bins.",
            pictures=learning_curves(experiment),
        ),
        Section("Gradient norms", pictures=gradient_norms(experiment)),
        Section(
            "Every metric of every setting",
            tables=[comparison_tables.settings_table(experiment, list(studies.values()))]
            if studies
            else [],
        ),
        Section("Cells", tables=[run_tables.cells_table(experiment, analysis.found)]),
        Section(
            "Where the runs came from",
            tables=[run_tables.facts_table(experiment), *run_tables.differing_tables(experiment)],
        ),
    ]


def _if_comparing(analysis: Analysis, *found: Table | None) -> list[Table]:
    return [table for table in found if table is not None] if analysis.compares else []


def _verdict(analysis: Analysis) -> list[Section]:
    return [Section("Verdict", tables=[comparison_tables.verdicts_table(analysis.tested)])]


def _numbers(analysis: Analysis) -> list[Section]:
    sections = [
        Section(
            f"In numbers: {one.study.score.title}",
            tables=[comparison_tables.claims_table(one.claims, one.without, margins)],
        )
        for one in analysis.tested
        if (margins := one.study.score.margins)
    ]
    stated = comparison_tables.margins_table(list(analysis.studies.values()))
    return [*sections, Section("Margins", tables=[stated])]


def _sensitive(analysis: Analysis) -> list[Tested]:
    return [one for one in analysis.tested if one.study.sensitivities]


def _heat_maps(analysis: Analysis) -> list[Picture]:
    shown = [*(one.study.score.name for one in analysis.tested), "logps_accuracy", "kl"]
    return [
        heat_map(analysis.experiment, analysis.studies[name], logarithmic=name == "kl")
        for name in shown
        if name in analysis.studies
    ]


def _against_beta(analysis: Analysis) -> list[Picture]:
    experiment = analysis.experiment
    losses = list(dict.fromkeys(point.loss for point in experiment.points))
    drawn = [
        against_beta(experiment, one.study, losses, f"against_beta-{one.study.score.name}")
        for one in analysis.tested
    ]
    if "loss" not in analysis.studies:
        return drawn
    study = analysis.studies["loss"]
    return drawn + [
        against_beta(experiment, study, [loss], f"against_beta-loss-{loss}") for loss in losses
    ]


def _frontiers(analysis: Analysis) -> list[Picture]:
    kl = next((score for score in analysis.found.scores if score.name == "kl"), None)
    if kl is None:
        return []
    cells = analysis.experiment.cells
    on_pairs = {cell.name: kl.of(number) for number, cell in enumerate(cells)}
    return [
        frontier(analysis.experiment, one.study.score, *_kl_of(one.study.score, cells, on_pairs))
        for one in analysis.tested
    ]


def _kl_of(
    score: Score, cells: Sequence[Cell], on_pairs: dict[str, float]
) -> tuple[dict[str, float], str]:
    """The KL on a score's own answers if it was measured, else the penalty on the pairs."""
    if score.name == "quality":
        found = {cell.name: (quality_of(cell) or {}).get("kl_per_token") for cell in cells}
        known = {name: float(value) for name, value in found.items() if value is not None}
        if known:
            return known, "KL to the reference on sampled answers (nats a token)"
    return on_pairs, "KL penalty on validation pairs, mean of (s_w² + s_l²) / 2 (nats)"
