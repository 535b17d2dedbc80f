"""The four results that the experiment expected, each where all of its settings have a score.

Two arms are compared by the advantage of the first: their difference, with the sign that makes
"better" positive.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple, get_args

from ...experiment import Experiment, Point
from ..number_formats import significant, significant_interval
from ..read.scores import Margins
from .across_beta import series_of, side_by_side
from .comparisons import Rule, Verdict, lean
from .estimates import Estimate, difference
from .study import Study

# "About 40 % smaller" means a ratio of variances of about 0.6. A ratio of up to 0.75 still counts.
LARGEST_RATIO = 0.75
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
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
        numbers: what was found, in words.
        advantage: positive if the claim's side is better; None if there is nothing to correct.
        margin: what the rule holds the advantage against.
        verdict: final where there is no advantage; elsewhere what it speaks for, until `analysis`
            corrects all comparisons together.
        chance: the p-value of the comparison; NaN if there is nothing to correct.
    """

    text: str
    rule: Rule
    numbers: str
    advantage: Estimate | None = None
    margin: float = 0.0
    verdict: Verdict = "undecided"
    chance: float = math.nan


class Claim(NamedTuple):
    """A claim is supported if all its parts are, and not supported if one part is not."""

    number: int
    text: str
    parts: tuple[Part, ...]

    @property
    def verdict(self) -> Verdict:
        verdicts = [part.verdict for part in self.parts]
        return next((one for one in VERDICTS[1:] if one in verdicts), "supported")


def claims_of(experiment: Experiment, study: Study) -> list[Claim]:
    """The claims by a score that has margins, as far as all of their settings have a score."""
    margins = study.score.margins
    assert margins is not None
    low, middle, high = (
        Point("td_dpo", beta, tau) for beta, tau in ((0.01, 0.5), (0.05, 1.0), (2.5, 2.0))
    )
    compare = functools.partial(_compare, study, margins)
    claims: list[tuple[str, Sequence[Part | None]]] = [
        (
            "At beta 0.01, TD-DPO with tau 0.5 matches DPO at beta 0.05, and DPO at its best beta.",
            [
                compare("matches", low, Point("dpo", 0.05, None)),
                compare("matches", low, Point("dpo", "best", None)),
            ],
        ),
        (
            "At beta 2.5, TD-DPO with tau 2 does not diverge and beats DiscoPOP, at the same beta "
            f"and at its best reported 0.05, by {margins.beats:g}.",
            [
                _converges(experiment, high),
                compare("beats", high, Point("discopop", 2.5, None)),
                compare("beats", high, Point("discopop", 0.05, None)),
            ],
        ),
        (
            f"At beta 0.05, TD-DPO with tau 1 is within {margins.matches:g} of DPO.",
            [compare("within", middle, Point("dpo", 0.05, None))],
        ),
        (
            "Across beta, the variance of TD-DPO's score, with the best tau for each beta, is "
            "about 40 % smaller than DPO's and DiscoPOP's, and its mean is no worse.",
            [*_steadier(study, "dpo", margins), *_steadier(study, "discopop", margins)],
        ),
    ]
    return [
        Claim(number, text, known)
        for number, (text, parts) in enumerate(claims, start=1)
        if len(known := tuple(filter(None, parts))) == len(parts)
    ]


def _compare(study: Study, margins: Margins, rule: Rule, of: Point, against: Point) -> Part | None:
    """The comparison; None if a side has no score, or if they have no seed in common."""
    arm, baseline = study.arms.get(of), study.arms.get(against)
    found = arm and baseline and difference(arm, baseline, study.score.strata)
    if not (arm and baseline and found):
        return None
    show, advantage = study.show, found.turned(study.score.higher)
    chosen = " and ".join(dict.fromkeys(point.text for point in baseline.chosen))
    numbers = f"{show.number(arm.mean)} against {show.number(baseline.mean)}"
    numbers += "" if baseline.is_setting else f" ({chosen})"
    numbers += f": advantage {show.number(advantage.mean)} {show.interval(advantage.interval)}"
    margin = margins.beats if rule == "beats" else margins.matches
    return _part(f"{of.text}, against {against.text}", rule, numbers, advantage, margin)


def _part(text: str, rule: Rule, numbers: str, advantage: Estimate, margin: float) -> Part:
    """A part with its advantage, unless the spread of it is not known."""
    if advantage.seeds < 2:
        return Part(text, rule, f"{numbers}; {ONE_SEED}", verdict="underpowered")
    if not advantage.has_spread:
        return Part(text, rule, f"{numbers}; {NO_SPREAD}")
    return Part(text, rule, numbers, advantage, margin, *lean(rule, advantage, margin))


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


def _steadier(study: Study, baseline: str, margins: Margins) -> list[Part | None]:
    """The variances across beta, and never without the means beside them."""
    series, higher = series_of(study.arms), study.score.higher
    first, second = series.get(("td_dpo", "best"), []), series.get((baseline, None), [])
    found = side_by_side(first, second, study.score.strata, higher)
    if found is None:
        return [None]
    (over, under), number = found[:2], study.show.number
    advantage, means = found.steadiness(LARGEST_RATIO), found.means.turned(higher)
    variances = (
        f"{significant(over.variance.mean)} against {significant(under.variance.mean)}: "
        f"{LARGEST_RATIO} of that less the first is {significant(advantage.mean)} "
        f"{significant_interval(advantage.interval)}"
    )
    numbers = (
        f"{number(over.mean.mean)} against {number(under.mean.mean)}: "
        f"advantage {number(means.mean)} {study.show.interval(means.interval)}"
    )
    of = f"over {len(over.betas)} betas, td_dpo with its best tau against {baseline}"
    return [
        _part(f"variance {of}", "steadier", variances, advantage, 0.0),
        _part(f"mean {of}", "matches", numbers, means, margins.matches),
    ]


def count(claims: Sequence[Claim]) -> str:
    """How many claims have each verdict: `1 supported, 3 underpowered`."""
    verdicts = [claim.verdict for claim in claims]
    return ", ".join(f"{verdicts.count(one)} {one}" for one in VERDICTS if one in verdicts)
