"""What is drawn: the answer, the score against KL, and the course of a single setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...experiment import Experiment, Point
from ...quality.quality_file import quality_of
from ..analysis import Analysis
from ..answer import axes_of, name_of, varying
from ..number_formats import Format, beta_or_tau
from ..read.scores import Score
from ..statistics.study import Study
from .chart import Dot, Line, Picture, chart, limits_of, logarithmic

DODGE = 0.012  # between lines, as a share of the axis


def answer_pictures(analysis: Analysis) -> list[Picture]:
    """The picture of the answer: the first score over what varies.

    It is one picture, or one for each value of another axis such as the learning rate. Of a single
    setting it is the course of its validations.
    """
    study, experiment = analysis.main, analysis.experiment
    axes = varying(experiment)
    if study is None or not axes:
        return _course(experiment)
    over = next((axis for axis in ("beta", "tau", *experiment.other_axes) if axis in axes), "loss")
    panels: dict[str, dict[str, Line]] = {}
    series = list(dict.fromkeys(_series(point, over, axes) for point in experiment.points))
    tried = [] if over == "loss" else axes_of(experiment)[over]
    places = {value: place / (len(tried) - 1) for place, value in enumerate(tried)}
    for point in experiment.points:
        if point not in study.estimates:
            continue
        panel = "" if over in experiment.other_axes else name_of(point, experiment.other_axes)
        name = _series(point, over, axes)
        lines = panels.setdefault(panel.partition(", ")[2], {})
        line = lines.setdefault(name, Line(name, series.index(name), []))
        shift = DODGE * (line.number - (len(series) - 1) / 2)
        # A loss that does not have the axis stands in the middle.
        at = places.get(point.numbers.get(over), 0.5)
        line.dots.append(_dot(study, point, at + shift, axes))
    every = [line for lines in panels.values() for line in lines.values()]
    limits = limits_of(every, study.score.base)
    words = over.replace("_", " ")
    marks = [(place, beta_or_tau(value)) for value, place in places.items()]
    return [
        chart(
            f"answer {panel}".strip().replace(",", ""),
            f"{study.score.title} over {words}" + (f", {panel}" if panel else ""),
            list(lines.values()),
            f"{words}, the values tried" if tried else "",
            marks,
            f"{study.score.title} ({study.score.unit})" + (f": {panel}" if panel else ""),
            base=study.score.base,
            limits=limits,
        )
        for panel, lines in sorted(panels.items())
    ]


def _series(point: Point, over: str, axes: Sequence[str]) -> str:
    """The name of the line: the setting without the axis below it and without the panel's."""
    return name_of(point, [axis for axis in axes if axis in ("beta", "tau") and axis != over])


def _dot(study: Study, point: Point, x: float, axes: Sequence[str]) -> Dot:
    known = study.arms[point].per_seed
    seeds = [float(one) for one in known[np.isfinite(known)]]
    found, show = study.estimates[point], study.show
    text = (
        f"{name_of(point, axes)}: {show.number(found.mean)}, 95 % {show.interval(found.interval)}"
    )
    if len(seeds) > 1:
        text += f", seeds {', '.join(map(show.number, seeds))}"
    return Dot(x, found.mean, text, [(x, seed) for seed in seeds], found.interval)


def _course(experiment: Experiment) -> list[Picture]:
    """Each seed's validations over its steps, by the metric that chose its best policy."""
    cells = [cell for cell in experiment.cells if cell.validations]
    last = max((cell.validations[-1]["step"] for cell in cells), default=0) or 1
    lines: list[Line] = []
    for cell in cells:
        curve = [(one["step"], one.get(cells[0].best_metric, np.nan)) for one in cell.validations]
        dots = [Dot(x / last, y, f"step {x}: {y:.4g}") for x, y in curve if np.isfinite(y)]
        if dots:
            lines.append(Line(f"seed {cell.seed}", len(lines), dots))
    if not lines:
        return []
    metric = cells[0].best_metric
    marks = [(step / last, str(step)) for step in (0, last // 2, last)]
    return [chart("answer", f"{metric} over steps", lines, "step", marks, metric)]


def frontier(analysis: Analysis) -> list[Picture]:
    """The score against KL: a dot for each setting, small ones for its seeds.

    References:
        Rafailov et al., "Direct Preference Optimization" (2023), arXiv 2305.18290, figure 2.
    """
    study, experiment = analysis.main, analysis.experiment
    if study is None or len(experiment.points) < 2:
        return []
    kl, title = _kl_of(analysis, study.score)
    axes, show = varying(experiment), Format(3)
    cells = [
        (cell.point, kl[cell.name], study.score.of(number))
        for number, cell in enumerate(experiment.cells)
        if study.score.has(number) and np.isfinite(kl.get(cell.name, np.nan))
    ]
    if not any(x > 0 for _, x, _ in cells):
        return []
    # A sampled KL may come out at 0 or less. It is drawn at the smallest above 0.
    smallest = min(x for _, x, _ in cells if x > 0)
    marks, places = logarithmic([max(x, smallest) for _, x, _ in cells])
    lines: dict[str, Line] = {}
    names = list(dict.fromkeys(_series(p, "beta", axes) for p in experiment.points))
    for point in dict.fromkeys(point for point, *_ in cells):
        own = [(places[n], y, x) for n, (of, x, y) in enumerate(cells) if of == point]
        x, y, nats = (float(np.mean(one)) for one in zip(*own, strict=True))
        text = f"{name_of(point, axes)}: {study.show.number(y)} at {show.number(nats)} nats"
        name = _series(point, "beta", axes)
        line = lines.setdefault(name, Line(name, names.index(name), []))
        line.dots.append(Dot(x, y, text, [(float(a), float(b)) for a, b, _ in own]))
    return [
        chart(
            "score_against_kl",
            f"{study.score.title} against KL",
            [line._replace(dots=sorted(line.dots)) for line in lines.values()],
            title,
            marks,
            f"{study.score.title} ({study.score.unit})",
            base=study.score.base,
        )
    ]


def _kl_of(analysis: Analysis, score: Score) -> tuple[Mapping[str, float], str]:
    """The KL on a score's own answers if it was measured, else the penalty on the pairs."""
    cells = analysis.experiment.cells
    if score.name == "quality":
        sampled = {cell.name: (quality_of(cell) or {}).get("kl_per_token") for cell in cells}
        known = {name: float(value) for name, value in sampled.items() if value is not None}
        if known:
            return known, "KL to the reference on sampled answers (nats a token)"
    penalty = next((one for one in analysis.found.scores if one.name == "eval_kl"), None)
    found = {cell.name: penalty.of(n) for n, cell in enumerate(cells)} if penalty else {}
    return found, "KL penalty on held-out pairs, (s_w² + s_l²) / 2 (nats)"
