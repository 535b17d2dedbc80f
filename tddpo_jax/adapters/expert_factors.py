"""An adapter of all experts of a layer, in our tree and in PEFT's files.

We hold a pair of factors for each expert: A `[E, R, inputs]` and B `[E, *outputs, R]`. PEFT's files
have one pair for all experts, A `[E R, inputs]` and B `[outputs, R E]`. The rows of A go expert by
expert, and the columns of B rank by rank.

Letters: E experts, R ranks, O outputs, I inputs.

References:
    huggingface/peft, `tuners/lora/layer.py`, `ParamWrapper`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tddpo_jax.models.tensor_table import TargetParameter


class Factors(NamedTuple):
    """The factors of one layer's experts, without a scale."""

    a: Float[np.ndarray, "E R I"]
    b: Float[np.ndarray, "E *outputs R"]


class PeftFactors(NamedTuple):
    """The factors as PEFT stores them. If it takes inputs for outputs, O and I trade places."""

    a: Float[np.ndarray, "ER I"]
    b: Float[np.ndarray, "O RE"]


def stored(factors: Factors, target: TargetParameter) -> PeftFactors:
    """PEFT's form of the factors."""
    a, b = factors
    b = b if target.outputs is None else target.outputs.export(b)
    rows, columns = (b.swapaxes(1, 2), a.swapaxes(1, 2)) if target.swapped else (a, b)
    return PeftFactors(
        rows.reshape(-1, rows.shape[2]),
        columns.transpose(1, 2, 0).reshape(columns.shape[1], -1),
    )


def factors(stored: PeftFactors, target: TargetParameter, experts: int) -> Factors:
    """The inverse of `stored`.

    Args:
        stored: the tensors of a file.
        target: the parameter that they adapt.
        experts: number of experts.
    """
    rows = stored.a.reshape(experts, -1, stored.a.shape[1])
    columns = stored.b.reshape(stored.b.shape[0], -1, experts).transpose(2, 0, 1)
    a, b = (columns.swapaxes(1, 2), rows.swapaxes(1, 2)) if target.swapped else (rows, columns)
    return Factors(a, b if target.outputs is None else target.outputs.load(b))


def stored_shapes(
    outputs: int, inputs: int, experts: int, rank: int, target: TargetParameter
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes of PEFT's A and B."""
    outputs, inputs = (inputs, outputs) if target.swapped else (outputs, inputs)
    return (experts * rank, inputs), (outputs, rank * experts)
