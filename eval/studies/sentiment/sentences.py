"""Divides the human-rated sentences once: for two judges, for pairs, and for questions.

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2
    python -m eval.studies.sentiment.sentences --archive vaderSentiment-3.3.2.tar.gz \\
        --tokenizer SMOLLM2 --output runs/sentiment

The sentences are sorted by the hash of their text, and then divided. The parts of prompts hold the
first `PREFIX` tokens of each sentence, as ids. The prompts of pairs come in files of their own for
each seed, so a seed draws other prompts.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tddpo_jax.commands.exit_status import run_command
from tddpo_jax.commands.options import Parser
from tddpo_jax.data.tokenizer import load_tokenizer
from tddpo_jax.errors import UserError
from tddpo_jax.system.atomic import write_text

PREFIX = 5  # tokens
SEEDS = 5
# Number of sentences of each part. What is left is not used.
PARTS = {"labeller": 4000, "gold": 4000, "pairs": 1600, "choosing": 400, "test": 600}
PROMPTS = ("pairs", "choosing", "test")
# Where the sentences lie in vaderSentiment's source archive, and in the archive inside of it.
INNER, RATED = "hutto_ICWSM_2014.tar.gz", "movieReviewSnippets_GroundTruth.txt"


class Sentence(NamedTuple):
    """A critic's sentence, and the mean rating of its sentiment by 20 people, from -4 to 4."""

    text: str
    rating: float


def read_sentences(archive: Path) -> list[Sentence]:
    """All sentences of vaderSentiment's source archive, each text once.

    Raises:
        UserError: the archive cannot be read, or does not hold them.
    """
    try:
        with tarfile.open(archive) as outer:
            inner = _member(outer, INNER)
        with tarfile.open(fileobj=io.BytesIO(inner)) as files:
            lines = _member(files, RATED).decode("utf-8", "replace").splitlines()
        rows = (line.split("\t") for line in lines if line.strip())
        rated = {text: float(rating) for _, rating, text in rows}
    except (OSError, ValueError, tarfile.TarError, StopIteration) as error:
        raise UserError(f"--archive: {archive} does not hold {INNER} with {RATED}") from error
    return [Sentence(text, rating) for text, rating in rated.items()]


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    member = next(each for each in archive.getmembers() if Path(each.name).name == name)
    file = archive.extractfile(member)
    assert file is not None
    return file.read()


def parts_of(sentences: Sequence[Sentence]) -> dict[str, list[Sentence]]:
    """The parts, each in the order of the hashes of its texts."""
    ordered = sorted(sentences, key=lambda each: hashlib.sha256(each.text.encode()).hexdigest())
    parts, first = {}, 0
    for name, count in PARTS.items():
        parts[name] = ordered[first : first + count]
        first += count
    return parts


def _command(arguments: Sequence[str]) -> int:
    parser = Parser(prog="sentences", description="Divides the rated sentences.")
    parser.add_argument("--archive", required=True, help="vaderSentiment's source archive")
    parser.add_argument("--tokenizer", required=True, help="folder of SmolLM2's tokenizer")
    parser.add_argument("--output", required=True, help="folder for the parts")
    given = parser.parse_args(arguments)
    output, tokenizer = Path(given.output), load_tokenizer(Path(given.tokenizer))
    output.mkdir(parents=True, exist_ok=True)
    parts = parts_of(read_sentences(Path(given.archive)))
    for name, sentences in parts.items():
        if name not in PROMPTS:
            _write(output / f"{name}.jsonl", [each._asdict() for each in sentences])
            continue
        rows = []
        for sentence in sentences:
            ids = tokenizer(sentence.text, add_special_tokens=False)["input_ids"]
            if len(ids) > PREFIX:
                prefix = tokenizer.decode(ids[:PREFIX])
                rows.append({"prompt_ids": ids[:PREFIX], "prefix": prefix})
        if name != "pairs":
            _write(output / f"{name}.jsonl", rows)
            continue
        for seed in range(SEEDS):
            _write(output / f"pairs-seed{seed}.jsonl", rows[seed::SEEDS])
    return 0


def _write(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
    print(f"{file}: {len(rows)} rows")


def main() -> int:
    """The command line."""
    return run_command(_command, sys.argv[1:], resumes=False)


if __name__ == "__main__":
    sys.exit(main())
