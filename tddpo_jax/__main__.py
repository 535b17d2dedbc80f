"""`python -m tddpo_jax VERB` or `tddpo VERB`: trains, measures, reports."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tddpo_jax import __version__
from tddpo_jax.commands.environment import environment
from tddpo_jax.commands.evaluation import run_program
from tddpo_jax.commands.exit_status import run_command
from tddpo_jax.commands.options import (
    Parser,
    add_loss_settings,
    add_model,
    add_one_data_set,
    add_sampling,
    add_settings,
    data_set_of,
    settings_of,
)
from tddpo_jax.commands.submit import Jobs, add_submission, jobs_of, submit
from tddpo_jax.config.cells import expand, ignored_in, populations
from tddpo_jax.config.reading import resolve
from tddpo_jax.config.spelling import did_you_mean
from tddpo_jax.system import hosts, watch
from tddpo_jax.system.devices import DEVICES, find_device
from tddpo_jax.system.hub import offline_unless_it_answers


def train_command(arguments: Sequence[str]) -> int:
    """Trains one run or every cell of a grid, or submits them as jobs.

    Args:
        arguments: the command line after the verb.

    Returns:
        The exit status: 1 if a lone run diverged.
    """
    parser = Parser(
        prog="tddpo train",
        usage="%(prog)s [--config FILE] [--SETTING VALUE ...]",
        description="Train on preference pairs or single responses. Several values of --loss, "
        "--seed, a number of a loss (such as --beta), --train.learning-rate or "
        "--train.weight-decay make a grid.",
    )
    add_settings(parser)
    add_submission(parser)
    given = parser.parse_args(arguments)
    settings, jobs = settings_of(given), jobs_of(given)
    if jobs is not None:
        return _submit(settings, jobs)
    configs = [resolve(cell) for cell in expand(settings)]
    host = configs[0].hosts
    tell_parent = watch.parent()
    if hosts.is_host(host) and tell_parent is None:
        return watch.run_watched(arguments)
    # These modules import JAX. A mistake in the options is reported before that.
    from tddpo_jax.experiments.grid import run_experiment
    from tddpo_jax.system.agreement import check_same, is_first
    from tddpo_jax.system.console import Screen

    joined = hosts.join(host, tell_parent)
    check_same(settings)
    screen = Screen(quiet=not is_first())
    if joined:
        screen.say(joined)
    summaries = run_experiment(settings, screen)
    return int(len(summaries) == 1 and summaries[0]["state"] == "diverged")


def _submit(settings: dict[str, Any], jobs: Jobs) -> int:
    started = submit(settings, jobs)
    for job in started:
        print(f"{jobs.cluster} job {job.job_id}: log {job.paths.stdout}")
    print(
        "to watch the cells and train beside the jobs, run the same command without --submit"
        if started
        else "every cell is finished; nothing to submit"
    )
    return 0


def logps_command(arguments: Sequence[str]) -> int:
    """Writes one JSON line per row: index, log-probs of the responses, token counts."""
    parser = Parser(prog="tddpo logps", description="Write the log-probs of every row's responses.")
    add_model(parser)
    add_one_data_set(parser)
    parser.add_argument("--output", required=True, help="file to write")
    given = parser.parse_args(arguments)
    data = data_set_of(given)
    from tddpo_jax.commands.logps import write_log_probs

    write_log_probs(given.model, data, Path(given.output), given.template, given.dtype)
    return 0


def export_command(arguments: Sequence[str]) -> int:
    """Writes a policy of a run as a Hugging Face or PEFT folder."""
    parser = Parser(prog="tddpo export", description="Write a policy of a run as a folder.")
    parser.add_argument("--run", required=True, help="run directory")
    parser.add_argument("--output", required=True, help="folder to write; must not exist yet")
    parser.add_argument(
        "--adapter", action="store_true", help="write a PEFT folder; do not merge the adapters"
    )
    parser.add_argument(
        "--step", type=int, help="the step of a policy that the run keeps (default: the best one)"
    )
    given = parser.parse_args(arguments)
    from tddpo_jax.commands.export import export_run

    export_run(Path(given.run), Path(given.output), adapter=given.adapter, step=given.step)
    print(json.dumps({"output": given.output}))
    return 0


def generate_command(arguments: Sequence[str]) -> int:
    """Prints the model's answer and nothing else."""
    parser = Parser(prog="tddpo generate", description="Answer a prompt; print only the new text.")
    add_model(parser)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", help="text of the user's message")
    asked.add_argument(
        "--prompt-ids",
        type=int,
        nargs="+",
        metavar="ID",
        help="token ids of the prompt; prints the new ids, and needs no tokenizer",
    )
    parser.add_argument(
        "--ignore-eos", action="store_true", help="do not stop at the end of the answer"
    )
    parser.add_argument("--raw", action="store_true", help="use no template: BOS and the text")
    parser.add_argument("--system", help="system message before the prompt")
    parser.add_argument("--begin", help="beginning of the answer, which is continued")
    add_sampling(parser, temperature=0.0)
    given = parser.parse_args(arguments)
    from tddpo_jax.generation.generator import generate_text
    from tddpo_jax.system.cache import use_compilation_cache

    use_compilation_cache()
    about = ("model", "prompt", "prompt_ids")
    settings = {name: value for name, value in vars(given).items() if name not in about}
    completion = generate_text(given.model, given.prompt_ids or given.prompt, **settings)
    if given.prompt_ids:
        print(*completion.token_ids)
    else:
        print(completion.text)
    return 0


def sample_command(arguments: Sequence[str]) -> int:
    """Samples answers to prompts, scores them, and makes pairs of them."""
    parser = Parser(
        prog="tddpo sample",
        description="Sample answers to prompts, score them, and write pairs to train on. All "
        "answers lie in NAME.samples.jsonl beside NAME.jsonl. The same command resumes.",
    )
    add_model(parser)
    add_one_data_set(parser)
    parser.add_argument("--samples", type=int, required=True, help="answers to each prompt")
    parser.add_argument(
        "--reward",
        required=True,
        help="what scores an answer: FILE.py:FUNCTION of prompt, answer and row; answer: the row's "
        "reference answer, by math-verify; embedded: the embedded rule",
    )
    parser.add_argument(
        "--pairs",
        default="best",
        choices=("best", "all"),
        help="best: the best answer against the worst; all: each against every worse one",
    )
    parser.add_argument("--output", required=True, metavar="NAME.jsonl", help="file to write")
    parser.add_argument("--raw", action="store_true", help="use no template for texts")
    add_sampling(parser, temperature=1.0)
    given = parser.parse_args(arguments)
    data = data_set_of(given)
    from tddpo_jax.commands.sample import Asked, sample_pairs
    from tddpo_jax.generation.sampling import Sampling
    from tddpo_jax.system.cache import use_compilation_cache
    from tddpo_jax.system.console import Screen

    use_compilation_cache()
    asked = Asked(
        model=given.model,
        data=data,
        samples=given.samples,
        reward=given.reward,
        pairs=given.pairs,
        sampling=Sampling(given.temperature, given.top_k, given.top_p),
        max_new_tokens=given.max_new_tokens,
        seed=given.seed,
        template=given.template,
        raw=given.raw,
        dtype=given.dtype,
    )
    sample_pairs(asked, Path(given.output), Screen())
    return 0


def plan_command(arguments: Sequence[str]) -> int:
    """Predicts whether a run fits on devices of a kind and how long it takes.

    Args:
        arguments: the command line after the verb.

    Returns:
        The exit status: 1 if the run does not fit.
    """
    parser = Parser(
        prog="tddpo plan",
        usage="%(prog)s [--device KIND] [--json] [--config FILE] [--SETTING VALUE ...]",
        description="Predict whether a run fits in memory and how long it takes.",
    )
    parser.add_argument(
        "--device",
        default="h100-80",
        help=f"kind of device (default h100-80): {', '.join(DEVICES)}",
    )
    parser.add_argument(
        "--device-memory", type=float, metavar="GIB", help="memory in place of the device's own"
    )
    parser.add_argument(
        "--device-tflops",
        type=float,
        metavar="N",
        help="10^12 operations per second, dense in bfloat16, in place of the device's own",
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument(
        "--show",
        type=int,
        metavar="N",
        help="print N examples of each data set as the model sees them, and plan nothing",
    )
    add_settings(parser)
    given = parser.parse_args(arguments)
    if given.show is not None and given.show < 0:
        parser.error(f"--show: must be a number of examples, got {given.show}")
    find_device(given.device, given.device_memory, given.device_tflops)
    cells = expand(settings_of(given))
    configs = [resolve(cell) for cell in cells]
    for line in ignored_in(configs):
        warnings.warn(line, stacklevel=2)
    offline_unless_it_answers()
    import jax

    # A plan is computed on the CPU. It uses none of the devices that it is for.
    jax.config.update("jax_platforms", "cpu")
    if given.show is not None:
        from tddpo_jax.planning.examples_text import examples_text

        print("\n".join(examples_text(configs[0], given.show)))
        return 0
    from tddpo_jax.planning.plan import make_plan
    from tddpo_jax.planning.plan_text import as_json, lines

    plan = make_plan(
        configs[0],
        given.device,
        len(populations(configs)[0]),
        memory_gib=given.device_memory,
        tflops=given.device_tflops,
    )
    if given.json:
        print(json.dumps(as_json(plan, len(cells)), indent=2))
    else:
        print("\n".join(lines(plan, len(cells))))
    return int(not plan.fits)


def check_loss_command(arguments: Sequence[str]) -> int:
    """Examines a loss, yours or one of ours, and draws it as text.

    Args:
        arguments: the command line after the verb.

    Returns:
        The exit status: 1 if the loss fails.
    """
    parser = Parser(prog="tddpo check-loss", description="Examine a loss: yours, or one of ours.")
    add_loss_settings(parser)
    parser.add_argument("--output", metavar="FILE.svg", help="also draw it into this file")
    given = parser.parse_args(arguments)
    settings = settings_of(given)
    import jax

    # An examination is small, and needs float64.
    jax.config.update("jax_platforms", "cpu")
    from tddpo_jax.commands.check_loss import check_loss

    passed, lines = check_loss(settings, Path(given.output) if given.output else None)
    print("\n".join(lines))
    return int(not passed)


def quality_command(arguments: Sequence[str]) -> int:
    """Scores sampled answers of a run, a grid or a model without a judge."""
    return run_program("quality", arguments)


def harness_command(arguments: Sequence[str]) -> int:
    """Evaluates a model on tasks of lm-evaluation-harness."""
    return run_program("harness", arguments)


def mt_bench_command(arguments: Sequence[str]) -> int:
    """Runs MT-Bench with any OpenAI-compatible judge."""
    return run_program("mt_bench", arguments)


def report_command(arguments: Sequence[str]) -> int:
    """Reports on a grid or a run: verdict, intervals, pictures."""
    return run_program("report", arguments)


def speed_command(arguments: Sequence[str]) -> int:
    """Measures the speed of training and of decoding."""
    return run_program("speed", arguments)


def env_command(arguments: Sequence[str]) -> int:
    """Prints versions, devices and folders, for a bug report."""
    Parser(prog="tddpo env", description=env_command.__doc__).parse_args(arguments)
    for name, value in environment().items():
        print(f"{name:17}{value}")
    return 0


# The first line of a verb's docstring is its line in `tddpo --help`.
COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train_command,
    "plan": plan_command,
    "generate": generate_command,
    "sample": sample_command,
    "logps": logps_command,
    "export": export_command,
    "check-loss": check_loss_command,
    "quality": quality_command,
    "harness": harness_command,
    "mt-bench": mt_bench_command,
    "report": report_command,
    "speed": speed_command,
    "env": env_command,
}


def _parser() -> Parser:
    lines = (f"  {verb:12}{(run.__doc__ or '').splitlines()[0]}" for verb, run in COMMANDS.items())
    parser = Parser(
        prog="tddpo",
        usage="tddpo VERB ...",
        description="Preference optimisation of language models in JAX.",
        epilog="\n".join(("verbs:", *lines, "", "`tddpo VERB --help` tells more on each.")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tddpo_jax {__version__}")
    parser.add_argument("verb", help=argparse.SUPPRESS)
    return parser


def main() -> int:
    """Runs the verb that the command line names; returns its exit status."""
    parser = _parser()
    if len(sys.argv) == 1:
        parser.error("name a verb; `tddpo --help` lists them")
    verb = parser.parse_args(sys.argv[1:2]).verb
    if verb not in COMMANDS:
        parser.error(f"verb {verb!r}: no such verb{did_you_mean(verb, COMMANDS)}")
    # The other verbs begin anew.
    return run_command(COMMANDS[verb], sys.argv[2:], resumes=verb in ("train", "sample"))


if __name__ == "__main__":
    sys.exit(main())
