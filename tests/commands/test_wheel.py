"""The wheel, unpacked into a folder, works from an empty one and is hidden by nothing there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from places import ROOT

# Runs a notebook in the working directory. Prints what its cells print, and how much they display.
EXECUTE = """
import sys, nbformat
from nbclient import execute
done = execute(nbformat.read(sys.argv[1], 4), cwd=".")
outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
for output in outputs:
    print(end=output.get("text", "") if output.get("name") == "stdout" else "")
print("displays:", sum(output.output_type == "display_data" for output in outputs))
"""
OPTIONS = ("--train.max-steps", "1", "--train.batch-pairs", "2", "--output", "runs/one")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder into which the wheel was unpacked, as pip does it."""
    pytest.importorskip("hatchling", reason="the build back-end is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def tddpo(installed, tmp_path):
    """Runs a verb in a folder that holds nothing but packages of the user's."""
    for name in ("eval", "configs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the user\\'s own')")

    def run(*arguments):
        path = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])
        return subprocess.run(
            [sys.executable, "-m", "tddpo_jax", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_it_holds_the_configs_and_no_data_of_a_study(installed):
    package = installed / "tddpo_jax"
    assert {path.name for path in installed.iterdir() if "info" not in path.name} == {"tddpo_jax"}
    kept = {file.name for file in (ROOT / "configs").glob("*.yaml")}
    assert {file.name for file in (package / "configs").glob("*.yaml")} == kept
    assert (package / "py.typed").exists()
    assert not (package / "eval" / "study").exists()


def test_it_trains_and_reports_from_an_empty_folder(tddpo, tmp_path):
    trained = tddpo("train", *OPTIONS)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "runs" / "one" / "best" / "model.safetensors").exists()
    told = tddpo("report", "runs/one")
    assert told.returncode == 0, told.stderr
    assert (tmp_path / "runs" / "one" / "report.html").exists()


def test_its_notebook_runs_in_an_empty_folder(installed, tmp_path):
    pytest.importorskip("nbclient", reason="it runs notebooks, and is not installed")
    pytest.importorskip("ipykernel", reason="the kernel of notebooks is not installed")
    notebook = tmp_path / "own_loss.ipynb"
    shutil.copyfile(installed / "tddpo_jax" / "notebooks" / notebook.name, notebook)
    path = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])
    # Its kernel is a process of its own, and so is its client, whose warnings are not ours.
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(notebook)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    _, *printed, displays = done.stdout.splitlines()
    assert displays == "displays: 1"  # of all the progress of training
    assert [line.partition(":")[0] for line in printed[:2]] == ["after 0 steps", "after 10 steps"]
    names = [path.name for path in sorted((tmp_path / "runs" / "notebook").glob("*-seed0"))]
    assert sorted(line.partition(":")[0] for line in printed[2:]) == names


@pytest.mark.parametrize("verb", ["quality", "mt-bench", "speed", "plan", "env"])
def test_its_verbs_are_there(tddpo, verb):
    told = tddpo(verb, "--help")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith(f"usage: tddpo {verb} ")
