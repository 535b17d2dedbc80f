"""Rewards of sampled answers: a user's function, checked answers, or the embedded rule."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tddpo_jax.config.own_function import file_of, function_name, function_of, text_of
from tddpo_jax.errors import UserError, one_line
from tddpo_jax.system.paths import EMBEDDED

FIELD = "reward"


class Reward(NamedTuple):
    """A reward of answers.

    Attributes:
        name: what the user called it.
        identity: of what it computes: a name, or the hash of the function's file.
        check: raises UserError, without a row's number, if a row's answers cannot be scored.
        function: of the prompt, the answer and the row; see `score`.
    """

    name: str
    identity: str
    check: Callable[[Mapping[str, Any]], None]
    function: Callable[[Any, Any, Mapping[str, Any]], Any]

    def check_row(self, number: int, row: Mapping[str, Any]) -> None:
        """Raises UserError, with the row's number, if its answers cannot be scored."""
        try:
            self.check(row)
        except UserError as error:
            raise UserError(f"{FIELD}: {self.name}: row {number}: {error}") from None

    def score(self, number: int, prompt: Any, answer: Any, row: Mapping[str, Any]) -> float:
        """The score of an answer.

        Args:
            number: of the row.
            prompt: the user's text, where that is all; else the conversation; or token ids.
            answer: the text; token ids if the model has no tokenizer.
            row: all columns of the row.

        Raises:
            UserError: the function fails, or gives no finite number.
        """
        where = f"{FIELD}: {self.name}: row {number}"
        try:
            value = self.function(prompt, answer, row)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        except Exception as error:
            raise UserError(f"{where}: {type(error).__name__}: {one_line(error)}") from error
        try:
            score = float(value)
        except (TypeError, ValueError):
            raise UserError(f"{where}: must give a number, got {value!r}") from None
        if not math.isfinite(score):
            raise UserError(f"{where}: must give a finite number, got {score}")
        return score


def load_reward(name: str) -> Reward:
    """The reward of a name.

    Args:
        name: `answer`, `embedded`, `path/to/file.py:function` or `package.module:function`.

    Raises:
        UserError: there is no such reward, its file fails, its package is not installed, or the
            function does not take a prompt, an answer and a row.
    """
    if name == "answer":
        return _checked_answers()
    place = f"{EMBEDDED / 'reward.py'}:reward" if name == "embedded" else name
    if ":" not in place:
        raise UserError(f"{FIELD}: {name!r} is not answer, embedded or FILE.py:FUNCTION")
    file = file_of(place, FIELD)
    text = text_of(place, file, FIELD)
    function = function_of(place, str(file), text, FIELD)
    _check_takes_three(name, function)
    digest = hashlib.sha256(text.encode()).hexdigest()
    identity = name if name == "embedded" else f"{function_name(name)} {digest}"
    return Reward(name, identity, lambda _: None, function)


def _checked_answers() -> Reward:
    try:
        from tddpo_jax.generation.checked_answers import check_reference, is_right
    except ModuleNotFoundError as error:
        if error.name != "math_verify":
            raise
        raise UserError(
            f"{FIELD}: the package math-verify is not installed: pip install 'tddpo-jax[answers]'"
        ) from None
    name = "answer"
    return Reward(name, name, check_reference, lambda _, answer, row: is_right(answer, row))


def _check_takes_three(name: str, function: Callable[..., Any]) -> None:
    try:
        inspect.signature(function).bind("prompt", "answer", {})
    except TypeError:
        wanted = function_name(name)
        raise UserError(f"{FIELD}: {name}: must be def {wanted}(prompt, answer, row)") from None
