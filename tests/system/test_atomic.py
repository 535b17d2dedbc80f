"""Files and folders that appear whole or not at all, with the writer killed at every step."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

import pytest
from places import ROOT

from tddpo_jax.runs.run_directory import is_free
from tddpo_jax.system.atomic import recover, replace_folder, standing, write_file, write_text


@pytest.fixture
def umask():
    """Others may read, as on most machines."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fill(folder, text):
    """Two files and a folder with a third, which belong together."""
    (folder / "inner").mkdir()
    for name in ("one", "two", "inner/three"):
        (folder / name).write_text(text)


def text_of(folder):
    """What all three files say."""
    (text,) = {(folder / name).read_text() for name in ("one", "two", "inner/three")}
    return text


# ---- files ---------------------------------------------------------------------------------------


def test_a_file_is_replaced_and_nothing_lies_beside_it(tmp_path, umask):
    for text in ("old", "new, é"):
        write_text(tmp_path / "file.json", text)
        assert (tmp_path / "file.json").read_bytes() == text.encode()
    assert names(tmp_path) == ["file.json"]
    assert (tmp_path / "file.json").stat().st_mode & 0o777 == 0o644


def test_a_file_whose_writing_fails_is_the_old_one(tmp_path):
    write_text(tmp_path / "file", "old")

    def interrupted():
        with write_file(tmp_path / "file") as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with write_file(tmp_path / "file") as first, write_file(tmp_path / "file") as second:
        first.write(b"first")
        second.write(b"second")
    assert (tmp_path / "file").read_text() == "first"
    assert names(tmp_path) == ["file"]


# ---- folders -------------------------------------------------------------------------------------


def test_a_folder_is_replaced_and_nothing_lies_beside_it(tmp_path, umask):
    for text in ("old", "new"):
        with replace_folder(tmp_path / "a" / "best") as folder:
            fill(folder, text)
        assert text_of(tmp_path / "a" / "best") == text
    assert names(tmp_path / "a") == ["best"]
    assert (tmp_path / "a" / "best").stat().st_mode & 0o777 == 0o755


def test_a_folder_whose_writing_fails_is_the_old_one(tmp_path):
    with replace_folder(tmp_path / "best") as folder:
        fill(folder, "old")

    def failing():
        with replace_folder(tmp_path / "best") as folder:
            (folder / "one").write_text("new")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        failing()
    assert text_of(tmp_path / "best") == "old"
    assert names(tmp_path) == ["best"]


def test_a_folder_that_was_renamed_away_is_found_and_put_back(tmp_path):
    for name, text in (("best.replaced", "old"), ("best.partial", "new")):
        (tmp_path / name).mkdir()
        fill(tmp_path / name, text)
    assert standing(tmp_path / "best") == tmp_path / "best.replaced"
    assert names(tmp_path) == ["best.partial", "best.replaced"]
    recover(tmp_path / "best")
    assert standing(tmp_path / "best") == tmp_path / "best"
    assert text_of(tmp_path / "best") == "old"
    assert names(tmp_path) == ["best"]


def test_where_nothing_is_nothing_is_recovered(tmp_path):
    recover(tmp_path / "best")
    assert standing(tmp_path / "best") == tmp_path / "best"
    assert names(tmp_path) == []


def test_what_was_never_whole_is_free_and_what_was_renamed_away_is_not(tmp_path):
    (tmp_path / "config.yaml.12ab34cd.partial").write_text("")
    (tmp_path / "best.partial").mkdir()
    assert is_free(tmp_path)
    (tmp_path / "best.replaced").mkdir()
    assert not is_free(tmp_path)


# Forks a process that replaces a folder and ends, without any Python that would clean up, before
# its first step on the file system; then another that ends before its second step; and so on. An
# audit hook sees each of these steps before it is taken.
KILLED_AT_EVERY_STEP = """
import os, shutil, sys
from pathlib import Path

from tddpo_jax.system.atomic import recover, replace_folder, standing

STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
root = Path(sys.argv[1])
best = root / "best"


def replace(left=None):
    def hook(event, _):
        nonlocal left
        if event in STEPS:
            if left == 0:
                os._exit(9)
            left -= 1

    if left is not None:
        sys.addaudithook(hook)
    with replace_folder(best) as folder:
        fill(folder, "new")


step, killed = 0, True
while killed:
    shutil.rmtree(root, ignore_errors=True)
    best.mkdir(parents=True)
    fill(best, "old")
    child = os.fork()
    if not child:
        replace(step)
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
    found = text_of(standing(best))
    print(step, found, best.exists())
    if step % 2:
        recover(best)
        assert text_of(best) == found
        assert [path.name for path in root.iterdir()] == ["best"]
    replace()
    assert text_of(best) == "new"
    assert [path.name for path in root.iterdir()] == ["best"]
    step += 1
"""


def test_a_writer_killed_at_any_step_leaves_a_whole_folder(tmp_path):
    script = "\n".join([inspect.getsource(fill), inspect.getsource(text_of), KILLED_AT_EVERY_STEP])
    command = [sys.executable, "-c", script, tmp_path / "root"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    steps = [line.split()[1:] for line in result.stdout.splitlines()]
    # Until the old folder is renamed away, between the two renames, and while it is deleted.
    assert [text for text, _ in steps] == sorted((text for text, _ in steps), reverse=True)
    assert steps.count(["old", "False"]) == 1
    assert steps.count(["old", "True"]) > 5
    assert steps.count(["new", "True"]) > 5
