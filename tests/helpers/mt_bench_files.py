"""A small benchmark in FastChat's format, with answers and judgments, for tests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CATEGORIES = ("writing", "math", "coding", "stem")
QUESTION_IDS = (81, 111, 121, 141)

# The four prompts have the names, fields and order of parts of FastChat's, with other words.
PROMPTS = (
    {
        "name": "single-v1",
        "system_prompt": "Help.",
        "prompt_template": "Rate [[1]] to [[10]].\n\n[Q]\n{question}\n\n[A]\n{answer}\n[End]",
    },
    {
        "name": "single-math-v1",
        "system_prompt": "Help.",
        "prompt_template": "[Q]\n{question}\n\n[R]\n{ref_answer_1}\n\n[A]\n{answer}\n[End]",
    },
    {
        "name": "single-v1-multi-turn",
        "system_prompt": "Judge turn 2.\n\n",
        "prompt_template": "<|A|>\n{question_1}\n{answer_1}\n{question_2}\n{answer_2}\n<|End|>",
    },
    {
        "name": "single-math-v1-multi-turn",
        "system_prompt": "Judge turn 2 with the reference.\n\n",
        "prompt_template": (
            "<|R|>\n{question_1}\n{ref_answer_1}\n{question_2}\n{ref_answer_2}\n<|End|>\n\n"
            "<|A|>\n{question_1}\n{answer_1}\n{question_2}\n{answer_2}\n<|End|>"
        ),
    },
)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_data(folder: Path, *, per_category: int = 1) -> Path:
    """Writes a `data` folder of four categories with `per_category` questions each."""
    questions = [
        {
            "question_id": first + number,
            "category": category,
            "turns": [f"{category} {number} one?", f"{category} {number} {{two}}?"],
        }
        for category, first in zip(CATEGORIES, QUESTION_IDS, strict=True)
        for number in range(per_category)
    ]
    references = [
        {
            "question_id": question["question_id"],
            "answer_id": "r",
            "model_id": "gpt-4",
            "choices": [{"index": 0, "turns": ["ref one", "ref two"]}],
            "tstamp": 1.0,
        }
        for question in questions
        if question["category"] in ("math", "coding")
    ]
    prompts = [{**prompt, "type": "single", "output_format": "[[rating]]"} for prompt in PROMPTS]
    write_lines(folder / "mt_bench" / "question.jsonl", questions)
    write_lines(folder / "mt_bench" / "reference_answer" / "gpt-4.jsonl", references)
    write_lines(folder / "judge_prompts.jsonl", prompts)
    return folder


def write_answers(
    folder: Path, data: Path, model_id: str = "tiny", seed: int | None = 0, text: str = "answer"
) -> Path:
    """Writes answers to every question, in our format, or without our keys if `seed` is None."""
    stem = model_id if seed is None else f"{model_id}-seed{seed}"
    ours = {} if seed is None else {"seed": seed}
    rows = [
        {
            "question_id": question["question_id"],
            "answer_id": "a",
            "model_id": model_id,
            "choices": [{"index": 0, "turns": [f"{text} [1] {stem}", f"{text} {{b}} {stem}"]}],
            "tstamp": 1.0,
            **ours,
        }
        for question in lines(data / "mt_bench" / "question.jsonl")
    ]
    return write_lines(folder / f"{stem}.jsonl", rows)


def judgment(
    model: str, question_id: int, turn: int, score: float, judge: str = "j", **ours: Any
) -> dict[str, Any]:
    """A judgment with FastChat's keys and those in `ours`."""
    return {
        "question_id": question_id,
        "model": model,
        "judge": [judge, "single-v1"],
        "user_prompt": "asked",
        "judgment": f"Rating: [[{score}]]",
        "score": score,
        "turn": turn,
        "tstamp": 1.0,
        **ours,
    }
