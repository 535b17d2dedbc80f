"""`python -m eval.mt_bench judge`: a judge rates the answers."""

from __future__ import annotations

import argparse
import os
import sys
import urllib.parse
from pathlib import Path
from types import ModuleType

from tddpo_jax.errors import UserError
from tddpo_jax.system.console import Screen
from tddpo_jax.system.json_lines import appending, read_rows

from .arguments import at_least, data_option, load_benchmark
from .benchmark import REFERENCE, answer_files
from .estimate import BYTES_PER_TOKEN, Estimate, estimate
from .judge_settings import Judge
from .judgments import Judgment
from .remaining import accepted_before, carried_over, pending
from .requests import requests_for


def add_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    data_option(command)
    add("--answers", nargs="+", required=True, metavar="FILE_OR_FOLDER", help="model_answer files")
    add("--judge-model", required=True, help="the judge's name at its endpoint")
    add("--base-url", help="URL of an OpenAI-compatible endpoint (default: OpenAI's own)")
    add(
        "--api-key-env",
        metavar="NAME",
        help=f"variable that holds the key (default {Judge.key_name})",
    )
    add(
        "--reference",
        default=REFERENCE,
        help="NAME of reference_answer/NAME.jsonl (default %(default)s)",
    )
    add("--temperature", type=at_least(0.0), default=Judge.temperature)
    add(
        "--max-tokens",
        type=at_least(1),
        default=Judge.max_tokens,
        help="tokens of one judgment (default %(default)s)",
    )
    add(
        "--concurrency",
        type=at_least(1),
        default=Judge.concurrency,
        help="requests at a time (default %(default)s)",
    )
    add(
        "--attempts",
        type=at_least(1),
        default=Judge.attempts,
        help="times to ask until an answer has a rating (default %(default)s)",
    )
    add(
        "--max-retries",
        type=at_least(0),
        default=Judge.max_retries,
        help="repeats of a request that fails (default %(default)s)",
    )
    add(
        "--timeout",
        type=at_least(0.0),
        default=Judge.timeout,
        help="seconds for one request (default %(default)g)",
    )
    add("--retry-invalid", action="store_true", help="ask again where there is no valid rating")
    add("--output", type=Path, help="file (default ../model_judgment/JUDGE_single.jsonl)")
    add("--dry-run", action="store_true", help="send nothing; print requests, tokens and cost")
    add("--price-in", type=at_least(0.0), help="price of a million tokens sent")
    add("--price-out", type=at_least(0.0), help="price of a million tokens of judgments")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if (options.price_in is None) != (options.price_out is None):
        raise UserError("--price-in and --price-out: give both or neither")
    data = load_benchmark(options, options.reference)
    files = answer_files(options.answers)
    for file in files:
        if len(file.answers) < len(data.questions):
            print(f"{file.path}: {len(file.answers)} of {len(data.questions)} questions answered")
    requests = [request for file in files for request in requests_for(data, file)]
    asked = _asked(options)
    output = options.output or _default_output(files[0].path, asked.model)
    if options.dry_run:
        rows = read_rows(output, Judgment) if output.exists() else []
        todo = pending(requests, rows, asked, retry_invalid=options.retry_invalid)
        _print_estimate(options, len(requests), estimate(todo, rows, asked), asked.model)
        return 0
    judge = _judge_module()
    key = _api_key(asked, required=bool(options.api_key_env) or asked.base_url is None)
    with appending(output) as append:
        rows = read_rows(output, Judgment)
        for row in carried_over(requests, rows, asked):
            append(row.model_dump())
        with Screen().stage("judging") as update:
            failed = judge.run(
                pending(requests, rows, asked, retry_invalid=options.retry_invalid),
                asked,
                key,
                accepted=accepted_before(rows, asked),
                data=data.record,
                append=append,
                update=update,
            )
    rows = read_rows(output, Judgment)
    left = len(pending(requests, rows, asked))
    unrated = len(pending(requests, rows, asked, retry_invalid=True)) - left
    print(f"{output}: {len(requests) - left} of {len(requests)} requests judged")
    if unrated:
        print(f"{unrated} judgments have no valid rating (see --retry-invalid)")
    for reason, times in failed.items():
        said = f"{times} requests failed; the next run asks them again: {reason}"
        print(said, file=sys.stderr)
    return 1 if failed else 0


def _judge_module() -> ModuleType:
    """The module that asks the judge. It needs the client."""
    try:
        from . import judge
    except ModuleNotFoundError as error:
        if error.name != "openai":
            raise
        raise UserError(
            "judge: the package openai is not installed: pip install 'tddpo-jax[judge]'"
        ) from None
    return judge


def _asked(options: argparse.Namespace) -> Judge:
    return Judge(
        model=options.judge_model,
        base_url=_base_url(options.base_url),
        key_name=options.api_key_env or Judge.key_name,
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
    """The endpoint's URL. The client would read the variable too, but would not tell."""
    url = given or os.environ.get("OPENAI_BASE_URL") or None
    if url is not None and not _names_a_host(url):
        # The message does not quote the URL, because some users put keys into URLs.
        raise UserError("--base-url: must begin with http:// or https:// and name a host")
    return url


def _names_a_host(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets of an address that do not close, or a port that is none
        return False


def _api_key(asked: Judge, *, required: bool) -> str:
    """The key. It is never printed.

    Args:
        asked: names the variable that holds the key.
        required: whether the key must be set. It must if the user named a variable, or if the
            endpoint is OpenAI's. A user's own endpoint may need no key.

    Raises:
        UserError: a required key is missing, or it holds characters that a header cannot hold.
    """
    name = asked.key_name
    key = os.environ.get(name, "").strip()
    if not key and required:
        raise UserError(f"--api-key-env {name}: the variable is not set")
    # If a header cannot hold the key, the error that follows would quote the key in full.
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(
            f"--api-key-env {name}: the variable holds characters that a key cannot have"
        )
    return key or "none"


def _print_estimate(
    options: argparse.Namespace, requests: int, found: Estimate, judge_model: str
) -> None:
    print(f"judge       {judge_model}; nothing was sent")
    print(f"requests    {found.requests}; {requests - found.requests} more are already judged")
    print(f"tokens in   about {found.tokens_in:,}, at {BYTES_PER_TOKEN} bytes a token")
    print(f"tokens out  about {found.tokens_out:,}, at most {found.most_tokens_out:,}")
    if options.price_in is None:
        print("cost        unknown: give --price-in and --price-out, per million tokens")
        return
    expected, most = found.cost(options.price_in, options.price_out)
    print(f"cost        about {expected:.2f}, at most {most:.2f}")
