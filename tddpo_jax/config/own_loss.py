"""Losses of one's own: functions in a Python file or module, named `file.py:function`.

Such a function has the form of our own losses: it takes pairs and, by keyword, its settings, and
gives one value per pair. A keyword that is a setting of our losses, such as `beta`, takes that
setting. `tokens_per_pair` is the mean number of chosen tokens in the batch. Every other keyword is
a new number, `loss.set.<keyword>`. The full name of such a loss, with the file's absolute path, is
its key in `LOSSES`. The text of its file is part of a run's identity.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tddpo_jax.config.dotted import get
from tddpo_jax.config.own_function import file_of, function_name, function_of, text_of
from tddpo_jax.errors import UserError
from tddpo_jax.losses.catalogue import LOSSES, all_settings, shared_losses
from tddpo_jax.losses.loss import BATCH_FACTS, DECOUPLING, LD_ALPHA, Loss, Setting
from tddpo_jax.losses.pair_logps import log_ratios, scaled_log_ratios

# A run keeps the text of its loss under this name.
LOSS_FILE = "loss.py"
# The groups of numbers in the section `loss`: those of one's own loss, and the weights of mixtures.
GROUPS = ("set", "mix")
# No number of one's own has the name of another setting, or of a column in tables of cells. The
# names of losses are those of weights.
RESERVED = (
    *("name", *GROUPS, "loss", "cell", "state", "step"),
    *("seed", "learning_rate", "weight_decay"),
)
# The setting that holds the name of a loss.
FIELD = "loss.name"


def is_own(name: object) -> bool:
    """Whether this is the name of a loss in a user's file or module."""
    return isinstance(name, str) and ":" in name


def load_loss(name: str, text: str | None = None) -> str:
    """Reads a loss of one's own and adds its row to `LOSSES`.

    Args:
        name: `path/to/file.py:function` or `package.module:function`.
        text: the text to use in place of the file's, such as the text that a run kept.

    Returns:
        The name under which `LOSSES` has it: with the file's absolute path.

    Raises:
        UserError: there is no such file or function, the file fails, or the function does not have
            the form of a loss.
    """
    place, _, function = name.rpartition(":")
    file = file_of(name, FIELD)
    if place.endswith(".py"):
        name = f"{file}:{function}"
    if text is None:
        text = text_of(name, file, FIELD)
    LOSSES[name] = _row(name, str(file), text)
    return name


def load_kept_loss(settings: Mapping[str, Any], run: Path) -> None:
    """Adds the loss of a run to `LOSSES` as the run kept it, if it is one's own.

    Args:
        settings: the content of the run's `config.yaml`.
        run: the run's directory.

    Raises:
        UserError: the kept text fails, because it needs files that are no longer there.
    """
    name, file = get(settings, "loss.name"), run / LOSS_FILE
    if name is not None and is_own(name) and file.exists():
        load_loss(name, file.read_text())


def new_settings(name: str) -> dict[str, Setting]:
    """The numbers of a loss of one's own that no loss of ours has: the names in `loss.set`.

    Args:
        name: a name in `LOSSES`.
    """
    if not is_own(name):
        return {}
    ours = all_settings()
    return {key: setting for key, setting in LOSSES[name].settings.items() if key not in ours}


def with_defaults(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given settings of a loss of one's own, above the defaults of its function.

    Args:
        name: the name of the loss in `LOSSES`.
        given: the section `loss` of the settings.

    Raises:
        UserError: `set` is not a group.
    """
    known = {
        key: setting.default
        for key, setting in LOSSES[name].settings.items()
        if setting.default is not None
    }
    new = {key: known.pop(key) for key in new_settings(name) if key in known}
    numbers = given.get("set", {})
    if not isinstance(numbers, Mapping):
        raise UserError(f"loss.set: must be a group of numbers, got {numbers!r}")
    return {**known, **given, "set": {**new, **numbers}}


# The cache gives one text one row, so what was compiled for it serves again.
@functools.cache
def _row(name: str, file: str, text: str) -> Loss:
    function = _function(name, file, text)
    settings = {
        keyword.name: _setting(name, keyword)
        for keyword in _keywords_of(name, function)
        if keyword.name not in BATCH_FACTS
    }
    settings.setdefault(DECOUPLING, LD_ALPHA)
    return Loss(
        function,
        settings,
        rewards=scaled_log_ratios if "beta" in settings else log_ratios,
        needs_beta=False,
        exact_kl=lambda _: _reads_kl(function, settings),
        source=text,
    )


def _reads_kl(function: Callable[..., Any], settings: Mapping[str, Setting]) -> bool:
    # This module imports JAX, for which a mistake in the options should not wait.
    from tddpo_jax.losses.trial import reads_kl

    return reads_kl(function, settings)


def _function(name: str, file: str, text: str) -> Callable[..., Any]:
    found = function_of(name, file, text, FIELD)
    if (wanted := function_name(name)) in shared_losses():
        raise UserError(f"{FIELD}: {name}: {wanted} is the name of a loss of ours; rename yours")
    return found


def _keywords_of(name: str, function: Callable[..., Any]) -> list[inspect.Parameter]:
    parameters = list(inspect.signature(function).parameters.values())
    positional = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    wanted = function_name(name)
    if not parameters or parameters[0].kind not in positional:
        raise UserError(f"{FIELD}: {name}: must take pairs: def {wanted}(pairs, *, beta)")
    keywords = parameters[1:]
    for keyword in keywords:
        if keyword.kind == keyword.VAR_KEYWORD:
            raise UserError(
                f"{FIELD}: {name}: **{keyword.name} hides its settings; name each of them: "
                f"def {wanted}(pairs, *, beta)"
            )
        if keyword.kind != keyword.KEYWORD_ONLY:
            raise UserError(
                f"{FIELD}: {name}: {keyword.name} must be a keyword after a star: "
                f"def {wanted}(pairs, *, {keyword.name})"
            )
        if keyword.name in (*RESERVED, *shared_losses()):
            raise UserError(f"{FIELD}: {name}: no setting may be called {keyword.name}")
    return keywords


def _setting(name: str, keyword: inspect.Parameter) -> Setting:
    """A setting of ours if it has this name, else a new number; with the function's own default."""
    new = Setting(default=None, help=f"setting of {function_name(name)}")
    setting = all_settings().get(keyword.name, new)
    default = keyword.default
    if default is keyword.empty:
        return setting
    is_number = isinstance(default, numbers.Real) and not isinstance(default, bool)
    if default not in setting.choices if setting.choices else not is_number:
        allowed = f"one of {', '.join(setting.choices)}" if setting.choices else "a number"
        raise UserError(
            f"{FIELD}: {name}: the default of {keyword.name} must be {allowed}, got {default!r}"
        )
    # The files of a run hold Python's own numbers. NumPy's own float64 is a float too.
    plain = default if isinstance(default, str) else float(default)
    return dataclasses.replace(setting, default=plain)
