"""The first screen in words: the question, its answer, how sure that is, and how to use it.

The question is made from what varies among the runs.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..experiment import Experiment, Point
from .analysis import Analysis, Rival
from .number_formats import plural
from .read.validation_scores import ACCURACY
from .statistics.arms import Arm, best_of
from .statistics.study import Study

# How losses are written in sentences. Others are written as they are named.
LOSS_NAMES = {
    "td_dpo": "TD-DPO",
    "dpo": "DPO",
    "discopop": "DiscoPOP",
    "ipo": "IPO",
    "simpo": "SimPO",
    "sft": "SFT",
    "hinge": "hinge loss",
}
# For each score: what the best one does, the question's verb for one thing and for several, items.
DOES = {
    "quality": ("writes the best answers", "writes best", "write best", "prompts"),
    "mt_bench": ("writes the best answers", "writes best", "write best", "questions"),
    ACCURACY: ("orders the most pairs right", "orders pairs best", "order pairs best", "pairs"),
}
ENOUGH_SEEDS = 5


@dataclasses.dataclass(frozen=True)
class Answer:
    """The first screen.

    Attributes:
        lead: the beginning of the sentence, which names the winner.
        rest: the rest of the sentence.
        more: further sentences, one number each.
        best: for each of the best three settings its name, its score and the range of its seeds.
        sure: how sure the answer is, as sentences.
        command: the command that uses the winner; empty if there is none.
    """

    question: str
    lead: str
    rest: str
    more: Sequence[str] = ()
    best: Sequence[tuple[str, str, str]] = ()
    sure: Sequence[str] = ()
    command: str = ""

    @property
    def lines(self) -> list[str]:
        """All sentences, for those who read no page."""
        return [self.question, f"{self.lead}{self.rest}", *self.more, *self.sure]


def axes_of(experiment: Experiment) -> dict[str, list[Any]]:
    """The values on each axis but that of seeds: `loss`, `beta`, `tau`, and other axes."""
    points = experiment.points
    axes: dict[str, list[Any]] = {"loss": list(dict.fromkeys(point.loss for point in points))}
    for name in ("beta", "tau", *experiment.other_axes):
        axes[name] = sorted({point.numbers.get(name) for point in points} - {None})
    return axes


def varying(experiment: Experiment) -> list[str]:
    """The names of what varies between settings."""
    return [name for name, values in axes_of(experiment).items() if len(values) > 1]


def loss_name(loss: str) -> str:
    """The loss as it is written in sentences."""
    return LOSS_NAMES.get(loss, loss)


def name_of(point: Point, axes: Sequence[str]) -> str:
    """A setting in words: its loss, and those of its numbers that vary.

    >>> name_of(Point("td_dpo", 0.01, 1.0), ["loss", "beta"])
    'TD-DPO, beta 0.01'
    """
    shown = [
        f"{name.replace('_', ' ')} {value:g}"
        for name, value in point.numbers.items()
        if name in axes and not isinstance(value, str)
    ]
    return ", ".join([loss_name(point.loss), *shown])


def answer_of(analysis: Analysis) -> Answer:
    """The first screen of a report."""
    study, axes = analysis.main, varying(analysis.experiment)
    if study is None:
        question = f"Which {_listed(axes)} is best?" if axes else "Did it learn?"
        ended = any(cell.ended for cell in analysis.experiment.cells)
        why = "no finished run has a score on held-out data" if ended else "no run has finished yet"
        return Answer(question, "Not known", f": {why}.")
    if not axes:
        return _learned(analysis, study)
    does, one, several, _ = _words(study)
    rival = _rival(analysis, study)
    score = study.show.number(study.best.mean)
    rest = f" {does}: its score is {score}."
    if rival and not rival.is_told_apart:
        rest = f" is ahead with {score}, but chance may explain its lead."
    return Answer(
        question=f"Which {_listed(axes)} {one if len(axes) == 1 else several}?",
        lead=name_of(study.best.point, axes),
        rest=rest,
        more=[*_others(study), *_before(study), *_conditions(study, analysis.experiment)],
        best=[_row(study, arm, axes) for arm in study.ranked[:3]],
        sure=_how_sure(analysis, study, rival, axes),
        command=_command(analysis, study),
    )


def _words(study: Study) -> tuple[str, str, str, str]:
    title = study.score.title
    extreme = "highest" if study.score.higher else "lowest"
    has = f"has the {extreme} {title}"
    return DOES.get(study.score.name, (has, has, f"have the {extreme} {title}", "items"))


def _listed(names: Sequence[str]) -> str:
    """`loss`, `loss and beta`, `loss, beta and tau`."""
    words = [name.replace("_", " ") for name in names]
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _rival(analysis: Analysis, study: Study) -> Rival | None:
    """What the winner is held against: the best setting of another loss, or else the second."""
    other = (rival for rival in analysis.rivals if rival.arm.point.loss != study.best.point.loss)
    return next(other, next(iter(analysis.rivals), None))


def _others(study: Study) -> list[str]:
    _, *others = study.best_of_losses.values()
    return [
        f"{loss_name(arm.point.loss)} at its best has {study.show.number(arm.mean)}."
        for arm in others[:3]
    ]


def _before(study: Study) -> list[str]:
    base = study.score.base
    return [] if base is None else [f"The model before training has {study.show.number(base)}."]


def _conditions(study: Study, experiment: Experiment) -> list[str]:
    """Where another number varies, such as the learning rate: the leading loss at each value."""
    leading: dict[str, str] = {}
    for others in dict.fromkeys(point.others for point in experiment.points if point.others):
        at = [arm for arm in study.ranked if arm.point.others == others]
        if len({arm.point.loss for arm in at}) > 1:
            numbers = _listed([f"{name} {value:g}" for name, value in others])
            leading[numbers] = loss_name(at[0].point.loss)
    if len(leading) < 2:
        return []
    names = _listed(experiment.other_axes)
    if len(set(leading.values())) == 1:
        return [f"{next(iter(leading.values()))} leads at every {names} tried."]
    turns = "; ".join(f"at {numbers}, {loss}" for numbers, loss in leading.items())
    return [f"The answer depends on the {names}. Leading are: {turns}."]


def _row(study: Study, arm: Arm, axes: Sequence[str]) -> tuple[str, str, str]:
    known = arm.per_seed[np.isfinite(arm.per_seed)]
    low, high = (study.show.number(float(one)) for one in (known.min(), known.max()))
    seeds = f"seeds {low} to {high}" if len(known) > 1 else "one seed"
    return name_of(arm.point, axes), study.show.number(arm.mean), seeds


def _how_sure(
    analysis: Analysis, study: Study, rival: Rival | None, axes: Sequence[str]
) -> list[str]:
    show, items = study.show, _words(study)[3]
    lines = []
    if rival and (lead := rival.lead):
        spread = f", 95 % {show.interval(lead.interval)}" if lead.has_spread else ""
        name = name_of(rival.arm.point, axes)
        lines.append(f"The lead over {name} is {show.number(lead.mean)}{spread}.")
        if lead.has_spread and not rival.is_told_apart:
            margins = study.score.margins
            is_weak = margins is None or lead.detectable > margins.matches
            lines.append(
                f"{'Underpowered: a' if is_weak else 'A'} single comparison, without the "
                f"correction, would find a true lead of {show.number(lead.detectable)} in 8 of 10 "
                "repetitions."
            )
        alike, others = sum(not one.is_told_apart for one in analysis.rivals), len(analysis.rivals)
        if alike and others > 1:
            lines.append(f"{alike} of the {others} other settings cannot be told from the best.")
        elif others > 1:
            lines.append(f"It is surely better than all {others} other settings.")
    settings = [arm for arm in study.arms.values() if arm.is_setting]
    honest = best_of(settings, study.score, Point("best", "best", None))
    if honest is not None and len(settings) > 1:
        lines.append(
            f"Chosen on one half of the {items} and scored on the other, the best has "
            f"{show.number(honest.mean)}."
        )
    return [*lines, *_last_policy(analysis, study), *_few_seeds(analysis.experiment)]


def _last_policy(analysis: Analysis, study: Study) -> list[str]:
    """A sentence if the winner's last policy is worse on the pairs than the kept one."""
    pairs, point = analysis.studies.get(ACCURACY), study.best.point
    if pairs is None:
        return []
    kept, last = pairs.arms.get(point), pairs.last.get(point)
    if kept is None or last is None or not kept.mean - last > 0.02:
        return []
    title, worse = pairs.score.title, pairs.show.number(kept.mean - last)
    return [f"It got worse before it ended: the last policy's {title} is lower by {worse}."]


def _few_seeds(experiment: Experiment) -> list[str]:
    seeds = len(experiment.seeds)
    if seeds >= ENOUGH_SEEDS or not experiment.is_grid:
        return []
    more = " ".join(map(str, range(ENOUGH_SEEDS)))
    few = "One seed is" if seeds == 1 else f"{seeds} seeds are"
    return [f"{few} few: the same command with --seed {more} adds others."]


def _command(analysis: Analysis, study: Study) -> str:
    """The command that asks the best run of the winner."""
    best = {
        str(cell.folder): study.score.of(number)
        for number, cell in enumerate(analysis.experiment.cells)
        if cell.point == study.best.point and (cell.folder / "best").is_dir()
        if study.score.has(number)
    }
    if not best:
        return ""
    folder = (max if study.score.higher else min)(best, key=best.__getitem__)
    return f'python -m tddpo_jax generate --model {shlex.quote(folder)} --prompt "..."'


# ---- One setting ---------------------------------------------------------------------------------


def _learned(analysis: Analysis, study: Study) -> Answer:
    """Whether the only setting is better than the model before training."""
    (arm,) = study.ranked
    found, base = study.estimates[arm.point], study.score.base
    show, title, seeds = study.show, study.score.title, plural(found.seeds, "seed")
    number = show.number(arm.mean)
    lead, rest = "Not known", f": its {title} is {number}, and that before training is not known."
    if base is not None:
        low, high = found.interval or (-math.inf, math.inf)
        surely = low > base or high < base
        better = study.is_better(arm.mean, base)
        lead = ("Yes" if better else "No") if surely else "Not surely"
        rest = f": its {title} is {number}."
    return Answer(
        question="Did it learn?",
        lead=lead,
        rest=rest,
        more=_before(study),
        best=[_row(study, arm, [])] if found.seeds > 1 else [],
        sure=[
            *([f"95 % over {seeds}: {show.interval(found.interval)}."] if found.interval else []),
            *_last_policy(analysis, study),
            *_few_seeds(analysis.experiment),
        ],
        command=_command(analysis, study),
    )
