"""Weighted sums of losses: TRL's numbers, and rewards of the preference part."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import PAIRS, S_L, S_W, SCALARS, evaluate, golden_pairs

from tddpo_jax.config.mixed_loss import load_mixture
from tddpo_jax.losses.catalogue import LOSSES, all_settings
from tddpo_jax.losses.objective import objective_of

GOLDEN = json.loads((Path(__file__).parent / "golden_mixtures.json").read_text())["rows"]
MIXED = [row for row in GOLDEN if len(row["mix"]) > 1 and "ld_alpha" not in row]


def mixed(weights, **others):
    """The objective of a mixture, and its numbers."""
    name = load_mixture("+".join(weights))
    objective = objective_of([{"name": name, "margin": "policy", "kl": "k2"}])
    return objective, {**SCALARS._asdict(), **others, **weights}


@pytest.mark.parametrize("row", MIXED, ids=lambda row: f"{'+'.join(row['mix'])}-{row['beta']}")
def test_values_and_gradients_are_those_of_trl(row):
    """A mean over pairs and a mean over tokens, in one sum."""
    weights = {{"sigmoid": "dpo"}.get(name, name): weight for name, weight in row["mix"].items()}
    pairs = golden_pairs()
    tokens = {"tokens_per_pair": pairs.length_chosen.mean(), "label_smoothing": 0.0}
    objective, scalars = mixed(weights, beta=row["beta"], **tokens)
    values, gradients = evaluate(objective, pairs, scalars, among=(objective,))
    np.testing.assert_allclose(values.mean(), row["mean"], rtol=1e-11)
    for name in ("chosen", "rejected"):
        found = getattr(gradients, f"logp_{name}") / len(values)
        np.testing.assert_allclose(found, row[f"first_{name}"], rtol=1e-9, atol=1e-14)


def test_rewards_are_those_of_the_preference_part():
    """The first loss of two responses, whichever place it has: here td_dpo's, the log-ratios."""
    objective, scalars = mixed({"sft": 2.0, "td_dpo": 1.0, "dpo": 0.5})
    with jax.enable_x64(True):
        rewards = objective.rewards(0, jax.tree.map(jnp.asarray, PAIRS), scalars)
    np.testing.assert_allclose(rewards, (S_W, S_L), rtol=1e-14)


def test_it_has_the_settings_of_its_parts_and_is_no_loss_for_others():
    row = LOSSES[load_mixture("td_dpo+sft")]
    assert list(row.settings) == ["beta", "ld_alpha", "tau", "margin", "kl", "td_dpo", "sft"]
    assert (row.responses, row.needs_beta) == (2, False)
    assert row.exact_kl({"kl": "full"})
    assert "sft" not in all_settings()
    assert LOSSES[load_mixture("td_dpo+sft")] is row
