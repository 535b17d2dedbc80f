"""The losses in `configs/losses`: TRL's numbers, and what `check-loss` says of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from loss_cases import evaluate, golden_pairs
from places import CONFIGS

from tddpo_jax.config.own_loss import load_loss
from tddpo_jax.losses.catalogue import LOSSES
from tddpo_jax.losses.examination import examine
from tddpo_jax.losses.objective import Objective, Term

GOLDEN = json.loads((Path(__file__).parent / "golden_own_losses.json").read_text())["rows"]
NAMES = {
    "forward_kl": "f_divergences.py:forward_kl_dpo",
    "js_divergence": "f_divergences.py:js_dpo",
    "alpha_divergence": "f_divergences.py:alpha_dpo",
    "wpo": "wpo.py:wpo",
}
SETTINGS = {"beta": 0.1, "alpha": 0.5, "ld_alpha": 1.0}


def row_of(name):
    return LOSSES[load_loss(f"{CONFIGS}/losses/{NAMES[name]}")]


@pytest.mark.parametrize(
    "row", GOLDEN, ids=lambda row: f"{row['divergence']}{row.get('alpha', '')}"
)
def test_values_and_gradients_are_those_of_trl(row):
    """TRL computes the alpha divergence's powers in float32."""
    loss = Objective((Term(row_of(row["divergence"]), ()),))
    scalars = {**SETTINGS, "alpha": row.get("alpha", 0.5)}
    values, gradients = evaluate(loss, golden_pairs(), scalars, among=(loss,))
    rtol = 1e-5 if row["divergence"] == "alpha_divergence" else 1e-9
    np.testing.assert_allclose(values.mean(), row["mean"], rtol=rtol)
    for branch in ("chosen", "rejected"):
        found = getattr(gradients, f"logp_{branch}") / 6
        np.testing.assert_allclose(found, row[f"first_{branch}"], rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_check_loss_passes_them_but_for_weights_without_a_gradient(name):
    failed = [each.text for each in examine(row_of(name), SETTINGS) if each.passed is False]
    expected = ["gradient does not agree with finite differences"] if name == "wpo" else []
    assert [text.partition(":")[0] for text in failed] == expected
