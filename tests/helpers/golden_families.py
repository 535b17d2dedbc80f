"""Tiny models of every family and the numbers that transformers computes with them.

`tests/models/golden/FAMILY/model` has the hub's own layout. `golden.json` beside it holds the
numbers of transformers 5.24 in float32 with eager attention. Its own error against float64 is below
1e-5. A mistake of a family's mathematics changes a log-prob by 1e-3 to 6.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny_models
from places import GOLDEN

from tddpo_jax.batches.layout import Batch, Example, Shape
from tddpo_jax.batches.packing import pack
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.weights import hugging_face

FAMILIES = sorted(folder.name for folder in GOLDEN.iterdir())
RESPONSES = ("chosen", "rejected")

Numbers = dict[str, Any]  # the content of `golden.json`


def numbers_of(name: str) -> Numbers:
    """The numbers of a family."""
    numbers: Numbers = json.loads((GOLDEN / name / "golden.json").read_text())
    return numbers


def folder_of(name: str) -> Path:
    """The folder of a family's model."""
    return GOLDEN / name / "model"


def load(name: str) -> Decoder:
    """The model of a family, in float32."""
    return hugging_face.load(folder_of(name), tiny_models.one_device(), jnp.float32)


def examples_of(numbers: Numbers) -> list[Example]:
    """The pairs of a family."""
    return [
        Example(
            row,
            np.array(pair["prompt_ids"], np.int32),
            tuple(np.array(pair[f"{name}_ids"], np.int32) for name in RESPONSES),
        )
        for row, pair in enumerate(numbers["pairs"])
    ]


def packed(numbers: Numbers, rows: int) -> Batch:
    """All pairs of a family in one micro-batch."""
    (batch,) = pack(
        examples_of(numbers), [Shape(rows, max(512 // rows, 96), max(400 // rows, 80), 6)]
    )
    return batch


@tiny_models.quick_jit
def token_logps(model: Decoder, batch: Batch) -> jax.Array:
    """The log-prob of every target of one packed row."""
    states = tiny_models.run(model, batch)[0, batch.score_position[0]]
    log_probs = jax.nn.log_softmax(states @ model.head_weight.T)
    return jnp.take_along_axis(log_probs, batch.score_target[0][:, None], axis=1)[:, 0]


def largest_error(model: Decoder, numbers: Numbers) -> float:
    """The largest error of a token's log-prob, in nats.

    Both responses of a pair share their prompt.
    """
    batch = packed(numbers, 1)
    found = np.asarray(token_logps(model, jax.tree.map(jnp.asarray, batch)))
    position, errors = batch.positions[0][batch.score_position[0]], []
    for number, row in enumerate(batch.example[0]):
        pair = numbers["pairs"][row]
        for branch, name in enumerate(RESPONSES):
            # The chosen response is stored reversed, and so are its scores.
            own = batch.score_branch[0] == 2 * number + branch
            order = np.argsort(position[own])
            np.testing.assert_array_equal(batch.score_target[0][own][order], pair[f"{name}_ids"])
            errors.append(np.abs(found[own][order] - pair[f"{name}_logps"]).max())
    return max(errors)
