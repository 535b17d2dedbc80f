"""Examples as the model sees them, from the verb `plan --show`."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_commands import run
from tiny_rows import conversation, questions, write

from tddpo_jax.batches.layout import Example
from tddpo_jax.data.examples import Fitted
from tddpo_jax.planning import plan
from tddpo_jax.planning.examples_text import example_lines


def shown(capsys, *arguments):
    assert run("plan", *arguments) == 0
    return capsys.readouterr().out.splitlines()


@pytest.fixture(autouse=True)
def no_compilers(monkeypatch):
    monkeypatch.setattr(plan, "make_plan", lambda *_: pytest.fail("planned"))


def test_examples_have_their_special_tokens_and_the_marks_of_the_loss(tmp_path, capsys):
    rows = [conversation("a", "b", "b"), conversation("one\ntwo", "yes", "no"), *questions(3)]
    data = write(tmp_path / "data.jsonl", rows)
    options = ("--data", data, "--data.validation", 0, "--data.template", "zephyr", "--show", 1)
    lines = shown(capsys, "--model", "embedded", *options)
    assert lines[0].startswith(f"{data}: 4 training and 0 validation pairs, template zephyr")
    assert lines[1:4] == [
        "cannot be used: 1 x identical branches (row 0)",
        "the loss counts the tokens between \u00ab and \u00bb",
        "",
    ]
    assert lines[4].startswith("row 1: prompt ")
    assert lines[5:] == [
        "  prompt   <s><|user|>\u21b5",
        "           one\u21b5",
        "           two</s>\u21b5",
        "           <|assistant|>\u21b5",
        "           ",
        "  chosen   \u00abyes</s>\u00bb",
        "  rejected \u00abno</s>\u00bb",
    ]


def test_each_data_set_of_a_mixture_shows_its_own(tmp_path, capsys):
    files = [write(tmp_path / f"{name}.jsonl", questions(9)) for name in "ab"]
    settings = ("--data", *files, "--data.fraction", 0.5, "--data.validation", 0, "--show", 2)
    lines = shown(capsys, "--model", "embedded", *settings)
    names = [line.split(":")[0].split(" of ")[1] for line in lines if line.startswith("row ")]
    assert names == [files[0]] * 2 + [files[1]] * 2


def test_what_is_cut_is_counted():
    whole = Example(3, np.array([1, 5, 6, 7]), (np.array([8, 9, 2]),))
    cut = whole._replace(prompt=whole.prompt[2:], responses=(whole.responses[0][:1],))
    lines = list(example_lines(Fitted(whole, cut), None))
    assert lines == [
        "row 3: prompt 2 tokens (2 more are cut), response 1 tokens (2 more are cut)",
        "  prompt   6 7",
        "  response \u00ab8\u00bb",
    ]


def test_a_number_below_0_is_refused(capsys):
    assert run("plan", "--show", -1) == 2
    assert "--show: must be a number of examples, got -1" in capsys.readouterr().err
