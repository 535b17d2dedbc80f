"""The command line: `python -m eval.mt_bench fetch | generate | judge | report`.

    fetch                                           questions, judge prompts, reference answers
    generate --model DIR --seed 0 1 2               one file of answers per seed
    judge --answers FILE… --judge-model NAME        ratings, appended to one file per judge
    report --judgments FILE… [--baseline MODEL]     the scores

Exit status 0 done, 2 the user's input was wrong (a refused key and an unknown model too), 1
anything else.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from eval.mt_bench import judge
from eval.mt_bench.benchmark import Data, answer_files, load_data
from eval.mt_bench.endpoint import Judge, JudgeStopped
from eval.mt_bench.estimate import BYTES_PER_TOKEN, Estimate, estimate
from eval.mt_bench.fetch import COMMIT, SOURCE, default_folder, differing, fetch
from eval.mt_bench.json_lines import appending, read_rows
from eval.mt_bench.judgments import Judgment
from eval.mt_bench.report import asked_now, read_judgments, report
from eval.mt_bench.requests import requests_for
from eval.mt_bench.score import fastchat_scores
from eval.mt_bench.text import as_text, fastchat_text
from tddpo_jax.commands.exit_status import run_command
from tddpo_jax.commands.options import Parser
from tddpo_jax.errors import UserError
from tddpo_jax.system.console import Screen


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    return run_command(_command, sys.argv[1:] if arguments is None else arguments)


def _command(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except (JudgeStopped, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="python -m eval.mt_bench", description="MT-Bench (FastChat's files)")
    commands = top.add_subparsers(required=True, metavar="fetch | generate | judge | report")
    _fetch_options(commands.add_parser("fetch", help="download questions, prompts, references"))
    _generate_options(commands.add_parser("generate", help="answer the questions"))
    _judge_options(commands.add_parser("judge", help="have answers judged"))
    _report_options(commands.add_parser("report", help="print the scores"))
    return top


def _data_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data-dir",
        type=Path,
        help="a copy of FastChat's data folder; default: what fetch downloaded",
    )


# ---- fetch ---------------------------------------------------------------------------------------


def _fetch_options(command: argparse.ArgumentParser) -> None:
    _data_option(command)
    command.add_argument("--source", default=SOURCE, help="URL of the data folder, or of a mirror")
    command.set_defaults(run=_fetch)


def _fetch(options: argparse.Namespace) -> int:
    if options.data_dir is not None:
        data = load_data(options.data_dir)
        changed = differing(options.data_dir)
        state = f"differing from FastChat's: {', '.join(changed)}" if changed else "FastChat's own"
        print(f"{options.data_dir}: {len(data.questions)} questions; {state}")
        return 0
    folder = default_folder()
    loaded = fetch(folder, options.source)
    print(f"{folder}: {len(loaded)} files downloaded, all as in FastChat at {COMMIT[:12]}")
    return 0


# ---- generate ------------------------------------------------------------------------------------


def _generate_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    _data_option(command)
    add("--model", required=True, help="Hugging Face folder, PEFT folder, run directory, or hub id")
    add("--model-id", help="name in the files and tables; default: the last part of --model")
    add("--seed", type=int, nargs="+", default=[0], help="one file of answers each")
    add("--template", help="a named chat template; default: the tokenizer's own")
    add("--system", help="system prompt; default none")
    add("--temperature", type=_at_least(0.0), help="for all questions; default: by category")
    add("--top-k", type=_at_least(0), default=0, help="0: all")
    add("--top-p", type=_at_least(0.0), default=1.0)
    add("--max-new-tokens", type=_at_least(1), help="of a turn; default min(1024, context / 2)")
    add("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    add("--batch-size", type=_at_least(1), default=80, help="conversations at a time")
    add("--first", type=_at_least(1), help="answer only the first questions, for a trial")
    add("--output", type=Path, help="folder; default mt_bench/model_answer in the grid or run")
    command.set_defaults(run=_generate)


def _generate(options: argparse.Namespace) -> int:
    # Only this command needs JAX, and loading it takes longer than judging's first answer.
    from eval.mt_bench import answers
    from tddpo_jax.generation.generator import Generator

    questions = list(_load_data(options).questions.values())[: options.first]
    settings = answers.Settings(
        template=options.template,
        system=options.system,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        max_new_tokens=options.max_new_tokens,
    )
    model_id = options.model_id or Path(options.model).name
    if not model_id or "/" in model_id:
        raise UserError(f"--model-id {model_id!r}: must be a name for files")
    generator = Generator.from_path(options.model, options.dtype, template=options.template)
    making = answers.record(generator, settings, answers.weights_of(options.model))
    folder = options.output or answers.answers_folder(options.model)
    cut = answers.generate_answers(
        generator,
        questions,
        model_id=model_id,
        seeds=list(dict.fromkeys(options.seed)),
        folder=folder,
        settings=settings,
        making=making,
        batch_size=options.batch_size,
        screen=Screen(),
    )
    for seed in options.seed:
        print(answers.answer_path(folder, model_id, seed))
    system = "no system prompt" if settings.system is None else "a system prompt"
    print(f"template {making['template']}, {system}, {making['max_new_tokens']} new tokens a turn")
    if cut:
        print(f"{cut} answers were given without the beginning of a prompt that did not fit")
    return 0


# ---- judge ---------------------------------------------------------------------------------------


def _judge_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    _data_option(command)
    add("--answers", nargs="+", required=True, metavar="FILE_OR_FOLDER", help="model_answer files")
    add("--judge-model", required=True, help="the judge's name at its endpoint")
    add("--base-url", help="of an OpenAI-compatible endpoint; default: OpenAI's own")
    add("--api-key-env", metavar="NAME", help="variable with the key; default OPENAI_API_KEY")
    add("--reference", default="gpt-4", help="whose reference answers: reference_answer/NAME.jsonl")
    add("--temperature", type=_at_least(0.0), default=0.0)
    add("--max-tokens", type=_at_least(1), default=2048, help="of one judgment")
    add("--concurrency", type=_at_least(1), default=8, help="requests at a time")
    add("--attempts", type=_at_least(1), default=3, help="answers asked for until one has a rating")
    add("--max-retries", type=_at_least(0), default=5, help="of one request that fails")
    add("--timeout", type=_at_least(0.0), default=600.0, help="seconds for one request")
    add("--retry-invalid", action="store_true", help="ask again for those without a rating")
    add("--output", type=Path, help="judgments; default ../model_judgment/JUDGE_single.jsonl")
    add("--dry-run", action="store_true", help="send nothing, say what it would take")
    add("--price-in", type=_at_least(0.0), help="per million tokens sent")
    add("--price-out", type=_at_least(0.0), help="per million tokens of judgments")
    command.set_defaults(run=_judge)


def _judge(options: argparse.Namespace) -> int:
    if (options.price_in is None) != (options.price_out is None):
        raise UserError("--price-in and --price-out: give both or neither")
    data = _load_data(options, options.reference)
    files = answer_files(options.answers)
    for file in files:
        if len(file.answers) < len(data.questions):
            print(f"{file.path}: {len(file.answers)} of {len(data.questions)} questions answered")
    requests = [request for file in files for request in requests_for(data, file)]
    asked = _asked(options)
    output = options.output or _default_output(files[0].path, asked.model)
    if options.dry_run:
        rows = read_rows(output, Judgment) if output.exists() else []
        todo = judge.pending(requests, rows, asked, retry_invalid=options.retry_invalid)
        _print_estimate(options, len(requests), estimate(todo, rows, asked), asked.model)
        return 0
    key = _api_key(options)
    with appending(output) as append:
        rows = read_rows(output, Judgment)
        for row in judge.carried_over(requests, rows, asked):
            append(row.model_dump())
        with Screen().stage("judging") as update:
            failed = judge.run(
                judge.pending(requests, rows, asked, retry_invalid=options.retry_invalid),
                asked,
                key,
                parameters=judge.accepted_before(rows, asked),
                data=data.record,
                append=append,
                update=update,
            )
    rows = read_rows(output, Judgment)
    left = len(judge.pending(requests, rows, asked))
    unrated = len(judge.pending(requests, rows, asked, retry_invalid=True)) - left
    print(f"{output}: {len(requests) - left} of {len(requests)} requests judged")
    if unrated:
        print(f"{unrated} judgments have no valid rating (see --retry-invalid)")
    for reason, times in failed.items():
        said = f"{times} requests failed and are asked again by the next run: {reason}"
        print(said, file=sys.stderr)
    return 1 if failed else 0


def _asked(options: argparse.Namespace) -> Judge:
    return Judge(
        model=options.judge_model,
        base_url=_base_url(options.base_url),
        key_name=options.api_key_env or "OPENAI_API_KEY",
        temperature=options.temperature,
        max_tokens=options.max_tokens,
        attempts=options.attempts,
        concurrency=options.concurrency,
        max_retries=options.max_retries,
        timeout=options.timeout,
    )


def _default_output(answers: Path, judge_model: str) -> Path:
    name = f"{judge_model.replace('/', '_')}_single.jsonl"
    return answers.parent.parent / "model_judgment" / name


def _base_url(given: str | None) -> str | None:
    """The endpoint's URL; the client itself would read the variable, and not tell."""
    url = given or os.environ.get("OPENAI_BASE_URL") or None
    if url is not None and not re.match(r"https?://[^/]", url):
        # Not quoted: keys are put into URLs, too.
        raise UserError("--base-url: must begin with http:// or https:// and name a host")
    return url


def _api_key(options: argparse.Namespace) -> str:
    """The key, which is never printed.

    An endpoint of one's own may want none, so only a variable that was named, or OpenAI itself,
    must have one.
    """
    name = options.api_key_env or "OPENAI_API_KEY"
    key = os.environ.get(name, "").strip()
    if not key and (options.api_key_env or _base_url(options.base_url) is None):
        raise UserError(f"--api-key-env {name}: the variable is not set")
    # A key that no header can hold would be quoted in full by the error it causes.
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"--api-key-env {name}: the variable holds characters that no key has")
    return key or "none"


def _print_estimate(
    options: argparse.Namespace, requests: int, found: Estimate, judge_model: str
) -> None:
    print(f"judge       {judge_model}; nothing was sent")
    print(f"requests    {found.requests}, {requests - found.requests} more are judged already")
    print(f"tokens in   about {found.tokens_in:,}, at {BYTES_PER_TOKEN} bytes a token")
    print(f"tokens out  about {found.tokens_out:,}, at most {found.most_tokens_out:,}")
    if options.price_in is None:
        print("cost        not estimated: give --price-in and --price-out, per million tokens")
        return
    expected, most = found.cost(options.price_in, options.price_out)
    print(f"cost        about {expected:.2f}, at most {most:.2f}")


# ---- report --------------------------------------------------------------------------------------


def _report_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    _data_option(command)
    add("--judgments", nargs="+", required=True, metavar="FILE", help="model_judgment files")
    add("--judge-model", help="whose judgments, where the files hold several judges'")
    add("--baseline", metavar="MODEL", help="compare the others with this model")
    add(
        "--answers", nargs="+", metavar="FILE_OR_FOLDER", help="count only judgments of these texts"
    )
    add("--reference", default="gpt-4", help="with --answers: whose reference answers")
    add("--allow-missing", action="store_true", help="give scores though rows are missing")
    add("--fastchat-compat", action="store_true", help="FastChat's own numbers, failings included")
    add("--json", action="store_true")
    command.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    rows = read_judgments(options.judgments, options.judge_model)
    if options.fastchat_compat:
        if options.baseline or options.answers:
            raise UserError("--fastchat-compat: takes neither --baseline nor --answers")
        plain = fastchat_scores(rows)
        print(json.dumps(plain, indent=2) if options.json else fastchat_text(plain))
        return 0
    keys = None
    if options.answers:
        data = _load_data(options, options.reference)
        keys = asked_now(rows, answer_files(options.answers), data)
    result = report(rows, baseline=options.baseline, allow_missing=options.allow_missing, keys=keys)
    print(json.dumps(result, indent=2) if options.json else as_text(result, options.baseline))
    return 0


def _load_data(options: argparse.Namespace, reference: str = "gpt-4") -> Data:
    return load_data(options.data_dir or default_folder(), reference)


def _at_least(lowest: int | float) -> Callable[[str], int | float]:
    """An argparse type: a number of the type of `lowest`, no less than it."""

    def number(text: str) -> int | float:
        value = type(lowest)(text)
        if not lowest <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be at least {lowest}, got {text}")
        return value

    number.__name__ = type(lowest).__name__
    return number


if __name__ == "__main__":
    sys.exit(main())
