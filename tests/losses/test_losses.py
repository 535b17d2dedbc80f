"""Losses against TRL's numbers, against gradients derived by hand, and at the edges of float32."""

import functools
import inspect
import itertools
import json
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from tddpo_jax.config.schema import LOSS_SETTINGS, LossName
from tddpo_jax.losses.catalogue import LOSSES, LossScalars, LossSpec, per_pair_loss, rewards
from tddpo_jax.losses.dpo import EXO_LABEL_SMOOTHING
from tddpo_jax.losses.pair_logps import PairLogps

GOLDEN = json.loads((Path(__file__).parent / "golden_losses.json").read_text())
MARGINS = ("policy", "log_ratio", "length_normalized")
VARIANTS = [LossSpec("td_dpo", *forms) for forms in itertools.product(MARGINS, ("k2", "full"))]
SPECS = (*VARIANTS, *(LossSpec(name) for name in LOSSES if name != "td_dpo"))
SCALARS = LossScalars(beta=0.7, tau=1.3, label_smoothing=0.1, discopop_tau=0.45, simpo_gamma=0.6)


def make_pairs(chosen, rejected, ref_chosen, ref_rejected, lengths=None, kl=(0.0, 0.0)):
    shape = np.shape(chosen)
    lengths = (np.ones(shape), np.ones(shape)) if lengths is None else lengths
    kl = [np.broadcast_to(value, shape) for value in kl]
    return PairLogps(chosen, rejected, ref_chosen, ref_rejected, *lengths, *kl)


def margin_pairs(s):
    """Pairs whose chosen log-ratio is s, with everything else zero and one token a response."""
    s = np.asarray(s, np.float64)
    return make_pairs(s, np.zeros_like(s), np.zeros_like(s), np.zeros_like(s))


def random_pairs():
    rng = np.random.default_rng(2)
    lengths = rng.integers(3, 40, (2, 7)).astype(np.float64)
    logps, log_ratios = -rng.uniform(5, 9, (2, 7)), rng.normal(0, 2.5, (2, 7))
    return make_pairs(*logps, *(logps - log_ratios), lengths, rng.uniform(0, 3, (2, 7)))


PAIRS = random_pairs()
S_W = PAIRS.logp_chosen - PAIRS.ref_logp_chosen
S_L = PAIRS.logp_rejected - PAIRS.ref_logp_rejected
X = SCALARS.beta * (S_W - S_L)


def in_float32(tree):
    return jax.tree.map(lambda value: np.asarray(value, np.float32), tree)


def total(pairs, specs, which, scalars):
    values = per_pair_loss(specs, which, pairs, scalars)
    return values.sum(), values


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(specs, pairs, scalars):
    gradient = jax.value_and_grad(total, has_aux=True)
    return [gradient(pairs, (spec,), 0, scalars) for spec in specs]


def evaluate(spec, pairs, scalars=SCALARS, dtype=np.float64, among=SPECS):
    """Values [P] and the gradient of their sum: pairs do not meet, so it is each pair's own.

    The losses are compiled together: one by one, that would take most of this file's time.
    """
    with jax.enable_x64(dtype == np.float64):
        inputs = jax.tree.map(lambda value: np.asarray(value, dtype), (pairs, scalars))
        (_, values), gradients = value_and_gradient(among, *inputs)[among.index(spec)]
        assert values.dtype == dtype
    return np.asarray(values), jax.tree.map(np.asarray, gradients)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.logaddexp(x, 0)


# ---------------------------------------- the table


def test_names_are_those_of_the_configuration():
    assert tuple(LOSSES) == typing.get_args(LossName)
    assert all(loss.__name__ == name for name, loss in LOSSES.items())


@pytest.mark.parametrize("name", LOSSES)
def test_settings_are_those_of_the_configuration(name):
    pairs, *keywords = inspect.signature(LOSSES[name]).parameters.values()
    assert pairs.name == "pairs"
    assert all(keyword.kind == keyword.KEYWORD_ONLY for keyword in keywords)
    assert tuple(keyword.name for keyword in keywords) == LOSS_SETTINGS[name]


@pytest.mark.parametrize("spec", [LossSpec("td_dpo", margin="x"), LossSpec("td_dpo", kl="x")])
def test_an_unknown_form_is_refused(spec):
    with pytest.raises(ValueError, match=r"^loss\.(margin|kl): must be .*, got 'x'$"):
        per_pair_loss((spec,), 0, jax.tree.map(jnp.asarray, in_float32(PAIRS)), SCALARS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_python_scalars_keep_the_dtype_of_the_pairs(dtype):
    with jax.enable_x64(True):
        pairs = jax.tree.map(lambda value: jnp.asarray(value, dtype), PAIRS)
        for losses in (SPECS, *((spec,) for spec in SPECS)):
            loss = functools.partial(per_pair_loss, losses, 0, scalars=SCALARS)
            assert jax.eval_shape(loss, pairs).dtype == dtype
        assert LOSSES["dpo"](pairs, beta=0.1, label_smoothing=0.0).dtype == dtype


# ---------------------------------------- TRL's numbers

GOLDEN_INPUTS = GOLDEN["inputs"]
GOLDEN_PAIRS = make_pairs(
    *(
        np.array(GOLDEN_INPUTS[name])
        for name in ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected")
    ),
    lengths=[np.array(GOLDEN_INPUTS[name], float) for name in ("chosen_len", "rejected_len")],
)


@pytest.mark.parametrize(
    "row", GOLDEN["rows"], ids=lambda row: f"{row['loss']}-{row['beta']}-{row.get('discopop_tau')}"
)
def test_values_and_gradients_are_those_of_trl(row):
    """The gradients are those of the batch loss: a mean over pairs, for `sft` over tokens.

    TRL's `sigmoid` ignores label smoothing: zero here. Its `exo_pair` takes the logarithms of the
    label smoothing in float32, so the last digits are noise: hence the absolute tolerance.
    """
    name = {"sigmoid": "dpo"}.get(row["loss"], row["loss"])
    scalars = SCALARS._replace(
        beta=row["beta"],
        discopop_tau=row.get("discopop_tau", 0.05),
        label_smoothing=0.0 if name == "dpo" else GOLDEN["label_smoothing"],
    )
    values, gradients = evaluate(LossSpec(name), GOLDEN_PAIRS, scalars)
    count = GOLDEN_PAIRS.length_chosen.sum() if name == "sft" else len(values)
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
    values, gradients = evaluate(LossSpec("discopop"), pairs, scalars)
    expected = np.array(GOLDEN["discopop_forward_kl_per_pair"], float)
    (overflow,) = np.flatnonzero(np.isnan(expected))
    expected[overflow] = 0.1 * (scores[1] - scores[0])[overflow]
    np.testing.assert_allclose(values, expected, rtol=1e-7)
    np.testing.assert_allclose(gradients.logp_chosen[overflow], -0.1, rtol=1e-7)


# ---------------------------------------- gradients by hand


def assert_slopes(spec, chosen, rejected):
    """Slopes with respect to logp_chosen and logp_rejected; those of the reference are opposite
    where the loss knows log-ratios only."""
    _, gradients = evaluate(spec, PAIRS)
    np.testing.assert_allclose(gradients.logp_chosen, chosen, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(gradients.logp_rejected, rejected, rtol=1e-11, atol=1e-14)


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
    spec = LossSpec("td_dpo", margin, kl)
    assert_slopes(spec, -pull * weight_w + penalty * S_W, pull * weight_l + penalty * S_L)
    _, gradients = evaluate(spec, PAIRS)
    np.testing.assert_allclose(gradients.kl_chosen, SCALARS.beta - penalty)
    np.testing.assert_allclose(gradients.kl_rejected, SCALARS.beta - penalty)


def test_td_dpo_is_at_rest_only_near_the_reference():
    """Slope 0 means beta * s_w = sigmoid(-m / tau) / tau <= 1 / tau, so |s| <= 1 / (tau * beta).

    Far on the wrong side the bound is reached: m = -100 tau has s_w = -s_l = 1 / (tau * beta).
    """
    limit = 1 / (SCALARS.tau * SCALARS.beta)
    logps = np.linspace(-400, -100, 7), np.linspace(-400, -100, 7) + 100 * SCALARS.tau
    pairs = make_pairs(*logps, logps[0] - limit, logps[1] + limit)
    _, gradients = evaluate(LossSpec("td_dpo"), pairs)
    np.testing.assert_allclose(gradients.logp_chosen, 0, atol=1e-12)
    np.testing.assert_allclose(gradients.logp_rejected, 0, atol=1e-12)


def test_slope_of_dpo():
    """L = (1 - e) l(x) + e l(-x): dL/dx = -(1 - e) sigmoid(-x) + e sigmoid(x), dx/ds_w = beta."""
    e = SCALARS.label_smoothing
    slope = SCALARS.beta * (-(1 - e) * sigmoid(-X) + e * sigmoid(X))
    assert_slopes(LossSpec("dpo"), slope, -slope)


def test_slope_of_discopop():
    """L = (1 - g) l(x) + g exp(-x), g = sigmoid(x / t), g' = g (1 - g) / t:

    dL/dx = g' (exp(-x) - l(x)) - (1 - g) sigmoid(-x) - g exp(-x).
    """
    t = SCALARS.discopop_tau
    g = sigmoid(X / t)
    slope = g * (1 - g) / t * (np.exp(-X) - softplus(-X)) - (1 - g) * sigmoid(-X) - g * np.exp(-X)
    assert_slopes(LossSpec("discopop"), SCALARS.beta * slope, -SCALARS.beta * slope)


def test_slope_of_ipo():
    """L = (h - 1/(2 beta))^2, h = s_w / |y_w| - s_l / |y_l|.

    dL/ds_w = 2 (h - 1/(2 beta)) / |y_w|, dL/ds_l = -2 (h - 1/(2 beta)) / |y_l|.
    """
    h = S_W / PAIRS.length_chosen - S_L / PAIRS.length_rejected
    slope = 2 * (h - 1 / (2 * SCALARS.beta))
    assert_slopes(LossSpec("ipo"), slope / PAIRS.length_chosen, -slope / PAIRS.length_rejected)


def test_slope_of_hinge():
    """L = max(0, 1 - x): dL/ds_w = -beta where x < 1, else 0; both sides occur in the pairs."""
    assert 0 < (X < 1).sum() < len(X)
    slope = -SCALARS.beta * (X < 1)
    assert_slopes(LossSpec("hinge"), slope, -slope)


def test_slope_of_robust():
    """L = ((1 - e) l(x) - e l(-x)) / (1 - 2e):

    dL/dx = -((1 - e) sigmoid(-x) + e sigmoid(x)) / (1 - 2e).
    """
    e = SCALARS.label_smoothing
    slope = -SCALARS.beta * ((1 - e) * sigmoid(-X) + e * sigmoid(X)) / (1 - 2 * e)
    assert_slopes(LossSpec("robust"), slope, -slope)


@pytest.mark.parametrize("label_smoothing", [0.1, 0.0])
def test_slope_of_exo_pair(label_smoothing):
    """L = KL(q || p), q = sigmoid(x), p = 1 - e: dL/dq = logit(q) - logit(p), logit(q) = x.

    dL/dx = q (1 - q) (x - log((1 - e) / e)). Zero smoothing stands for 1e-3.
    """
    e = label_smoothing or EXO_LABEL_SMOOTHING
    scalars = SCALARS._replace(label_smoothing=label_smoothing)
    _, gradients = evaluate(LossSpec("exo_pair"), PAIRS, scalars)
    slope = SCALARS.beta * sigmoid(X) * sigmoid(-X) * (X - np.log((1 - e) / e))
    np.testing.assert_allclose(gradients.logp_chosen, slope, rtol=1e-11)
    np.testing.assert_allclose(gradients.logp_rejected, -slope, rtol=1e-11)


def test_slope_of_nca_pair():
    """L = l(r_w) + l(-r_w) / 2 + l(-r_l) / 2, r = beta * s:

    dL/dr_w = -sigmoid(-r_w) + sigmoid(r_w) / 2, dL/dr_l = sigmoid(r_l) / 2.
    """
    r_w, r_l = SCALARS.beta * S_W, SCALARS.beta * S_L
    chosen = SCALARS.beta * (sigmoid(r_w) / 2 - sigmoid(-r_w))
    assert_slopes(LossSpec("nca_pair"), chosen, SCALARS.beta * sigmoid(r_l) / 2)


def test_slope_of_bco_pair():
    """L = l(r_w) + l(-r_l), r = beta * s: dL/dr_w = -sigmoid(-r_w), dL/dr_l = sigmoid(r_l)."""
    chosen, rejected = (
        (-SCALARS.beta * sigmoid(-SCALARS.beta * S_W)),
        SCALARS.beta * sigmoid(SCALARS.beta * S_L),
    )
    assert_slopes(LossSpec("bco_pair"), chosen, rejected)


def test_slope_of_sppo_hard():
    """L = (s_w - 1/(2 beta))^2 + (s_l + 1/(2 beta))^2: twice each bracket."""
    target = 1 / (2 * SCALARS.beta)
    assert_slopes(LossSpec("sppo_hard"), 2 * (S_W - target), 2 * (S_L + target))


def test_slope_of_apo_zero():
    """L = sigmoid(-r_w) + sigmoid(r_l), sigmoid'(r) = sigmoid(r) sigmoid(-r), an even function."""
    r_w, r_l = SCALARS.beta * S_W, SCALARS.beta * S_L
    chosen = -SCALARS.beta * sigmoid(r_w) * sigmoid(-r_w)
    assert_slopes(LossSpec("apo_zero"), chosen, SCALARS.beta * sigmoid(r_l) * sigmoid(-r_l))


def test_slope_of_apo_down():
    """L = sigmoid(r_w) + sigmoid(-x): dL/ds_w = beta (sigmoid'(r_w) - sigmoid'(x)), and
    dL/ds_l = beta sigmoid'(x)."""
    r_w = SCALARS.beta * S_W
    rejected = SCALARS.beta * sigmoid(X) * sigmoid(-X)
    chosen = SCALARS.beta * sigmoid(r_w) * sigmoid(-r_w) - rejected
    assert_slopes(LossSpec("apo_down"), chosen, rejected)


def test_slope_of_sigmoid_norm():
    """L = l(u), u = beta (s_w / |y_w| - s_l / |y_l|): dL/ds_w = -beta sigmoid(-u) / |y_w|."""
    u = SCALARS.beta * (S_W / PAIRS.length_chosen - S_L / PAIRS.length_rejected)
    slope = -SCALARS.beta * sigmoid(-u)
    spec = LossSpec("sigmoid_norm")
    assert_slopes(spec, slope / PAIRS.length_chosen, -slope / PAIRS.length_rejected)


def test_slope_and_value_of_simpo():
    """L = l(u - gamma), u = beta (logp_w / |y_w| - logp_l / |y_l|), eq. 6:

    dL/dlogp_w = -beta sigmoid(gamma - u) / |y_w|, and nothing for the reference.
    """
    lengths = PAIRS.length_chosen, PAIRS.length_rejected
    u = SCALARS.beta * (PAIRS.logp_chosen / lengths[0] - PAIRS.logp_rejected / lengths[1])
    slope = -SCALARS.beta * sigmoid(SCALARS.simpo_gamma - u)
    assert_slopes(LossSpec("simpo"), slope / lengths[0], -slope / lengths[1])
    values, gradients = evaluate(LossSpec("simpo"), PAIRS)
    np.testing.assert_allclose(values, -np.log(sigmoid(u - SCALARS.simpo_gamma)), rtol=1e-11)
    assert not gradients.ref_logp_chosen.any()
    assert not gradients.ref_logp_rejected.any()


def test_slope_of_sft():
    """L = -logp_w."""
    assert_slopes(LossSpec("sft"), -np.ones(7), np.zeros(7))


def test_gradients_agree_with_finite_differences():
    @jax.jit
    def losses(pairs):
        return jnp.stack([per_pair_loss((spec,), 0, pairs, SCALARS) for spec in SPECS])

    with jax.enable_x64(True):
        pairs = jax.tree.map(jnp.asarray, PAIRS)
        check_grads(losses, (pairs,), order=1, modes=["fwd", "rev"], rtol=1e-6, atol=1e-6)


# ---------------------------------------- values


def test_policy_equal_to_reference():
    """At s = 0, l = log 2 and sigmoid = 1/2: DPO log 2, DiscoPOP (log 2 + 1) / 2 = 0.8466, ..."""
    expected = {"dpo": np.log(2), "discopop": (np.log(2) + 1) / 2, "hinge": 1.0, "apo_zero": 1.0}
    expected |= {"sigmoid_norm": np.log(2), "robust": np.log(2), "nca_pair": 2 * np.log(2)}
    pairs = PAIRS._replace(ref_logp_chosen=PAIRS.logp_chosen, ref_logp_rejected=PAIRS.logp_rejected)
    for name, value in expected.items():
        np.testing.assert_allclose(evaluate(LossSpec(name), pairs)[0], value, rtol=1e-14)


def test_landmarks_of_discopop():
    """At tau_d = t the slope at 0 is (1 - log 2) / (4 t) - 3 / 4, for t = 0.05 it is +0.784.

    So there is a minimum on the left, x = -0.1186 (slope from - to +), and a barrier on the right,
    x = +0.0720 (from + to -).
    """
    scalars = SCALARS._replace(beta=1.0, discopop_tau=0.05)
    points = np.array([0, -0.1187, -0.1185, 0.0719, 0.0721, -3, 3])
    slopes = evaluate(LossSpec("discopop"), margin_pairs(points), scalars)[1].logp_chosen
    np.testing.assert_allclose(slopes[0], (1 - np.log(2)) / 0.2 - 0.75, rtol=1e-12)
    assert round(float(slopes[0]), 3) == 0.784
    np.testing.assert_array_equal(np.sign(slopes[1:]), [-1, 1, 1, -1, -1, -1])


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
    without = evaluate(LossSpec("td_dpo"), pairs, SCALARS._replace(beta=0.0))[0]
    scalars = SCALARS._replace(beta=1e8)
    k2, full = (
        (np.exp(logp) * (evaluate(LossSpec("td_dpo", kl=kl), pairs, scalars)[0] - without)).sum()
        for kl in ("k2", "full")
    )
    np.testing.assert_allclose(full, 1e8 * kl, rtol=1e-6)
    np.testing.assert_allclose(k2, full, rtol=1e-3)


def test_rewards():
    """beta * s; the plain s for td_dpo and sft; beta * logp / |y| for simpo."""
    with jax.enable_x64(True):
        pairs = jax.tree.map(jnp.asarray, PAIRS)
        of_grid = jax.jit(functools.partial(rewards, SPECS))
        for which, spec in enumerate(SPECS):
            expected = SCALARS.beta * S_W, SCALARS.beta * S_L
            if spec.name in ("td_dpo", "sft"):
                expected = S_W, S_L
            if spec.name == "simpo":
                per_token = (
                    PAIRS.logp_chosen / PAIRS.length_chosen,
                    PAIRS.logp_rejected / PAIRS.length_rejected,
                )
                expected = [SCALARS.beta * value for value in per_token]
            for value in (rewards((spec,), 0, pairs, SCALARS), of_grid(which, pairs, SCALARS)):
                np.testing.assert_allclose(value, expected, rtol=1e-14)


# ---------------------------------------- properties

nats = st.lists(st.floats(-500, 0), min_size=28, max_size=28)
seven_pairs = nats.map(lambda values: make_pairs(*np.reshape(values, (4, 7))))
positive = st.floats(0.01, 10)
smoothing = st.floats(0, 0.49)
quick = settings(deadline=None, max_examples=40)


def flip(pairs):
    return make_pairs(*(pairs[field] for field in (1, 0, 3, 2)))


@quick
@given(seven_pairs, positive, positive)
def test_tau_scales_only_the_margin_and_beta_only_the_kl_term(pairs, beta, tau):
    chosen, rejected, ref_chosen, ref_rejected, *_ = pairs
    spec, scalars = LossSpec("td_dpo"), SCALARS._replace(beta=beta, tau=tau)
    value = evaluate(spec, pairs, scalars)[0]
    margin_term = evaluate(spec, pairs, scalars._replace(beta=0.0))[0]
    expected = softplus((rejected - chosen) / tau)
    np.testing.assert_allclose(margin_term, expected, rtol=1e-12, atol=1e-300)
    kl_term = beta * ((chosen - ref_chosen) ** 2 + (rejected - ref_rejected) ** 2) / 2
    np.testing.assert_allclose(value, margin_term + kl_term, rtol=1e-12, atol=1e-300)


@quick
@given(seven_pairs, positive, positive, smoothing)
def test_step_zero_values_depend_on_no_setting(pairs, beta, tau, e):
    chosen, rejected, *_ = pairs
    pairs = make_pairs(chosen, rejected, chosen, rejected)
    scalars = SCALARS._replace(beta=beta, discopop_tau=tau, label_smoothing=e)
    np.testing.assert_allclose(evaluate(LossSpec("dpo"), pairs, scalars)[0], np.log(2))
    assert (np.round(evaluate(LossSpec("discopop"), pairs, scalars)[0], 4) == 0.8466).all()


@quick
@given(seven_pairs, positive, smoothing)
def test_robust_dpo_is_unbiased_under_flips(pairs, beta, e):
    """(1 - e) robust(x) + e robust(-x) = l(x): the expectation over flipped labels is plain DPO."""
    scalars = SCALARS._replace(beta=beta, label_smoothing=e)
    robust, flipped = (evaluate(LossSpec("robust"), p, scalars)[0] for p in (pairs, flip(pairs)))
    plain = evaluate(LossSpec("dpo"), pairs, scalars._replace(label_smoothing=0.0))[0]
    # The terms that cancel are up to |x| / (1 - 2e) large, and |x| is below 10 * 1,000.
    np.testing.assert_allclose((1 - e) * robust + e * flipped, plain, rtol=1e-12, atol=1e-9)


@quick
@given(seven_pairs, positive, smoothing)
def test_label_smoothing_of_dpo_mixes_the_two_labels(pairs, beta, e):
    scalars, hard = (SCALARS._replace(beta=beta, label_smoothing=value) for value in (e, 0.0))
    label, flipped = (evaluate(LossSpec("dpo"), p, hard)[0] for p in (pairs, flip(pairs)))
    mixed = evaluate(LossSpec("dpo"), pairs, scalars)[0]
    expected = (1 - e) * label + e * flipped
    np.testing.assert_allclose(mixed, expected, rtol=1e-12, atol=1e-200)


# ---------------------------------------- extremes

CORNERS = np.array(list(itertools.product([0.0, -1e4], repeat=4))).T
# The last is a slot that a batch does not fill: zeros only, lengths too.
EXTREME_PAIRS = PairLogps(
    *(
        np.append(field, 0.0)
        for field in make_pairs(*CORNERS, lengths=np.full((2, 16), 13.0), kl=(1e4, 0.0))
    )
)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("beta", [0.01, 2.5])
def test_float32_is_finite_and_right_at_extreme_margins(spec, beta):
    """Each of the four log-probabilities 0 or -10,000: margins to +-20,000, against float64.

    And an unused slot, which must not poison the gradient of its batch.
    """
    scalars = SCALARS._replace(beta=beta, discopop_tau=0.05, label_smoothing=0.1)
    exact, single = (
        evaluate(spec, EXTREME_PAIRS, scalars, dtype) for dtype in (np.float64, np.float32)
    )
    for expected, value in zip(jax.tree.leaves(exact), jax.tree.leaves(single), strict=True):
        assert np.isfinite(value).all()
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_discopop_in_float32_is_accurate_where_its_textbook_form_is_nan():
    """x from -25,000 to 25,000 at beta 2.5, the setting published as NaN."""
    scalars = SCALARS._replace(beta=2.5, discopop_tau=0.05)
    s = np.concatenate([np.linspace(-1e4, 1e4, 201), np.linspace(-80, 80, 1281)])
    x = np.float32(2.5) * s.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        g = sigmoid(x / np.float32(0.05))
        textbook = (1 - g) * softplus(-x) + g * np.exp(-x)
    assert np.isnan(textbook).any()
    spec = LossSpec("discopop")
    exact, single = (
        evaluate(spec, margin_pairs(s), scalars, dtype, among=(spec,))
        for dtype in (np.float64, np.float32)
    )
    np.testing.assert_allclose(single[0], exact[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(single[1].logp_chosen, exact[1].logp_chosen, rtol=1e-5, atol=1e-7)


# ---------------------------------------- one step for all losses


def test_no_scalar_and_no_choice_of_loss_recompiles():
    step = jax.jit(functools.partial(per_pair_loss, SPECS))
    pairs = in_float32(PAIRS)
    for which, spec in enumerate(SPECS):
        values = step(which, pairs, in_float32(SCALARS))
        np.testing.assert_allclose(values, evaluate(spec, PAIRS)[0], rtol=2e-5, atol=1e-5)
    for name, value in SCALARS._asdict().items():
        step(0, pairs, in_float32(SCALARS._replace(**{name: value / 2})))
    assert step._cache_size() == 1


def grid_gradient(pairs, which, scalars):
    """Each cell differentiated on its own."""
    gradient = jax.value_and_grad(total, has_aux=True)
    (_, values), gradients = jax.vmap(gradient, in_axes=(0, None, 0, 0))(
        pairs, SPECS, which, scalars
    )
    return values, gradients


def gradient_of_grid(pairs, which, scalars):
    """The sum over cells differentiated: the switch is a select before it meets autodiff."""

    def grid_total(pairs):
        totals, values = jax.vmap(total, in_axes=(0, None, 0, 0))(pairs, SPECS, which, scalars)
        return totals.sum(), values

    gradients, values = jax.grad(grid_total, has_aux=True)(pairs)
    return values, gradients


@pytest.mark.parametrize("differentiate", [grid_gradient, gradient_of_grid])
def test_a_vmapped_grid_takes_nothing_from_losses_not_selected(differentiate):
    """One lane per loss; all run in every lane, where ipo and sppo_hard are infinite (beta 0) and
    DiscoPOP overflows (tau_d 3) unless the lane is theirs. Values and gradients must be those of
    the loss alone. (Indexing a stack of all losses, no `lax.switch`, fails: 0 * inf in backward.)
    """
    lanes = [
        SCALARS._replace(
            beta=0.5 if spec.name in ("ipo", "sppo_hard") else 0.0,
            discopop_tau=0.05 if spec.name == "discopop" else 3.0,
        )
        for spec in SPECS
    ]
    pairs = jax.tree.map(lambda field: np.tile(field, (len(SPECS), 1)), EXTREME_PAIRS)
    stacked = jax.tree.map(lambda *values: np.array(values), *lanes)
    grid = jax.jit(differentiate)(in_float32(pairs), np.arange(len(SPECS)), in_float32(stacked))
    for which, (spec, scalars) in enumerate(zip(SPECS, lanes, strict=True)):
        alone = evaluate(spec, EXTREME_PAIRS, scalars, np.float32)
        for expected, value in zip(jax.tree.leaves(alone), jax.tree.leaves(grid), strict=True):
            assert np.isfinite(value).all()
            np.testing.assert_allclose(value[which], expected, rtol=1e-6)
