"""Why settings score as they do: how far the log-probs of the validation pairs moved.

All numbers are of each run's last finite validation, on all pairs, averaged over the seeds of a
setting. N runs of a setting, P validation pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit

from ...experiment import Cell, Experiment, Point
from ..number_formats import NONE, Format, significant
from ..read.pair_metrics import pair_values
from .tables import Entry, Table

NATS, SHARE = Format(2), Format(3)


class Moved(NamedTuple):
    """How far the runs of one setting moved."""

    ratios: Float[np.ndarray, "N P 2"]  # s_w and s_l, nats
    accuracies: Float[np.ndarray, "N P"]
    rewards: Float[np.ndarray, "N P 2"]
    bound: float | None  # the largest |s| of a pair at rest, nats
    saturated: tuple[float, float] | None  # shares of pairs of small and of large weight, at step 0


def diagnosis_tables(experiment: Experiment) -> list[Table]:
    """How far each setting moved from the reference: overall, and by the lengths of responses."""
    cells = [cell for cell in experiment.cells if cell.steps and cell.logps.shape[-1] == 2]
    moved = {
        point: _moved([cell for cell in cells if cell.point == point])
        for point in experiment.points
        if any(cell.point == point for cell in cells)
    }
    if not moved:
        return []
    return [_distances(moved), *_by_length(moved, cells[0])]


def _moved(cells: list[Cell]) -> Moved:
    values = [pair_values(cell) for cell in cells]
    ratios = np.stack([cell.logps[-1] - cell.reference for cell in cells]).astype(np.float64)
    rewards = np.stack(
        [np.stack([v["rewards/chosen"][-1], v["rewards/rejected"][-1]], axis=-1) for v in values]
    )
    accuracies = np.stack([v["rewards/accuracies"][-1] for v in values])
    return Moved(ratios, accuracies, rewards, _bound(cells[0]), _saturated(cells[0]))


def _bound(cell: Cell) -> float | None:
    """1 / (tau * beta): TD-DPO's margin pulls a log-prob by at most 1 / tau, its penalty by beta s.

    None if the penalty is not a square of log-ratios, or if the margin is one per token.
    """
    assert cell.config is not None
    loss = cell.config.loss
    if loss.name != "td_dpo" or loss.kl != "k2" or loss.margin == "length_normalized":
        return None
    return 1 / (loss.tau * loss.beta)


def _saturated(cell: Cell) -> tuple[float, float] | None:
    """The shares of pairs whose gradient weight is below 0.05, and above 0.95, before training.

    TD-DPO's margin of log-probs has no reference in it, so the base alone decides its weights. The
    other losses begin with a margin of 0.
    """
    assert cell.config is not None
    loss = cell.config.loss
    if loss.name != "td_dpo" or loss.margin != "policy":
        return None
    weights = expit((cell.reference[:, 1] - cell.reference[:, 0]).astype(np.float64) / loss.tau)
    return float((weights < 0.05).mean()), float((weights > 0.95).mean())


def _distances(moved: dict[Point, Moved]) -> Table:
    rows: list[list[Entry]] = []
    for point, one in moved.items():
        s_w, s_l = one.ratios.mean(axis=(0, 1))
        rms = float(np.sqrt(np.mean(one.ratios**2)))
        rest = NONE
        if one.bound is not None:
            rest = SHARE.number(float((np.abs(one.ratios) <= one.bound).all(axis=-1).mean()))
        nats = [NATS.number(float(value)) for value in (s_w, s_l, rms)]
        rewards = [NATS.number(float(value)) for value in one.rewards.mean(axis=(0, 1))]
        weights = [SHARE.number(share) for share in one.saturated or (None, None)]
        rows.append([point.text, *nats, *rewards, significant(one.bound), rest, *weights])
    return Table(
        "Log-ratios to the reference on validation pairs at the last finite validation, in nats, "
        "means over pairs and seeds. A reward is beta times the log-ratio; for td_dpo it is the "
        "log-ratio itself. A pair of td_dpo can be at rest only while |s| of both responses is at "
        "most 1 / (tau beta). Its pairs have weights before training already: where nearly all are "
        "below 0.05 or above 0.95, tau decides little but the size of a step.",
        [
            *("setting", "s_w", "s_l", "rms of s", "reward, chosen", "reward, rejected"),
            *("1 / (tau beta)", "share of pairs within"),
            *("weight below 0.05 at step 0", "weight above 0.95 at step 0"),
        ],
        rows,
        sortable=True,
    )


def _by_length(moved: dict[Point, Moved], cell: Cell) -> list[Table]:
    """The same by how much longer the chosen response is. Without lengths there is no table."""
    if not np.isfinite(cell.lengths).all():
        return []
    longer = (cell.lengths[:, 0] - cell.lengths[:, 1]).astype(int)
    bins = length_bins(longer)
    head = [f"{_tokens(longer[one])} ({one.sum()} pairs)" for one in bins]
    before = cell.reference[:, 0] - cell.reference[:, 1]
    rows: list[list[Entry]] = [
        [
            "reference: log-prob of chosen minus rejected",
            *(NATS.number(float(before[b].mean())) for b in bins),
        ]
    ]
    for point, one in moved.items():
        row: list[Entry] = [point.text]
        for members in bins:
            s_w, s_l = one.ratios[:, members].mean(axis=(0, 1))
            accuracy = SHARE.number(float(one.accuracies[:, members].mean()))
            row.append(f"{accuracy} ({NATS.number(float(s_w))}, {NATS.number(float(s_l))})")
        rows.append(row)
    caption = (
        "The same pairs, grouped by how many tokens longer the chosen response is than the "
        "rejected one: reward accuracy, and in brackets s_w and s_l. td_dpo's margin of log-probs "
        "has no reference in it, so it starts from the numbers in the first row."
    )
    return [Table(caption, ["setting", *head], rows)]


def length_bins(longer: Int[np.ndarray, " P"]) -> list[Bool[np.ndarray, " P"]]:
    """Bins of pairs by length: shorter, equal and longer.

    Both sides are cut at the median difference. Empty bins are left out.
    """
    unequal = np.abs(longer[longer != 0])
    middle = np.median(unequal) if len(unequal) else 0
    places = np.sign(longer) * (1 + (np.abs(longer) > middle))
    return [places == place for place in np.unique(places)]


def _tokens(longer: Int[np.ndarray, " N"]) -> str:
    ends = (longer.min(), longer.max())
    low, high = (f"{value:+d}".replace("-", "−") if value else "0" for value in ends)
    return f"{low} tokens" if low == high else f"{low} to {high} tokens"
