"""Makes the embedded default from nothing: `python -m tddpo_jax.embedded.make --output DIR`.

It makes three things. The tokenizer knows the little world of `embedded.task`. The model is a tiny
Llama that the project's own SFT taught this world's language, with neutral moods. The preference
pairs are on-policy: answers that this Llama sampled, ranked by the exact rule. Everything follows
from `SEED`. Only the rounding of the weights depends on the machine, and it changes a few samples.

With `--unequal` it makes only pairs, for trials, from the Llama that the package ships. The two
answers of such a pair were asked for in three, four or five sentences, whatever number the prompt
of the pair asks for.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tddpo_jax.commands.exit_status import run_command
from tddpo_jax.data.templates import encode_prompt
from tddpo_jax.embedded.task import (
    COUNTS,
    SEED,
    Prompt,
    asking_for,
    divided_prompts,
    score,
    write_answer,
)
from tddpo_jax.errors import UserError
from tddpo_jax.experiments.grid import run_experiment
from tddpo_jax.generation.generator import Generator
from tddpo_jax.generation.sampling import Sampling
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.system.atomic import write_json
from tddpo_jax.system.console import Screen
from tddpo_jax.weights import hugging_face

PAIRS = {"train": 900, "validation": 200}  # there are more prompts, because a few make no pair
# The number of sentences that each answer to a prompt is asked for; None: the prompt's own number.
# Two of these answers become a pair.
EQUAL: tuple[int | None, ...] = (None,) * 4
UNEQUAL: tuple[int | None, ...] = (*COUNTS, *COUNTS)
SAMPLING = Sampling(temperature=1.0, max_new_tokens=96)
CLOSE_EVERY = 5  # one pair in five differs as little as possible, the others clearly
LESSONS_PER_PROMPT = 3

CONTEXT = 256
MOST_PIECES = 512
PAD, BOS, EOS = SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")
CHAT_TEMPLATE = (
    "{{- bos_token -}}{%- for message in messages -%}"
    "{{ message['content'] ~ (eos_token if message['role'] == 'assistant' else '\\n') }}"
    "{%- endfor -%}"
)
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": BOS,
    "eos_token": EOS,
    "pad_token": PAD,
    "model_max_length": CONTEXT,
    "clean_up_tokenization_spaces": False,
    "chat_template": CHAT_TEMPLATE,
}
TOKEN_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MODEL_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "dtype": "float32",
    **TOKEN_IDS,
}
WEIGHTS = "model.safetensors"
SFT = {
    "loss": {"name": "sft"},
    "train": {"learning_rate": 4.0e-3, "epochs": 3, "batch_pairs": 64, "weight_decay": 0.0},
}


def make(output: Path) -> None:
    """Writes every file of the embedded default into a new directory.

    Raises:
        UserError: the directory exists.
    """
    if output.exists():
        raise UserError(f"output: {output} exists")
    prompts = divided_prompts()
    lessons = make_lessons(prompts["lessons"])
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "embedded"
        folder.mkdir()
        tokenizer = make_tokenizer(lessons)
        tokenizer.save(str(folder / "tokenizer.json"))
        write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
        write_json(folder / "generation_config.json", TOKEN_IDS)
        config = MODEL_CONFIG | {"vocab_size": tokenizer.get_vocab_size()}
        write_json(folder / "config.json", config)
        teach(folder, lessons)
        base = Generator.from_path(str(folder), "float32")
        for side, count in PAIRS.items():
            write_lines(folder / f"{side}.jsonl", make_pairs(base, prompts[side])[:count])
        shutil.copytree(folder, output)


def make_lessons(prompts: Sequence[Prompt]) -> list[tuple[str, str]]:
    """Prompts and answers that follow the grammar; the base learns the language from them."""
    rng = random.Random(SEED)
    return [(p.text, write_answer(p, rng)) for p in prompts for _ in range(LESSONS_PER_PROMPT)]


def make_tokenizer(lessons: Sequence[tuple[str, str]]) -> Tokenizer:
    """A byte-level BPE with a piece for every word of the lessons, and bytes for other text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MOST_PIECES,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.chain.from_iterable(lessons), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, TOKEN_IDS["bos_token_id"])]
    )
    return tokenizer


def make_unequal(output: Path) -> None:
    """Writes pairs whose answers differ in length, from the shipped base, into a new directory.

    Raises:
        UserError: the directory exists.
    """
    if output.exists():
        raise UserError(f"output: {output} exists")
    base = Generator.from_path("embedded", "float32")
    prompts = divided_prompts()
    output.mkdir(parents=True)
    for side, count in PAIRS.items():
        write_lines(output / f"{side}.jsonl", make_pairs(base, prompts[side], UNEQUAL)[:count])


def teach(folder: Path, lessons: Sequence[tuple[str, str]]) -> None:
    """Trains random weights by the project's SFT and adds them to a folder that lacks only them."""
    with tempfile.TemporaryDirectory() as name:
        start, run, file = (Path(name) / part for part in ("start", "run", "lessons.jsonl"))
        model = Decoder(hugging_face.read_config(folder), jax.random.key(SEED))
        hugging_face.export(model, folder, start)
        write_lines(file, [lesson_row(*lesson) for lesson in lessons])
        paths = {"model": {"path": str(start)}, "data": {"path": str(file), "validation": 0}}
        run_experiment(paths | SFT | {"seed": SEED, "output": str(run)}, Screen())
        shutil.copyfile(run / "best" / WEIGHTS, folder / WEIGHTS)


def lesson_row(prompt: str, answer: str) -> dict[str, Any]:
    """A data row for `--loss sft`."""
    return {"messages": [message("user", prompt), message("assistant", answer)]}


def sample_responses(base: Generator, prompts: Sequence[Prompt], draw: int) -> list[str | None]:
    """Samples one answer of the base to each prompt; None if the answer did not end.

    Args:
        base: the model.
        prompts: the prompts.
        draw: number of the draw; every prompt and draw has its own random key.
    """
    asked = [encode_prompt(base.tokenizer, [message("user", p.text)], None) for p in prompts]
    keys = [(SEED, draw, number) for number in range(len(prompts))]
    answers = base.generate(asked, [SAMPLING] * len(prompts), keys)
    return [answer.text if answer.finish_reason == "stop" else None for answer in answers]


def make_pairs(
    base: Generator, prompts: Sequence[Prompt], counts: Sequence[int | None] = EQUAL
) -> list[dict[str, Any]]:
    """Makes rows with the columns of argilla/dpo-mix-7k, at most one per prompt.

    Args:
        base: the model that answers.
        prompts: the prompts.
        counts: the number of sentences that each answer is asked for, see `EQUAL`.
    """
    draws = [
        sample_responses(base, [p if n is None else asking_for(p, n) for p in prompts], draw)
        for draw, n in enumerate(counts)
    ]
    rows = []
    for number, (prompt, *answers) in enumerate(zip(prompts, *draws, strict=True)):
        ended = [answer for answer in answers if answer]
        pair = choose(ended, close=number % CLOSE_EVERY == 0)
        if pair is not None:
            rows.append(preference_row(prompt.text, *pair))
    return rows


def choose(answers: Sequence[str], *, close: bool) -> tuple[str, str] | None:
    """Two answers with different scores, the better first; None if all have the same score.

    Args:
        answers: the answers to one prompt.
        close: True for the two whose scores differ least, False for the best and the worst.
    """
    pairs = [
        (better, worse) for better in answers for worse in answers if score(better) > score(worse)
    ]
    pairs.sort(key=lambda pair: score(pair[0]) - score(pair[1]))
    return pairs[0 if close else -1] if pairs else None


def preference_row(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    """A data row whose ratings are the scores of the answers."""
    user = message("user", prompt)
    return {
        "dataset": "embedded",
        "chosen": [user, message("assistant", chosen)],
        "rejected": [user, message("assistant", rejected)],
        "chosen_rating": score(chosen),
        "rejected_rating": score(rejected),
    }


def message(role: str, content: str) -> dict[str, str]:
    """One message of a conversation."""
    return {"role": role, "content": content}


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes one JSON line per row."""
    path.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))


def command(arguments: Sequence[str]) -> int:
    """Runs this module's command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", required=True, type=Path, help="directory to write; must not exist yet"
    )
    parser.add_argument(
        "--unequal", action="store_true", help="make only pairs, with answers of unequal length"
    )
    options = parser.parse_args(arguments)
    (make_unequal if options.unequal else make)(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(command, sys.argv[1:], resumes=False))
