"""The benchmark's files: questions, judge prompts, reference answers, and a model's answers."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from tddpo_jax.errors import UserError
from tddpo_jax.system.json_lines import Row, read_rows

REFERENCE = "gpt-4"  # the model that wrote FastChat's reference answers
# FastChat's NEED_REF_CATS: for these categories the judge sees a reference answer.
REFERENCE_CATEGORIES = ("math", "reasoning", "coding")

QUESTIONS = "mt_bench/question.jsonl"
JUDGE_PROMPTS = "judge_prompts.jsonl"


class Question(Row):
    """A row of `question.jsonl`."""

    question_id: int
    category: str
    turns: tuple[str, str]
    required_temperature: float | None = None


class JudgePrompt(Row):
    """A row of `judge_prompts.jsonl`."""

    name: str
    type: str
    system_prompt: str
    prompt_template: str


class Choice(Row):
    """The two turns of an answer."""

    turns: tuple[str, str]


class Answer(Row):
    """A row of `model_answer/<model>.jsonl`. The last three keys are ours."""

    question_id: int
    answer_id: str = ""
    model_id: str
    choices: Annotated[tuple[Choice, ...], Field(min_length=1, max_length=1)]
    tstamp: float = 0.0
    seed: int | None = None
    finish_reasons: tuple[str, ...] = ()
    generation: dict[str, Any] | None = None

    @property
    def turns(self) -> tuple[str, str]:
        """The text of both turns."""
        return self.choices[0].turns


class Record(TypedDict):
    """What every judgment records about these files: their SHA-256 and the rest as it is named."""

    questions: str
    question_count: int
    prompts: str
    references: str
    reference: str


@dataclasses.dataclass(frozen=True)
class Data:
    """What a judgment depends on besides the answer and the judge.

    Attributes:
        questions: the questions, by id.
        prompts: the judge's prompts, by name.
        references: the reference answers, by question id.
        record: what every judgment records about all this.
    """

    questions: Mapping[int, Question]
    prompts: Mapping[str, JudgePrompt]
    references: Mapping[int, Answer]
    record: Record


@dataclasses.dataclass(frozen=True)
class AnswerFile:
    """The answers of one model and seed. FastChat names them by `model`, the stem of the file."""

    path: Path
    model: str
    model_id: str
    seed: int | None
    answers: Mapping[int, Answer]


def load_data(folder: str | Path, reference: str = REFERENCE) -> Data:
    """Reads FastChat's `data` folder.

    Raises:
        UserError: a file is missing or a row is wrong. The message names the file and the row.
    """
    folder = Path(folder)
    if not (folder / QUESTIONS).exists():
        raise UserError(
            f"{folder / QUESTIONS}: no such file; "
            "run `python -m tddpo_jax mt-bench fetch` or give --data-dir"
        )
    references = folder / "mt_bench" / "reference_answer" / f"{reference}.jsonl"
    questions = _by_id(folder / QUESTIONS, read_rows(folder / QUESTIONS, Question))
    prompts = {prompt.name: prompt for prompt in read_rows(folder / JUDGE_PROMPTS, JudgePrompt)}
    return Data(
        questions=questions,
        prompts=prompts,
        references=_by_id(references, read_rows(references, Answer)),
        record={
            "questions": sha256(folder / QUESTIONS),
            "question_count": len(questions),
            "prompts": sha256(folder / JUDGE_PROMPTS),
            "references": sha256(references),
            "reference": reference,
        },
    )


def load_answers(path: str | Path) -> AnswerFile:
    """Reads one `model_answer` file: one model, one seed.

    A file without our `seed` key was made by another program. Its model is the stem of its name, as
    in FastChat.

    Raises:
        UserError: a row is wrong, a question is answered twice, or the file mixes models or seeds.
    """
    path = Path(path)
    rows = read_rows(path, Answer)
    answers = _by_id(path, rows)
    identities = {(row.model_id, row.seed) for row in rows if row.seed is not None}
    if len(identities) > 1 or (identities and any(row.seed is None for row in rows)):
        raise UserError(f"{path}: holds more than one model or seed")
    model_id, seed = next(iter(identities), (path.stem, None))
    return AnswerFile(path=path, model=path.stem, model_id=model_id, seed=seed, answers=answers)


def answer_files(paths: Iterable[str | Path]) -> list[AnswerFile]:
    """Reads answer files, and all `*.jsonl` of a folder.

    Raises:
        UserError: as `load_answers`; or two files have the same model and seed; or a folder holds
            no answers.
    """
    files: dict[tuple[str, int | None], AnswerFile] = {}
    stems: dict[str, Path] = {}
    for path in _expanded(paths):
        file = load_answers(path)
        other = files.get((file.model_id, file.seed))
        if other is not None:
            raise UserError(f"{path}: {other.path} has the same model {file.model_id!r} and seed")
        if file.model in stems:
            raise UserError(f"{path}: {stems[file.model]} has the same name")
        files[file.model_id, file.seed] = file
        stems[file.model] = path
    return list(files.values())


def _expanded(paths: Iterable[str | Path]) -> list[Path]:
    expanded = []
    for path in map(Path, paths):
        found = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not found:
            raise UserError(f"{path}: the folder holds no answer files (*.jsonl)")
        expanded += found
    return expanded


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _by_id(path: Path, rows: list[Any]) -> dict[int, Any]:
    by_id: dict[int, Any] = {}
    for row in rows:
        if row.question_id in by_id:
            raise UserError(f"{path}: question {row.question_id} appears twice")
        by_id[row.question_id] = row
    return by_id
