"""Everything that a report says. It is computed here once; `answer` puts it into words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..experiment import Experiment, read_experiment
from ..uncertainty import LEVEL, holm
from .number_formats import plural
from .read.find_scores import Found, find_scores
from .read.scores import note
from .read.validation_scores import ACCURACY
from .statistics.arms import Arm
from .statistics.claims import Claim, claims_of, count
from .statistics.comparisons import decide, lean
from .statistics.estimates import Estimate, difference
from .statistics.study import Study, make_study


class Rival(NamedTuple):
    """Another setting beside the best one.

    Attributes:
        lead: the advantage of the best setting; None if the two have no seed in common.
        chance: the p-value of the lead, in an `Analysis` after the correction; NaN if it has none.
    """

    arm: Arm
    lead: Estimate | None
    chance: float

    @property
    def is_told_apart(self) -> bool:
        """Whether the best setting is surely better."""
        return self.chance <= 1 - LEVEL


@dataclasses.dataclass(frozen=True)
class Analysis:
    """A report's content.

    Attributes:
        studies: the study of every score, by its name, the most telling first.
        rivals: all settings but the best one by the first score, the best first.
        claims: the four claims, as far as all of their settings have a score.
        compared: how many comparisons were corrected together.
        notes: what a reader must know before believing any of it.
    """

    experiment: Experiment
    found: Found
    studies: Mapping[str, Study]
    rivals: Sequence[Rival]
    claims: Sequence[Claim]
    compared: int
    notes: Sequence[str]

    @property
    def main(self) -> Study | None:
        """The study of the score that answers; None if no cell has a score."""
        return next(iter(self.studies.values()), None)


def analyse(
    folder: Path, files: Sequence[str | Path] = (), judge_model: str | None = None
) -> Analysis:
    """Reads a directory and computes its report. The arguments are those of `find_scores`.

    Raises:
        UserError: the directory or a file of scores cannot be reported on.
    """
    experiment = read_experiment(folder)
    found = find_scores(experiment, files, judge_model)
    every = (make_study(experiment, score) for score in found.scores)
    studies = {study.score.name: study for study in every if study.estimates}
    rivals = _rivals(next(iter(studies.values()), None))
    tested = next((study for study in studies.values() if study.score.margins), None)
    claims = claims_of(experiment, tested) if tested else []
    rivals, claims, compared = _corrected(rivals, claims)
    notes = [*_warnings(experiment, studies, compared), *found.notes]
    if tested and claims and any(cell.state == "diverged" for cell in experiment.cells):
        without = make_study(experiment, tested.score, with_diverged=False)
        _, left, _ = _corrected([], claims_of(experiment, without))
        known = count(left) or "none, for lack of runs"
        notes.append(f"Without the diverged runs, the claims are: {known}.")
    return Analysis(experiment, found, studies, rivals, claims, compared, notes)


def _rivals(study: Study | None) -> list[Rival]:
    if study is None:
        return []
    best, *others = study.ranked
    found = []
    for arm in others:
        lead = difference(best, arm, study.score.strata)
        lead = lead and lead.turned(study.score.higher)
        chance = lean("differs", lead, 0.0)[1] if lead and lead.has_spread else math.nan
        found.append(Rival(arm, lead, chance))
    return found


def _corrected(
    rivals: Sequence[Rival], claims: Sequence[Claim]
) -> tuple[list[Rival], list[Claim], int]:
    """Decides all comparisons under one correction, and says how many there are."""
    family: dict[Hashable, float] = {rival.arm.point: rival.chance for rival in rivals}
    family |= {(claim.number, part.text): part.chance for claim in claims for part in claim.parts}
    corrected = holm({name: chance for name, chance in family.items() if not math.isnan(chance)})
    return (
        [one._replace(chance=corrected.get(one.arm.point, math.nan)) for one in rivals],
        [_decided(claim, corrected) for claim in claims],
        len(corrected),
    )


def _decided(claim: Claim, corrected: Mapping[Hashable, float]) -> Claim:
    parts = list(claim.parts)
    for place, part in enumerate(parts):
        chance = corrected.get((claim.number, part.text))
        if part.advantage and chance is not None:
            verdict = decide(part.verdict, chance, part.advantage, part.margin)
            parts[place] = part._replace(verdict=verdict, chance=chance)
    return claim._replace(parts=tuple(parts))


def _warnings(experiment: Experiment, studies: Mapping[str, Study], compared: int) -> list[str]:
    lines = []
    if studies and len(experiment.points) > 1:
        lines += [*_compared_by(experiment, next(iter(studies.values()))), HALVES, INTERVALS]
    if compared:
        lines.append(
            f"Holm's correction holds for all {plural(compared, 'comparison')} of this page "
            "together. Underpowered means that a true difference as large as the margin would be "
            "missed here as well."
        )
    diverged = [cell.name for cell in experiment.cells if cell.state == "diverged"]
    waiting = [f"{cell.name} ({cell.state})" for cell in experiment.cells if not cell.ended]
    lines += [*note(diverged, DIVERGED), *note(waiting, "{} not finished yet, and left out")]
    if experiment.is_grid and len(experiment.seeds) == 1:
        lines.append(
            "There is one seed. Intervals then speak of the items alone, and no comparison of two "
            "settings can be decided."
        )
    return lines


HALVES = (
    "No item both chooses and scores. The items (pairs, prompts, questions) are split in two at "
    "random. Each half chooses checkpoints and the best of several settings, and the other half "
    "scores the choice. An interval describes the chosen settings, not the choosing."
)
DIVERGED = (
    "{} diverged. Such a cell counts with its last finite validation. Its answers are those of the "
    "best checkpoint before, or of the base if there was none"
)
INTERVALS = (
    "Intervals cover 95 %, over seeds and items together, by an analysis of variance and Student's "
    "t. Simulations in the tests show that they do with two, three and five seeds. In full "
    "fine-tuning a seed changes the order of the pairs alone: they speak of this data set."
)


def _compared_by(experiment: Experiment, study: Study) -> list[str]:
    metrics = sorted({cell.best_metric for cell in experiment.cells if cell.config})
    chosen = f"Within each run {', '.join(metrics)} chose the policy in best/."
    if study.score.name != ACCURACY:
        return [f"Settings are compared by {study.score.title} of the policy in best/. {chosen}"]
    return [
        "Reward accuracy must not choose between losses. It shows only to which side of the "
        "reference a policy moved. In DiscoPOP's paper (arXiv 2406.08414) the loss with the worst "
        "accuracy did not have the worst MT-Bench score. There is no score of answers here yet "
        f"(tddpo quality or tddpo mt-bench makes one, or --score brings one). {chosen}"
    ]
