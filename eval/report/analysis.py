"""Everything a report says, computed once and rendered by `page` and `card`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.report.cells import Experiment, read_experiment
from eval.report.claims import Claim, count, examine
from eval.report.intervals import Resampling, resampling
from eval.report.scores import Found, find_scores
from eval.report.study import Study, study_both_ways
from eval.report.words import plural


@dataclasses.dataclass(frozen=True)
class Tested:
    """A score that claims are tested on.

    Attributes:
        claims: with the diverged cells, as they count.
        without: without them; None if no cell that has the score diverged.
    """

    study: Study
    claims: list[Claim]
    without: list[Claim] | None


@dataclasses.dataclass(frozen=True)
class Analysis:
    """A report's content.

    Attributes:
        studies: of every score, diverged cells included.
        tested: those with margins; the first is what losses are compared by.
        notes: what a reader must know before believing any of it.
    """

    experiment: Experiment
    found: Found
    studies: Mapping[str, Study]
    tested: Sequence[Tested]
    notes: Sequence[str]

    @property
    def compares(self) -> bool:
        """Whether there is anything to compare: more than one setting, and a score."""
        return bool(self.tested) and len(self.experiment.points) > 1

    @property
    def headlines(self) -> list[str]:
        """The verdict in a few sentences."""
        if not self.tested:
            return ["No verdict: no cell that is over has a score on held-out data."]
        if not self.compares:
            return ["No verdict: a single setting has nothing to be compared with."]
        first = self.tested[0]
        numbers = count(first.claims)
        steady = first.claims[-1]
        lines = [
            f"Does tau make training robust to beta? By {first.study.score.title}: "
            f"{steady.verdict}; {'; '.join(f'{p.text}: {p.numbers}' for p in steady.parts)}.",
            f"Of the four expected results {numbers['supported']} are supported, "
            f"{numbers['not supported']} are not, {numbers['undecided']} are undecided.",
        ]
        if first.without is not None:
            numbers = count(first.without)
            lines[-1] += (
                f" Without the diverged cells: {numbers['supported']}, "
                f"{numbers['not supported']}, {numbers['undecided']}."
            )
        return lines


def analyse(
    folder: Path, files: Sequence[Path] = (), judge_model: str | None = None, split_seed: int = 0
) -> Analysis:
    """Reads a directory and computes its report; arguments as for `scores.find_scores`.

    Raises:
        ValueError: the directory or a file of scores cannot be reported on.
    """
    experiment = read_experiment(folder)
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
        lines.append(_compared_by(tested))
        lines.append(
            "Nothing is chosen and scored on the same items: validation pairs (prompts, questions) "
            "are split in two at random; each half chooses checkpoints, the best tau and the best "
            "beta, and the other half scores the choice; both directions are averaged."
        )
    diverged = [cell.name for cell in experiment.cells if cell.state == "diverged"]
    if diverged:
        lines.append(
            f"{plural(len(diverged), 'cell')} diverged and count with their last finite "
            f"validation: {', '.join(diverged)}."
        )
    open_cells = [cell for cell in experiment.cells if not cell.over]
    if open_cells:
        lines.append(
            f"{plural(len(open_cells), 'cell')} are not over and count for nothing yet: "
            f"{', '.join(f'{cell.name} ({cell.state})' for cell in open_cells[:6])}"
            f"{', ...' if len(open_cells) > 6 else ''}."
        )
    if experiment.is_grid and len(experiment.seeds) == 1:
        lines.append(
            "There is one seed: intervals are of the evaluation items alone, and no comparison of "
            "two settings can be decided."
        )
    return lines


def _compared_by(tested: Sequence[Tested]) -> str:
    warning = (
        "Reward accuracy must not choose between losses: it asks only to which side of the "
        "reference a policy moved, and in DiscoPOP's paper (arXiv 2406.08414) the loss with the "
        "worst accuracy did not have the worst MT-Bench."
    )
    first = tested[0].study.score
    if first.name == "accuracy":
        return (
            f"{warning} There is no score of answers here yet (python -m eval.quality, python -m "
            "eval.mt_bench), so what is said below about two losses is about held-out reward "
            "accuracy and not about the quality of answers."
        )
    return f"{warning} Losses are compared by {first.title}; accuracy chooses within a run."
