"""The report's files: a page that loads nothing, the same as Markdown, and a row per cell."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import jinja2
import yaml

from eval.experiment import Cell
from eval.quality.score_file import quality_of
from eval.report.analysis import Analysis, Tested
from eval.report.figures.beta_plots import against_beta, sensitivities
from eval.report.figures.curves import gradient_norms, learning_curves
from eval.report.figures.drawing import Picture
from eval.report.figures.frontier import frontier
from eval.report.figures.heat_maps import heat_map
from eval.report.pages import tables
from eval.report.pages.card import card
from eval.report.pages.diagnosis import why_tables
from eval.report.pages.tables import Table
from eval.report.read.scores import CELL_COLUMNS, TRAINING_COLUMNS, Score
from eval.report.read.settings import shared_settings
from tddpo_jax.system.atomic import write_text

FIGURES = "report_figures"


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report: a heading, a few sentences, a list, tables, pictures."""

    title: str
    text: str = ""
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


def write_report(analysis: Analysis, command: str) -> list[Path]:
    """Writes the report into the experiment's own directory; returns what was written.

    Args:
        analysis: the content.
        command: that makes this report, for the page to say.
    """
    folder = analysis.experiment.folder
    sections = [s for s in _sections(analysis) if s.tables or s.pictures or s.notes]
    figures = folder / FIGURES
    figures.mkdir(exist_ok=True)
    for section in sections:
        for drawn in section.pictures:
            (figures / f"{drawn.name}.svg").write_bytes(drawn.svg)
    content = {
        "title": analysis.experiment.folder.resolve().name,
        "states": tables.states_of(analysis.experiment),
        "headlines": analysis.headlines,
        "sections": sections,
        "settings": yaml.safe_dump(shared_settings(analysis.experiment), sort_keys=False),
        "command": command,
        "figures": FIGURES,
    }
    texts = {
        "report.html": _environment(escape=True).get_template("page.html.j2").render(content),
        "report.md": _environment(escape=False).get_template("page.md.j2").render(content),
        "results.csv": results_csv(analysis),
        "experiment.json": json.dumps(card(analysis), indent=2, allow_nan=False) + "\n",
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def _environment(*, escape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=escape,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.tests["link"] = lambda entry: isinstance(entry, tables.Link)
    return environment


def _sections(analysis: Analysis) -> list[Section]:
    """In the order of the page; those with nothing to show are left out."""
    experiment, studies = analysis.experiment, analysis.studies
    return [
        *(_verdict(analysis) if analysis.compares else []),
        Section("Before you believe it", notes=analysis.notes),
        *(_numbers(analysis) if analysis.compares else []),
        Section(
            "Best settings and the two extremes",
            tables=_if_comparing(
                analysis,
                tables.best_table(list(studies.values())),
                tables.extremes_table(experiment, list(studies.values())),
            ),
        ),
        Section(
            "Heat maps",
            "Mean over seeds; below it the 95 % interval, items and seeds resampled together. Beta "
            "0.01 and 2.5 are framed.",
            pictures=_heat_maps(analysis) if analysis.compares else [],
        ),
        Section(
            "Score and loss against beta",
            "Means over seeds with 95 % intervals. Values of different losses are of different "
            "kinds: each is drawn for itself.",
            pictures=_against_beta(analysis) if len(experiment.betas) > 1 else [],
        ),
        Section(
            "Sensitivity to beta",
            "Dot: variance less noise, with its 95 % interval. Upright line: variance as observed.",
            tables=[tables.sensitivity_table(one.study) for one in _sensitive(analysis)],
            pictures=[sensitivities(one.study) for one in _sensitive(analysis)],
        ),
        Section(
            "Why",
            "What the losses did to the log-probs that they saw.",
            tables=why_tables(experiment),
        ),
        Section(
            "Reward against KL",
            "A small mark per cell, a large one per setting at its beta. Up and to the left is "
            "better: more of the score for less distance from the reference.",
            pictures=_frontiers(analysis) if analysis.compares else [],
        ),
        Section(
            "Learning curves",
            "A line per seed; × where a run diverged. Long runs are averaged in 60 bins.",
            pictures=learning_curves(experiment),
        ),
        Section("Gradient norms", pictures=gradient_norms(experiment)),
        Section(
            "Every metric of every setting",
            tables=[tables.settings_table(experiment, list(studies.values()))] if studies else [],
        ),
        Section("Cells", tables=[tables.cells_table(experiment, analysis.found)]),
        Section(
            "Where the runs came from",
            tables=[tables.facts_table(experiment), *tables.differing_tables(experiment)],
        ),
    ]


def _if_comparing(analysis: Analysis, *found: Table | None) -> list[Table]:
    return [table for table in found if table is not None] if analysis.compares else []


def _verdict(analysis: Analysis) -> list[Section]:
    return [Section("Verdict", tables=[tables.verdicts_table(analysis.tested)])]


def _numbers(analysis: Analysis) -> list[Section]:
    sections = [
        Section(
            f"In numbers: {one.study.score.title}",
            tables=[tables.claims_table(one.claims, one.without, margins)],
        )
        for one in analysis.tested
        if (margins := one.study.score.margins)
    ]
    stated = tables.margins_table(list(analysis.studies.values()))
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
    """The KL of a score's own answers where it was measured, else the penalty on the pairs."""
    if score.name == "quality":
        found = {cell.name: (quality_of(cell) or {}).get("kl_per_token") for cell in cells}
        known = {name: float(value) for name, value in found.items() if value is not None}
        if known:
            return known, "KL to the reference on sampled answers (nats a token)"
    return on_pairs, "KL penalty on validation pairs, mean of (s_w² + s_l²) / 2 (nats)"


def results_csv(analysis: Analysis) -> str:
    """One row per cell, full names of losses and scores; only the last column is a timing."""
    scores = analysis.found.scores
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        [
            *CELL_COLUMNS,
            # `loss` is the loss's name already.
            *("eval_loss" if score.name == "loss" else score.name for score in scores),
            *TRAINING_COLUMNS,
        ]
    )
    for number, cell in enumerate(analysis.experiment.cells):
        chosen = analysis.found.checkpoints.get(cell.name)
        writer.writerow(
            [
                *(cell.name, cell.state, *cell.point, cell.seed),
                cell.config.train.learning_rate if cell.config else None,
                cell.divergence["step"] if cell.divergence else None,
                *(chosen or (None, None)),
                *(_plain(score.of(number)) for score in scores),
                _plain(tables.largest_gradient(cell)),
                _plain(tables.speed(cell)),
            ]
        )
    return file.getvalue()


def _plain(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""
