"""Writes small files of gsm8k's shape, and a task that checks answers: `make_data.py FOLDER`."""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path

ANIMALS = ("dog", "cat", "fox", "hen", "goat", "mouse", "duck", "pony")
PLACES = ("by the river", "in the garden", "on the hill", "near the barn")
TASK = """task: sums
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer.split('####')[1].strip()}}}}"
generation_kwargs: {{until: [], max_gen_toks: 48}}
filter_list:
  - name: result
    filter:
      - {{function: regex, regex_pattern: "#### (\\\\d+)"}}
      - {{function: take_first}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


def rows() -> list[dict[str, str]]:
    """Every question with its answer, in a fixed random order."""
    parts = itertools.product(range(1, 6), range(1, 6), ANIMALS, PLACES)
    found = [
        {
            "question": f"The {animal} found {one} and {other} {place}.",
            "answer": f"It was {one} and {other}.\n#### {one + other}",
        }
        for one, other, animal, place in parts
    ]
    random.Random(0).shuffle(found)
    return found


def write(file: Path, rows: Iterable[dict[str, str]]) -> None:
    """Writes rows as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    """Writes `start.jsonl`, `prompts.jsonl` and `test.jsonl`, and the task `sums`."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    start, prompts, test = 0, 300, 600
    found = rows()
    write(folder / "start.jsonl", found[start:prompts])
    write(folder / "prompts.jsonl", found[prompts:test])
    write(folder / "test.jsonl", found[test:])
    task = TASK.format(data=(folder / "test.jsonl").absolute())
    (folder / "sums.yaml").write_text(task)


if __name__ == "__main__":
    main()
