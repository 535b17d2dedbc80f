"""Reads a grid or run directory. This needs no model, and the runs may still be under way."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from tddpo_jax.config.cells import axis_values, cell_name
from tddpo_jax.config.own_loss import LOSS_FILE, load_kept_loss
from tddpo_jax.config.reading import read_yaml, resolve
from tddpo_jax.config.schema import Config
from tddpo_jax.errors import UserError, one_line
from tddpo_jax.losses.catalogue import LOSSES
from tddpo_jax.runs.grid_directory import read_grid
from tddpo_jax.runs.records import best_metric, read_records
from tddpo_jax.runs.run_directory import read_part

State = Literal["finished", "diverged", "unfinished", "missing"]
Record = dict[str, Any]

# The losses of the experiment come first, in this order; others follow by name.
LOSS_ORDER = ("td_dpo", "dpo", "discopop")
_NUMBER = r"[\d.e+-]+?"


class Point(NamedTuple):
    """A setting of a loss, or the best of several settings (`beta` or `tau` is then `best`).

    `others` has the values on the grid's other axes, such as `("learning_rate", 1e-4)`. Without
    them, the point of such a grid is the best of all their values.
    """

    loss: str
    beta: float | Literal["best"]
    tau: float | Literal["best"] | None
    others: tuple[tuple[str, float], ...] = ()

    @property
    def text(self) -> str:
        """The point in words: `td_dpo, beta 0.01, tau 0.5`."""
        return ", ".join([self.loss, *(_value(*number) for number in self.numbers.items())])

    @property
    def series(self) -> str:
        """The name of a line over beta: `td_dpo, tau 0.5`, `dpo`."""
        return self.text.replace(f", {_value('beta', self.beta)}", "")

    @property
    def numbers(self) -> dict[str, float | str]:
        """Its numbers by name: `beta`, `tau` if its loss has one, and those on other axes."""
        tau = {} if self.tau is None else {"tau": self.tau}
        return {"beta": self.beta, **tau, **dict(self.others)}

    @property
    def place(self) -> tuple[Any, ...]:
        """A key that sorts by loss, beta and tau, with the experiment's losses first."""
        known = self.loss in LOSS_ORDER
        order = LOSS_ORDER.index(self.loss) if known else len(LOSS_ORDER)
        numbers = (_last_if_best(self.beta), _last_if_best(self.tau))
        return order, self.loss, *numbers, self.others


def _value(name: str, value: float | str) -> str:
    name = name.replace("_", " ")
    return f"best {name}" if isinstance(value, str) else f"{name} {value:g}"


def _last_if_best(value: float | str | None) -> float:
    return float("inf") if isinstance(value, str) else -1.0 if value is None else value


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        config: the run's config; None if the run has not begun.
        facts: the content of `run.json`.
        records: the lines of `metrics.jsonl`.
        divergence: where and why the run diverged; None if it did not.
        steps: the steps of the validations whose log-probs are all finite; none before the run has
            ended.
        logps: `[T, P, N]`, log-probs in nats of every response of the validation set, at each of
            `steps`; pairs have two responses, (chosen, rejected).
        reference: `[P, N]`, the same log-probs under the reference.
        lengths: `[P, N]`, tokens of the responses; NaN for runs that did not keep them.
    """

    name: str
    folder: Path
    point: Point
    seed: int
    state: State
    config: Config | None
    facts: dict[str, Any]
    records: tuple[Record, ...]
    divergence: dict[str, Any] | None
    steps: tuple[int, ...]
    logps: Float[np.ndarray, "T P N"]
    reference: Float[np.ndarray, "P N"]
    lengths: Float[np.ndarray, "P N"]

    @property
    def best_metric(self) -> str:
        """The metric that chooses the run's `best/`."""
        assert self.config is not None
        return best_metric(self.config.train.best_metric, self.records)

    @property
    def ended(self) -> bool:
        """Whether the run has finished or diverged."""
        return self.state in ("finished", "diverged")

    @property
    def training(self) -> list[Record]:
        """The records of training steps."""
        return [record for record in self.records if "loss" in record]

    @property
    def validations(self) -> list[Record]:
        """The records of validations."""
        return [record for record in self.records if "eval_loss" in record]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The cells of a directory.

    Attributes:
        is_grid: False if the directory is one run.
    """

    folder: Path
    cells: tuple[Cell, ...]
    is_grid: bool

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds, ascending."""
        return tuple(sorted({cell.seed for cell in self.cells}))

    @property
    def points(self) -> tuple[Point, ...]:
        """All settings, in the order of `Point.place`."""
        return tuple(sorted({cell.point for cell in self.cells}, key=lambda point: point.place))

    @property
    def other_axes(self) -> tuple[str, ...]:
        """The names of the axes beside loss, beta, tau and seed."""
        return tuple(dict.fromkeys(name for point in self.points for name, _ in point.others))

    def diverged(self, point: Point) -> tuple[int, int]:
        """How many cells of a setting diverged, and how many have ended."""
        own = [cell for cell in self.cells if cell.point == point and cell.ended]
        return sum(cell.state == "diverged" for cell in own), len(own)


def read_experiment(folder: Path) -> Experiment:
    """Reads a grid directory, a folder of run directories, or one run directory.

    Raises:
        UserError: the folder holds no run, a file is damaged, or the cells do not belong together.
    """
    if (folder / "config.yaml").exists():
        return Experiment(folder, (_read_cell(folder, ()),), is_grid=False)
    axes = read_grid(folder / "grid.json")["axes"] if _is_grid(folder) else ()
    read = (_read_cell(cell, axes) for cell in _folders(folder))
    cells = sorted(read, key=lambda cell: (cell.point.place, cell.seed))
    if _is_grid(folder):
        _check_names(cells, axes)
    _check_same_losses(cells)
    _check_distinct(cells)
    _check_same_pairs(cells)
    return Experiment(folder, tuple(cells), is_grid=True)


def _is_grid(folder: Path) -> bool:
    return (folder / "grid.json").exists()


def _folders(folder: Path) -> list[Path]:
    if _is_grid(folder):
        return [folder / name for name in read_grid(folder / "grid.json")["cells"]]
    found = sorted(file.parent for file in folder.glob("*/config.yaml"))
    if not found:
        raise UserError(f"{folder}: is not a grid or run directory: no grid.json, no config.yaml")
    return found


def _read_cell(folder: Path, axes: Sequence[str]) -> Cell:
    if not (folder / "config.yaml").exists():
        return _missing_cell(folder, axes)
    config = _config(folder / "config.yaml")
    loss = config.loss
    records = read_records(folder / "metrics.jsonl")
    divergence, summary = (read_part(folder, f"{name}.json") for name in ("divergence", "summary"))
    state: State = "diverged" if divergence else "finished" if summary else "unfinished"
    evaluations = _evaluations(folder, records) if state != "unfinished" else _NOTHING
    tau = loss.tau if "tau" in LOSSES[loss.name].settings else None
    others = tuple(axis_values(config, axes).items())
    return Cell(
        name=folder.resolve().name,
        folder=folder,
        point=Point(loss.title, loss.beta, tau, others),
        seed=config.seed,
        state=state,
        config=config,
        facts=read_part(folder, "run.json") or {},
        records=tuple(records),
        divergence=divergence,
        **evaluations._asdict(),
    )


def _config(file: Path) -> Config:
    settings = read_yaml(file)
    try:
        load_kept_loss(settings, file.parent)
        return resolve(settings)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _missing_cell(folder: Path, axes: Sequence[str]) -> Cell:
    names = [axis.rpartition(".")[2] for axis in axes]
    numbers = "".join(f"(-{name}(?P<{name}>{_NUMBER}))?" for name in ("tau", *names))
    pattern = rf"(?P<loss>[\w+]+)-beta(?P<beta>{_NUMBER}){numbers}-seed(?P<seed>\d+)"
    found = re.fullmatch(pattern, folder.name)
    if found is None:
        raise UserError(f"{folder.parent / 'grid.json'}: {folder.name!r} is not the name of a cell")
    tau = None if found["tau"] is None else float(found["tau"])
    return Cell(
        name=folder.name,
        folder=folder,
        point=Point(
            found["loss"],
            float(found["beta"]),
            tau,
            tuple((name, float(found[name])) for name in names if found[name] is not None),
        ),
        seed=int(found["seed"]),
        state="missing",
        config=None,
        facts={},
        records=(),
        divergence=None,
        **_NOTHING._asdict(),
    )


class _Evaluations(NamedTuple):
    """The fields of `Cell` that come from its evaluations."""

    steps: tuple[int, ...]
    logps: Float[np.ndarray, "T P N"]
    reference: Float[np.ndarray, "P N"]
    lengths: Float[np.ndarray, "P N"]


_NONE = np.zeros((0, 2), np.float32)
_NOTHING = _Evaluations((), np.zeros((0, 0, 2), np.float32), _NONE, _NONE)


def _evaluations(folder: Path, records: list[Record]) -> _Evaluations:
    """The evaluations in which every number is finite."""
    place = folder / "evaluations"
    tested = [record["step"] for record in records if "eval_loss" in record]
    files = {step: file for step in tested if (file := place / f"{step:06d}.npy").exists()}
    if not files:
        return _NOTHING
    reference = _array(place / "reference.npy")
    if not np.isfinite(reference).all():
        raise UserError(f"{place / 'reference.npy'}: holds numbers that are not finite")
    steps, logps = [], []
    for step, file in files.items():
        values = _array(file, reference)
        if np.isfinite(values).all():
            steps.append(step)
            logps.append(values)
    if not steps:
        return _NOTHING
    file = place / "lengths.npy"
    lengths = _array(file, reference) if file.exists() else np.full_like(reference, np.nan)
    return _Evaluations(tuple(steps), np.stack(logps), reference, lengths)


def _array(file: Path, like: np.ndarray | None = None) -> np.ndarray:
    """A file of numbers for each validation response, of the shape of `like` if that is given."""
    try:
        values = np.load(file, allow_pickle=False)
    except Exception as error:  # whatever a damaged file makes numpy raise
        raise UserError(f"{file}: cannot be read: {one_line(error)}") from None
    if getattr(values, "shape", ())[1:] not in ((1,), (2,)) or values.dtype.kind != "f":
        raise UserError(f"{file}: must hold one number for each response of each validation row")
    if like is not None and values.shape != like.shape:
        raise UserError(f"{file}: does not have the rows of reference.npy")
    return values


def _check_names(cells: list[Cell], axes: Sequence[str]) -> None:
    for cell in cells:
        if cell.config is None:
            continue
        name = cell_name(cell.config, axes)
        if name != cell.folder.name:
            raise UserError(f"{cell.folder / 'config.yaml'}: belongs to {name}")


def _check_distinct(cells: list[Cell]) -> None:
    seen: dict[tuple[Point, int], Cell] = {}
    for cell in cells:
        first = seen.setdefault((cell.point, cell.seed), cell)
        if first is not cell:
            raise UserError(f"{cell.folder} and {first.folder} are both {cell.point.text}")


def _check_same_losses(cells: list[Cell]) -> None:
    """Refuses two texts of one loss of one's own: its name would have two meanings."""
    texts: dict[str, tuple[str, Cell]] = {}
    for cell in cells:
        kept = cell.folder / LOSS_FILE
        if cell.config is None or not kept.exists():
            continue
        text = kept.read_text()
        first, one = texts.setdefault(cell.config.loss.title, (text, cell))
        if text != first:
            raise UserError(f"{kept} and {one.folder / LOSS_FILE} differ: name the losses apart")


def _check_same_pairs(cells: list[Cell]) -> None:
    """Refuses cells whose pairs differ: comparing pair by pair needs equal pairs in equal order."""
    scored = [cell for cell in cells if cell.steps]
    for cell in scored[1:]:
        first = scored[0]
        if cell.reference.shape != first.reference.shape or not np.allclose(
            cell.reference, first.reference, rtol=1e-3, atol=0.1
        ):
            raise UserError(
                f"{cell.folder}: its validation pairs or reference are not those of {first.folder}"
            )
