"""The four results that the experiment expected, each where its cells are in the grid.

Two arms are compared by the advantage of the first: their difference, with the sign that makes
"better" positive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ...experiment import Experiment, Point
from ..number_formats import RATIO
from .comparisons import Rule, Verdict
from .estimates import Estimate, difference
from .study import LARGEST_RATIO, Study

RULES: dict[Rule, str] = {
    "matches": "the advantage is above −{margin:g}",
    "within": "the advantage is within ±{margin:g}",
    "beats": "the advantage is above {margin:g}",
    "converges": "no seed diverged",
    "steadier": f"the ratio of variances is below {LARGEST_RATIO}",
}
ONE_SEED = "one seed says nothing about the spread between seeds"
NO_SPREAD = "all items and seeds are alike, which says nothing about how others would spread"


class Part(NamedTuple):
    """One comparison of a claim.

    Attributes:
        numbers: what was found, in words; or the reason why there is no number.
        advantage: positive if the claim's side is better; None if there is nothing to correct.
        margin: what the rule holds the advantage against.
        verdict: final where there is no advantage.
    """

    text: str
    rule: Rule
    numbers: str
    advantage: Estimate | None = None
    margin: float = 0.0
    verdict: Verdict = "undecided"


class Claim(NamedTuple):
    """A claim is supported if all its parts are, and not supported if one part is not."""

    number: int
    text: str
    parts: tuple[Part, ...]

    @property
    def verdict(self) -> Verdict:
        verdicts = [part.verdict for part in self.parts]
        order: tuple[Verdict, ...] = ("not supported", "underpowered", "undecided")
        return next((one for one in order if one in verdicts), "supported")


def claims_of(experiment: Experiment, study: Study) -> list[Claim]:
    """The claims by a score that has margins, as far as their cells are in the grid."""
    margins = study.score.margins
    assert margins is not None
    low, middle, high = (
        Point("td_dpo", beta, tau) for beta, tau in ((0.01, 0.5), (0.05, 1.0), (2.5, 2.0))
    )

    def compare(rule: Rule, of: Point, against: Point) -> list[Part]:
        margin = margins.beats if rule == "beats" else margins.matches
        return _compare(experiment, study, rule, of, against, margin)

    beats = [
        *compare("beats", high, Point("discopop", 2.5, None)),
        *compare("beats", high, Point("discopop", 0.05, None)),
    ]
    claims = [
        Claim(
            1,
            "At beta 0.01, TD-DPO with tau 0.5 matches DPO at beta 0.05, and DPO at its best beta.",
            (
                *compare("matches", low, Point("dpo", 0.05, None)),
                *compare("matches", low, Point("dpo", "best", None)),
            ),
        ),
        Claim(
            2,
            "At beta 2.5, TD-DPO with tau 2 does not diverge and beats DiscoPOP, at the same beta "
            f"and at its best reported 0.05, by {margins.beats:g}.",
            (_converges(experiment, high), *beats) if beats else (),
        ),
        Claim(
            3,
            f"At beta 0.05, TD-DPO with tau 1 is within {margins.matches:g} of DPO.",
            tuple(compare("within", middle, Point("dpo", 0.05, None))),
        ),
        Claim(
            4,
            "Across beta, the variance of TD-DPO's score, with the best tau for each beta, is "
            "about 40 % smaller, and its mean is no worse.",
            tuple(part for loss in ("dpo", "discopop") for part in _steadier(study, loss)),
        ),
    ]
    return [claim for claim in claims if claim.parts]


def _compare(
    experiment: Experiment, study: Study, rule: Rule, of: Point, against: Point, margin: float
) -> list[Part]:
    """The comparison; nothing if the grid does not have both sides."""
    text = f"{of.text}, against {against.text}"
    arms = [study.arms.get(point) for point in (of, against)]
    for point, arm in zip((of, against), arms, strict=True):
        if arm is None and not _is_planned(experiment, point):
            return []
    arm, baseline = arms
    if arm is None or baseline is None:
        lacking = of if arm is None else against
        why = "cannot be chosen and scored by one number a cell"
        if lacking.is_setting or len(study.score.strata) > 1:
            why = "has no score"
        return [Part(text, rule, f"{lacking.text} {why}")]
    found = difference(arm, baseline, study.score.strata)
    if found is None:
        return [Part(text, rule, "the two have no seed in common")]
    show, advantage = study.show, found.turned(study.score.higher)
    chosen = " and ".join(dict.fromkeys(point.text for point in baseline.chosen))
    numbers = f"{show.number(arm.mean)} against {show.number(baseline.mean)}"
    numbers += "" if against.is_setting else f" ({chosen})"
    numbers += f": advantage {show.number(advantage.mean)} {show.interval(advantage.interval)}"
    return [_part(text, rule, numbers, advantage, margin)]


def _is_planned(experiment: Experiment, point: Point) -> bool:
    """Whether the grid has cells of this setting, or of some setting of its loss."""
    known = experiment.points
    if point.is_setting:
        return any(one[:3] == point[:3] for one in known)
    return any(one.loss == point.loss for one in known)


def _part(text: str, rule: Rule, numbers: str, advantage: Estimate, margin: float) -> Part:
    """A part with its advantage, unless the spread of it is not known."""
    if advantage.seeds < 2:
        return Part(text, rule, f"{numbers}; {ONE_SEED}", verdict="underpowered")
    if not advantage.has_spread:
        return Part(text, rule, f"{numbers}; {NO_SPREAD}")
    return Part(text, rule, numbers, advantage, margin)


def _converges(experiment: Experiment, point: Point) -> Part:
    text = f"{point.text} does not diverge"
    own = [cell for cell in experiment.cells if cell.point[:3] == point[:3]]
    diverged = [f"seed {c.seed} at step {c.divergence['step']}" for c in own if c.divergence]
    ended = sum(cell.ended for cell in own)
    numbers = f"{len(diverged)} of {ended} seeds diverged"
    if diverged:
        numbers += f": {', '.join(diverged)}"
        return Part(text, "converges", numbers, verdict="not supported")
    if ended < len(own):
        return Part(text, "converges", f"{numbers}, {len(own) - ended} not finished yet")
    return Part(text, "converges", numbers, verdict="supported")


def _steadier(study: Study, baseline: str) -> list[Part]:
    """The ratio of variances, and never without the means beside it."""
    found = study.ratios.get((("td_dpo", "best"), (baseline, None)))
    margins = study.score.margins
    if found is None or margins is None:
        return []
    value = f"the ratio is {RATIO.number(found.value)} {RATIO.interval(found.interval)}"
    if math.isnan(found.value):
        value = f"{baseline} varies by no more than noise, so the ratio is not known"
    number = study.show.number
    over, under = study.across[("td_dpo", "best")], study.across[(baseline, None)]
    means = found.means.turned(study.score.higher)
    numbers = f"means over beta {number(over.mean.mean)} against {number(under.mean.mean)}: "
    numbers += f"advantage {number(means.mean)} {study.show.interval(means.interval)}"
    of = f"over {len(found.betas)} betas, td_dpo with its best tau against {baseline}"
    return [
        _part(f"variance {of}", "steadier", value, found.advantage, 0.0),
        _part(f"mean {of}", "matches", numbers, means, margins.matches),
    ]


def count(claims: Sequence[Claim]) -> str:
    """How many claims have each verdict: `1 supported, 3 underpowered`."""
    order: tuple[Verdict, ...] = ("supported", "not supported", "underpowered", "undecided")
    verdicts = [claim.verdict for claim in claims]
    return ", ".join(f"{verdicts.count(one)} {one}" for one in order if one in verdicts)
