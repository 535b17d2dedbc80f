"""`python -m eval.mt_bench generate`: a model answers the questions."""

from __future__ import annotations

import argparse
from pathlib import Path

from tddpo_jax.commands.options import DTYPES
from tddpo_jax.errors import UserError
from tddpo_jax.system.console import Screen

from .arguments import at_least, data_option, load_benchmark


def add_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    data_option(command)
    add("--model", required=True, help="Hugging Face folder, PEFT folder, run directory, or hub id")
    add("--model-id", help="name in the files and tables (default: the last part of --model)")
    add("--seed", type=int, nargs="+", default=[0], help="seeds; each makes one file of answers")
    add("--template", help="a named chat template (default: the tokenizer's own)")
    add("--system", help="system prompt (default: none)")
    add(
        "--temperature",
        type=at_least(0.0),
        help="temperature of all questions (default: by category)",
    )
    add(
        "--top-k", type=at_least(0), default=0, help="sample from this many tokens (default 0: all)"
    )
    add("--top-p", type=at_least(0.0), default=1.0, help="sample from this much probability")
    add(
        "--max-new-tokens",
        type=at_least(1),
        help="new tokens of a turn (default: min(1024, context / 2))",
    )
    add("--dtype", choices=DTYPES, default="auto")
    add("--batch-size", type=at_least(1), default=80, help="conversations at a time (default 80)")
    add("--first", type=at_least(1), help="answer only this many questions, for a trial")
    add("--output", type=Path, help="folder (default: mt_bench/model_answer in the grid or run)")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    # Only this command needs JAX. Loading JAX takes longer than the judge's first answer.
    from tddpo_jax.generation.generator import Generator
    from tddpo_jax.weights.locate import weights_of

    from . import answers

    questions = list(load_benchmark(options).questions.values())[: options.first]
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
        raise UserError(f"--model-id {model_id!r}: must be usable as a file name")
    generator = Generator.from_path(options.model, options.dtype, template=options.template)
    making = answers.record(generator, settings, weights_of(options.model))
    seeds = list(dict.fromkeys(options.seed))
    folder = options.output or answers.answers_folder(options.model)
    cut = answers.generate_answers(
        generator,
        questions,
        model_id=model_id,
        seeds=seeds,
        folder=folder,
        settings=settings,
        making=making,
        batch_size=options.batch_size,
        screen=Screen(),
    )
    for seed in seeds:
        print(answers.answer_path(folder, model_id, seed))
    system = "no system prompt" if settings.system is None else "a system prompt"
    print(f"template {making['template']}, {system}, {making['max_new_tokens']} new tokens a turn")
    if cut:
        print(f"{cut} answers did not see the beginning of their prompt, which was too long")
    return 0
