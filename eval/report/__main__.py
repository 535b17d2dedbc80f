"""The verb `report`: `python -m tddpo_jax report GRID_OR_RUN_DIR`.

Writes `report.html`, `report.md`, `results.csv`, `experiment.json` and the pictures into the
directory, and prints the answer. The exit status is 0 if that is done, 2 if the user's input was
wrong.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from tddpo_jax.commands.exit_status import run_command
from tddpo_jax.commands.options import Parser
from tddpo_jax.runs.run_directory import check_output


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(_command, sys.argv[1:] if arguments is None else arguments, resumes=False)


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = Parser(prog="tddpo report", description="Report on a grid, or on a run")
    add = top.add_argument
    add("directory", type=Path, metavar="GRID_OR_RUN_DIR")
    add(
        "--score",
        nargs="+",
        default=[],
        metavar="FILE:METRIC",
        help="further scores, such as results.json:acc of a file in every run's folder",
    )
    add("--judge-model", help="judge whose MT-Bench ratings count, if there are several judges")
    return top


def _command(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    # Imported late, so that a mistake in the options is reported at once.
    import jax

    from .analysis import analyse
    from .answer import answer_of
    from .pages.page import FIGURES, write_report

    # A report needs no accelerator. It must not take one from a run that is under way.
    jax.config.update("jax_platforms", "cpu")
    check_output(options.directory / FIGURES)
    analysis = analyse(options.directory, options.score, options.judge_model)
    answer = answer_of(analysis)
    files = write_report(analysis, answer, f"python -m tddpo_jax report {shlex.join(arguments)}")
    for line in (*answer.lines, *files):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
