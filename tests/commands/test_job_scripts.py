"""Job scripts and README pages: the commands in them have only options that exist."""

import importlib.util
import re
import shlex
import subprocess

import pytest
from places import ROOT
from tiny_commands import run

from tddpo_jax.commands.options import Parser, add_settings, settings_of
from tddpo_jax.commands.submit import add_submission
from tddpo_jax.config.cells import expand
from tddpo_jax.config.reading import resolve

SCRIPTS = sorted((ROOT / "configs" / "slurm").glob("*.sh"))
PAGES = [
    ROOT / "README.md",
    *(
        page
        for folder in ("configs", "eval", "tddpo_jax")
        for page in (ROOT / folder).rglob("README.md")
    ),
]


def commands(text):
    """Options of every `run.py` in a script, and of every `sbatch` of it, comments included."""
    for line in text.replace("\\\n", " ").splitlines():
        # A variable with a default, as `${CONFIG:-FILE}`, stands for the default.
        line = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", line.lstrip("# "))
        if re.match(r"(\w+=\S+ )*sbatch", line):
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


@pytest.fixture
def readme_loss(tmp_path):
    """The file with the README's own loss."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    file = tmp_path / "mine.py"
    file.write_text(code)
    return file


def indented(page):
    """The lines of a page that show commands."""
    lines = page.read_text().replace("\\\n", " ").splitlines()
    return "\n".join(line for line in lines if line.startswith("    "))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_exist(page, monkeypatch, readme_loss):
    monkeypatch.chdir(ROOT)
    parser = Parser(prog="run.py")
    add_settings(parser)
    for words in commands(indented(page)):
        options = [word.replace("mine.py", str(readme_loss)) for word in words]
        for cell in expand(settings_of(parser.parse_args(options))):
            resolve(cell)
    for module in re.findall(r"python -m ((?:eval|tddpo_jax)[\w.]*)", page.read_text()):
        assert importlib.util.find_spec(module.rstrip(".")), module


def test_the_pages_show_commands():
    found = {page.parent: len(list(commands(indented(page)))) for page in PAGES}
    assert found[ROOT] >= 3
    assert found[ROOT / "configs" / "slurm"] >= 3
    assert found[ROOT / "eval" / "study"] >= 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files(page):
    for address in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
        if not address.startswith("https://"):
            assert (page.parent / address).exists(), address


def test_the_readme_s_own_loss_passes(readme_loss, capsys):
    assert run("check-loss", f"{readme_loss}:dpo_with_target", "--loss.set", "target=0.3") == 0
    assert "0.8544 for every pair" in capsys.readouterr().out  # log(1 + e^0.3)
