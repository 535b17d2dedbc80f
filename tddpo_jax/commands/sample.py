"""The verb `sample`: answers from a model, scored by a reward, as pairs to train on.

The answers lie in `NAME.samples.jsonl` beside the pairs in `NAME.jsonl`, one line per prompt, with
their scores and with what they depend on. The same command goes on where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tddpo_jax.config.schema import DataSource
from tddpo_jax.data.examples import Vocabulary
from tddpo_jax.data.row_prompts import Prompt, load_prompts
from tddpo_jax.data.tokenizer import load_tokenizer_if_any
from tddpo_jax.errors import UserError
from tddpo_jax.generation.answer_pairs import WAYS
from tddpo_jax.generation.generator import Generator, most_new_tokens
from tddpo_jax.generation.rewards import Reward, load_reward
from tddpo_jax.generation.samples import Answers, answer_prompts, pairs_of, read_answers
from tddpo_jax.generation.sampling import Sampling, check, check_keys, room_for_prompt
from tddpo_jax.placement.computation import compute_dtype
from tddpo_jax.runs.run_directory import check_output
from tddpo_jax.system.atomic import write_text
from tddpo_jax.system.console import Screen
from tddpo_jax.weights import hugging_face
from tddpo_jax.weights.locate import resolve, weights_of


class Asked(NamedTuple):
    """What is asked of a model, and how its answers become pairs.

    Attributes:
        model: a path that `weights.locate.resolve` accepts.
        data: the source of the prompts, see `data.row_prompts`.
        samples: number of answers to each prompt, at least 2.
        reward: the name of the reward, see `load_reward`.
        pairs: one of `WAYS`, see `chosen_and_rejected`.
        sampling: how an answer is sampled; its `max_new_tokens` is not used.
        max_new_tokens: most tokens of an answer; None for 256, or half the context if that is less.
        seed: of sampling.
        template: name of a chat template; None for the tokenizer's own.
        raw: whether a text is continued as it is, without a template.
        dtype: dtype of weights and computation.
    """

    model: str
    data: DataSource
    samples: int
    reward: str
    pairs: str
    sampling: Sampling
    max_new_tokens: int | None
    seed: int
    template: str | None
    raw: bool
    dtype: str


def sample_pairs(asked: Asked, output: Path, screen: Screen) -> list[dict[str, Any]]:
    """Writes the answers with their scores, and the pairs that they make; returns the pairs.

    Args:
        asked: what is asked of which model.
        output: the file of the pairs.
        screen: shows the progress.

    Raises:
        UserError: the user's input is wrong, or the output holds something else.
    """
    _check(asked)
    file = _samples_file(output)
    reward = load_reward(asked.reward)
    files = resolve(asked.model)
    config = hugging_face.read_config(files.base)
    sampling = _sampling(asked, config.context)
    prompts, unused = load_prompts(
        asked.data,
        load_tokenizer_if_any(files.tokenizer),
        asked.template,
        raw=asked.raw,
        most=room_for_prompt(config.context, sampling.max_new_tokens),
        vocabulary=Vocabulary(config.vocabulary, config.not_text),
    )
    for reason, rows in unused.items():
        screen.say(f"{asked.data.path}: {len(rows)} not used: {reason} (first row {rows[0]})")
    for prompt in prompts:
        reward.check_row(prompt.row, prompt.columns)
    made = _record(asked, reward, sampling, prompts)
    lines = read_answers(file, made)
    if len(lines) < len(prompts):
        generator = Generator.from_path(
            asked.model, asked.dtype, template=asked.template, by_ids=True
        )
        with screen.stage("prompts answered") as progress:
            answer_prompts(
                generator,
                prompts,
                reward,
                samples=asked.samples,
                sampling=sampling,
                seed=asked.seed,
                made=made,
                file=file,
                there=len(lines),
                progress=progress,
            )
        lines = read_answers(file, made)
    both = zip(prompts, lines, strict=True)
    pairs = [row for prompt, line in both for row in pairs_of(prompt, line, asked.pairs)]
    write_text(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in pairs))
    _tell(screen, output, lines, pairs, sampling)
    screen.say(f"all answers and their scores: {file}")
    return pairs


def _check(asked: Asked) -> None:
    if asked.samples < 2:
        raise UserError(f"samples: a pair needs at least 2 answers, got {asked.samples}")
    if asked.pairs not in WAYS:
        raise UserError(f"pairs: {asked.pairs!r} is not {' or '.join(WAYS)}")
    check(asked.sampling)
    check_keys([(asked.seed,)])
    if asked.sampling.temperature == 0:
        raise UserError("temperature: 0 makes all answers to a prompt alike; give more than 0")


def _samples_file(output: Path) -> Path:
    check_output(output.parent)
    if output.is_dir():
        raise UserError(f"output: {output} is a directory; expected a file")
    file = output.with_name(f"{output.stem}.samples.jsonl")
    if output.exists() and not file.exists():
        raise UserError(f"output: {output} exists, and {file.name} with its samples does not")
    return file


def _sampling(asked: Asked, context: int) -> Sampling:
    new_tokens = asked.max_new_tokens
    if new_tokens is None:
        new_tokens = most_new_tokens(context)
    sampling = asked.sampling._replace(max_new_tokens=new_tokens)
    check(sampling)
    return sampling


def _record(
    asked: Asked, reward: Reward, sampling: Sampling, prompts: Sequence[Prompt]
) -> dict[str, Any]:
    """What the answers and their scores depend on."""
    digest = hashlib.sha256()
    for prompt in prompts:
        columns = json.dumps(prompt.columns, default=str)
        digest.update(f"{prompt.row} {prompt.ids.tolist()} {columns}\n".encode())
    return {
        "model": weights_of(asked.model),
        "data": digest.hexdigest(),
        "reward": reward.identity,
        "samples": asked.samples,
        **sampling._asdict(),
        "seed": asked.seed,
        "template": asked.template,
        "dtype": str(np.dtype(compute_dtype(asked.dtype))),
    }


def _tell(
    screen: Screen,
    output: Path,
    lines: Sequence[Answers],
    pairs: Sequence[dict[str, Any]],
    sampling: Sampling,
) -> None:
    """Says what came out, and warns of answers that the model did not end itself."""
    scores = [score for line in lines for score in line.scores]
    alike = len(lines) - len({pair["index"] for pair in pairs})
    screen.say(
        f"{output}: {len(pairs)} pairs from {len(lines)} prompts with {len(lines[0].scores)} "
        f"answers each, mean score {np.mean(scores):.4g}; {alike} prompts make no pair: their "
        "answers score the same or are empty"
    )
    cut = sum(not finished for line in lines for finished in line.finished)
    if cut:
        warnings.warn(
            f"max_new_tokens: {cut} of {len(scores)} answers were cut at "
            f"{sampling.max_new_tokens} tokens; training ends them with an end of turn, unless "
            "they are token ids",
            stacklevel=2,
        )
