"""Tables that compare settings: every score, each loss at its best, across beta, the claims."""

from __future__ import annotations

from collections.abc import Sequence

from ...experiment import Experiment, Point
from ..analysis import Analysis
from ..number_formats import NONE, plural, significant, significant_interval
from ..read.scores import Score
from ..statistics.claims import RULES, Claim
from ..statistics.study import Study
from .tables import Entry, Table


def heading(score: Score) -> str:
    """The head of a score's column."""
    return f"{score.title} ({score.unit})"


def settings_table(experiment: Experiment, studies: Sequence[Study]) -> Table:
    """Every score of every setting, and that of its last policy where it is known."""
    lasts = [study for study in studies if study.score.last is not None][:1]
    head = ["setting", "seeds", *(heading(study.score) for study in studies)]
    head += [f"{study.score.title} of the last policy" for study in lasts]
    rows: list[list[Entry]] = []
    for point in experiment.points:
        diverged, ended = experiment.diverged(point)
        seeds = f"{ended}, {diverged} diverged" if diverged else str(ended)
        last = [study.show.number(study.last.get(point)) for study in lasts]
        rows.append([point.text, seeds, *(_mean(study, point) for study in studies), *last])
    caption = (
        "Mean over seeds, and its 95 % interval over seeds and items. These intervals are not "
        "corrected for their number."
    )
    return Table(caption, head, rows, sortable=True)


def _mean(study: Study, point: Point) -> str:
    found = study.estimates.get(point)
    if found is None:
        return NONE
    return f"{study.show.number(found.mean)} {study.show.interval(found.interval)}"


def rivals_table(analysis: Analysis, study: Study) -> Table:
    """The best setting against every other one."""
    rows: list[list[Entry]] = [
        [
            rival.arm.point.text,
            study.show.number(rival.lead.mean if rival.lead else None),
            study.show.interval(rival.lead.interval if rival.lead else None),
            significant(rival.chance),
            "worse" if rival.is_told_apart else "not told apart",
            study.show.number(rival.lead.detectable if rival.lead else None),
        ]
        for rival in analysis.rivals
    ]
    caption = (
        f"The lead of {study.ranked[0].point.text} by {study.score.title}. The p-value is "
        "corrected by Holm's method. Detectable: a single comparison, without the correction, "
        "would find a true lead of this size in 8 of 10 repetitions."
    )
    head = ["other setting", "lead", "95 %", "p, corrected", "verdict", "detectable"]
    return Table(caption, head, rows)


def best_table(study: Study) -> Table:
    """The best setting of each loss, and what an honest choice scores."""
    rows: list[list[Entry]] = []
    for loss, arm in study.best_of_losses.items():
        honest = next((p for p in study.arms if (p.loss, p.beta) == (loss, "best")), None)
        chosen, text = NONE, NONE
        if honest is not None and sum(other.point.loss == loss for other in study.ranked) > 1:
            chosen = " and ".join(dict.fromkeys(one.text for one in study.arms[honest].chosen))
            text = _mean(study, honest)
        rows.append([loss, arm.point.text, study.show.number(arm.mean), chosen, text])
    return Table(
        f"Each loss at its best by {study.score.title}, at its best learning rate where several "
        "were tried. The score of the best setting flatters it, because the same items chose it. "
        "In the last two columns one half of the items chose, and the other half scored.",
        ["loss", "best setting", "its score", "the halves chose", "scored on the other half"],
        rows,
    )


def across_beta_table(study: Study) -> Table:
    """The mean, the worst and the variance across beta of every series."""
    base, (best, *_) = study.score.base, study.ranked
    rows: list[list[Entry]] = []
    for (loss, tau), found in study.across.items():
        useful = NONE
        if base is not None and study.is_better(best.mean, base):
            of_loss = (arm for arm in study.ranked if arm.point.loss == loss)
            settings = [arm for arm in of_loss if tau in (arm.point.tau, "best")]
            gains = [(arm.mean - base) / (best.mean - base) for arm in settings]
            useful = f"{sum(gain >= 0.5 for gain in gains)} of {len(gains)}"
        row: list[Entry] = [
            found.name,
            ", ".join(f"{beta:g}" for beta in found.betas),
            f"{study.show.number(found.mean.mean)} {study.show.interval(found.mean.interval)}",
            f"{study.show.number(found.worst.mean)} at {found.worst.point.beta:g}",
            useful,
            f"{significant(found.variance.mean)} {significant_interval(found.variance.interval)}",
        ]
        rows.append(row)
    return Table(
        f"Across beta, by {study.score.title}. The variance is that of the means over beta, less "
        "what noise adds. A policy that never moves has a variance of 0, so the variance says "
        "nothing without the mean. A setting gains if it has half of the best setting's gain over "
        "the model before training.",
        ["series", "betas", "mean", "worst", "settings that gain", "variance"],
        rows,
    )


def claims_table(claims: Sequence[Claim], compared: int) -> Table:
    """Every part of every claim, with its numbers and its rule."""
    table = Table(
        "An advantage is positive where the first of the two settings is better; its 95 % interval "
        f"is in brackets. Verdicts are corrected for all {plural(compared, 'comparison')}. "
        "Underpowered: these runs would miss a true difference as large as the margin.",
        ["", "claim", "verdict", "numbers", "supported if"],
        [],
    )
    for claim in claims:
        table.highlighted.add(len(table.rows))
        table.rows.append([str(claim.number), claim.text, claim.verdict, "", ""])
        for part in claim.parts:
            numbers = part.numbers
            if part.advantage and part.verdict == "underpowered":
                numbers += f"; detectable: {significant(part.advantage.detectable)}"
            rule = RULES[part.rule].format(margin=part.margin)
            table.rows.append(["", part.text, part.verdict, numbers, rule])
    return table
