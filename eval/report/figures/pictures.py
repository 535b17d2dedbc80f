"""What is drawn: the answer, the score against KL, and the course of a single setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...experiment import Experiment, Point
from ...quality.quality_file import quality_of
from ..analysis import Analysis
from ..answer import name_of, varying
from ..number_formats import Format
from ..read.scores import Score
from ..statistics.study import Study
from .chart import Dot, Line, Picture, Ticks, chart, limits_of, logarithmic

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
    panels: dict[str, list[Line]] = {}
    series = list(dict.fromkeys(_series(point, over, axes) for point in experiment.points))
    places = sorted({_value(point, over) for point in experiment.points} - {None}, key=_order)
    for point in experiment.points:
        if point not in study.estimates:
            continue
        panel = "" if over in experiment.other_axes else name_of(point, experiment.other_axes)
        panel = panel.partition(", ")[2]
        lines = panels.setdefault(panel, [])
        name = _series(point, over, axes)
        number = series.index(name)
        line = next((line for line in lines if line.name == name), None)
        if line is None:
            lines.append(line := Line(name, number, []))
        value = _value(point, over)
        at = places.index(value) / max(len(places) - 1, 1) if value is not None else 0.5
        shift = DODGE * (number - (len(series) - 1) / 2)
        line.dots.append(_dot(study, point, (0.5 if len(places) == 1 else at) + shift, axes))
    limits = limits_of([line for lines in panels.values() for line in lines], study.score.base)
    words = over.replace("_", " ")
    marks = [
        (0.5 if len(places) == 1 else place / (len(places) - 1), _text(value))
        for place, value in enumerate(places)
    ]
    ticks = Ticks(f"{words}, the values tried" if over != "loss" else "", marks)
    return [
        chart(
            f"answer {panel}".strip().replace(",", ""),
            f"{study.score.title} over {words}" + (f", {panel}" if panel else ""),
            lines,
            ticks,
            f"{study.score.title} ({study.score.unit})" + (f": {panel}" if panel else ""),
            base=study.score.base,
            limits=limits,
        )
        for panel, lines in sorted(panels.items())
    ]


def _order(value: float | str | None) -> tuple[bool, float | str]:
    return isinstance(value, str), value or 0.0


def _text(value: float | str | None) -> str:
    return f"{value:g}" if isinstance(value, float | int) else str(value or "")


def _value(point: Point, axis: str) -> float | str | None:
    """A setting's value on an axis; None if its loss does not have it."""
    own = {"loss": "", "beta": point.beta, "tau": point.tau, **dict(point.others)}
    return own.get(axis)


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
    if not cells:
        return []
    metric = cells[0].best_metric
    curves = {
        cell.seed: [
            (record["step"], record[metric])
            for record in cell.validations
            if np.isfinite(record.get(metric, np.nan))
        ]
        for cell in cells
    }
    last = max((step for curve in curves.values() for step, _ in curve), default=0)
    lines = [
        Line(
            f"seed {seed}",
            number,
            [Dot(step / max(last, 1), y, f"step {step}: {y:.4g}") for step, y in curve],
        )
        for number, (seed, curve) in enumerate(curves.items())
        if curve
    ]
    if not lines:
        return []
    ticks = Ticks("step", [(step / max(last, 1), str(step)) for step in (0, last // 2, last)])
    return [chart("answer", f"{metric} over steps", lines, ticks, metric)]


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
    ticks, places = logarithmic([max(x, smallest) for _, x, _ in cells])
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
            Ticks(title, ticks.marks),
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
