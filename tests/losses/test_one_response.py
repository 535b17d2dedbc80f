"""Examples of one response: what a loss and the metrics see of them, and nothing made up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tddpo_jax.losses.metric_names import RESPONSE_METRICS
from tddpo_jax.losses.objective import objective_of
from tddpo_jax.losses.pair_logps import pair_logps

RNG = np.random.default_rng(0)
LOGPS, REF_LOGPS, LENGTHS, KLS = RNG.normal(size=(4, 3, 7, 1)).astype(np.float32)


def test_the_rejected_fields_are_none_and_the_others_are_columns():
    pairs = pair_logps(LOGPS, REF_LOGPS, LENGTHS, KLS)
    for name, values in zip(pairs._fields[:8:2], (LOGPS, REF_LOGPS, LENGTHS, KLS), strict=True):
        np.testing.assert_array_equal(getattr(pairs, name), values[..., 0])
    assert set(pairs[1::2]) == {pairs.tails} == {None}


def test_two_responses_are_chosen_and_rejected():
    two = [np.concatenate([x, -x], axis=-1) for x in (LOGPS, REF_LOGPS, LENGTHS, KLS)]
    pairs = pair_logps(*two)
    np.testing.assert_array_equal(pairs.logp_rejected, -LOGPS[..., 0])
    np.testing.assert_array_equal(pairs.kl_rejected, -KLS[..., 0])
    with pytest.raises(AssertionError, match="no loss reads 3 responses"):
        pair_logps(*(np.zeros((2, 3), np.float32),) * 4)


def test_metrics_are_those_that_one_response_has():
    """Under `sft`: -logp, the log-ratio s, logp and s^2 / 2; mapped over members and compiled."""
    pairs = pair_logps(*map(jnp.asarray, (LOGPS, REF_LOGPS, LENGTHS, KLS)))
    objective = objective_of([{"name": "sft"}])
    found = jax.jit(jax.vmap(lambda pairs: objective.metrics(0, pairs, {"tokens_per_pair": 1.0})))(
        pairs
    )
    logps, ratios = LOGPS[..., 0], (LOGPS - REF_LOGPS)[..., 0]
    expected = (-logps, ratios, logps, 0.5 * ratios**2)
    assert set(found) == set(RESPONSE_METRICS)
    for name, values in zip(RESPONSE_METRICS, expected, strict=True):
        np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)
