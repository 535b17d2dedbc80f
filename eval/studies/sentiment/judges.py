"""Judges of sentiment: ridge regression of the human rating on a language model's hidden states.

    python -m eval.studies.sentiment.judges --model SMOLLM2 --layer 15 \\
        --sentences runs/sentiment/labeller.jsonl --output runs/sentiment/labeller.npz
    python -m eval.studies.sentiment.judges --model GEMMA --layer 9 \\
        --sentences runs/sentiment/gold.jsonl --output runs/sentiment/gold.npz

A tenth of the sentences is held out. Half of it chooses the penalty, and the other half gives the
correlation with the ratings that is printed. The features of a text are the mean over its tokens of
one layer's output. PyTorch and transformers compute them, so a judge shares no code with what it
judges.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from tddpo_jax.commands.exit_status import run_command
from tddpo_jax.commands.options import Parser

BATCH = 32  # texts
PENALTIES = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)


class Judge:
    """Scores texts; `file` was written by this module's command."""

    def __init__(self, file: Path) -> None:
        kept = np.load(file)
        self.features = Features(str(kept["model"]), int(kept["layer"]))
        self.mean, self.weight, self.offset = kept["mean"], kept["weight"], float(kept["offset"])

    def scores(self, texts: Sequence[str]) -> Float[np.ndarray, " N"]:
        """The predicted mean human rating of each text, about -4 to 4."""
        return (self.features.of(texts) - self.mean[None]) @ self.weight + self.offset


class Features:
    """The mean hidden state of one layer of a model."""

    def __init__(self, model: str, layer: int) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        network = AutoModel.from_pretrained(model, dtype=torch.float32).eval()
        # Nothing behind the layer is computed. Its output lacks the last norm.
        network.layers = network.layers[:layer]
        network.norm = torch.nn.Identity()
        self.network = network

    def of(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
        """The features of texts, in float64."""
        import torch

        found = []
        for first in tqdm(range(0, len(texts), BATCH), disable=len(texts) <= BATCH):
            part = list(texts[first : first + BATCH])
            batch = self.tokenizer(part, return_tensors="pt", padding=True)
            with torch.no_grad():
                states = self.network(**batch).last_hidden_state.double()
            mask = batch["attention_mask"][..., None]
            found.append(((states * mask).sum(1) / mask.sum(1)).numpy())
        return np.concatenate(found)


def fitted(
    x: Float[np.ndarray, "N D"], y: Float[np.ndarray, " N"], penalty: float
) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, " D"], float]:
    """The mean of the features, and the weights and the offset of ridge regression."""
    mean, offset = x.mean(0), float(y.mean())
    centred = x - mean[None]
    gram = centred.T @ centred + penalty * np.eye(x.shape[1])
    return mean, np.linalg.solve(gram, centred.T @ (y - offset)), offset


def _command(arguments: Sequence[str]) -> int:
    parser = Parser(prog="judges", description="Fits a judge of sentiment.")
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--layer", required=True, type=int, help="number of layers that are used")
    parser.add_argument("--sentences", required=True, help="rows of text and rating")
    parser.add_argument("--output", required=True, help="file of the judge, .npz")
    given = parser.parse_args(arguments)
    rows = [json.loads(line) for line in Path(given.sentences).read_text().splitlines()]
    x = Features(given.model, given.layer).of([row["text"] for row in rows])
    y = np.array([row["rating"] for row in rows])
    half = len(rows) // 20
    choose, test, train = slice(0, half), slice(half, 2 * half), slice(2 * half, None)

    def correlation(penalty: float, part: slice) -> float:
        mean, weight, _ = fitted(x[train], y[train], penalty)
        return float(np.corrcoef((x[part] - mean[None]) @ weight, y[part])[0, 1])

    best = max(PENALTIES, key=lambda penalty: correlation(penalty, choose))
    mean, weight, offset = fitted(x[train], y[train], best)
    np.savez(
        given.output,
        model=given.model,
        layer=given.layer,
        mean=mean,
        weight=weight,
        offset=offset,
    )
    print(
        f"{given.output}: fitted to {len(rows) - 2 * half} sentences, penalty {best:g}; "
        f"correlation with the ratings of {half} others {correlation(best, test):.3f}"
    )
    return 0


def main() -> int:
    """The command line."""
    return run_command(_command, sys.argv[1:], resumes=False)


if __name__ == "__main__":
    sys.exit(main())
