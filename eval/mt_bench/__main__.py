"""The verb `mt-bench`: `python -m tddpo_jax mt-bench fetch | generate | judge | report`.

    fetch                                           questions, judge prompts, reference answers
    generate --model DIR --seed 0 1 2               one file of answers per seed
    judge --answers FILE… --judge-model NAME        ratings, appended to one file per judge
    report --judgments FILE… [--baseline MODEL]     the scores

The exit status is 0 if all is done, 2 if the user's input was wrong (a refused key and an unknown
model count as that), and 1 for anything else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tddpo_jax.commands.exit_status import run_command
from tddpo_jax.commands.options import Parser

from . import fetch_command, generate_command, judge_command, report_command
from .judge_settings import JudgeStopped


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return run_command(_command, arguments, resumes=True)


def _command(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except (JudgeStopped, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """The options of all commands."""
    top = Parser(prog="tddpo mt-bench", description="MT-Bench (FastChat's files)")
    commands = top.add_subparsers(required=True, metavar="fetch | generate | judge | report")
    fetch_command.add_options(
        commands.add_parser("fetch", help="download questions, prompts, references")
    )
    generate_command.add_options(commands.add_parser("generate", help="answer the questions"))
    judge_command.add_options(commands.add_parser("judge", help="let a judge rate answers"))
    report_command.add_options(commands.add_parser("report", help="print the scores"))
    return top


if __name__ == "__main__":
    sys.exit(main())
