"""Held-out quality without a judge: `python -m tddpo_jax quality RUN_OR_GRID_OR_MODEL`.

The command samples one answer per prompt from the policy and from its base. It measures what shows
a broken policy before a judge costs money: a reward's mean and win rate, length, distinct n-grams,
repetition, answers that never end, and the KL to the base per token (see `measure`).

The reward is that of `--reward`, as for the verb `sample`. Without it, the embedded rule scores
answers to the embedded prompts, and nothing scores others: a run on other data is asked the prompts
of its own validation data and gets the figures that need no reward, and so does a model with
prompts of the user's.

The figures are shown, and written as `quality.json` into the folder of each run or model. In a
grid, every finished cell is measured: by its `best/`, or by the base if it diverged before it had
one. If a cell's file already holds figures of the same policy and the same questions, the cell is
skipped, so the command may be stopped and given again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tddpo_jax.commands.exit_status import run_command
from tddpo_jax.commands.options import Parser
from tddpo_jax.config.schema import Config, MeshConfig
from tddpo_jax.errors import UserError
from tddpo_jax.placement.mesh import make_mesh
from tddpo_jax.runs.run_directory import read_part
from tddpo_jax.system.atomic import write_json
from tddpo_jax.system.cache import use_compilation_cache
from tddpo_jax.system.console import Screen

from ..experiment import read_experiment
from .quality_file import FILE, Standing, is_of, read_quality, standing_of

if TYPE_CHECKING:
    from tddpo_jax.generation.rewards import Reward

    from .prompts import Question


class Subject(NamedTuple):
    """A cell with its config and the policy that stands for it, or a model, which has neither."""

    folder: Path
    config: Config | None
    standing: Standing | None


def subjects_of(path: Path) -> list[Subject]:
    """A grid's finished cells, or the run or model itself.

    Raises:
        UserError: no cell of the grid has finished.
    """
    if (path / "config.yaml").is_file():
        return _subjects(path)
    if not (path / "grid.json").is_file():
        return [Subject(path, None, None)]
    found = [subject for subject in _subjects(path) if subject.standing]
    if not found:
        raise UserError(f"{path}: no cell of the grid has finished yet")
    return found


def _subjects(path: Path) -> list[Subject]:
    cells = read_experiment(path).cells
    return [Subject(cell.folder, cell.config, standing_of(cell)) for cell in cells]


def _questions(
    config: Config | None, base: str, prompts: str | None, new_tokens: int, screen: Screen
) -> Sequence[Question]:
    """What to ask: the given prompts, the run's own, or the embedded ones."""
    from tddpo_jax.data.examples import Vocabulary
    from tddpo_jax.data.tokenizer import load_tokenizer_if_any
    from tddpo_jax.generation.sampling import room_for_prompt
    from tddpo_jax.weights import hugging_face
    from tddpo_jax.weights.locate import resolve

    from .prompts import embedded_questions, given_questions, validation_questions

    if prompts is None and config is not None and not _is_embedded(config):
        return validation_questions(config)
    files = resolve(base)
    tokenizer = load_tokenizer_if_any(files.tokenizer)
    template = None if config is None else config.data.template
    if prompts is None:
        return embedded_questions(tokenizer, template)
    model = hugging_face.read_config(files.base)
    most = room_for_prompt(model.context, new_tokens)
    vocabulary = Vocabulary(model.vocabulary, model.not_text)
    questions, unused = given_questions(prompts, tokenizer, template, most, vocabulary)
    for reason, rows in unused.items():
        screen.say(f"{prompts}: {len(rows)} not asked: {reason} (first row {rows[0]})")
    return questions


def _check_reward(reward: Reward, questions: Sequence[Question], config: Config | None) -> None:
    """Refuses prompts that a reward cannot score the answers to.

    Raises:
        UserError: they are the run's own, of which the tokens alone are known, or a row lacks what
            the reward needs.
    """
    if config is not None and not _is_embedded(config) and not any(each.row for each in questions):
        raise UserError(
            f"--reward: needs --prompts, because {config.data.names} is known by its tokens alone"
        )
    for question in questions:
        reward.check_row(question.number, question.row)


def _why_no_rule(subject: Subject, prompts: str | None) -> str | None:
    """Why the embedded rule does not score the answers; None if it does."""
    if subject.config is not None and not _is_embedded(subject.config):
        return f"the run's data is {subject.config.data.path}"
    if subject.config is None and prompts is not None:
        return f"the prompts are those of {prompts}"
    return None


def _is_embedded(config: Config) -> bool:
    return config.data.path == "embedded"


def _base_path(run: Path, given: str | None) -> str:
    if given is not None:
        return given
    facts = read_part(run, "run.json")
    if facts is None:
        raise UserError(f"--base: {run} is not a run directory; name the model to compare with")
    return facts["model"]["path"]


def _command(arguments: Sequence[str]) -> int:
    parser = Parser(
        prog="tddpo quality", description="Quality of sampled answers, without a judge."
    )
    parser.add_argument("path", help="run, grid or model directory")
    parser.add_argument("--base", help="model to compare with (default: what the run started from)")
    parser.add_argument(
        "--prompts",
        help="file, folder or hub id of rows with prompts (default: the run's validation prompts, "
        "or the embedded ones)",
    )
    parser.add_argument(
        "--reward",
        help="what scores an answer: FILE.py:FUNCTION of prompt, answer and row; `answer`: the "
        "row's reference answer; `embedded` (default where the prompts are the embedded ones)",
    )
    parser.add_argument("--most", type=int, default=400, help="largest number of prompts to ask")
    parser.add_argument("--temperature", type=float, default=1.0, help="temperature of sampling")
    parser.add_argument("--max-new-tokens", type=int, default=100, help="most tokens of an answer")
    parser.add_argument("--seed", type=int, default=0, help="seed of sampling")
    given = parser.parse_args(arguments)
    if given.most < 1:
        raise UserError(f"--most: must be at least 1, got {given.most}")
    from tddpo_jax.generation.rewards import load_reward
    from tddpo_jax.generation.sampling import Sampling

    from .measure import Asked, Base, load_policy, measure, sampled_answers

    use_compilation_cache()
    sampling = Sampling(given.temperature, max_new_tokens=given.max_new_tokens)
    screen = Screen()
    mesh = make_mesh(MeshConfig())
    bases: dict[tuple[str, str], Base] = {}
    asked_of: dict[tuple[str, str], Sequence[Question]] = {}
    reward = None if given.reward is None else load_reward(given.reward)
    for subject in subjects_of(Path(given.path)):
        folder, config, standing = subject
        path = _base_path(folder, given.base)
        why = None if reward else _why_no_rule(subject, given.prompts)
        # Most cells of a grid are asked the same.
        same = path, "" if config is None else config.data.model_dump_json()
        if same not in asked_of:
            asked_of[same] = _questions(config, path, given.prompts, given.max_new_tokens, screen)[
                : given.most
            ]
            if reward is not None:
                _check_reward(reward, asked_of[same], config)
        asked = Asked(
            asked_of[same],
            sampling,
            given.seed,
            template=None if config is None else config.data.template,
            reward=load_reward("embedded") if why is None and reward is None else reward,
        )
        about = {"asked": asked.record | {"base": path}}
        if _is_known(folder, standing, about):
            screen.say(f"{folder.name}: already measured; skipped")
            continue
        if why is not None:
            screen.say(f"{folder.name}: no score, because {why}, and the rule is the embedded one")
        key = path, json.dumps(asked.record)
        if key not in bases:
            policy = load_policy(path, mesh, asked.template)
            bases[key] = Base(policy, sampled_answers(policy.generator, asked))
        base = bases[key]
        by_base = standing is not None and standing.policy == "base"
        policy = base.policy if by_base else load_policy(str(folder), mesh, asked.template)
        figures = measure(policy, base, asked, mesh)
        shown = {n: round(v, 4) for n, v in figures.items() if isinstance(v, float)}
        which = " (its base, because it diverged before it had a best/)" if by_base else ""
        screen.say(f"{folder.name}{which}: {json.dumps(shown)}")
        # `embedded` and hub ids are not folders of the user's, so their figures are only shown.
        if folder.is_dir():
            written = (standing._asdict() if standing else {}) | about | figures
            write_json(folder / FILE, written)
    return 0


def _is_known(folder: Path, standing: Standing | None, about: dict[str, Any]) -> bool:
    """Whether the folder holds figures of this policy with these questions."""
    found = read_quality(folder)
    return found is not None and is_of(found, standing) and found.get("asked") == about["asked"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return run_command(_command, arguments, resumes=True)


if __name__ == "__main__":
    sys.exit(main())
