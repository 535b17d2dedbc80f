"""`results.csv`: one row per cell."""

from __future__ import annotations

import csv
import io
import math

from ..analysis import Analysis
from ..read.find_scores import CELL_COLUMNS, TRAINING_COLUMNS
from .run_tables import training_numbers


def results_csv(analysis: Analysis) -> str:
    """One row per cell. Only the last column is a timing.

    Scores are of the checkpoints that the halves chose, `last_` scores of the last policy. Their
    names are those of metrics.jsonl.
    """
    scores = analysis.found.scores
    lasts = [score for score in scores if score.last is not None]
    # The learning rate has a column in every grid.
    others = [name for name in analysis.experiment.other_axes if name not in CELL_COLUMNS]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        [
            *CELL_COLUMNS,
            *others,
            *(score.name for score in scores),
            *(f"last_{score.name}" for score in lasts),
            *TRAINING_COLUMNS,
        ]
    )
    for number, cell in enumerate(analysis.experiment.cells):
        chosen = analysis.found.checkpoints.get(cell.name)
        writer.writerow(
            [
                *(cell.name, cell.state, *cell.point[:3], cell.seed),
                cell.config.train.learning_rate if cell.config else None,
                cell.divergence["step"] if cell.divergence else None,
                *(chosen or (None, None)),
                *(dict(cell.point.others).get(name) for name in others),
                *(_plain(score.of(number)) for score in scores),
                *(_plain(score.of_last(number)) for score in lasts),
                *map(_plain, training_numbers(cell)),
            ]
        )
    return file.getvalue()


def _plain(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""
