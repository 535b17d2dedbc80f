"""What the options of several commands share: the benchmark's folder, and bounded numbers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from .benchmark import REFERENCE, Data, load_data
from .fetch import default_folder


def data_option(command: argparse.ArgumentParser) -> None:
    """Adds `--data-dir`."""
    command.add_argument(
        "--data-dir",
        type=Path,
        help="a copy of FastChat's data folder (default: what fetch downloaded)",
    )


def load_benchmark(options: argparse.Namespace, reference: str = REFERENCE) -> Data:
    """Reads the benchmark from `--data-dir`, or from where fetch put it."""
    return load_data(options.data_dir or default_folder(), reference)


def at_least(lowest: int | float) -> Callable[[str], int | float]:
    """An argparse type: a finite number of the type of `lowest`, at least `lowest`."""

    def number(text: str) -> int | float:
        value = type(lowest)(text)
        if not lowest <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be at least {lowest}, got {text}")
        return value

    number.__name__ = type(lowest).__name__
    return number
