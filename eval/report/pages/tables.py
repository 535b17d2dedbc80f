"""Tables of the page: rows of text, some with links, some to be highlighted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from eval.experiment import Cell, Experiment, Point
from eval.report.analysis import Tested
from eval.report.figures.drawing import EXTREMES
from eval.report.number_formats import NONE, RATIO, Format, plural, significant
from eval.report.read.scores import Checkpoints, Found, Margins, Score
from eval.report.read.settings import differing_settings
from eval.report.statistics.arms import best_settings
from eval.report.statistics.score_statistics import Study
from eval.report.statistics.sensitivity import Ratio
from eval.report.statistics.verdicts import Claim, rule_of

FILES = ("config.yaml", "run.json", "metrics.jsonl", "summary.json", "divergence.json", "best")


class Link(NamedTuple):
    """Text that leads to a file, by its address relative to the page."""

    text: str
    address: str


Entry = str | Link | list[Link]


@dataclasses.dataclass
class Table:
    """Rows of entries under a head.

    Attributes:
        caption: what it shows, and how.
        highlighted: numbers of rows to look at first.
        kind: `sortable` by a click on a column's head, or `claims`.
    """

    caption: str
    head: list[str]
    rows: list[list[Entry]]
    highlighted: set[int] = dataclasses.field(default_factory=set)
    kind: Literal["", "sortable", "claims"] = ""


def verdicts_table(tested: Sequence[Tested]) -> Table:
    """The verdict on each claim by each score, and without the diverged cells if there are any."""
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
    """Every part of every claim, with the numbers and the rule."""
    head = ["", "claim", "verdict", *(["without diverged"] if without else []), "numbers", "rule"]
    table = Table("", head, [], kind="claims")
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
    """All settings at the two betas that the experiment is about."""
    scores = [study for study in studies if study.score.margins]
    points = [point for point in experiment.points if point.beta in EXTREMES]
    if not points or not scores:
        return None
    rows: list[list[Entry]] = []
    for point in sorted(points, key=lambda point: (point.beta, point.place)):
        rows.append([_number(point.beta), point.series, _seeds(experiment, point)])
        rows[-1] += [_mean(study, point) for study in scores]
    head = ["beta", "setting", "seeds", *(_heading(study.score) for study in scores)]
    return Table("The smallest and the largest beta: mean over seeds, 95 % interval.", head, rows)


def settings_table(experiment: Experiment, studies: Sequence[Study]) -> Table:
    """Every metric of every setting: mean over seeds, bootstrap interval, t interval."""
    table = Table(
        "Mean over seeds; in brackets the 95 % interval with items and seeds resampled together; "
        "after the t, Student's interval over seeds alone.",
        ["setting", "seeds", *(_heading(study.score) for study in studies)],
        [],
        kind="sortable",
    )
    for point in experiment.points:
        if point.beta in EXTREMES:
            table.highlighted.add(len(table.rows))
        row: list[Entry] = [point.text, _seeds(experiment, point)]
        table.rows.append(row + [_mean(study, point, over_seeds=True) for study in studies])
    return table


def _heading(score: Score) -> str:
    return f"{score.title} ({score.unit})"


def _seeds(experiment: Experiment, point: Point) -> str:
    diverged, over = experiment.diverged(point)
    return f"{over}, {diverged} diverged" if diverged else str(over)


def _mean(study: Study, point: Point, *, over_seeds: bool = False) -> str:
    found = study.estimates.get(point)
    if found is None:
        return NONE
    text = f"{study.show.number(found.mean)} {study.show.interval(found.interval)}"
    return f"{text} t {study.show.interval(found.over_seeds)}" if over_seeds else text


def best_table(studies: Sequence[Study]) -> Table:
    """Per loss and score the best setting, and what an honest choice of it is worth."""
    table = Table(
        "The setting with the best mean over seeds, per loss. Its own score flatters it, because "
        "it was chosen for that; the last column is scored on items that had no part in choosing.",
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
    """Variance across beta of every series, and its ratios to the losses without tau."""
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
        "means differ too; what it adds is taken off. Ratios below 1 mean less sensitive; in "
        "brackets 95 %, after the t Student's over the seeds' own ratios, as observed. Seeds count "
        "that have all betas, of both series for a ratio; of one seed no noise of seeds is known.",
        head,
        rows,
    )


def _ratio(found: Ratio, seeds: int) -> str:
    intervals = f"{RATIO.interval(found.interval)} t {RATIO.interval(found.over_seeds)}"
    text = f"{RATIO.number(found.value)} {intervals}"
    return text if found.seeds == seeds else f"{text} over {plural(found.seeds, 'seed')}"


def margins_table(studies: Sequence[Study]) -> Table:
    """What counts as equal and as better."""
    rows: list[list[Entry]] = [
        [_heading(s.score), f"{m.matches:g}", f"{m.beats:g}", m.because]
        for s in studies
        if (m := s.score.margins)
    ]
    return Table("Margins of the claims.", ["score", "matches: within", "beats: by", "why"], rows)


def cells_table(experiment: Experiment, found: Found) -> Table:
    """One row per cell; sorts by a click on a column."""
    scores = [score for score in found.scores if score.margins or score.name in ("kl", "loss")]
    head = ["cell", "state", "loss", "beta", "tau", "seed", "checkpoints chosen"]
    head += [*(_heading(score) for score in scores), "largest gradient norm", "pairs/s", "files"]
    rows = [
        _cell_row(experiment, cell, number, scores, found.checkpoints.get(cell.name))
        for number, cell in enumerate(experiment.cells)
    ]
    diverged = {n for n, cell in enumerate(experiment.cells) if cell.state == "diverged"}
    return Table(
        "Steps chosen by the first / the second half of the validation pairs. A diverged cell "
        "(highlighted) is scored by its last finite validation, its answers are of the best one "
        "before or else the base's. A click on a head sorts.",
        head,
        rows,
        highlighted=diverged,
        kind="sortable",
    )


def _cell_row(
    experiment: Experiment,
    cell: Cell,
    number: int,
    scores: Sequence[Score],
    checkpoints: Checkpoints | None,
) -> list[Entry]:
    base = f"{cell.name}/" if experiment.is_grid else ""
    files = [Link(Path(f).stem, base + f) for f in FILES if (cell.folder / f).exists()]
    point, state = cell.point, cell.state
    at = f" at step {cell.divergence['step']}" if cell.divergence else ""
    row: list[Entry] = [
        Link(cell.name, base or "./") if state != "missing" else cell.name,
        f"{state}{at}",
        point.loss,
        _number(point.beta),
        _number(point.tau),
        str(cell.seed),
        f"{checkpoints.first} / {checkpoints.second}" if checkpoints else NONE,
    ]
    row += [Format(score.decimals).number(score.of(number)) for score in scores]
    return [*row, significant(largest_gradient(cell)), significant(speed(cell)), files]


def _number(value: float | str | None) -> str:
    return NONE if value is None else value if isinstance(value, str) else f"{value:g}"


def largest_gradient(cell: Cell) -> float:
    """The largest finite gradient norm of a run; NaN if there is none."""
    return _of_training(cell, "grad_norm", np.max)


def speed(cell: Cell) -> float:
    """The median of a run's pairs per second; NaN before its first step."""
    return _of_training(cell, "pairs_per_second", np.median)


def _of_training(cell: Cell, metric: str, reduce: Any) -> float:
    values = [record.get(metric, np.nan) for record in cell.training]
    known = [value for value in values if np.isfinite(value)]
    return float(reduce(known)) if known else float("nan")


def facts_table(experiment: Experiment) -> Table:
    """Where the runs came from; several values where cells differ."""
    facts = [cell.facts for cell in experiment.cells if cell.facts]
    rows: list[list[Entry]] = []

    def add(name: str, values: Sequence[Any]) -> None:
        known = list(dict.fromkeys(str(value) for value in values if value is not None))
        if known:
            rows.append([name, "; ".join(known)])

    add("commit", [fact.get("git_commit") for fact in facts])
    add("versions", [_pairs_of(fact.get("versions")) for fact in facts])
    add("device", [_pairs_of(fact.get("device")) for fact in facts])
    add("mesh", [_pairs_of(fact.get("mesh")) for fact in facts])
    for part in ("model", "data"):
        for key in ("path", "sha256", "parameters", "template", "train_rows", "validation_rows"):
            values = [(fact.get(part) or {}).get(key) for fact in facts]
            add(f"{part}, {key.replace('_', ' ')}", values)
    add(
        "data, dropped rows", [_pairs_of((fact.get("data") or {}).get("dropped")) for fact in facts]
    )
    add("cells", [states_of(experiment)])
    return Table("What run.json of the cells says.", ["", ""], rows)


def differing_tables(experiment: Experiment) -> list[Table]:
    """The settings in which cells differ beside the axes of the grid, if there are any."""
    differing = differing_settings(experiment)
    if not differing:
        return []
    losses = list(dict.fromkeys(point.loss for point in experiment.points))
    rows: list[list[Entry]] = [
        [name, *("; ".join(map(str, values.get(loss, [NONE]))) for loss in losses)]
        for name, values in differing.items()
    ]
    caption = "Settings in which cells differ, beside loss, beta, tau and seed."
    return [Table(caption, ["setting", *losses], rows)]


def _pairs_of(mapping: Mapping[str, Any] | None) -> str | None:
    return ", ".join(f"{name} {value}" for name, value in mapping.items()) if mapping else None


def states_of(experiment: Experiment) -> str:
    """`60 cells: 57 finished, 2 diverged, 1 unfinished`."""
    counts = [
        (experiment.count(state), state)
        for state in ("finished", "diverged", "unfinished", "missing")
    ]
    parts = [f"{count} {state}" for count, state in counts if count]
    return f"{plural(len(experiment.cells), 'cell')}: {', '.join(parts)}"
