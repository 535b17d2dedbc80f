"""Every setting of the schema as an option, and what a user's mistake looks like.

Options are made from `config.Config`: `train.learning_rate` is `--train.learning-rate`. A command
line changes what a YAML file says, and both change the schema's defaults; the result is validated
once. A mistake is one line on stderr and exit status 2.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, get_args

from tddpo_jax.config.schema import GRID_AXES, Config, Section, read_yaml, with_value
from tddpo_jax.errors import UserError
from tddpo_jax.system import hosts
from tddpo_jax.system.paths import EMBEDDED_CONFIG
from tddpo_jax.system.xla_flags import set_flags

SHORT_NAMES = {
    "loss.name": "--loss",
    "loss.beta": "--beta",
    "loss.tau": "--tau",
    "model.path": "--model",
    "data.path": "--data",
}
# What the kernel says, whoever passes it on: `OSError`, Orbax, safetensors.
DISK_IS_FULL = ("No space left on device", "Disk quota exceeded")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds `--config` and an option for every setting of the schema."""
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings")
    for name, field in _fields(Config):
        option = "--" + name.replace("_", "-")
        names = [SHORT_NAMES[name], option] if name in SHORT_NAMES else [option]
        several = name in GRID_AXES or name == "lora.targets"
        switch = bool in (field.annotation, *get_args(field.annotation))
        parser.add_argument(
            *names,
            dest=name,
            default=argparse.SUPPRESS,
            metavar=name.rpartition(".")[2].upper(),
            nargs="+" if several else "?" if switch else None,
            const=True if switch else None,
            help=f"{field.description or ''} (default {field.default})".strip().replace("%", "%%"),
        )


def _fields(section: type[Section], prefix: str = "") -> list[tuple[str, Any]]:
    fields = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            fields += _fields(field.annotation, f"{prefix}{name}.")
        else:
            fields.append((prefix + name, field))
    return fields


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The mapping that a YAML file and the command line give, not yet validated.

    With none of `--config`, `--model` and `--data`: the embedded default.
    """
    given = {name: value for name, value in vars(arguments).items() if name in _names()}
    config = arguments.config
    if config is None and not {"model.path", "data.path"} & set(given):
        config = EMBEDDED_CONFIG
    mapping = read_yaml(config) if config is not None else {}
    for name, value in given.items():
        alone = name in GRID_AXES and len(value) == 1
        mapping = with_value(mapping, name, value[0] if alone else value)
    return mapping


def _names() -> set[str]:
    return {name for name, _ in _fields(Config)}


def run_command(
    command: Callable[[Sequence[str]], int], arguments: Sequence[str], *, resumes: bool = True
) -> int:
    """Runs a command and returns its exit status; a `UserError` is one line and status 2.

    `resumes`: whether the same command goes on where it was interrupted.
    """
    warnings.showwarning = _one_line_warning
    set_flags()
    try:
        return command(arguments)
    except (Exception, KeyboardInterrupt) as error:
        status = _told(error, resumes)
        if hosts.several():
            hosts.leave(error, status)
        if status is None:
            raise
        return status


def _told(error: BaseException, resumes: bool) -> int | None:
    """The exit status of a mistake, an interruption or a full disk, once told; else None."""
    if isinstance(error, KeyboardInterrupt):
        told = "interrupted; the same command resumes" if resumes else "interrupted"
        print(told, file=sys.stderr)
        return 130
    if any(text in str(error) for text in DISK_IS_FULL):
        told = f"error: the disk is full: {' '.join(str(error).split())[:300]}"
        print(told + ("; the same command resumes" if resumes else ""), file=sys.stderr)
        return 1
    if isinstance(error, UserError):
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return None


def _one_line_warning(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)
