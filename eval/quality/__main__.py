"""Held-out quality without a judge: `python -m eval.quality RUN_OR_GRID_OR_MODEL`.

Samples one answer per prompt from the policy and from its base, on fixed prompts that no embedded
pair has, and measures what catches a broken policy before money is spent on a judge: the embedded
rule's score and win rate, length, distinct n-grams, repetition, answers that never end, and the KL
to the base per token.

The KL is a Monte Carlo estimate on the policy's own samples, the mean of log pi(y | x) - log
pi_base(y | x) over answers, divided by their tokens. Shown, and written as `quality.json` into each
run's or model's folder. Of a grid every cell that is over is measured: by its `best/`, or by the
base if it diverged before it had one. A cell whose file is of the same policy, asked the same, is
left alone, so that the command may be stopped and given again.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from eval.experiment import read_experiment
from eval.quality.score_file import FILE, Standing, is_of, read_quality, standing_of
from tddpo_jax.adapters.load import load_model
from tddpo_jax.batches.layout import Example, score_count
from tddpo_jax.commands.exit_status import run_command
from tddpo_jax.commands.options import Parser
from tddpo_jax.config.schema import MeshConfig, ModelConfig
from tddpo_jax.data.sources import read_rows
from tddpo_jax.data.templates import encode_prompt
from tddpo_jax.embedded.task import divided_prompts, score
from tddpo_jax.errors import UserError
from tddpo_jax.generation.generator import Completion, Generator
from tddpo_jax.generation.sampling import Sampling
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.placement.computation import computation
from tddpo_jax.placement.mesh import make_mesh
from tddpo_jax.runs.run_directory import read_part
from tddpo_jax.scoring.data_sets import example_log_probs
from tddpo_jax.system.atomic import write_text
from tddpo_jax.system.cache import use_compilation_cache
from tddpo_jax.system.console import Screen
from tddpo_jax.weights.locate import resolve


class Asked(NamedTuple):
    """The fixed prompts and how they are sampled."""

    prompts: list[list[dict[str, str]]]
    sampling: Sampling
    seed: int

    @property
    def record(self) -> dict[str, Any]:
        """What figures must have in common to be compared, as JSON."""
        prompts = json.dumps(self.prompts).encode()
        return {
            "prompts": len(self.prompts),
            "prompts_sha256": hashlib.sha256(prompts).hexdigest(),
            "sampling": self.sampling._asdict(),
            "seed": self.seed,
        }


class Policy(NamedTuple):
    """A model twice: to sample from, and (adapters merged) to score with."""

    generator: Generator
    model: Decoder


class Base(NamedTuple):
    """What policies are compared with: the base and its answers."""

    policy: Policy
    answers: list[Completion]


class Subject(NamedTuple):
    """What is measured: a cell by the policy that stands for it, or a model, which is no cell."""

    folder: Path
    standing: Standing | None


def load_policy(path: str, mesh: Mesh) -> Policy:
    """The policy of a run, a folder or a hub id, in float32.

    Raises:
        UserError: `path` stands for no model.
    """
    generator = Generator.from_path(path, "float32")
    return Policy(generator, load_model(resolve(path), mesh, jnp.float32))


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words over all n-grams of words, in [0, 1]; 0 if there are none."""
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(text: str, n: int = 3) -> float:
    """Share of a text's n-grams of words that stand in it before."""
    grams = _grams(text, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def answers(generator: Generator, asked: Asked) -> list[Completion]:
    """One sampled answer per prompt; prompt i has the key (seed, i), whatever the model."""
    ids = [encode_prompt(generator.tokenizer, prompt, None) for prompt in asked.prompts]
    keys = [(asked.seed, number) for number in range(len(ids))]
    return generator.generate(ids, [asked.sampling] * len(ids), keys)


def measure(policy: Policy, base: Base, asked: Asked, mesh: Mesh) -> dict[str, Any]:
    """All figures of one policy; `scores` are per prompt, the rest are means over prompts."""
    ours = base.answers if policy is base.policy else answers(policy.generator, asked)
    texts = [answer.text for answer in ours]
    scores, base_scores = (
        np.array([score(answer.text) for answer in each]) for each in (ours, base.answers)
    )
    wins = (scores > base_scores) + 0.5 * (scores == base_scores)
    return {
        "score": float(scores.mean()),
        "base_score": float(base_scores.mean()),
        "win_rate": float(wins.mean()),
        "tokens": float(np.mean([len(answer.token_ids) for answer in ours])),
        "unfinished": float(np.mean([answer.finish_reason == "length" for answer in ours])),
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "repetition": float(np.mean([repetition(text) for text in texts])),
        "kl_per_token": kl_per_token(policy, base.policy, asked, ours, mesh),
        "scores": scores.tolist(),
    }


def kl_per_token(
    policy: Policy, base: Policy, asked: Asked, ours: Sequence[Completion], mesh: Mesh
) -> float | None:
    """Nats per token, on the policy's samples; an answer of no token says nothing.

    None if no answer has a token.
    """
    examples = []
    for number, (prompt, answer) in enumerate(zip(asked.prompts, ours, strict=True)):
        ids = np.array(answer.token_ids, np.int32)
        if len(ids):
            prompt_ids = encode_prompt(policy.generator.tokenizer, prompt, None)
            examples.append(Example(number, prompt_ids, (ids,)))
    if not examples:
        return None
    how = computation(ModelConfig(dtype="float32", remat="none"), mesh)
    logps, base_logps = (
        example_log_probs(model, examples, how, mesh) for model in (policy.model, base.model)
    )
    return float(np.sum(logps - base_logps) / sum(map(score_count, examples)))


def read_prompts(path: str | None, most: int) -> list[list[dict[str, str]]]:
    """The prompts of a preference file, each once, as conversations; default the embedded ones.

    Raises:
        UserError: the file cannot be read, or holds no conversations.
    """
    if path is None:
        questions = divided_prompts()["questions"][:most]
        return [[{"role": "user", "content": prompt.text}] for prompt in questions]
    rows = read_rows(path)
    prompts = []
    for number, row in enumerate(rows):
        given = row.get("prompt", row.get("chosen"))
        messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
        if not isinstance(messages, list):
            raise UserError(f"--prompts: {path} row {number} has neither prompt nor chosen")
        if messages and messages[-1].get("role") == "assistant":
            messages = messages[:-1]
        if messages not in prompts:
            prompts.append(messages)
    return prompts[:most]


def subjects_of(path: Path) -> list[Subject]:
    """A grid's cells that are over, or the run or model itself.

    Raises:
        UserError: no cell of the grid is over.
    """
    if (path / "config.yaml").is_file():
        return [Subject(path, standing_of(cell)) for cell in read_experiment(path).cells]
    if not (path / "grid.json").is_file():
        return [Subject(path, None)]
    standings = {cell.folder: standing_of(cell) for cell in read_experiment(path).cells}
    found = [Subject(folder, standing) for folder, standing in standings.items() if standing]
    if not found:
        raise UserError(f"{path}: no cell of the grid is over yet")
    return found


def _base_path(run: Path, given: str | None) -> str:
    if given is not None:
        return given
    facts = read_part(run, "run.json")
    if facts is None:
        raise UserError(f"--base: {run} is no run directory; name the model to compare with")
    return facts["model"]["path"]


def _command(arguments: Sequence[str]) -> int:
    parser = Parser(prog="eval.quality", description="Quality of sampled answers, without a judge.")
    parser.add_argument("path", help="run, grid or model directory")
    parser.add_argument("--base", help="model to compare with (default: what the run started from)")
    parser.add_argument(
        "--prompts", help="preference file whose prompts to ask (default: embedded)"
    )
    parser.add_argument("--most", type=int, default=400, help="prompts to ask")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max-new-tokens", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if given.most < 1:
        raise UserError(f"--most: must be at least 1, got {given.most}")
    use_compilation_cache()
    sampling = Sampling(given.temperature, max_new_tokens=given.max_new_tokens)
    asked = Asked(read_prompts(given.prompts, given.most), sampling, given.seed)
    screen = Screen()
    mesh = make_mesh(MeshConfig())
    bases: dict[str, Base] = {}
    for folder, standing in subjects_of(Path(given.path)):
        path = _base_path(folder, given.base)
        about = {"asked": asked.record | {"base": path}}
        if _is_known(folder, standing, about):
            screen.say(f"{folder.name}: measured before; left alone")
            continue
        if path not in bases:
            policy = load_policy(path, mesh)
            bases[path] = Base(policy, answers(policy.generator, asked))
        base = bases[path]
        by_base = standing is not None and standing.policy == "base"
        policy = base.policy if by_base else load_policy(str(folder), mesh)
        figures = measure(policy, base, asked, mesh)
        shown = {n: round(v, 4) for n, v in figures.items() if isinstance(v, float)}
        why = " (diverged before any best/: its base)" if by_base else ""
        screen.say(f"{folder.name}{why}: {json.dumps(shown)}")
        # `embedded` and hub ids are no folders of the user's: their figures are only shown.
        if folder.is_dir():
            written = (standing._asdict() if standing else {}) | about | figures
            write_text(folder / FILE, json.dumps(written, indent=2) + "\n")
    return 0


def _is_known(folder: Path, standing: Standing | None, about: dict[str, Any]) -> bool:
    """Whether the folder's figures are of this policy, asked this."""
    found = read_quality(folder)
    return found is not None and is_of(found, standing) and found.get("asked") == about["asked"]


def main() -> int:
    """The command line."""
    return run_command(_command, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
