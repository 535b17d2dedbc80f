"""Why settings score as they do: how far the log-probs of the validation pairs moved."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from ...experiment import Cell, Experiment
from ..number_formats import NONE, Format, significant
from .tables import Entry, Table

NATS, SHARE = Format(2), Format(3)
CAPTION = (
    "Log-ratios to the reference on held-out pairs at the last finite validation, in nats, means "
    "over pairs and seeds: s_w of the chosen, s_l of the rejected response."
)
OF_TD_DPO = (
    " A pair of td_dpo can be at rest only while |s| of both responses is at most 1 / (tau beta). "
    "Its margin has no reference in it, so the base alone decides the weights of pairs before "
    "training: where nearly all are below 0.05 or above 0.95, tau decides little but the size of a "
    "step."
)


def diagnosis_table(experiment: Experiment) -> Table | None:
    """How far each setting moved from the reference; None without validation pairs."""
    cells = [cell for cell in experiment.cells if cell.steps and cell.logps.shape[-1] == 2]
    if not cells:
        return None
    has_margin = any(_has_bare_margin(cell) for cell in cells)
    head = ["setting", "s_w", "s_l", "rms of s", "reward accuracy where chosen is longer"]
    if has_margin:
        head += ["1 / (tau beta)", "share of pairs within"]
        head += ["weight below 0.05 at step 0", "weight above 0.95 at step 0"]
    rows: list[list[Entry]] = []
    for point in experiment.points:
        own = [cell for cell in cells if cell.point == point]
        if own:
            ratios = np.stack([cell.logps[-1] - cell.reference for cell in own]).astype(np.float64)
            row: list[Entry] = [point.text, *_moved(ratios, own[0])]
            rows.append(row + (_of_td_dpo(ratios, own[0]) if has_margin else []))
    caption = CAPTION + (OF_TD_DPO if has_margin else "") + _length_bias(cells[0])
    return Table(caption, head, rows, sortable=True)


def _moved(ratios: Float[np.ndarray, "N P 2"], cell: Cell) -> list[Entry]:
    s_w, s_l = ratios.mean(axis=(0, 1))
    rms = np.sqrt(np.mean(ratios**2))
    longer = cell.lengths[:, 0] > cell.lengths[:, 1]
    right = (ratios[..., 0] > ratios[..., 1])[:, longer]
    numbers = [NATS.number(float(value)) for value in (s_w, s_l, rms)]
    return [*numbers, SHARE.number(float(right.mean())) if right.size else NONE]


def _has_bare_margin(cell: Cell) -> bool:
    """Whether the loss's margin has no reference in it."""
    assert cell.config is not None
    return cell.config.loss.name == "td_dpo" and cell.config.loss.margin == "policy"


def _of_td_dpo(ratios: Float[np.ndarray, "N P 2"], cell: Cell) -> list[Entry]:
    assert cell.config is not None
    if not _has_bare_margin(cell):
        return [NONE] * 4
    loss = cell.config.loss
    bound, within = 1 / (loss.tau * loss.beta), NONE
    if loss.kl == "k2":
        within = SHARE.number(float((np.abs(ratios) <= bound).all(axis=-1).mean()))
    margin = (cell.reference[:, 0] - cell.reference[:, 1]).astype(np.float64)
    weights = expit(-margin / loss.tau)
    shares = (float((weights < 0.05).mean()), float((weights > 0.95).mean()))
    rest = significant(bound) if loss.kl == "k2" else NONE
    return [rest, within, *map(SHARE.number, shares)]


def _length_bias(cell: Cell) -> str:
    """How the reference's own margin goes with length, where lengths are known and differ."""
    longer = cell.lengths[:, 0] - cell.lengths[:, 1]
    margin = cell.reference[:, 0] - cell.reference[:, 1]
    if not np.isfinite(longer).all() or min(longer.std(), margin.std()) == 0:
        return ""
    found = float(np.corrcoef(longer, margin)[0, 1])
    return (
        " The reference's log-prob of chosen minus rejected has a correlation of "
        f"{NATS.number(found)} with their difference in length."
    )
