"""Scores as pictures: heat maps, score against beta, sensitivity, reward against KL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patches import Rectangle

from eval.report.cells import Experiment, Point
from eval.report.drawing import Frame, Picture, beta_axis, legend_below, look, panel, picture
from eval.report.scores import Score
from eval.report.sensitivity import series_of
from eval.report.study import Study

# The two betas that the experiment is about.
EXTREMES = (0.01, 2.5)
HEAT = Frame(left=0.6, right=0.95, bottom=0.45)


def betas_of(experiment: Experiment) -> list[float]:
    return sorted({float(point.beta) for point in experiment.points})


def diverged_at(experiment: Experiment, point: Point) -> tuple[int, int]:
    """How many cells of a setting diverged, and how many are over."""
    own = [cell for cell in experiment.cells if cell.point == point and cell.over]
    return sum(cell.state == "diverged" for cell in own), len(own)


# ---- Heat maps -----------------------------------------------------------------------------------


def heat_map(experiment: Experiment, study: Study, *, logarithmic: bool = False) -> Picture:
    """Beta down, tau (or a loss that has none) across; the colour is the mean over seeds."""
    score, betas = study.score, betas_of(experiment)
    columns = list(dict.fromkeys((point.loss, point.tau) for point in experiment.points))
    title = f"{score.title} ({score.unit})"
    width = HEAT.left + HEAT.right + max(len(columns), 2)
    with panel(title, width=width, height=0.75 + 0.62 * len(betas), frame=HEAT) as (figure, axes):
        means = [e.mean for p, e in study.estimates.items() if "best" not in (p.beta, p.tau)]
        norm = _norm(means, logarithmic)
        colours = matplotlib.colormaps["cividis" if score.higher else "cividis_r"]
        for across, (loss, tau) in enumerate(columns):
            for down, beta in enumerate(betas):
                _heat_cell(
                    axes, experiment, study, Point(loss, beta, tau), across, down, norm, colours
                )
        axes.set_xlim(0, len(columns))
        axes.set_ylim(len(betas), 0)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        names = [loss if tau is None else f"{loss}\ntau {tau:g}" for loss, tau in columns]
        axes.set_xticks(np.arange(len(columns)) + 0.5, names)
        axes.set_yticks(np.arange(len(betas)) + 0.5, [f"{beta:g}" for beta in betas])
        axes.set_ylabel("beta")
        for down, beta in enumerate(betas):
            if beta in EXTREMES:
                axes.get_yticklabels()[down].set_fontweight("bold")
                axes.add_patch(_frame(0, down, len(columns)))
        mappable = matplotlib.cm.ScalarMappable(norm, colours)
        box = axes.get_position()
        place = figure.add_axes((box.x1 + 0.12 / width, box.y0, 0.14 / width, box.height))
        bar = figure.colorbar(mappable, cax=place, label=score.unit)
        bar.outline.set_visible(False)
        return picture(figure, f"heat_map-{score.name}", f"Heat map of {title} by beta and tau")


def _norm(means: Sequence[float], logarithmic: bool) -> Normalize:
    low, high = (min(means), max(means)) if means else (0.0, 1.0)
    if logarithmic and low > 0:
        return LogNorm(low, max(high, low * 1.01))
    return Normalize(low, max(high, low + 1e-9))


def _heat_cell(
    axes: Axes,
    experiment: Experiment,
    study: Study,
    point: Point,
    across: int,
    down: int,
    norm: Normalize,
    colours: matplotlib.colors.Colormap,
) -> None:
    middle = across + 0.5, down + 0.5
    found = study.estimates.get(point)
    if found is None:
        known = point in experiment.points
        axes.text(*middle, "no score" if known else "–", ha="center", va="center", color="#666666")
        return
    colour = colours(norm(found.mean))
    diverged, over = diverged_at(experiment, point)
    axes.add_patch(Rectangle((across + 0.02, down + 0.02), 0.96, 0.96, color=colour, linewidth=0))
    ink = "black" if _luminance(colour) > 0.45 else "white"
    show = study.show
    axes.text(
        *(middle[0], middle[1] - 0.2), show.number(found.mean), ha="center", va="center", color=ink,
        fontsize=10, fontweight="bold",
    )  # fmt: skip
    low, high = (show.number(end) for end in found.interval)
    axes.text(
        *(middle[0], middle[1] + 0.1), f"{low} to {high}", ha="center", va="center", color=ink,
        fontsize=6.5,
    )  # fmt: skip
    if diverged:
        axes.text(
            *(middle[0], middle[1] + 0.34), f"× {diverged} of {over} diverged", ha="center",
            va="center", color=ink, fontsize=7.5,
        )  # fmt: skip


def _luminance(colour: Sequence[float]) -> float:
    """Of an RGB colour, as the eye weighs it."""
    return float(np.dot(colour[:3], (0.2126, 0.7152, 0.0722)))


def _frame(left: float, top: float, width: float) -> Rectangle:
    return Rectangle(
        (left, top), width, 1, fill=False, linewidth=1.6, edgecolor="black", clip_on=False
    )


# ---- Against beta --------------------------------------------------------------------------------


def against_beta(experiment: Experiment, study: Study, losses: Sequence[str], name: str) -> Picture:
    """The mean over seeds of every series of some losses, with the bootstrap interval."""
    betas, score = betas_of(experiment), study.score
    series = [
        arms
        for (loss, tau), arms in series_of(study.arms).items()
        if loss in losses and tau != "best"
    ]
    title = f"{score.title}: {', '.join(losses)}"
    with panel(title if len(losses) == 1 else score.title) as (figure, axes):
        for number, arms in enumerate(series):
            shift = 0.09 * (number - (len(series) - 1) / 2)
            estimates = [study.estimates[arm.point] for arm in arms]
            means = np.array([found.mean for found in estimates])
            ends = np.array([found.interval for found in estimates]).T
            style = look(number)
            axes.errorbar(
                [betas.index(float(arm.point.beta)) + shift for arm in arms],
                means,
                np.maximum(np.abs(ends - means), 0),
                marker=style.marker,
                markersize=4.5,
                linewidth=1.3,
                elinewidth=0.9,
                capsize=2,
                label=arms[0].point.series,
                **style.line,
            )
        beta_axis(axes, betas, EXTREMES)
        axes.set_ylabel(score.unit)
        legend_below(figure, axes)
        return picture(figure, name, f"Against beta, with 95 % intervals: {title}")


def sensitivities(study: Study) -> Picture:
    """The variance across betas of every series, noise taken off, with its interval."""
    found = list(study.sensitivities.values())
    title = f"Variance across beta of {study.score.title}"
    frame = Frame(left=1.3, bottom=0.5)
    with panel(study.score.title, height=0.8 + 0.3 * len(found), frame=frame) as (figure, axes):
        for place, one in enumerate(found):
            low, high = one.interval
            axes.plot([low, high], [place, place], color="#333333", linewidth=1.4)
            axes.plot(one.variance, place, "o", color="#0072B2", markersize=6, zorder=3)
            axes.plot(one.observed, place, "|", color="#D55E00", markersize=11, zorder=3)
        axes.set_yticks(range(len(found)), [one.series for one in found])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 3), useMathText=True)
        axes.grid(axis="y", visible=False)
        # To the left, for the power of ten stands on the right.
        axes.set_xlabel(f"variance ({study.score.unit}, squared)", loc="left")
        return picture(figure, f"sensitivity-{study.score.name}", title)


# ---- Reward against KL ---------------------------------------------------------------------------


def frontier(
    experiment: Experiment, score: Score, kl: Mapping[str, float], kl_label: str
) -> Picture:
    """A score against the distance from the reference: a small mark per cell, a large one per
    setting, a line along beta.

    Args:
        kl: of each cell by name, nats; cells without are left out.
        kl_label: says what it is measured on.
    """
    title = f"{score.title} against KL"
    points: dict[Point, list[tuple[float, float]]] = {}
    for number, cell in enumerate(experiment.cells):
        if cell.over and score.has(number) and np.isfinite(kl.get(cell.name, np.nan)):
            points.setdefault(cell.point, []).append((kl[cell.name], score.of(number)))
    floor = min((x for found in points.values() for x, _ in found if x > 0), default=1.0)
    with panel(title, width=5.4, height=4.4) as (figure, axes):
        series = list(dict.fromkeys(point.series for point in points))
        for number, name in enumerate(series):
            style = look(number)
            means = []
            for point, values in points.items():
                if point.series != name:
                    continue
                xs, ys = np.maximum(np.array(values)[:, 0], floor), np.array(values)[:, 1]
                axes.plot(
                    xs, ys, style.marker, color=style.colour, markersize=3.5, alpha=0.5, linewidth=0
                )
                means.append((float(np.exp(np.log(xs).mean())), float(ys.mean()), point))
            axes.plot(
                [x for x, _, _ in means],
                [y for _, y, _ in means],
                marker=style.marker,
                markersize=6.5,
                markeredgecolor="white",
                linewidth=1.2,
                label=name,
                **style.line,
            )
            for x, y, point in means:
                bold = "bold" if point.beta in EXTREMES else "normal"
                axes.annotate(
                    f"{point.beta:g}",
                    (x, y),
                    xytext=(4, 4),
                    textcoords="offset points",
                    fontsize=6.5,
                    color=style.colour,
                    fontweight=bold,
                )
        axes.set_xscale("log")
        axes.set_xlabel(kl_label)
        axes.set_ylabel(f"{score.title} ({score.unit})")
        legend_below(figure, axes)
        return picture(figure, f"frontier-{score.name}", f"{title}, one mark per cell")
