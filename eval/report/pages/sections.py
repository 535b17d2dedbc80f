"""What follows the first screen, in order; what is folded tells how we know."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

from ...experiment import Experiment
from ..analysis import Analysis
from ..figures.chart import Picture
from ..figures.pictures import frontier
from ..number_formats import plural
from ..read.answer_texts import sampled_answers
from ..statistics.claims import count
from . import comparison_tables as comparison
from .diagnosis import diagnosis_table
from .run_tables import cells_table, differing_table
from .tables import Table


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report: a heading, a few sentences, a list, a table, pictures."""

    title: str
    text: str = ""
    notes: Sequence[str] = ()
    table: Table | None = None
    pictures: Sequence[Picture] = ()


def sections_of(analysis: Analysis) -> tuple[list[Section], list[Section]]:
    """The open sections and the folded ones, as far as they have something to show."""
    kl = "Up and to the left is better: a higher score at less distance from the reference."
    shown = [
        Section("Score against KL", kl, pictures=frontier(analysis)),
        Section("All runs", table=cells_table(analysis.experiment, analysis.found)),
    ]
    filled, folded = (
        [one for one in sections if one.notes or one.table or one.pictures]
        for sections in (shown, _how_we_know(analysis))
    )
    return filled, folded


def _how_we_know(analysis: Analysis) -> list[Section]:
    experiment, study, claims = analysis.experiment, analysis.main, analysis.claims
    sections = [Section("What to know first", notes=analysis.notes)]
    if study and analysis.rivals:
        rivals, best = comparison.rivals_table(analysis, study), comparison.best_table(study)
        sections.append(Section("The best setting against every other", table=rivals))
        sections.append(Section("Each loss at its best", table=best))
        if study.across:
            table = comparison.across_beta_table(study)
            sections.append(Section("Steadiness across beta", table=table))
    if claims:
        known = "four claims" if len(claims) == 4 else f"claims ({len(claims)} of 4 have runs here)"
        table = comparison.claims_table(claims, analysis.compared)
        sections.append(Section(f"The study's {known}: {count(claims)}", table=table))
    if analysis.studies:
        table = comparison.settings_table(experiment, list(analysis.studies.values()))
        sections.append(Section("Every score of every setting", table=table))
    return [
        *sections,
        Section("How far the policies moved", table=diagnosis_table(experiment)),
        Section("Settings that differ", table=differing_table(experiment)),
    ]


def chips_of(experiment: Experiment) -> list[str]:
    """The facts at the top of the page, in a few words each."""
    facts = [cell.facts for cell in experiment.cells if cell.facts]
    states = collections.Counter(cell.state for cell in experiment.cells)
    finished = f"{states.pop('finished', 0)} of {plural(len(experiment.cells), 'run')} finished"
    chips = [", ".join([finished, *(f"{count} {state}" for state, count in states.items())])]
    if experiment.is_grid:
        chips.append(f"{plural(len(experiment.seeds), 'seed')} a setting")
    for model in _distinct(facts, "model", "path", "parameters"):
        chips.append(f"model: {model[0]}, {model[1] / 1e6:.3g} M" if model[1] else str(model[0]))
    for data in _distinct(facts, "data", "path", "train_rows"):
        chips.append(f"data: {data[0]}, {data[1]} rows")
    epochs = {cell.config.train.epochs for cell in experiment.cells if cell.config}
    chips += [plural(number, "epoch") for number in epochs if len(epochs) == 1]
    for kind, number in _distinct(facts, "device", "kind", "count"):
        chips.append(f"{number} × {kind}")
    return chips


def _distinct(facts: Sequence[dict[str, Any]], part: str, *keys: str) -> list[tuple[Any, ...]]:
    return list(
        dict.fromkeys(tuple((one.get(part) or {}).get(key) for key in keys) for one in facts)
    )


def answers_of(analysis: Analysis) -> list[dict[str, Any]]:
    """The sampled answers for the page, those of the best settings first."""
    ranked = [arm.point for arm in analysis.main.ranked] if analysis.main else []
    places = {point: place for place, point in enumerate(ranked)}
    cells = sorted(analysis.experiment.cells, key=lambda cell: places.get(cell.point, len(ranked)))
    found = ((cell.name, sampled_answers(cell)) for cell in cells)
    return [{"name": name, **sampled._asdict()} for name, sampled in found if sampled]
