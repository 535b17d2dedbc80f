"""The job scripts: bash reads them, and the commands in them have only options that there are."""

import re
import shlex
import subprocess

import pytest
from places import ROOT

from tddpo_jax.commands.options import Parser, add_settings, settings_of
from tddpo_jax.commands.submit import add_submission
from tddpo_jax.config.cells import expand
from tddpo_jax.config.schema import resolve

SCRIPTS = sorted((ROOT / "configs" / "slurm").glob("*.sh"))


def commands(text):
    """Options of every `run.py` in a script, and of every `sbatch` of it, comments included."""
    for line in text.replace("\\\n", " ").splitlines():
        line = line.lstrip("# ")
        if line.startswith("sbatch"):
            words = shlex.split(line, comments=True)
            script = next(n for n, word in enumerate(words) if word.endswith(".sh"))
            yield words[script + 1 :]
        elif found := re.search(r"python run\.py (.*)", line):
            yield [word for word in shlex.split(found[1], comments=True) if word != "$@"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.name)
def test_bash_reads_it_and_its_options_exist(script, monkeypatch):
    subprocess.run(["bash", "-n", script], check=True)
    monkeypatch.chdir(ROOT)
    parser = Parser(prog="run.py")
    add_settings(parser)
    add_submission(parser)
    found = list(commands(script.read_text()))
    assert len(found) >= 2
    for options in found:
        for cell in expand(settings_of(parser.parse_args(options))):
            resolve(cell)


def test_commands_of_the_page_about_them_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    parser = Parser(prog="run.py")
    add_settings(parser)
    page = (ROOT / "configs" / "slurm" / "README.md").read_text()
    found = list(commands(page))
    assert len(found) >= 3
    for options in found:
        resolve(expand(settings_of(parser.parse_args(options)))[0])
