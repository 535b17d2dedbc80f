"""Rewards by name: a user's function, checked answers, the embedded rule."""

import pytest

from tddpo_jax.embedded.task import score
from tddpo_jax.errors import UserError
from tddpo_jax.generation.rewards import load_reward

FILE = """
import math

def good(prompt, answer, row):
    return len(answer) + row["more"]

def fails(prompt, answer, row):
    return 1 / row["more"]

def says_nothing(prompt, answer, row):
    pass

def infinite(prompt, answer, row):
    return math.inf

def of_two(prompt, answer):
    return 0
"""


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    return file


def test_a_function_of_the_prompt_the_answer_and_the_row(file):
    reward = load_reward(f"{file}:good")
    assert reward.score(0, "x", "four", {"more": 2}) == 6.0
    before = reward.identity
    file.write_text(f"{FILE}# edited\n")
    assert load_reward(f"{file}:good").identity != before


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("fails", "row 3: ZeroDivisionError: division by zero"),
        ("says_nothing", "row 3: must give a number, got None"),
        ("infinite", "row 3: must give a finite number, got inf"),
    ],
)
def test_scores_that_are_wrong_name_the_row(file, function, problem):
    reward = load_reward(f"{file}:{function}")
    with pytest.raises(UserError, match=problem) as caught:
        reward.score(3, "x", "y", {"more": 0})
    assert str(caught.value).startswith(f"reward: {file}:{function}: ")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("{}:of_two", "must be def of_two(prompt, answer, row)"),
        ("{}:none", "the file has no function none"),
        ("none.py:f", "No such file or directory"),
        ("best", "'best' is not answer, embedded or FILE.py:FUNCTION"),
    ],
)
def test_rewards_that_are_no_rewards(file, name, problem):
    with pytest.raises(UserError) as caught:
        load_reward(name.format(file))
    assert str(caught.value).startswith("reward: ")
    assert problem in str(caught.value)


def test_the_embedded_rule():
    answer = "The old dog was happy by the river."
    assert load_reward("embedded").score(0, "x", answer, {}) == score(answer) > 0


def test_an_answer_is_checked_against_the_reference_of_its_row():
    pytest.importorskip("math_verify")
    reward = load_reward("answer")
    for row in (
        {"answer": "2+3=<<2+3=5>>5\n#### 5"},
        {"solution": r"So $\boxed{5}$."},
        {"answer": 5},
    ):
        reward.check_row(0, row)
        assert reward.score(0, "x", "I have 2 + 3 = 5.", row) == 1.0
        assert reward.score(0, "x", "It is 6.", row) == 0.0
        assert reward.score(0, "x", "I do not know.", row) == 0.0
    half = {"answer": r"\frac{1}{2}", "solution": "It is 3."}
    assert reward.score(0, "x", r"It is $\frac{2}{4}$.", half) == 1.0
    with pytest.raises(UserError, match="reward: answer: row 7: the row has no column 'answer' or"):
        reward.check_row(7, {"text": "5"})
    with pytest.raises(
        UserError, match="row 7: math-verify finds no result in the column 'answer'"
    ):
        reward.check_row(7, {"answer": ""})
