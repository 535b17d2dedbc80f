"""Everything that a report says. It is computed here once; `pages` writes it down."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from tddpo_jax.errors import UserError

from ..experiment import Experiment, read_experiment
from .number_formats import plural
from .read.find_scores import Found, find_scores
from .statistics.arms import best_settings
from .statistics.intervals import Resampling, resampling
from .statistics.score_statistics import Study, study_both_ways
from .statistics.verdicts import Claim, Verdict, count, examine


@dataclasses.dataclass(frozen=True)
class Tested:
    """A score that tests the claims.

    Attributes:
        claims: the claims, diverged cells included.
        without: the claims without the diverged cells; None if no cell diverged.
    """

    study: Study
    claims: list[Claim]
    without: list[Claim] | None


@dataclasses.dataclass(frozen=True)
class Analysis:
    """A report's content.

    Attributes:
        studies: the study of every score, by its name, diverged cells included.
        tested: the scores that have margins. Losses are compared by the first of them.
        notes: what a reader must know before believing any of it.
    """

    experiment: Experiment
    found: Found
    studies: Mapping[str, Study]
    tested: Sequence[Tested]
    notes: Sequence[str]

    @property
    def compares(self) -> bool:
        """Whether there is something to compare: more than one setting, and a score."""
        return bool(self.tested) and len(self.experiment.points) > 1

    @property
    def headlines(self) -> list[str]:
        """The verdict in a few sentences."""
        if not self.tested:
            return ["No verdict: no finished cell has a score on held-out data."]
        if not self.compares:
            return ["No verdict: a single setting has nothing to be compared with."]
        first = self.tested[0]
        steady = first.claims[-1]
        numbers = "; ".join(f"{part.text}: {part.numbers}" for part in steady.parts)
        answer = ANSWERS[steady.verdict]
        if first.without is not None:
            answer += f" (without the diverged cells: {first.without[-1].verdict})"
        counted = f"The four expected results: {_counted(first.claims)}."
        if first.without is not None:
            counted += f" Without the diverged cells: {_counted(first.without)}."
        return [
            f"Does tau make training robust to beta? {answer}, by "
            f"{first.study.score.title}: {numbers}.",
            counted,
            *self._best_accuracy(),
        ]

    def _best_accuracy(self) -> list[str]:
        """Names the setting of each loss with the highest validation accuracy."""
        study = self.studies.get("accuracy")
        if study is None:
            return []
        best = best_settings(study.arms.values(), study.score).values()
        named = (f"{arm.point.text} ({study.show.number(arm.mean)})" for arm in best)
        return [f"Highest {study.score.title} of each loss: {'; '.join(named)}."]


ANSWERS: dict[Verdict, str] = {
    "supported": "Yes",
    "not supported": "No",
    "undecided": "Undecided",
}


def _counted(claims: Sequence[Claim]) -> str:
    return ", ".join(f"{number} {verdict}" for verdict, number in count(claims).items())


def analyse(
    folder: Path, files: Sequence[Path] = (), judge_model: str | None = None, split_seed: int = 0
) -> Analysis:
    """Reads a directory and computes its report. The arguments are those of `find_scores`.

    Raises:
        UserError: the directory or a file of scores cannot be reported on.
    """
    experiment = read_experiment(folder)
    if any(cell.logps.shape[-1] == 1 for cell in experiment.cells):
        raise UserError(
            f"{folder}: the report compares pairs, but a run was validated on single responses"
        )
    found = find_scores(experiment, files, judge_model, split_seed)
    drawn: dict[tuple[str, ...], Resampling] = {}
    studies, tested = {}, []
    for score in found.scores:
        if score.strata not in drawn:
            drawn[score.strata] = resampling(score.strata, len(experiment.seeds))
        whole, without = study_both_ways(experiment, score, drawn[score.strata])
        if not whole.estimates:
            continue
        studies[score.name] = whole
        if score.margins is not None:
            claims = examine(experiment, whole)
            others = examine(experiment, without) if without else None
            tested.append(Tested(whole, claims, others))
    notes = [*_warnings(experiment, tested), *found.notes]
    return Analysis(experiment, found, studies, tested, notes)


def _warnings(experiment: Experiment, tested: Sequence[Tested]) -> list[str]:
    lines = []
    if tested:
        if len(experiment.points) > 1:
            lines.append(_compared_by(experiment, tested))
        lines.append(
            "No item both chooses and scores. The validation pairs (prompts, questions) are split "
            "in two at random. Each half chooses checkpoints, the best tau and the best beta, and "
            "the other half scores the choice. Both directions are averaged."
        )
        if len(experiment.points) > 1:
            lines.append(
                "Intervals cover 95 %: items and seeds are resampled together. Resampling three "
                "seeds understates their spread, so Student's t over seeds stands beside it (for "
                "ratios of variances, t of their logarithms). A comparison is judged by the span "
                "of both intervals. Noise adds to a variance across beta; an analysis of variance "
                "estimates that part, and it is subtracted. The t interval takes the seeds' ratios "
                "as they are."
            )
            lines.append(
                "The best tau and the best beta that the halves chose stay fixed while resampling: "
                "an interval describes the chosen settings and ignores that others might have been "
                "chosen."
            )
    diverged = [cell.name for cell in experiment.cells if cell.state == "diverged"]
    if diverged:
        lines.append(
            f"{plural(len(diverged), 'cell')} diverged: {', '.join(diverged)}. A diverged cell "
            "counts with its last finite validation. Its answers are those of the best checkpoint "
            "before, or of the base if there was none."
        )
    waiting = [f"{cell.name} ({cell.state})" for cell in experiment.cells if not cell.ended]
    if waiting:
        more = ", ..." if len(waiting) > 6 else ""
        lines.append(
            f"{plural(len(waiting), 'cell')} not finished yet, and left out: "
            f"{', '.join(waiting[:6])}{more}."
        )
    if experiment.is_grid and len(experiment.seeds) == 1:
        lines.append(
            "There is one seed. Intervals then describe the evaluation items alone, and no "
            "comparison of two settings can be decided."
        )
    return lines


def _compared_by(experiment: Experiment, tested: Sequence[Tested]) -> str:
    warning = (
        "Reward accuracy must not choose between losses. It shows only to which side of the "
        "reference a policy moved. In DiscoPOP's paper (arXiv 2406.08414) the loss with the worst "
        "accuracy did not have the worst MT-Bench score."
    )
    first, cells = tested[0].study.score, experiment.cells
    if first.name == "accuracy":
        # The rule of eval.quality scores the answers of runs on the embedded data alone.
        ruled = all(not cell.config or cell.config.data.path == "embedded" for cell in cells)
        made_by = "tddpo quality and tddpo mt-bench make them"
        if not ruled:
            made_by = "tddpo mt-bench can make one"
        return (
            f"{warning} There is no score of answers here yet ({made_by}). What is said below "
            "about two losses is therefore about held-out reward accuracy, not about the quality "
            "of answers."
        )
    metrics = {cell.best_metric for cell in cells if cell.config}
    chosen_by = ", ".join(sorted(metrics))
    return (
        f"{warning} Losses are compared by {first.title} of the policy in best/. Within each run "
        f"{chosen_by} on all validation pairs chose that policy."
    )
