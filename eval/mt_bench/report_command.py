"""`python -m eval.mt_bench report`: prints the scores."""

from __future__ import annotations

import argparse
import json

from tddpo_jax.errors import UserError

from .arguments import data_option, load_benchmark
from .benchmark import REFERENCE, answer_files
from .report import asked_now, read_judgments, report
from .report_text import as_text, fastchat_text
from .score import fastchat_scores


def add_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    data_option(command)
    add("--judgments", nargs="+", required=True, metavar="FILE", help="model_judgment files")
    add("--judge-model", help="judge whose ratings count, if the files hold several judges")
    add("--baseline", metavar="MODEL", help="compare the others with this model")
    add(
        "--answers", nargs="+", metavar="FILE_OR_FOLDER", help="count only judgments of these texts"
    )
    add("--reference", default=REFERENCE, help="with --answers: reference_answer/NAME.jsonl")
    add("--allow-missing", action="store_true", help="print scores although rows are missing")
    add(
        "--fastchat-compat",
        action="store_true",
        help="FastChat's own numbers, with its shortcomings",
    )
    add("--json", action="store_true", help="JSON instead of text")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    rows = read_judgments(options.judgments, options.judge_model)
    if options.fastchat_compat:
        if options.baseline or options.answers:
            raise UserError("--fastchat-compat: cannot be combined with --baseline or --answers")
        plain = fastchat_scores(rows)
        print(json.dumps(plain, indent=2) if options.json else fastchat_text(plain))
        return 0
    keys = None
    if options.answers:
        data = load_benchmark(options, options.reference)
        keys = asked_now(rows, answer_files(options.answers), data)
    result = report(rows, baseline=options.baseline, allow_missing=options.allow_missing, keys=keys)
    print(json.dumps(result, indent=2) if options.json else as_text(result, options.baseline))
    return 0
