"""Damaged files of a grid: its scores, or one line that says what is wrong."""

import itertools

import pytest
from damage import flips, odd_json, read_damaged, truncations
from synthetic_grid import experiment_cells, write_grid, write_quality

from eval.experiment import read_experiment
from eval.report.read.find_scores import find_scores
from tddpo_jax.config.cells import cell_name

CELLS = experiment_cells(loss=["dpo"], beta=[0.1], seed=[0, 1])
FINISHED, DIVERGED = map(cell_name, CELLS)


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "grid"
    write_grid(folder, CELLS, lambda _: 0.7, pairs=6, diverged={DIVERGED: 12})
    write_quality(folder, lambda _: 0.5, prompts=3)
    return folder


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("grid.json", 90),
        (f"{FINISHED}/run.json", 23),
        (f"{FINISHED}/summary.json", 4),
        (f"{DIVERGED}/divergence.json", 7),
        (f"{FINISHED}/quality.json", 13),
    ],
)
def test_json_files(grid, name, step):
    file = grid / name
    content = file.read_bytes()
    odd = itertools.islice(odd_json(content), 0, None, step)
    contents = itertools.chain(truncations(content, max(1, len(content) // 10)), odd)
    _, tried = read_damaged(file, contents, lambda: scores(grid))
    assert tried > 10


def test_records(grid):
    file = grid / FINISHED / "metrics.jsonl"
    first, *rest = file.read_bytes().split(b"\n")
    odd = (b"\n".join([line, *rest]) for line in itertools.islice(odd_json(first), 0, None, 7))
    contents = itertools.chain(truncations(file.read_bytes(), 397), odd)
    usable, tried = read_damaged(file, contents, lambda: scores(grid))
    assert 0 < usable < tried


def test_arrays(grid):
    file = grid / FINISHED / "evaluations" / "reference.npy"
    content = file.read_bytes()
    contents = itertools.chain(truncations(content, 13), flips(content, 11))
    usable, tried = read_damaged(file, contents, lambda: scores(grid))
    assert usable < tried


def scores(grid):
    return find_scores(read_experiment(grid), [], None)
