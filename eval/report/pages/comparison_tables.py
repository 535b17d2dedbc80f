"""Tables that compare settings: verdicts, claims, means over seeds, sensitivity to beta."""

from __future__ import annotations

from collections.abc import Sequence

from ...experiment import Experiment, Point
from ..analysis import Tested
from ..figures.drawing import EXTREMES
from ..number_formats import NONE, RATIO, beta_or_tau, plural, significant
from ..read.scores import Margins, Score
from ..statistics.arms import best_settings
from ..statistics.score_statistics import Study
from ..statistics.sensitivity import Ratio
from ..statistics.verdicts import Claim, rule_of
from .tables import Entry, Table


def verdicts_table(tested: Sequence[Tested]) -> Table:
    """The verdict on each claim by each score, also without diverged cells if there are any."""
    columns = [(f"by {one.study.score.title}", one.claims) for one in tested]
    columns += [
        (f"by {one.study.score.title}, without diverged cells", one.without)
        for one in tested
        if one.without is not None
    ]
    rows: list[list[Entry]] = [
        [str(claim.number), claim.about, *(claims[place].verdict for _, claims in columns)]
        for place, claim in enumerate(tested[0].claims)
    ]
    head = ["", "expected", *(name for name, _ in columns)]
    return Table("Numbers, rules and margins follow below.", head, rows)


def claims_table(
    whole: Sequence[Claim], without: Sequence[Claim] | None, margins: Margins
) -> Table:
    """Every part of every claim, with its numbers and its rule."""
    head = ["", "claim", "verdict", *(["without diverged"] if without else []), "numbers", "rule"]
    caption = (
        "An advantage is positive where the first of the two settings is better, whether a higher "
        "or a lower score is better. Its intervals have the same sign."
    )
    table = Table(caption, head, [], kind="claims")
    for number, claim in enumerate(whole):
        others = [without[number]] if without else []
        table.highlighted.add(len(table.rows))
        verdicts: list[Entry] = [one.verdict for one in (claim, *others)]
        table.rows.append([str(claim.number), claim.text, *verdicts, "", ""])
        for place, part in enumerate(claim.parts):
            verdicts = [one.parts[place].verdict for one in (claim, *others)]
            numbers = part.numbers
            if others and others[0].parts[place].numbers != numbers:
                numbers += f". Without diverged cells: {others[0].parts[place].numbers}"
            table.rows.append(["", part.text, *verdicts, numbers, rule_of(part, margins)])
    return table


def extremes_table(experiment: Experiment, studies: Sequence[Study]) -> Table | None:
    """All settings at the two betas that the experiment is about; None if it has none of them."""
    scores = [study for study in studies if study.score.margins]
    points = [point for point in experiment.points if point.beta in EXTREMES]
    if not points or not scores:
        return None
    rows: list[list[Entry]] = []
    for point in sorted(points, key=lambda point: (point.beta, point.place)):
        rows.append([beta_or_tau(point.beta), point.series, _seeds(experiment, point)])
        rows[-1] += [_mean(study, point) for study in scores]
    head = ["beta", "setting", "seeds", *(heading(study.score) for study in scores)]
    return Table(
        "The smallest and the largest beta: mean over seeds and 95 % interval.", head, rows
    )


def settings_table(experiment: Experiment, studies: Sequence[Study]) -> Table:
    """Every metric of every setting: mean over seeds, bootstrap interval, t interval."""
    table = Table(
        "Mean over seeds. The first brackets hold the 95 % interval with items and seeds resampled "
        "together; the brackets after the t hold Student's interval over seeds alone.",
        ["setting", "seeds", *(heading(study.score) for study in studies)],
        [],
        kind="sortable",
    )
    for point in experiment.points:
        if point.beta in EXTREMES:
            table.highlighted.add(len(table.rows))
        row: list[Entry] = [point.text, _seeds(experiment, point)]
        table.rows.append(row + [_mean(study, point, over_seeds=True) for study in studies])
    return table


def heading(score: Score) -> str:
    """The head of a score's column."""
    return f"{score.title} ({score.unit})"


def _seeds(experiment: Experiment, point: Point) -> str:
    diverged, ended = experiment.diverged(point)
    return f"{ended}, {diverged} diverged" if diverged else str(ended)


def _mean(study: Study, point: Point, *, over_seeds: bool = False) -> str:
    found = study.estimates.get(point)
    if found is None:
        return NONE
    text = f"{study.show.number(found.mean)} {study.show.interval(found.interval)}"
    return f"{text} t {study.show.interval(found.over_seeds)}" if over_seeds else text


def best_table(studies: Sequence[Study]) -> Table:
    """The best setting of each loss by each score, and what an honest choice scores."""
    table = Table(
        "For each loss, the setting with the best mean over seeds. Its own score flatters it, "
        "because the same items chose it. In the last column other items score than chose.",
        ["score", "loss", "best setting", "its score", "chosen on one half, scored on the other"],
        [],
    )
    for study in studies:
        if study.score.margins is None:
            continue
        for loss, arm in best_settings(study.arms.values(), study.score).items():
            honest = [p for p in study.arms if p.loss == loss and p.beta == "best"]
            text = NONE
            if honest:
                chosen = dict.fromkeys(point.text for point in study.arms[honest[0]].chosen)
                which = " and ".join(chosen)
                text = f"{_mean(study, honest[0])}; the halves chose {which}"
            own = study.show.number(arm.mean)
            table.rows.append([study.score.title, loss, arm.point.text, own, text])
    return table


def sensitivity_table(study: Study) -> Table:
    """The variance across beta of every series, and its ratios to the losses without tau."""
    baselines = [name for name in study.sensitivities if name[1] is None]
    head = ["series", "betas", "seeds", "variance observed", "less noise", "95 %"]
    head += [f"ratio to {loss}" for loss, _ in baselines]
    rows: list[list[Entry]] = []
    for name, found in study.sensitivities.items():
        low, high = found.interval
        row: list[Entry] = [
            found.series,
            ", ".join(f"{beta:g}" for beta in found.betas),
            str(found.seeds),
            significant(found.observed),
            significant(found.variance),
            f"[{significant(low)}, {significant(high)}]",
        ]
        for baseline in baselines:
            one = study.ratios.get((name, baseline))
            row.append(_ratio(one, found.seeds) if one else NONE)
        rows.append(row)
    score = study.score
    return Table(
        f"Variance across beta of the mean {score.title} ({score.unit}, squared). Noise makes "
        "means differ too; the part that it adds is subtracted. A ratio below 1 means less "
        "sensitive. The first brackets hold the 95 % interval; the brackets after the t hold "
        "Student's interval over the seeds' own ratios, as observed. Only seeds that have all "
        "betas count, and for a ratio only seeds that have them in both series. With one seed, the "
        "noise of seeds is not known.",
        head,
        rows,
    )


def _ratio(found: Ratio, seeds: int) -> str:
    intervals = f"{RATIO.interval(found.interval)} t {RATIO.interval(found.over_seeds)}"
    text = f"{RATIO.number(found.value)} {intervals}"
    return text if found.seeds == seeds else f"{text} over {plural(found.seeds, 'seed')}"


def margins_table(studies: Sequence[Study]) -> Table:
    """Which differences count as equal, and which as better."""
    rows: list[list[Entry]] = [
        [heading(s.score), f"{m.matches:g}", f"{m.beats:g}", m.because]
        for s in studies
        if (m := s.score.margins)
    ]
    return Table("Margins of the claims.", ["score", "matches: within", "beats: by", "why"], rows)
