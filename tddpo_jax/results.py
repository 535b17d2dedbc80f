"""What `tddpo_jax.train` returns: the cells of an experiment, as their files tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tddpo_jax.config.cells import axis_values, varying_axes
from tddpo_jax.runs.grid_directory import cell_names
from tddpo_jax.runs.run_directory import RunDirectory

if TYPE_CHECKING:
    from pandas import DataFrame
else:
    DataFrame = Any


class Run:
    """One trained cell and its files."""

    def __init__(self, name: str, directory: RunDirectory) -> None:
        """A cell of a name, such as `dpo-beta0.05-seed0`, and its directory."""
        self.name = name
        self._directory = directory

    @property
    def path(self) -> Path:
        """The run's directory, which every function takes as a model."""
        return self._directory.path

    @property
    def settings(self) -> dict[str, Any]:
        """All settings of the run, as in its `config.yaml`."""
        return self._directory.config.model_dump(mode="json")

    @property
    def summary(self) -> dict[str, Any]:
        """The content of `summary.json`: how the run ended, and its best validation."""
        return self._directory.summary or {}

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`: training steps and validations."""
        return self._directory.records()

    def generate(
        self,
        prompt: str,
        *,
        system: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> str:
        """What the best policy answers; arguments and errors as for the function `generate`."""
        import tddpo_jax

        return tddpo_jax.generate(
            self.path,
            prompt,
            system=system,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
        )

    def __repr__(self) -> str:
        return f"Run({self.name}, {self.summary.get('state', 'unfinished')})"


class Runs(Mapping[str, Run]):
    """The cells of an experiment by name, in the order of the grid."""

    def __init__(self, directories: Sequence[RunDirectory]) -> None:
        names = cell_names(directories)
        self._configs = [directory.config for directory in directories]
        self._runs = dict(zip(names, map(Run, names, directories), strict=True))

    def __getitem__(self, name: str) -> Run:
        if name not in self._runs:
            raise KeyError(f"no cell {name!r}; there are {', '.join(self._runs)}")
        return self._runs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    def table(self) -> DataFrame:
        """One row per cell: its loss and numbers, how it ended, and its best validation."""
        import pandas

        axes = ["loss.beta", "loss.tau", *varying_axes(self._configs)]
        rows = [
            {"loss": config.loss.title, **axis_values(config, axes), "seed": config.seed}
            | _end(run)
            for config, run in zip(self._configs, self.values(), strict=True)
        ]
        return pandas.DataFrame(rows, index=list(self))

    def __repr__(self) -> str:
        return f"Runs({', '.join(self)})"


def _end(run: Run) -> dict[str, Any]:
    """How a run ended, and its best validation."""
    summary = run.summary
    best = summary.get("best") or {}
    return {
        "state": summary.get("state", "unfinished"),
        **{name: value for name, value in best.items() if name == "step" or "eval_" in name},
    }
