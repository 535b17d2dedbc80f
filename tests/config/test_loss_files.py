"""Losses in a user's file: their names, their numbers, and what is refused."""

import subprocess
import sys

import own_losses
import pytest
from places import ROOT

from tddpo_jax.config.cells import cell_name, expand, ignored_settings, varying_axes
from tddpo_jax.config.own_loss import load_loss
from tddpo_jax.config.reading import resolve
from tddpo_jax.errors import UserError
from tddpo_jax.losses.catalogue import LOSSES, all_settings

FILE = own_losses.__file__
MINE, GATE = f"{FILE}:my_dpo", f"{FILE}:needs_gate"


def cells(**loss):
    return [resolve(cell) for cell in expand({"loss": loss})]


def names(**loss):
    grid = cells(**loss)
    return [cell_name(cell, varying_axes(grid)) for cell in grid]


def test_its_settings_are_ours_or_numbers_of_its_own():
    (config,) = cells(name=MINE, beta=0.1, set={"margin_scale": "2"})
    assert config.loss.set == {"margin_scale": 2.0}
    assert config.loss.settings.items() >= {"beta": 0.1, "margin_scale": 2.0}.items()
    assert cells(name=MINE)[0].loss.set == {"margin_scale": 1.0}
    assert "margin_scale" not in all_settings()


def test_the_function_s_own_default_of_a_setting_of_ours_counts():
    given = {"name": GATE, "set": {"gate": 1}}
    assert cells(**given)[0].loss.label_smoothing == 0.25
    assert cells(**given, label_smoothing=0.1)[0].loss.label_smoothing == 0.1
    assert ignored_settings(cells(**given, beta=0.1)[0]) == ["loss.beta"]
    assert cells(name=f"{FILE}:weighs_tails")[0].loss.ld_alpha == 0.5
    assert cells(name=MINE)[0].loss.ld_alpha == 1.0


def test_a_default_of_numpy_becomes_a_plain_number(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\n\n\n"
        "def f(pairs, *, a=np.float32(0.5), b=np.int64(2), c=np.float64(3), beta=np.float64(4)):\n"
        "    return -pairs.logp_chosen\n"
    )
    (config,) = cells(name=f"{file}:f")
    assert config.loss.set == {"a": 0.5, "b": 2.0, "c": 3.0}
    assert {type(value) for value in (*config.loss.set.values(), config.loss.beta)} == {float}
    assert {type(each.default) for each in LOSSES[config.loss.name].settings.values()} == {float}


def test_cells_are_named_by_the_function_and_by_the_numbers_that_vary():
    assert names(name=["dpo", MINE], beta=[0.1, 0.2], set={"margin_scale": 1}) == [
        "dpo-beta0.1-seed0",
        "dpo-beta0.2-seed0",
        "my_dpo-beta0.1-seed0",
        "my_dpo-beta0.2-seed0",
    ]
    assert names(name=MINE, set={"margin_scale": [1, 2]}) == [
        "my_dpo-beta0.05-margin_scale1.0-seed0",
        "my_dpo-beta0.05-margin_scale2.0-seed0",
    ]
    assert names(name=MINE, set={"margin_scale": 2}) == ["my_dpo-beta0.05-seed0"]


def test_each_loss_of_a_grid_takes_its_own_numbers():
    both = cells(name=[MINE, GATE, "dpo"], set={"margin_scale": [2, 3], "gate": 1})
    assert [cell.loss.set for cell in both] == [
        {"margin_scale": 2.0},
        {"margin_scale": 3.0},
        {"gate": 1.0},
        {},
    ]


def test_numbers_of_two_losses_are_axes_beside_ours():
    grid = cells(name=[MINE, GATE], set={"margin_scale": [2, 3], "gate": [-1, 1]}, tau=1)
    assert varying_axes(grid) == ["loss.set.margin_scale", "loss.set.gate"]
    assert [cell_name(cell, varying_axes(grid)) for cell in grid] == [
        "my_dpo-beta0.05-margin_scale2.0-seed0",
        "my_dpo-beta0.05-margin_scale3.0-seed0",
        "needs_gate-beta0.05-gate-1.0-seed0",
        "needs_gate-beta0.05-gate1.0-seed0",
    ]


def test_a_number_with_the_name_of_another_axis_is_refused(tmp_path):
    """Two parts of a cell's name would be alike."""
    file = tmp_path / "mine.py"
    file.write_text("def f(pairs, *, weight_decay):\n    return -pairs.logp_chosen\n")
    with pytest.raises(UserError, match="no setting may be called weight_decay"):
        load_loss(f"{file}:f")


def test_a_rate_may_be_given_by_the_function_s_name():
    rates = {"dpo": 1e-4, "my_dpo": 1e-3}
    grid = expand({"loss": {"name": ["dpo", MINE]}, "train": {"learning_rate": rates}})
    assert [cell["train"]["learning_rate"] for cell in grid] == [1e-4, 1e-3]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"name": f"{FILE}:none"}, "own_losses.py:none: the file has no function none"),
        ({"name": "nowhere.py:loss"}, "nowhere.py:loss: No such file or directory"),
        ({"name": "no_such_package.x:loss"}, "No module named 'no_such_package'"),
        ({"name": "no_such_module:loss"}, "there is no module no_such_module"),
        ({"name": f"{FILE}:not_a_function"}, "not_a_function is not a function of that name"),
        ({"name": f"{FILE}:another_name"}, "another_name is not a function of that name"),
        ({"name": f"{FILE}:dpo"}, "dpo is the name of a loss of ours; rename yours"),
        ({"name": f"{FILE}:takes_a_place"}, "beta must be a keyword after a star"),
        ({"name": f"{FILE}:takes_anything"}, r"\*\*kwargs hides its settings; name each of them"),
        ({"name": f"{FILE}:takes_a_switch"}, "the default of on must be a number, got True"),
        ({"name": GATE}, "loss.set.gate: needs_gate has no default for it"),
        ({"name": MINE, "set": {"gate": 1}}, "loss.set.gate: my_dpo has no number of its own"),
        ({"name": "dpo", "set": {"gate": 1}}, "loss.set.gate: dpo has no number of its own"),
        ({"name": MINE, "set": {"margin_scale": "much"}}, "loss.set.margin_scale: .* got 'much'$"),
        ({"name": MINE, "set": {"margin_scale": "inf"}}, "loss.set.margin_scale: .*finite"),
        ({"name": MINE, "set": 3}, "loss.set: must be a group of numbers, got 3"),
        ({"name": MINE, "beta": -1}, "loss.beta: must be at least 0, got -1"),
    ],
)
def test_what_is_refused(loss, message):
    with pytest.raises(UserError, match=message) as error:
        cells(**loss)
    assert str(error.value).startswith("loss.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:", "the file fails: SyntaxError"),
        ("import no_such_module", "the file fails: ModuleNotFoundError: No module named"),
        ("1 / 0", "the file fails: ZeroDivisionError: division by zero"),
    ],
)
def test_a_file_that_fails_is_named(tmp_path, text, message):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(UserError, match=f"^loss.name: {file}:f: {message}"):
        load_loss(f"{file}:f")


def test_two_losses_of_one_name_are_refused(tmp_path):
    other = tmp_path / "other.py"
    other.write_text("def my_dpo(pairs, *, beta):\n    return -beta * pairs.logp_chosen\n")
    with pytest.raises(UserError, match=r"^loss\.name: two losses of one name: "):
        expand({"loss": {"name": [MINE, f"{other}:my_dpo"]}})


def test_an_edited_file_has_its_new_meaning(tmp_path, monkeypatch):
    """And a path relative to the working folder names it; so does a file beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside.py").write_text("SIGN = -1\n")
    file = tmp_path / "mine.py"
    text = "from beside import SIGN\ndef f(pairs, *, beta):\n    return {} * beta\n"
    file.write_text(text.format("SIGN"))
    name = load_loss("mine.py:f")
    assert name == f"{file}:f"
    before = LOSSES[name]
    assert before.function(None, beta=2) == -2
    assert LOSSES[load_loss("mine.py:f")] is before
    file.write_text(text.format("3"))
    load_loss("mine.py:f")
    assert LOSSES[name].function(None, beta=2) == 6


def test_a_module_names_a_loss(tmp_path, monkeypatch):
    folder = tmp_path / "of_mine"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "parts.py").write_text("SIGN = -1\n")
    (folder / "losses.py").write_text(
        "from .parts import SIGN\ndef f(pairs, *, beta):\n    return SIGN * beta\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert LOSSES[load_loss("of_mine.losses:f")].function(None, beta=2) == -2


def test_settings_alone_do_not_wait_for_jax(tmp_path):
    """A file of a loss may import it late, as ours do."""
    file = tmp_path / "mine.py"
    file.write_text("def f(pairs, *, beta):\n    return -beta * pairs.logp_chosen\n")
    code = (
        "import sys; from tddpo_jax.config import cells, reading; "
        f"reading.resolve(cells.expand({{'loss': {{'name': {f'{file}:f'!r}}}}})[0]); "
        "print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
