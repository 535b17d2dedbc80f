"""The command line's options, one for every setting of the schema.

The options are made from the schema: `train.learning_rate` becomes `--train.learning-rate`. An
option overrides the YAML file, and the file overrides the schema's defaults. The result is
validated once. A mistake becomes one line on stderr and exit status 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic.fields import FieldInfo

from tddpo_jax.config.cells import grid_axes
from tddpo_jax.config.dotted import with_value
from tddpo_jax.config.loss_section import loss_section
from tddpo_jax.config.reading import read_yaml, resolve, setting_fields
from tddpo_jax.config.schema import Config, DataSource, ModelConfig
from tddpo_jax.config.spelling import did_you_mean
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
    """An argument parser that reports an error in one line, without the usage.

    An option that is given twice is refused, because the last one alone would count. Options may be
    spelt with underscores, as YAML spells them.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        for action in (None, "store"):
            self.register("action", action, _Once)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses the words; an unknown option is an error with the name that may be meant."""
        words = [_with_hyphens(word) for word in (sys.argv[1:] if args is None else args)]
        given, unknown = super().parse_known_args(words, namespace)
        if unknown:
            meant = did_you_mean(unknown[0].partition("=")[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")
        return given, unknown

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def _with_hyphens(word: str) -> str:
    option, equals, value = word.partition("=")
    return option.replace("_", "-") + equals + value if word.startswith("--") else word


class _Once(argparse.Action):
    """Keeps a value, and refuses a second one."""

    _filled: argparse.Namespace | None = None

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if self._filled is namespace:
            one = "give its values together" if self.nargs == "+" else "only one value can count"
            parser.error(f"{option_string} is given more than once; {one}")
        self._filled = namespace
        setattr(namespace, self.dest, values)


# Groups of numbers whose names the schema does not know.
NUMBERS = ("loss.set", "loss.mix")
# Options that may be given several times: data sets named one by one are a mixture, like those
# named at once, and each `--loss.set` is for other numbers.
REPEATED = ("data.path", *NUMBERS)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds `--model`, `--template` and `--dtype`."""
    parser.add_argument("--model", required=True, help="Hugging Face or PEFT folder, run, hub id")
    parser.add_argument("--template", help="chat template (default: the tokenizer's own)")
    parser.add_argument("--dtype", default="auto", choices=DTYPES)


def add_sampling(parser: argparse.ArgumentParser, temperature: float) -> None:
    """Adds the options that say how answers are sampled.

    Args:
        parser: gets the options.
        temperature: the default of `--temperature`.
    """
    add = parser.add_argument
    add(
        "--max-new-tokens",
        type=int,
        help="most tokens of the answer (default: 256, or half the context if that is less)",
    )
    add(
        "--temperature",
        type=float,
        default=temperature,
        help=f"temperature of sampling (default {temperature:g}; 0: greedy)",
    )
    add("--top-k", type=int, default=0, help="sample from the K likeliest tokens (default 0: all)")
    add(
        "--top-p",
        type=float,
        default=1.0,
        help="sample from the likeliest tokens of this total probability (default 1: all)",
    )
    add("--seed", type=int, default=0, help="seed of sampling (default 0)")


def add_one_data_set(parser: argparse.ArgumentParser) -> None:
    """Adds `--data` for a single data set, and the settings that say how to read it."""
    fields = dict(setting_fields())
    parser.add_argument(
        "--data",
        dest="data.path",
        required=True,
        action="append",
        metavar="DATA",
        help="file, pattern of files, folder, hub id, or `embedded`",
    )
    for name in ("data.split", "data.config", "data.columns"):
        parser.add_argument(
            f"--{name}",
            dest=name,
            metavar=name.rpartition(".")[2].upper(),
            help=fields[name].description,
        )


def data_set_of(arguments: argparse.Namespace) -> DataSource:
    """The data set that the options of `add_one_data_set` name.

    Raises:
        UserError: there are several, or a setting is wrong.
    """
    given = {name.removeprefix("data."): value for name, value in vars(arguments).items()}
    settings = {name: given[name] for name in ("path", "split", "config", "columns")}
    source, *others = resolve({"data": settings}).data.sources
    if others:
        raise UserError("data.path: this verb takes one data set at a time")
    return source


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds `--config` and an option for every setting of the schema, in the schema's groups."""
    run = parser.add_argument_group("run", "The run or grid as a whole.")
    run.add_argument("--config", metavar="FILE", help="YAML file of settings")
    groups = {"": run}
    for name, field in setting_fields():
        section = name.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(section, _about(section))
        _add(groups[section], name, field)


def add_loss_settings(parser: argparse.ArgumentParser) -> None:
    """Adds the loss as an argument, and an option for every setting of losses."""
    parser.add_argument("loss.name", metavar="LOSS", help="a name, or path/to/file.py:function")
    for name, field in setting_fields(loss_section(), "loss."):
        if name != "loss.name":
            _add(parser, name, field)
    parser.set_defaults(config=None)


def _add(to: argparse._ActionsContainer, name: str, field: FieldInfo) -> None:
    """Adds the option of one setting."""
    option = "--" + name.replace("_", "-")
    names = [SHORT_NAMES[name], option] if name in SHORT_NAMES else [option]
    several = name in (*grid_axes(), *REPEATED, "lora.targets")
    switch = bool in (field.annotation, *get_args(field.annotation))
    to.add_argument(
        *names,
        dest=name,
        action="extend" if name in REPEATED else "store",
        default=argparse.SUPPRESS,
        metavar="NAME=NUMBER" if name in NUMBERS else name.rpartition(".")[2].upper(),
        nargs="+" if several else "?" if switch else None,
        const=True if switch else None,
        help=_help(field).replace("%", "%%"),
    )


def _about(section: str) -> str:
    """The first line of what the schema says about a group of settings."""
    return (Config.model_fields[section].annotation.__doc__ or "").splitlines()[0]


def _help(field: FieldInfo) -> str:
    """The description of a setting, its choices, and its default unless others decide that."""
    text = field.description or ""
    if get_origin(field.annotation) is Literal:
        text += f"; one of {', '.join(get_args(field.annotation))}"
    # A setting without a value of its own describes its default, if it has one.
    if field.default is None or field.default_factory:
        return text
    return f"{text} (default {'no' if field.default is False else field.default})"


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
    for group in NUMBERS:
        for name, numbers in _numbers(group, given.pop(group, ())).items():
            given[f"{group}.{name}"] = numbers
    for name, value in given.items():
        alone = isinstance(value, list) and name != "lora.targets" and len(value) == 1
        mapping = with_value(mapping, name, value[0] if alone else value)
    return mapping


def _numbers(group: str, words: Sequence[str]) -> dict[str, list[str]]:
    """The values of each number of a group, from `scale=1 2 gate=3`."""
    numbers: dict[str, list[str]] = {}
    name = ""
    for word in words:
        before, equals, after = word.rpartition("=")
        if equals:
            name = before.strip()
            if not name.isidentifier() or name in numbers:
                why = "is given twice" if name in numbers else "must be NAME=NUMBER"
                raise UserError(f"{group}: {word!r}: {why}")
            numbers[name] = [after]
        elif name:
            numbers[name].append(word)
        else:
            raise UserError(f"{group}: must be NAME=NUMBER, got {word!r}")
    return numbers


def _names() -> set[str]:
    return {name for name, _ in setting_fields()}
