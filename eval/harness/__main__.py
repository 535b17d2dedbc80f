"""`python -m tddpo_jax harness --model RUN_OR_FOLDER --tasks gsm8k,mmlu`: checked skills.

The tasks, their prompts and their scores are those of the library lm-evaluation-harness. The model
is computed by our engine: sharded, in batches, with adapters beside the weights. The results are
printed as the library prints them. With `--output` they are written as the library writes them.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tddpo_jax.commands.exit_status import run_command
from tddpo_jax.commands.options import Parser, add_model
from tddpo_jax.errors import UserError, one_line
from tddpo_jax.runs.run_directory import check_output
from tddpo_jax.system.atomic import write_text
from tddpo_jax.system.cache import use_compilation_cache
from tddpo_jax.system.console import Screen


def _command(arguments: Sequence[str]) -> int:
    parser = Parser(
        prog="tddpo harness", description="Evaluate a model on tasks of lm-evaluation-harness."
    )
    add_model(parser)
    add = parser.add_argument
    add("--tasks", required=True, metavar="TASK,…", help="names of tasks or groups, with commas")
    add("--include-path", metavar="DIR", help="folder of further tasks, in YAML files")
    add("--limit", type=float, help="examples of each task; below 1: their share")
    add("--num-fewshot", type=int, metavar="N", help="solved examples in a prompt")
    add(
        "--apply-chat-template",
        action="store_true",
        help="ask as in a conversation; the end of turn then ends an answer, too",
    )
    add("--output", metavar="FILE", help="file to write: the library's results as JSON")
    given = parser.parse_args(arguments)
    output = None if given.output is None else Path(given.output)
    _check(given.limit, given.num_fewshot, given.include_path, output)
    tasks = [name.strip() for name in given.tasks.split(",") if name.strip()]
    manager = _task_manager(tasks, given.include_path)
    use_compilation_cache()
    from .engine import Engine

    engine = Engine(
        given.model,
        dtype=given.dtype,
        template=given.template,
        chat=given.apply_chat_template,
        screen=Screen(),
    )
    results = evaluate(
        engine,
        tasks,
        manager,
        limit=given.limit,
        num_fewshot=given.num_fewshot,
        chat=given.apply_chat_template,
    )
    _show(results)
    if output is not None:
        from lm_eval.utils import handle_non_serializable

        output.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False)
        write_text(output, text)
    return 0


def evaluate(
    engine: Any,
    tasks: Sequence[str],
    manager: Any,
    *,
    limit: float | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
) -> dict[str, Any]:
    """The library's results of a model, as it writes them.

    Args:
        engine: a model of the library, such as `engine.Engine`.
        tasks: names of tasks or groups.
        manager: the library's `TaskManager`.
        limit: examples of each task; below 1: their share.
        num_fewshot: solved examples in a prompt; None: as the task says.
        chat: whether prompts are conversations.

    Raises:
        UserError: the data of a task cannot be fetched.
    """
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker()
    try:
        results = simple_evaluate(
            engine,
            model_args=f"pretrained={engine.path}",
            tasks=list(tasks),
            task_manager=manager,
            num_fewshot=num_fewshot,
            limit=limit if limit is None or limit < 1 else int(limit),
            apply_chat_template=chat,
            evaluation_tracker=tracker,
            log_samples=False,
        )
    except (OSError, FileNotFoundError) as error:
        raise UserError(f"--tasks: {one_line(error)}") from None
    tracker.general_config_tracker.log_end_time()
    return {**results, **dataclasses.asdict(tracker.general_config_tracker)}


def _check(
    limit: float | None, num_fewshot: int | None, include_path: str | None, output: Path | None
) -> None:
    if limit is not None and (limit <= 0 or (limit > 1 and not limit.is_integer())):
        raise UserError(f"--limit: must be a number of examples or a share, got {limit:g}")
    if num_fewshot is not None and num_fewshot < 0:
        raise UserError(f"--num-fewshot: must be at least 0, got {num_fewshot}")
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(f"--include-path: {include_path} is not a folder")
    if output is not None:
        check_output(output.parent)
        if output.is_dir():
            raise UserError(f"--output: {output} is a directory; expected a file")


def _task_manager(tasks: Sequence[str], include_path: str | None) -> Any:
    """The library's tasks, and those of a folder.

    Raises:
        UserError: the library is not installed, or there is no such task.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        if error.name != "lm_eval":
            raise
        raise UserError(
            "harness: the package lm-eval is not installed: pip install 'tddpo-jax[harness]'"
        ) from None
    manager = TaskManager(include_path=include_path)
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown or not tasks:
        raise UserError(f"--tasks: there is no task {unknown[0] if unknown else 'named'}")
    return manager


def _show(results: dict[str, Any]) -> None:
    from lm_eval.utils import make_table

    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return run_command(_command, arguments, resumes=False)


if __name__ == "__main__":
    sys.exit(main())
