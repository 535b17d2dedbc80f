"""The command line's options, one for every setting of the schema.

The options are made from the schema: `train.learning_rate` becomes `--train.learning-rate`. An
option overrides the YAML file, and the file overrides the schema's defaults. The result is
validated once. A mistake becomes one line on stderr and exit status 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, get_args

from pydantic.fields import FieldInfo

from tddpo_jax.config.cells import GRID_AXES
from tddpo_jax.config.dotted import with_value
from tddpo_jax.config.schema import ModelConfig, read_yaml, setting_fields
from tddpo_jax.errors import UserError
from tddpo_jax.system.paths import EMBEDDED_CONFIG

SHORT_NAMES = {
    "loss.name": "--loss",
    "loss.beta": "--beta",
    "loss.tau": "--tau",
    "model.path": "--model",
    "data.path": "--data",
}
DTYPES = get_args(ModelConfig.model_fields["dtype"].annotation)


class Parser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line, without the usage."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


class _Once(argparse.Action):
    """Keeps a value, and refuses a second one.

    Several data sets might be meant as a mixture. The last one alone would then count.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if hasattr(namespace, self.dest):
            parser.error(f"{option_string} is given more than once; only one value can count")
        setattr(namespace, self.dest, values)


# The option of `loss.set` may be given several times: each time for other numbers.
OWN_NUMBERS = "loss.set"
ACTIONS: dict[str, Any] = {"data.path": _Once, OWN_NUMBERS: "extend"}


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds `--model`, `--template` and `--dtype`."""
    parser.add_argument("--model", required=True, help="Hugging Face or PEFT folder, run, hub id")
    parser.add_argument("--template", help="chat template (default: the tokenizer's own)")
    parser.add_argument("--dtype", default="auto", choices=DTYPES)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds `--config` and an option for every setting of the schema."""
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings")
    _add(parser, dict(setting_fields()))


def add_loss_settings(parser: argparse.ArgumentParser) -> None:
    """Adds the loss as an argument, and an option for every setting of losses."""
    parser.add_argument("loss.name", metavar="LOSS", help="a name, or path/to/file.py:function")
    fields = dict(setting_fields())
    _add(
        parser,
        {name: fields[name] for name in fields if name.startswith("loss.") and name != "loss.name"},
    )
    parser.set_defaults(config=None)


def _add(parser: argparse.ArgumentParser, fields: Mapping[str, FieldInfo]) -> None:
    for name, field in fields.items():
        option = "--" + name.replace("_", "-")
        names = [SHORT_NAMES[name], option] if name in SHORT_NAMES else [option]
        several = name in (*GRID_AXES, "lora.targets", OWN_NUMBERS)
        switch = bool in (field.annotation, *get_args(field.annotation))
        parser.add_argument(
            *names,
            dest=name,
            action=ACTIONS.get(name, "store"),
            default=argparse.SUPPRESS,
            metavar="NAME=NUMBER" if name == OWN_NUMBERS else name.rpartition(".")[2].upper(),
            nargs="+" if several else "?" if switch else None,
            const=True if switch else None,
            help=f"{field.description or ''} (default {field.default})".strip().replace("%", "%%"),
        )


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings from the YAML file and the command line, not yet validated.

    Without `--config`, `--model` and `--data`, the file is that of the embedded default.

    Raises:
        UserError: the YAML file cannot be read, or a setting is in the place of a group.
    """
    given = {name: value for name, value in vars(arguments).items() if name in _names()}
    config = arguments.config
    if config is None and not {"model.path", "data.path"} & set(given):
        config = EMBEDDED_CONFIG
    mapping = read_yaml(config) if config is not None else {}
    for name, numbers in _own_numbers(given.pop(OWN_NUMBERS, ())).items():
        given[f"{OWN_NUMBERS}.{name}"] = numbers
    for name, value in given.items():
        alone = isinstance(value, list) and name != "lora.targets" and len(value) == 1
        mapping = with_value(mapping, name, value[0] if alone else value)
    return mapping


def _own_numbers(words: Sequence[str]) -> dict[str, list[str]]:
    """The values of each number of a loss of one's own, from `scale=1 2 gate=3`."""
    numbers: dict[str, list[str]] = {}
    name = ""
    for word in words:
        before, equals, after = word.rpartition("=")
        if equals:
            name = before.strip()
            if not name.isidentifier() or name in numbers:
                why = "is given twice" if name in numbers else "must be NAME=NUMBER"
                raise UserError(f"loss.set: {word!r}: {why}")
            numbers[name] = [after]
        elif name:
            numbers[name].append(word)
        else:
            raise UserError(f"loss.set: must be NAME=NUMBER, got {word!r}")
    return numbers


def _names() -> set[str]:
    return {name for name, _ in setting_fields()}
