"""`tddpo` itself: its verbs, its version, and the facts for a bug report."""

from __future__ import annotations

import sys

import jax
import pytest
from places import ROOT

from tddpo_jax import __version__
from tddpo_jax.__main__ import COMMANDS, main
from tddpo_jax.commands import environment
from tddpo_jax.system import source


@pytest.fixture
def tddpo(monkeypatch, capsys):
    """Runs `tddpo` with words; gives the exit status and what was printed."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["tddpo", *words])
        try:
            status = main()
        except SystemExit as exit:
            status = exit.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def test_help_says_a_line_on_every_verb(tddpo):
    status, told, _ = tddpo("--help")
    lines = [line.split(maxsplit=1) for line in told.partition("verbs:\n")[2].splitlines() if line]
    assert status == 0
    assert [verb for verb, _ in lines[:-1]] == list(COMMANDS)
    assert all(line.endswith(".") for _, line in lines[:-1])


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_verb_tells_its_own_name(tddpo, verb):
    status, told, _ = tddpo(verb, "--help")
    assert status == 0
    assert told.startswith(f"usage: tddpo {verb} ")


def test_the_version_is_told(tddpo):
    assert tddpo("--version") == (0, f"tddpo_jax {__version__}\n", "")


@pytest.mark.parametrize(
    ("verb", "message"), [("trian", "; did you mean train?"), ("mt_bench", "mt-bench?"), ("x", "")]
)
def test_an_unknown_verb_is_told_with_the_one_meant(tddpo, verb, message):
    status, _, error = tddpo(verb)
    assert status == 2
    assert error.startswith(f"error: verb {verb!r}: no such verb")
    assert error.endswith(f"{message}\n")


def test_env_tells_what_a_bug_report_needs(tddpo):
    status, told, _ = tddpo("env")
    facts = dict(line.split(maxsplit=1) for line in told.splitlines())
    assert status == 0
    assert facts["jax"] == jax.__version__
    assert facts["tddpo_jax"] == __version__
    assert facts["devices"].endswith("x cpu (cpu)")


def test_env_works_where_jax_does_not(tddpo, monkeypatch):
    def broken():
        raise RuntimeError("no driver\nof this kind")

    monkeypatch.setattr(jax, "device_count", broken)
    monkeypatch.setattr(environment, "PACKAGES", ("jax", "no-such-package"))
    status, told, _ = tddpo("env")
    facts = dict(line.split(maxsplit=1) for line in told.splitlines())
    assert status == 0
    assert facts["devices"] == "JAX does not start: no driver of this kind"
    assert facts["no-such-package"] == "not installed"


def test_a_package_in_another_checkout_has_no_commit(tmp_path, monkeypatch):
    """As in the environment of a project, which lies in the project's folder but not in git."""
    assert bool(source.git_commit()) == (ROOT / ".git").exists()
    package = tmp_path / "venv" / "tddpo_jax"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    source.subprocess.run(["git", "init", "-q", tmp_path], check=True)
    monkeypatch.setattr(source, "PACKAGE", package)
    assert source.git_commit() is None
