"""`python -m eval.mt_bench fetch`: downloads the benchmark, or checks a local copy."""

from __future__ import annotations

import argparse

from .arguments import data_option
from .benchmark import load_data
from .fetch import COMMIT, SOURCE, default_folder, differing, fetch


def add_options(command: argparse.ArgumentParser) -> None:
    data_option(command)
    command.add_argument("--source", default=SOURCE, help="URL of the data folder, or of a mirror")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if options.data_dir is not None:
        data = load_data(options.data_dir)
        changed = differing(options.data_dir)
        state = (
            "these differ from FastChat's: " + ", ".join(changed) if changed else "FastChat's own"
        )
        print(f"{options.data_dir}: {len(data.questions)} questions; {state}")
        return 0
    folder = default_folder()
    loaded = fetch(folder, options.source)
    print(f"{folder}: {len(loaded)} files downloaded; all equal FastChat's at {COMMIT[:12]}")
    return 0
