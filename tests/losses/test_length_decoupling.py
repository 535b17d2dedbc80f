"""LD-DPO's weight on the tails of log-probs: TRL's numbers, and that 1 changes nothing."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from loss_cases import PAIRS, SCALARS, evaluate, golden_pairs

from tddpo_jax.batches.layout import Shape
from tddpo_jax.batches.packing import pack, unpack
from tddpo_jax.losses import logprobs
from tddpo_jax.losses.catalogue import LOSSES
from tddpo_jax.losses.objective import Objective, Term, objective_of
from tddpo_jax.losses.pair_logps import Tails, decoupled, pair_logps
from tddpo_jax.losses.weighted_sum import mixture

GOLDEN = json.loads((Path(__file__).parent / "golden_mixtures.json").read_text())["rows"]
DECOUPLED = [row for row in GOLDEN if "ld_alpha" in row]
NAMES = {"sigmoid": "dpo"}
MIXTURE = mixture([LOSSES["dpo"], LOSSES["sft"]])
ROWS = {"sigmoid+sft": MIXTURE} | {
    name: LOSSES[NAMES.get(name, name)] for row in DECOUPLED for name in row["mix"] if name != "sft"
}
ALONE = {
    name: Objective((Term(row, tuple(texts)),), decoupled=True)
    for name, row in ROWS.items()
    for texts in [[("dpo_margin", "log_ratio")] if "dpo_margin" in row.settings else []]
}


def tail(total, length, other):
    """Token i of n has the share i / (1 + 2 + ... + n): what is left beyond the shorter one."""
    shorter = np.minimum(length, other)
    return total * (1 - shorter * (shorter + 1) / (length * (length + 1)))


def with_tails(pairs):
    lengths = pairs.length_chosen, pairs.length_rejected
    tails = Tails(
        tail(pairs.logp_chosen, *lengths),
        tail(pairs.logp_rejected, *lengths[::-1]),
        tail(pairs.ref_logp_chosen, *lengths),
        tail(pairs.ref_logp_rejected, *lengths[::-1]),
    )
    return pairs._replace(tails=tails)


@pytest.mark.parametrize(
    "row", DECOUPLED, ids=lambda row: f"{'+'.join(row['mix'])}-{row['ld_alpha']}"
)
def test_values_and_gradients_are_those_of_trl(row):
    """The first token of a response is never in its tail. The last is if it is the longer one."""
    name = "+".join(row["mix"])
    pairs, loss = with_tails(golden_pairs()), ALONE[name]
    scalars = {**SCALARS._asdict(), "discopop_tau": 0.05, "dpo": 1.0, "sft": 0.2}
    scalars |= {"label_smoothing": 0.0 if "sigmoid" in name else 0.1, "ld_alpha": row["ld_alpha"]}
    scalars |= {"tokens_per_pair": pairs.length_chosen.mean(), "beta": row["beta"]}
    values, gradients = evaluate(loss, pairs, scalars, among=tuple(ALONE.values()))
    np.testing.assert_allclose(values.mean(), row["mean"], rtol=1e-10)
    for branch, other in (("chosen", "rejected"), ("rejected", "chosen")):
        length, its = (getattr(pairs, f"length_{each}") for each in (branch, other))
        first = getattr(gradients, f"logp_{branch}") / 6
        last = first + np.where(length > its, getattr(gradients.tails, branch) / 6, 0)
        np.testing.assert_allclose(first, row[f"first_{branch}"], rtol=1e-9, atol=1e-14)
        np.testing.assert_allclose(last, row[f"last_{branch}"], rtol=1e-9, atol=1e-14)


def test_one_changes_no_bit_and_costs_nothing():
    pairs = with_tails(PAIRS)
    same = decoupled(pairs, ld_alpha=1.0)
    np.testing.assert_array_equal(same[:4], pairs[:4])
    assert not objective_of([{"name": "dpo", "ld_alpha": 1.0}, {"name": "sft"}]).decoupled
    assert objective_of(
        [{"name": "dpo", "ld_alpha": 1.0}, {"name": "dpo", "ld_alpha": 0}]
    ).decoupled
    assert [name for name, loss in LOSSES.items() if "ld_alpha" not in loss.settings] == ["sft"]


def test_metrics_are_of_whole_responses_and_rewards_of_what_the_loss_sees():
    pairs = with_tails(PAIRS)
    scalars = {**SCALARS._asdict(), "label_smoothing": 0.0}
    objective = ALONE["sigmoid"]
    with jax.enable_x64(True):
        found = objective.metrics(0, jax.tree.map(jnp.asarray, pairs), scalars)
    seen = decoupled(pairs, ld_alpha=SCALARS.ld_alpha)
    expected = SCALARS.beta * (seen.logp_chosen - seen.ref_logp_chosen)
    np.testing.assert_allclose(found["rewards/chosen"], expected, rtol=1e-12)
    np.testing.assert_array_equal(found["logps/chosen"], pairs.logp_chosen)


@pytest.mark.parametrize("plain", [False, True])
def test_a_tail_is_what_the_longer_response_has_more(plain, monkeypatch):
    """Each token's own log-prob, made from one that gives every token the logarithm of its id."""
    monkeypatch.setattr(
        logprobs, "_token_logps", lambda states, head, targets: -targets.astype(np.float32)
    )
    lengths = [(3, 5, 2), (2, 1, 7), (4, 3, 3), (1, 6, 4)]
    examples = tiny_models.random_examples(lengths, vocabulary=50)
    shape = Shape(1, 24, 13, 1, True) if plain else Shape(2, 40, 40, 3)
    batches = pack(examples, [shape])
    values = []
    for batch in batches:
        hidden = jnp.zeros((*batch.tokens.shape, 2))
        on_device = jax.tree.map(jnp.asarray, batch)
        both = logprobs.branch_logps(hidden, jnp.zeros((50, 2)), on_device, with_tails=True)
        values.append(np.asarray(both))
    found = np.concatenate(
        [unpack(batches, [v[..., cut] for v in values], 4) for cut in (slice(2), slice(2, 4))],
        axis=-1,
    )
    for row, example in zip(found, examples, strict=True):
        responses = example.responses
        shorter = min(map(len, responses))
        expected = [-ids.sum() for ids in responses] + [-ids[shorter:].sum() for ids in responses]
        np.testing.assert_array_equal(row, expected)


def test_log_probs_with_those_of_tails_behind_are_told_apart():
    logps, reference = np.arange(4.0)[None], np.arange(4.0, 8.0)[None]
    pairs = pair_logps(logps, reference, np.ones((1, 2)), np.zeros((1, 2)))
    assert [float(each[0]) for each in pairs[:4]] == [0, 1, 4, 5]
    assert [float(each[0]) for each in pairs.tails] == [2, 3, 6, 7]
