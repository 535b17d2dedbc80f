"""The four results that the experiment expected, each held against its numbers.

Two arms are compared by the advantage of the first: their difference, with the sign that makes
"better" positive. The interval beside an advantage has the same sign. A verdict rests on the span
of two intervals (see `intervals`). Several comparisons are made, and no interval is widened for
that: each claim stands for itself.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal

from ...experiment import Experiment, Point
from ...uncertainty import Interval
from ..number_formats import RATIO
from ..read.scores import Margins
from .arms import Arm
from .intervals import Estimate, difference
from .score_statistics import Study
from .sensitivity import Series

Verdict = Literal["supported", "not supported", "undecided"]

# "About 40 % smaller" means a ratio of variances of about 0.6. A ratio of up to 0.75 still counts.
CLAIMED_RATIO = 0.6
LARGEST_RATIO = 0.75

RULES = {
    "matches": "supported if the whole interval of the advantage lies above −{margin:g}, "
    "not supported if it lies below",
    "within": "supported if the whole interval of the advantage lies within ±{margin:g}, "
    "not supported if it lies outside",
    "beats": "supported if the whole interval of the advantage lies above +{margin:g}, "
    "not supported if it lies below",
    "converges": "supported if no seed diverged",
    "steadier": f"supported if the whole interval of the ratio of variances lies below "
    f"{LARGEST_RATIO} (claimed: about {CLAIMED_RATIO}), not supported if it lies above",
}
Comparison = Literal["matches", "within", "beats"]
Rule = Literal[Comparison, "converges", "steadier"]
ONE_SEED = "one seed says nothing about the spread between seeds"
NO_SPREAD = "all items and seeds are alike, which says nothing about how others would spread"


@dataclasses.dataclass(frozen=True)
class Part:
    """One comparison of a claim.

    Attributes:
        numbers: what was found, in words; or the reason why there is no number.
        advantage: the difference of the two arms, positive if the first is better; None if the
            rule compares no arms.
    """

    text: str
    rule: Rule
    verdict: Verdict
    numbers: str
    advantage: Estimate | None = None


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim is supported if all its parts are, and not supported if one part is not.

    Attributes:
        about: the claim without the margins of a score.
        text: the claim with the margins of the score.
    """

    number: int
    about: str
    text: str
    parts: tuple[Part, ...]

    @property
    def verdict(self) -> Verdict:
        verdicts = {part.verdict for part in self.parts}
        if "not supported" in verdicts:
            return "not supported"
        return "undecided" if "undecided" in verdicts else "supported"


def rule_of(part: Part, margins: Margins) -> str:
    """The rule of a part, with the margin of its score."""
    return RULES[part.rule].format(margin=_margin(part.rule, margins))


def _margin(rule: Rule, margins: Margins) -> float:
    return margins.beats if rule == "beats" else margins.matches


def examine(experiment: Experiment, study: Study) -> list[Claim]:
    """The four claims by one score, which must have margins."""
    margins = study.score.margins
    assert margins is not None
    low, middle, high = (
        Point("td_dpo", beta, tau) for beta, tau in ((0.01, 0.5), (0.05, 1.0), (2.5, 2.0))
    )
    compare = functools.partial(_compare, experiment, study)
    return [
        Claim(
            1,
            "beta 0.01: TD-DPO with tau 0.5 matches DPO at 0.05 and at its best beta",
            "At beta 0.01, TD-DPO with tau 0.5 matches DPO at beta 0.05, and DPO at its best beta.",
            (
                compare("matches", low, Point("dpo", 0.05, None)),
                compare("matches", low, Point("dpo", "best", None)),
            ),
        ),
        Claim(
            2,
            "beta 2.5: TD-DPO with tau 2 does not diverge and beats DiscoPOP",
            "At beta 2.5, TD-DPO with tau 2 does not diverge and beats DiscoPOP, at the same beta "
            f"and at its best reported 0.05, by {margins.beats:g}.",
            (
                _converges(experiment, high),
                compare("beats", high, Point("discopop", 2.5, None)),
                compare("beats", high, Point("discopop", 0.05, None)),
            ),
        ),
        Claim(
            3,
            "beta 0.05: TD-DPO with tau 1 is close to DPO",
            f"At beta 0.05, TD-DPO with tau 1 is within {margins.matches:g} of DPO.",
            (compare("within", middle, Point("dpo", 0.05, None)),),
        ),
        Claim(
            4,
            "TD-DPO's variance across beta is about 40 % smaller",
            "Across beta, the variance of TD-DPO's score, with the best tau for each beta, is "
            "about 40 % smaller.",
            tuple(_steadier(experiment, study, loss) for loss in ("dpo", "discopop")),
        ),
    ]


def _compare(
    experiment: Experiment, study: Study, rule: Comparison, of: Point, against: Point
) -> Part:
    text = f"{of.text}, against {against.text}"
    arm, baseline = study.arms.get(of), study.arms.get(against)
    if arm is None or baseline is None:
        lacking = against if baseline is None else of
        return Part(text, rule, "undecided", _why_no_score(experiment, study, lacking))
    found = difference(arm, baseline, study.resampling)
    if found is None:
        return Part(text, rule, "undecided", "the two have no seed in common")
    advantage = found if study.score.higher else found.negative
    numbers = _numbers(study, arm, baseline, advantage)
    if advantage.seeds < 2:
        return Part(text, rule, "undecided", f"{numbers}; {ONE_SEED}", advantage)
    if _is_point(advantage.span):
        return Part(text, rule, "undecided", f"{numbers}; {NO_SPREAD}", advantage)
    margins = study.score.margins
    assert margins is not None
    verdict = judge(rule, advantage.span, _margin(rule, margins))
    return Part(text, rule, verdict, numbers, advantage)


def _why_no_score(experiment: Experiment, study: Study, point: Point) -> str:
    """The reason why this point has no arm."""
    if all(known.loss != point.loss for known in experiment.points):
        return f"{point.loss} is not in this grid"
    if point.is_setting and point not in experiment.points:
        return f"{point.text} is not in this grid"
    if not point.is_setting and len(study.score.strata) < 2:
        return f"{point.text}: one number per cell cannot both choose it and score it"
    return f"{point.text} has no score"


def _numbers(study: Study, arm: Arm, baseline: Arm, advantage: Estimate) -> str:
    """Both means, the advantage and its intervals, all of one sign convention."""
    show = study.show
    names = dict.fromkeys(point.text for point in baseline.chosen)
    which = f" ({' and '.join(names)})" if baseline.point.beta == "best" else ""
    line = (
        f"{show.number(arm.mean)} against {show.number(baseline.mean)}{which}: advantage "
        f"{show.number(advantage.mean)}, 95 % {show.interval(advantage.interval)}"
    )
    if advantage.over_seeds is None:
        return line
    return f"{line}, t over {advantage.seeds} seeds {show.interval(advantage.over_seeds)}"


def _is_point(interval: Interval) -> bool:
    """Whether the two ends are equal, apart from rounding."""
    return math.isclose(*interval, rel_tol=1e-9, abs_tol=1e-12)


def judge(rule: Comparison, interval: Interval, margin: float) -> Verdict:
    """Holds the interval of an advantage against a margin.

    >>> judge("matches", (-0.01, 0.05), 0.02), judge("within", (-0.01, 0.05), 0.02)
    ('supported', 'undecided')
    """
    low, high = interval
    floor = margin if rule == "beats" else -margin
    ceiling = margin if rule == "within" else float("inf")
    if floor <= low and high <= ceiling:
        return "supported"
    return "not supported" if high < floor or low > ceiling else "undecided"


def _converges(experiment: Experiment, point: Point) -> Part:
    text = f"{point.text} does not diverge"
    own = [cell for cell in experiment.cells if cell.point == point]
    diverged = [cell for cell in own if cell.state == "diverged"]
    ended = sum(cell.ended for cell in own)
    numbers = f"{len(diverged)} of {ended} seeds diverged"
    if diverged:
        steps = ", ".join(
            f"seed {cell.seed} at step {cell.divergence['step']}"
            for cell in diverged
            if cell.divergence
        )
        return Part(text, "converges", "not supported", f"{numbers}: {steps}")
    if ended < len(own) or not own:
        waiting = f"{numbers}, {len(own) - ended} not finished yet"
        numbers = waiting if own else "this grid has no such cell"
        return Part(text, "converges", "undecided", numbers)
    return Part(text, "converges", "supported", numbers)


def _steadier(experiment: Experiment, study: Study, baseline: str) -> Part:
    text = f"variance across beta, td_dpo with its best tau against {baseline}"
    found = study.ratios.get((("td_dpo", "best"), (baseline, None)))
    if found is None:
        return Part(text, "steadier", "undecided", _why_no_ratio(experiment, study, baseline))
    value = f"the ratio is {RATIO.number(found.value)}"
    if math.isnan(found.value):
        value = f"{baseline} varies by no more than noise, so the ratio is not known"
    numbers = f"{value}, 95 % {RATIO.interval(found.interval)}"
    if found.over_seeds is not None:
        numbers += f", t over {found.seeds} seeds {RATIO.interval(found.over_seeds)}"
    numbers += f", over {len(found.betas)} betas"
    if found.seeds < 2:
        return Part(text, "steadier", "undecided", f"{numbers}; {ONE_SEED}")
    if _is_point(found.span):
        return Part(text, "steadier", "undecided", f"{numbers}; {NO_SPREAD}")
    return Part(text, "steadier", judge_ratio(found.span), numbers)


def _why_no_ratio(experiment: Experiment, study: Study, baseline: str) -> str:
    """The reason why TD-DPO, with its best tau, and a baseline have no ratio of variances."""
    betas = []
    sides: tuple[Series, Series] = ("td_dpo", "best"), (baseline, None)
    for loss, tau in sides:
        own = {point.beta for point in study.arms if (point.loss, point.tau) == (loss, tau)}
        betas.append(own - {"best"})
        if not betas[-1]:
            known = [point for point in experiment.points if point.loss == loss]
            lacking = Point(loss, known[0].beta if known else "best", tau)
            return _why_no_score(experiment, study, lacking)
    if len(betas[0] & betas[1]) < 2:
        return "a variance needs two betas, and the two have fewer in common"
    return "no seed has all these betas in both"


def judge_ratio(interval: Interval) -> Verdict:
    """Holds the interval of a ratio of variances against the largest ratio that counts."""
    low, high = interval
    if high <= LARGEST_RATIO:
        return "supported"
    return "not supported" if low > LARGEST_RATIO else "undecided"


def count(claims: Sequence[Claim]) -> dict[Verdict, int]:
    """How many claims have each verdict."""
    verdicts: tuple[Verdict, ...] = ("supported", "not supported", "undecided")
    return {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in verdicts}
