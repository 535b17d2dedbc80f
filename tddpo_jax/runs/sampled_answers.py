"""The answers to a few validation prompts that a run samples at every validation.

`evaluations/000045.jsonl` holds those after 45 steps, one line for each prompt: a `SampledAnswer`.
The prompts and their order are the same at every step and in every cell of a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tddpo_jax.system.atomic import write_text
from tddpo_jax.system.json_lines import Row, read_rows

FOLDER = "evaluations"  # of a run; validations save their arrays there too


class SampledAnswer(Row):
    """One line of a file. The texts have no special tokens; without a tokenizer they are ids."""

    step: int  # optimiser steps before the answer
    row: int | str  # the prompt's row in the validation data, `3 of PATH` in a mixture
    prompt: str  # as the chat template writes it
    answer: str
    finish_reason: Literal["stop", "length"]  # length: the answer was cut off
    chosen: str  # the data's own response
    rejected: str | None  # None where a prompt has one response


def write_answers(run: Path, step: int, answers: Sequence[SampledAnswer]) -> None:
    """Writes the answers of one validation.

    Args:
        run: the run's directory.
        step: optimiser steps so far.
        answers: one for each prompt.
    """
    lines = (answer.model_dump_json() + "\n" for answer in answers)
    write_text(run / FOLDER / f"{step:06d}.jsonl", "".join(lines))


def forget_answers(run: Path, step: int) -> None:
    """Deletes the answers of what came after `step` steps; at step 0 all of them."""
    for later, file in _files(run).items():
        if later > step or step == 0:
            file.unlink()


def read_answers(run: Path) -> dict[int, list[SampledAnswer]]:
    """The answers of every validation by its step, in order; empty if none were sampled.

    Raises:
        UserError: a file is damaged; the message names the file and the row.
    """
    return {step: read_rows(file, SampledAnswer) for step, file in _files(run).items()}


def _files(run: Path) -> dict[int, Path]:
    found = (run / FOLDER).glob("*.jsonl")
    return dict(sorted((int(file.stem), file) for file in found if file.stem.isdecimal()))
