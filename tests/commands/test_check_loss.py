"""The verb `check-loss`: its verdict, its exit status and its drawings."""

import numpy as np
import own_losses
import pytest
from tiny_commands import run

from tddpo_jax.commands.check_loss import HEIGHT, plain

MINE = f"{own_losses.__file__}:my_dpo"


def test_a_loss_that_passes(tmp_path, capsys):
    picture = tmp_path / "mine.svg"
    options = ("--beta", "0.1", "--loss.set", "margin_scale=2", "--output", picture)
    assert run("check-loss", MINE, *options) == 0
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first == "my_dpo: beta 0.1, margin_scale 2.0, ld_alpha 1.0"
    assert last == "my_dpo passes"
    assert sum(line.startswith("pass  ") for line in lines) == 4
    assert "<svg" in picture.read_text()


def test_a_loss_that_fails(capsys):
    assert run("check-loss", f"{own_losses.__file__}:has_steps") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("FAIL  has_steps: its gradient is zero everywhere")
    assert lines[-1] == "has_steps FAILS"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ppo"], "error: loss.name: must be 'td_dpo', "),
        ([f"{own_losses.__file__}:none"], "error: loss.name: "),
        (["dpo", "--beta", "0.1", "0.2"], "error: check-loss: examines one loss with one value"),
        (["dpo", "--beta", "0"], "error: loss.beta: must be above 0 for dpo"),
        (["dpo", "--output", "no_folder.xyz"], "error: output: no_folder.xyz: Format 'xyz'"),
    ],
)
def test_mistakes_of_the_command(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run("check-loss", *words) == 2
    assert capsys.readouterr().err.startswith(message)


def test_a_curve_as_text():
    """It rises from the lowest row to the highest, which are labelled."""
    rows = plain(np.linspace(0, 8, 2 * HEIGHT))
    assert rows[0] == f"{7.529:>10} |" + " " * (HEIGHT - 1) + "*"
    assert rows[-1] == f"{0:>10} |*"
    assert len(rows) == HEIGHT
    assert plain(np.zeros(4))[-1] == f"{0:>10} |**"
