"""The file of sampled answers: what was written is read, and damage is told by file and row."""

from __future__ import annotations

import pytest

from tddpo_jax.errors import UserError
from tddpo_jax.runs.sampled_answers import (
    SampledAnswer,
    forget_answers,
    read_answers,
    write_answers,
)


def answer(step, row, text):
    return SampledAnswer(
        step=step,
        row=row,
        prompt="Why?",
        answer=text,
        finish_reason="stop",
        chosen="So.",
        rejected=None,
    )


@pytest.fixture
def run(tmp_path):
    """A run with the answers of three validations."""
    (tmp_path / "evaluations").mkdir()
    for step in (20, 0, 100):
        write_answers(tmp_path, step, [answer(step, 3, "a\n\rb\u2028"), answer(step, "4 of x", "")])
    return tmp_path


def test_every_text_is_read_as_it_was_written(run):
    found = read_answers(run)
    assert list(found) == [0, 20, 100]
    assert found[20] == [answer(20, 3, "a\n\rb\u2028"), answer(20, "4 of x", "")]


def test_a_run_that_goes_back_forgets_later_answers(run):
    forget_answers(run, 20)
    assert list(read_answers(run)) == [0, 20]
    forget_answers(run, 0)
    assert read_answers(run) == {}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object"),
        ('{"step": 20}', "row: Field required"),
    ],
)
def test_damage_is_told_by_file_and_row(run, line, told):
    file = run / "evaluations" / "000020.jsonl"
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(UserError, match=rf"000020\.jsonl, row 3: {told}"):
        read_answers(run)
