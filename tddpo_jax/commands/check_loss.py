"""The verb `check-loss`, which examines a loss and draws it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from tddpo_jax.config.cells import expand
from tddpo_jax.config.reading import resolve
from tddpo_jax.errors import UserError
from tddpo_jax.losses.catalogue import LOSSES
from tddpo_jax.losses.examination import Curve, Finding, curve_of, examine
from tddpo_jax.runs.run_directory import check_output

HEIGHT = 9
MARKS = {True: "pass", False: "FAIL", None: "note"}


def check_loss(settings: dict[str, Any], picture: Path | None) -> tuple[bool, list[str]]:
    """Examines the loss of one cell.

    Args:
        settings: the settings of the experiment, not yet validated.
        picture: the file to draw the curve into; None for no picture.

    Returns:
        Whether the loss passes, and the lines to print.

    Raises:
        UserError: a setting is wrong, there are several cells, or the picture cannot be written.
    """
    cells = expand(settings)
    if len(cells) > 1:
        raise UserError(f"check-loss: examines one loss with one value each, not {len(cells)}")
    config = resolve(cells[0]).loss
    loss = LOSSES[config.name]
    if picture is not None:
        check_output(picture.absolute().parent)
    values = ", ".join(f"{name} {config.settings[name]}" for name in loss.settings)
    findings = examine(loss, config.settings)
    passed = all(finding.passed is not False for finding in findings)
    lines = [f"{loss.name}: {values or 'no settings'}", *map(_line, findings)]
    if passed:
        curve = curve_of(loss, config.settings)
        lines += _drawings(curve)
        if picture is not None:
            _draw(curve, loss.name, picture)
            lines.append(f"picture in {picture}")
    return passed, [*lines, f"{loss.name} {'passes' if passed else 'FAILS'}"]


def _line(finding: Finding) -> str:
    return f"{MARKS[finding.passed]}  {finding.text}"


def _drawings(curve: Curve) -> list[str]:
    ends = f"{curve.margins[0]:<+12.4g}{'margin s_w - s_l, in nats':^37}{curve.margins[-1]:>+12.4g}"
    lines = []
    for title, values in (("value", curve.values), ("slope", curve.slopes)):
        lines += ["", title, *plain(values), f"{'':12}{ends}"]
    return lines


def plain(values: Float[np.ndarray, " N"]) -> list[str]:
    """A curve as text, one column for two values, with its limits at the left."""
    shown = values[::2]
    low, high = float(shown.min()), float(shown.max())
    rows = np.round((shown - low) / ((high - low) or 1.0) * (HEIGHT - 1)).astype(int)
    labels = {HEIGHT - 1: f"{high:.4g}", 0: f"{low:.4g}"}
    return [
        f"{labels.get(row, ''):>10} |" + "".join("*" if at == row else " " for at in rows).rstrip()
        for row in reversed(range(HEIGHT))
    ]


def _draw(curve: Curve, name: str, picture: Path) -> None:
    # Imported late: it takes a second, and most examinations have no picture.
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve.margins, curve.values, label="value")
    axes.plot(curve.margins, curve.slopes, label="slope")
    axes.set_xlabel("margin s_w - s_l, in nats")
    axes.set_title(name)
    axes.legend()
    try:
        figure.savefig(picture)
    except (ValueError, OSError) as error:
        raise UserError(f"output: {picture}: {error}") from None
