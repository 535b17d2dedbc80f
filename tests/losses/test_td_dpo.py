"""TD-DPO: its gradients by hand, what tau and beta scale, and what its second term means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import (
    MARGINS,
    PAIRS,
    S_L,
    S_W,
    SCALARS,
    assert_slopes,
    evaluate,
    in_float32,
    make_pairs,
    only,
    sigmoid,
    softplus,
)

nats = st.lists(st.floats(-500, 0), min_size=28, max_size=28)
seven_pairs = nats.map(lambda values: make_pairs(*np.reshape(values, (4, 7))))
positive = st.floats(0.01, 10)
quick = settings(deadline=None, max_examples=40)


@pytest.mark.parametrize("loss", [only("td_dpo", margin="x"), only("td_dpo", kl="x")])
def test_an_unknown_form_is_refused(loss):
    with pytest.raises(ValueError, match=r"^(margin|loss\.kl): must be .*, got 'x'$"):
        loss.values(0, jax.tree.map(jnp.asarray, in_float32(PAIRS)), SCALARS._asdict())


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("kl", ["k2", "full"])
def test_slope_of_td_dpo(margin, kl):
    """L = l(m / tau) + beta * K, l(z) = -log sigmoid(z), l'(z) = -sigmoid(-z).

    dL/dlogp_w = -sigmoid(-m / tau) / tau * dm/dlogp_w + beta * dK/dlogp_w, where dm/dlogp is +1 and
    -1 (over the lengths if the margin is per token), dK/dlogp is s for k2 and 0 for the full KL,
    whose own inputs kl_w and kl_l have slope beta.
    """
    weight_w, weight_l = 1.0, 1.0
    m = S_W - S_L if margin == "log_ratio" else PAIRS.logp_chosen - PAIRS.logp_rejected
    if margin == "length_normalized":
        weight_w, weight_l = 1 / PAIRS.length_chosen, 1 / PAIRS.length_rejected
        m = PAIRS.logp_chosen * weight_w - PAIRS.logp_rejected * weight_l
    pull = sigmoid(-m / SCALARS.tau) / SCALARS.tau
    penalty = SCALARS.beta if kl == "k2" else 0.0
    loss = only("td_dpo", margin, kl)
    assert_slopes(loss, -pull * weight_w + penalty * S_W, pull * weight_l + penalty * S_L)
    _, gradients = evaluate(loss, PAIRS)
    np.testing.assert_allclose(gradients.kl_chosen, SCALARS.beta - penalty)
    np.testing.assert_allclose(gradients.kl_rejected, SCALARS.beta - penalty)


def test_td_dpo_is_at_rest_only_near_the_reference():
    """Slope 0 means beta * s_w = sigmoid(-m / tau) / tau <= 1 / tau, so |s| <= 1 / (tau * beta).

    Far on the wrong side the bound is reached: m = -100 tau has s_w = -s_l = 1 / (tau * beta).
    """
    limit = 1 / (SCALARS.tau * SCALARS.beta)
    logps = np.linspace(-400, -100, 7), np.linspace(-400, -100, 7) + 100 * SCALARS.tau
    pairs = make_pairs(*logps, logps[0] - limit, logps[1] + limit)
    _, gradients = evaluate(only("td_dpo"), pairs)
    np.testing.assert_allclose(gradients.logp_chosen, 0, atol=1e-12)
    np.testing.assert_allclose(gradients.logp_rejected, 0, atol=1e-12)


def test_full_kl_is_what_k2_approximates():
    """Under samples of the policy, E[s^2 / 2] = KL + O(d^3) for a policy d away from the reference.

    One token of 7 symbols, one pair per symbol, the rejected branch at rest. KL itself is O(d^2),
    so at d = 1e-4 the two forms of the second term agree to about 1e-4 of their size.
    """
    rng = np.random.default_rng(3)
    logits, direction = rng.normal(size=(2, 7))
    ref = logits - np.log(np.exp(logits).sum())
    logp = ref + 1e-4 * direction
    logp -= np.log(np.exp(logp).sum())
    kl = (np.exp(logp) * (logp - ref)).sum()
    still = np.zeros(7)
    pairs = make_pairs(logp, still, ref, still, kl=(kl, 0.0))
    without = evaluate(only("td_dpo"), pairs, SCALARS._replace(beta=0.0))[0]
    scalars = SCALARS._replace(beta=1e8)
    k2, full = (
        (np.exp(logp) * (evaluate(only("td_dpo", kl=kl), pairs, scalars)[0] - without)).sum()
        for kl in ("k2", "full")
    )
    np.testing.assert_allclose(full, 1e8 * kl, rtol=1e-6)
    np.testing.assert_allclose(k2, full, rtol=1e-3)


@quick
@given(seven_pairs, positive, positive)
def test_tau_scales_only_the_margin_and_beta_only_the_kl_term(pairs, beta, tau):
    chosen, rejected, ref_chosen, ref_rejected, *_ = pairs
    loss, scalars = only("td_dpo"), SCALARS._replace(beta=beta, tau=tau)
    value = evaluate(loss, pairs, scalars)[0]
    margin_term = evaluate(loss, pairs, scalars._replace(beta=0.0))[0]
    expected = softplus((rejected - chosen) / tau)
    np.testing.assert_allclose(margin_term, expected, rtol=1e-12, atol=1e-300)
    kl_term = beta * ((chosen - ref_chosen) ** 2 + (rejected - ref_rejected) ** 2) / 2
    np.testing.assert_allclose(value, margin_term + kl_term, rtol=1e-12, atol=1e-300)
