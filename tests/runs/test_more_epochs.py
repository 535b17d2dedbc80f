"""Whether a run may go on for more epochs, and what is said if it may not."""

from __future__ import annotations

import pytest
from synthetic_grid import facts

from tddpo_jax.config.dotted import with_value
from tddpo_jax.config.reading import resolve
from tddpo_jax.errors import UserError
from tddpo_jax.runs.grid_directory import cell_directories, record_grid
from tddpo_jax.runs.run_directory import RunDirectory

# 900 pairs: 15 steps an epoch.
SETTINGS = {"train": {"epochs": 2, "batch_pairs": 60, "schedule": "constant", "warmup_ratio": 0.1}}


def asked(path, **changes):
    settings = SETTINGS
    for name, value in changes.items():
        settings = with_value(settings, f"train.{name}", value)
    return RunDirectory(path, resolve(settings))


def begun(path, state="finished", **changes):
    directory = asked(path, **changes)
    directory.create(facts(10))
    if state is not None:
        directory.finish({"state": state, "steps": 30})
    return path


@pytest.mark.parametrize("state", ["finished", None])
def test_a_run_with_the_same_warm_up_goes_on(state, tmp_path):
    """3 of 30 steps, and 3 of 60."""
    longer = asked(begun(tmp_path / "run", state), epochs=4, warmup_ratio=0.05)
    assert longer.summary is None
    longer.create(facts(10))
    assert not (tmp_path / "run" / "summary.json").exists()
    assert asked(tmp_path / "run", epochs=4, warmup_ratio=0.05).summary is None
    longer.finish({"state": "finished", "steps": 60})
    assert longer.summary is not None


@pytest.mark.parametrize(
    ("first", "then", "why"),
    [
        ({"schedule": "cosine"}, {"epochs": 3}, "cannot go on to 3: the rates of its cosine"),
        ({}, {"epochs": 4}, r"had 3 steps and would have 6; --train\.warmup-ratio 0\.05 keeps it"),
        ({"state": "diverged"}, {"epochs": 4, "warmup_ratio": 0.05}, "it has diverged"),
        ({}, {"epochs": 1}, r"train\.epochs is 2, asked for 1"),
        ({"max_steps": 30}, {"epochs": 4}, r"train\.epochs is 2, asked for 4"),
        ({}, {"epochs": 4, "batch_pairs": 30}, r"train\.batch_pairs is 60, asked for 30"),
    ],
)
def test_another_run_is_refused(first, then, why, tmp_path):
    run = begun(tmp_path / "run", **first)
    first = {name: value for name, value in first.items() if name != "state"}
    with pytest.raises(UserError, match=why):
        asked(run, **{**first, **then})
    assert (run / "summary.json").exists()


def test_the_cells_of_a_grid_go_on_together(tmp_path):
    def cells(betas, epochs):
        grid = {**with_value(SETTINGS, "train.warmup_ratio", 0.0), "output": str(tmp_path / "grid")}
        grid = with_value(with_value(grid, "train.epochs", epochs), "loss.beta", betas)
        return cell_directories(grid)

    record_grid(cells([0.1, 0.2, 0.3], 2))
    with pytest.raises(UserError, match=r"go on for more epochs together; this command has 2 of 3"):
        cells([0.1, 0.2], 3)
    longer = cells([0.1, 0.2, 0.3], 3)
    record_grid(longer)
    with pytest.raises(UserError, match=r"train\.epochs is 3, asked for 2"):
        cells([0.1, 0.2, 0.3], 2)
