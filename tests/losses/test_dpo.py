"""DPO and its relatives: TRL's numbers, gradients derived by hand, and values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import (
    GOLDEN,
    PAIRS,
    S_L,
    S_W,
    SCALARS,
    X,
    assert_slopes,
    evaluate,
    flip,
    golden_pairs,
    make_pairs,
    margin_pairs,
    only,
    sigmoid,
    softplus,
)

from tddpo_jax.losses.catalogue import LOSSES
from tddpo_jax.losses.dpo import EXO_LABEL_SMOOTHING
from tddpo_jax.losses.objective import objective_of

nats = st.lists(st.floats(-500, 0), min_size=28, max_size=28)
seven_pairs = nats.map(lambda values: make_pairs(*np.reshape(values, (4, 7))))
positive = st.floats(0.01, 10)
smoothing = st.floats(0, 0.49)
quick = settings(deadline=None, max_examples=40)


# ---- TRL's numbers -------------------------------------------------------------------------------

GOLDEN_INPUTS = GOLDEN["inputs"]
GOLDEN_PAIRS = golden_pairs()


@pytest.mark.parametrize(
    "row", GOLDEN["rows"], ids=lambda row: f"{row['loss']}-{row['beta']}-{row.get('discopop_tau')}"
)
def test_values_and_gradients_are_those_of_trl(row):
    """The gradients are those of the batch loss, a mean over pairs.

    TRL's `sigmoid` ignores label smoothing: zero here. Its `exo_pair` takes the logarithms of the
    label smoothing in float32, so the last digits are noise: hence the absolute tolerance.
    """
    name = {"sigmoid": "dpo"}.get(row["loss"], row["loss"])
    scalars = SCALARS._replace(
        beta=row["beta"],
        discopop_tau=row.get("discopop_tau", 0.05),
        label_smoothing=0.0 if name == "dpo" else GOLDEN["label_smoothing"],
        tokens_per_pair=GOLDEN_PAIRS.length_chosen.mean(),
    )
    values, gradients = evaluate(only(name), GOLDEN_PAIRS, scalars)
    count = len(values)
    atol = 1e-8 if name == "exo_pair" else 1e-11
    close = functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=atol)
    close(values.sum() / count, row["mean"])
    if "per_pair" in row:
        close(values, row["per_pair"])
    close(gradients.logp_chosen / count, row["grad_chosen"])
    close(gradients.logp_rejected / count, row["grad_rejected"])


def test_discopop_is_finite_where_trl_overflows():
    """TRL's one NaN: forward-KL scores 1 - exp(-s) reach x = -2,202, where exp(-x) is infinite.

    There the gate is closed, so the value is softplus(-x) = -x and the slope -1 (beta in s).
    """
    ratios = [
        np.array(GOLDEN_INPUTS[f"policy_{branch}"]) - np.array(GOLDEN_INPUTS[f"ref_{branch}"])
        for branch in ("chosen", "rejected")
    ]
    scores = [1 - np.exp(-ratio) for ratio in ratios]
    scalars = SCALARS._replace(beta=0.1, discopop_tau=0.05)
    pairs = make_pairs(*scores, np.zeros(6), np.zeros(6))
    values, gradients = evaluate(only("discopop"), pairs, scalars)
    expected = np.array(GOLDEN["discopop_forward_kl_per_pair"], float)
    (overflow,) = np.flatnonzero(np.isnan(expected))
    expected[overflow] = 0.1 * (scores[1] - scores[0])[overflow]
    np.testing.assert_allclose(values, expected, rtol=1e-7)
    np.testing.assert_allclose(gradients.logp_chosen[overflow], -0.1, rtol=1e-7)


# ---- gradients by hand ---------------------------------------------------------------------------


def test_slope_of_dpo():
    """L = (1 - e) l(x) + e l(-x): dL/dx = -(1 - e) sigmoid(-x) + e sigmoid(x), dx/ds_w = beta."""
    e = SCALARS.label_smoothing
    slope = SCALARS.beta * (-(1 - e) * sigmoid(-X) + e * sigmoid(X))
    assert_slopes(only("dpo"), slope, -slope)


def test_slope_of_discopop():
    """L = (1 - g) l(x) + g exp(-x), g = sigmoid(x / t), g' = g (1 - g) / t:

    dL/dx = g' (exp(-x) - l(x)) - (1 - g) sigmoid(-x) - g exp(-x).
    """
    t = SCALARS.discopop_tau
    g = sigmoid(X / t)
    slope = g * (1 - g) / t * (np.exp(-X) - softplus(-X)) - (1 - g) * sigmoid(-X) - g * np.exp(-X)
    assert_slopes(only("discopop"), SCALARS.beta * slope, -SCALARS.beta * slope)


def test_slope_of_ipo():
    """L = (h - 1/(2 beta))^2, h = s_w / |y_w| - s_l / |y_l|.

    dL/ds_w = 2 (h - 1/(2 beta)) / |y_w|, dL/ds_l = -2 (h - 1/(2 beta)) / |y_l|.
    """
    h = S_W / PAIRS.length_chosen - S_L / PAIRS.length_rejected
    slope = 2 * (h - 1 / (2 * SCALARS.beta))
    assert_slopes(only("ipo"), slope / PAIRS.length_chosen, -slope / PAIRS.length_rejected)


def test_slope_of_hinge():
    """L = max(0, 1 - x): dL/ds_w = -beta where x < 1, else 0; both sides occur in the pairs."""
    assert 0 < (X < 1).sum() < len(X)
    slope = -SCALARS.beta * (X < 1)
    assert_slopes(only("hinge"), slope, -slope)


def test_slope_of_robust():
    """L = ((1 - e) l(x) - e l(-x)) / (1 - 2e):

    dL/dx = -((1 - e) sigmoid(-x) + e sigmoid(x)) / (1 - 2e).
    """
    e = SCALARS.label_smoothing
    slope = -SCALARS.beta * ((1 - e) * sigmoid(-X) + e * sigmoid(X)) / (1 - 2 * e)
    assert_slopes(only("robust"), slope, -slope)


@pytest.mark.parametrize("label_smoothing", [0.1, 0.0])
def test_slope_of_exo_pair(label_smoothing):
    """L = KL(q || p), q = sigmoid(x), p = 1 - e: dL/dq = logit(q) - logit(p), logit(q) = x.

    dL/dx = q (1 - q) (x - log((1 - e) / e)). Zero smoothing stands for 1e-3.
    """
    e = label_smoothing or EXO_LABEL_SMOOTHING
    scalars = SCALARS._replace(label_smoothing=label_smoothing)
    _, gradients = evaluate(only("exo_pair"), PAIRS, scalars)
    slope = SCALARS.beta * sigmoid(X) * sigmoid(-X) * (X - np.log((1 - e) / e))
    np.testing.assert_allclose(gradients.logp_chosen, slope, rtol=1e-11)
    np.testing.assert_allclose(gradients.logp_rejected, -slope, rtol=1e-11)


def test_slope_of_nca_pair():
    """L = l(r_w) + l(-r_w) / 2 + l(-r_l) / 2, r = beta * s:

    dL/dr_w = -sigmoid(-r_w) + sigmoid(r_w) / 2, dL/dr_l = sigmoid(r_l) / 2.
    """
    r_w, r_l = SCALARS.beta * S_W, SCALARS.beta * S_L
    chosen = SCALARS.beta * (sigmoid(r_w) / 2 - sigmoid(-r_w))
    assert_slopes(only("nca_pair"), chosen, SCALARS.beta * sigmoid(r_l) / 2)


def test_slope_of_bco_pair():
    """L = l(r_w) + l(-r_l), r = beta * s: dL/dr_w = -sigmoid(-r_w), dL/dr_l = sigmoid(r_l)."""
    chosen, rejected = (
        (-SCALARS.beta * sigmoid(-SCALARS.beta * S_W)),
        SCALARS.beta * sigmoid(SCALARS.beta * S_L),
    )
    assert_slopes(only("bco_pair"), chosen, rejected)


def test_slope_of_sppo_hard():
    """L = (s_w - 1/(2 beta))^2 + (s_l + 1/(2 beta))^2: twice each bracket."""
    target = 1 / (2 * SCALARS.beta)
    assert_slopes(only("sppo_hard"), 2 * (S_W - target), 2 * (S_L + target))


def test_slope_of_apo_zero():
    """L = sigmoid(-r_w) + sigmoid(r_l), sigmoid'(r) = sigmoid(r) sigmoid(-r), an even function."""
    r_w, r_l = SCALARS.beta * S_W, SCALARS.beta * S_L
    chosen = -SCALARS.beta * sigmoid(r_w) * sigmoid(-r_w)
    assert_slopes(only("apo_zero"), chosen, SCALARS.beta * sigmoid(r_l) * sigmoid(-r_l))


def test_slope_of_apo_down():
    """L = sigmoid(r_w) + sigmoid(-x): dL/ds_w = beta (sigmoid'(r_w) - sigmoid'(x)), and
    dL/ds_l = beta sigmoid'(x)."""
    r_w = SCALARS.beta * S_W
    rejected = SCALARS.beta * sigmoid(X) * sigmoid(-X)
    chosen = SCALARS.beta * sigmoid(r_w) * sigmoid(-r_w) - rejected
    assert_slopes(only("apo_down"), chosen, rejected)


def test_slope_of_sigmoid_norm():
    """L = l(u), u = beta (s_w / |y_w| - s_l / |y_l|): dL/ds_w = -beta sigmoid(-u) / |y_w|."""
    u = SCALARS.beta * (S_W / PAIRS.length_chosen - S_L / PAIRS.length_rejected)
    slope = -SCALARS.beta * sigmoid(-u)
    loss = only("sigmoid_norm")
    assert_slopes(loss, slope / PAIRS.length_chosen, -slope / PAIRS.length_rejected)


def test_slope_and_value_of_simpo():
    """L = l(u - gamma), u = beta (logp_w / |y_w| - logp_l / |y_l|), eq. 6:

    dL/dlogp_w = -beta sigmoid(gamma - u) / |y_w|, and nothing for the reference.
    """
    lengths = PAIRS.length_chosen, PAIRS.length_rejected
    u = SCALARS.beta * (PAIRS.logp_chosen / lengths[0] - PAIRS.logp_rejected / lengths[1])
    slope = -SCALARS.beta * sigmoid(SCALARS.simpo_gamma - u)
    assert_slopes(only("simpo"), slope / lengths[0], -slope / lengths[1])
    values, gradients = evaluate(only("simpo"), PAIRS)
    np.testing.assert_allclose(values, -np.log(sigmoid(u - SCALARS.simpo_gamma)), rtol=1e-11)
    assert not gradients.ref_logp_chosen.any()
    assert not gradients.ref_logp_rejected.any()


def test_slope_of_sft():
    """L = -logp_w / T, with T tokens per pair."""
    assert_slopes(only("sft"), -np.ones(7) / SCALARS.tokens_per_pair, np.zeros(7))


MARGINS = {
    "policy": (PAIRS.logp_chosen, PAIRS.logp_rejected, 1.0, 1.0),
    "log_ratio": (S_W, S_L, 1.0, 1.0),
    "length_normalized": (
        PAIRS.logp_chosen / PAIRS.length_chosen,
        PAIRS.logp_rejected / PAIRS.length_rejected,
        1 / PAIRS.length_chosen,
        1 / PAIRS.length_rejected,
    ),
}
FORMS = {form: objective_of([{"name": "hinge", "dpo_margin": form}]) for form in MARGINS}


@pytest.mark.parametrize("form", MARGINS)
def test_slopes_and_rewards_of_other_margins(form):
    """L = max(0, 1 - beta (m_w - m_l)): dL/dlogp_w = -beta dm_w/dlogp_w where x < 1, else 0."""
    chosen, rejected, *weights = MARGINS[form]
    below = SCALARS.beta * (chosen - rejected) < 1
    _, gradients = evaluate(FORMS[form], PAIRS, among=tuple(FORMS.values()))
    np.testing.assert_allclose(gradients.logp_chosen, -SCALARS.beta * below * weights[0])
    np.testing.assert_allclose(gradients.logp_rejected, SCALARS.beta * below * weights[1])
    assert gradients.ref_logp_chosen.any() == (form == "log_ratio")
    with jax.enable_x64(True):
        pairs = jax.tree.map(jnp.asarray, PAIRS)
        rewards = FORMS[form].rewards(0, pairs, SCALARS._asdict())
    np.testing.assert_allclose(rewards, (SCALARS.beta * chosen, SCALARS.beta * rejected))


def test_the_losses_of_a_margin_have_its_forms():
    """The others weigh two responses apart, or fix the form."""
    found = [name for name, loss in LOSSES.items() if "dpo_margin" in loss.settings]
    assert found == ["dpo", "discopop", "hinge", "robust", "exo_pair"]


# ---- values --------------------------------------------------------------------------------------


def test_policy_equal_to_reference():
    """At s = 0, l = log 2 and sigmoid = 1/2: DPO log 2, DiscoPOP (log 2 + 1) / 2 = 0.8466, ..."""
    expected = {"dpo": np.log(2), "discopop": (np.log(2) + 1) / 2, "hinge": 1.0, "apo_zero": 1.0}
    expected |= {"sigmoid_norm": np.log(2), "robust": np.log(2), "nca_pair": 2 * np.log(2)}
    pairs = PAIRS._replace(ref_logp_chosen=PAIRS.logp_chosen, ref_logp_rejected=PAIRS.logp_rejected)
    for name, value in expected.items():
        np.testing.assert_allclose(evaluate(only(name), pairs)[0], value, rtol=1e-14)


def test_landmarks_of_discopop():
    """At tau_d = t the slope at 0 is (1 - log 2) / (4 t) - 3 / 4, for t = 0.05 it is +0.784.

    So there is a minimum on the left, x = -0.1186 (slope from - to +), and a barrier on the right,
    x = +0.0720 (from + to -).
    """
    scalars = SCALARS._replace(beta=1.0, discopop_tau=0.05)
    points = np.array([0, -0.1187, -0.1185, 0.0719, 0.0721, -3, 3])
    slopes = evaluate(only("discopop"), margin_pairs(points), scalars)[1].logp_chosen
    np.testing.assert_allclose(slopes[0], (1 - np.log(2)) / 0.2 - 0.75, rtol=1e-12)
    assert round(float(slopes[0]), 3) == 0.784
    np.testing.assert_array_equal(np.sign(slopes[1:]), [-1, 1, 1, -1, -1, -1])


def test_discopop_in_float32_is_accurate_where_its_textbook_form_is_nan():
    """x from -25,000 to 25,000 at beta 2.5, the setting published as NaN."""
    scalars = SCALARS._replace(beta=2.5, discopop_tau=0.05)
    s = np.concatenate([np.linspace(-1e4, 1e4, 201), np.linspace(-80, 80, 1281)])
    x = np.float32(2.5) * s.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        g = sigmoid(x / np.float32(0.05))
        textbook = (1 - g) * softplus(-x) + g * np.exp(-x)
    assert np.isnan(textbook).any()
    loss = only("discopop")
    exact, single = (
        evaluate(loss, margin_pairs(s), scalars, dtype, among=(loss,))
        for dtype in (np.float64, np.float32)
    )
    np.testing.assert_allclose(single[0], exact[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(single[1].logp_chosen, exact[1].logp_chosen, rtol=1e-5, atol=1e-7)


# ---- properties ----------------------------------------------------------------------------------


@quick
@given(seven_pairs, positive, positive, smoothing)
def test_step_zero_values_depend_on_no_setting(pairs, beta, tau, e):
    chosen, rejected, *_ = pairs
    pairs = make_pairs(chosen, rejected, chosen, rejected)
    scalars = SCALARS._replace(beta=beta, discopop_tau=tau, label_smoothing=e)
    np.testing.assert_allclose(evaluate(only("dpo"), pairs, scalars)[0], np.log(2))
    assert (np.round(evaluate(only("discopop"), pairs, scalars)[0], 4) == 0.8466).all()


@quick
@given(seven_pairs, positive, smoothing)
def test_robust_dpo_is_unbiased_under_flips(pairs, beta, e):
    """(1 - e) robust(x) + e robust(-x) = l(x): the expectation over flipped labels is plain DPO."""
    scalars = SCALARS._replace(beta=beta, label_smoothing=e)
    robust, flipped = (evaluate(only("robust"), p, scalars)[0] for p in (pairs, flip(pairs)))
    plain = evaluate(only("dpo"), pairs, scalars._replace(label_smoothing=0.0))[0]
    # The terms that cancel are up to |x| / (1 - 2e) large, and |x| is below 10 * 1,000.
    np.testing.assert_allclose((1 - e) * robust + e * flipped, plain, rtol=1e-12, atol=1e-9)


@quick
@given(seven_pairs, positive, smoothing)
def test_label_smoothing_of_dpo_mixes_the_two_labels(pairs, beta, e):
    scalars, hard = (SCALARS._replace(beta=beta, label_smoothing=value) for value in (e, 0.0))
    label, flipped = (evaluate(only("dpo"), p, hard)[0] for p in (pairs, flip(pairs)))
    mixed = evaluate(only("dpo"), pairs, scalars)[0]
    expected = (1 - e) * label + e * flipped
    np.testing.assert_allclose(mixed, expected, rtol=1e-12, atol=1e-200)
