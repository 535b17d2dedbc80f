"""All losses: their rows, and what holds for each of them in one compiled step."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from loss_cases import (
    ALL,
    EXTREME_PAIRS,
    PAIRS,
    S_L,
    S_W,
    SCALARS,
    SINGLES,
    evaluate,
    in_float32,
    total,
)

from tddpo_jax.losses import dpo, metrics, sft
from tddpo_jax.losses.catalogue import LOSSES, all_settings, readers
from tddpo_jax.losses.loss import BATCH_FACTS, BETA, Loss, Setting, keywords_of
from tddpo_jax.losses.metric_names import SATURATED
from tddpo_jax.losses.objective import objective_of
from tddpo_jax.losses.pair_logps import scaled_log_ratios

# ---- rows ----------------------------------------------------------------------------------------


def no_loss(pairs, *, beta, sharpness):
    """No loss."""


SHARPNESS = Setting(default=1.0, above=0.0, help="of nothing")


def test_names_are_those_of_the_functions():
    assert all(loss.name == name for name, loss in LOSSES.items())


@pytest.mark.parametrize("name", LOSSES)
def test_settings_are_the_keywords_of_the_function(name):
    pairs, *keywords = inspect.signature(LOSSES[name].function).parameters.values()
    assert pairs.name == "pairs"
    assert all(keyword.kind == keyword.KEYWORD_ONLY for keyword in keywords)
    names = [keyword.name for keyword in keywords if keyword.name not in BATCH_FACTS]
    assert names == [setting for setting in LOSSES[name].settings if setting != "ld_alpha"]


def test_the_rows_that_differ():
    """`sft` alone is a mean over tokens and reads one response; all others scale with beta, but
    td_dpo weighs a penalty with it."""
    by_tokens = [
        n for n, loss in LOSSES.items() if set(BATCH_FACTS) & {*keywords_of(loss.function)}
    ]
    assert by_tokens == ["sft"]
    assert [name for name, loss in LOSSES.items() if loss.responses == 1] == ["sft"]
    scaled = [name for name, loss in LOSSES.items() if "beta" in loss.settings and loss.needs_beta]
    assert scaled == [name for name in LOSSES if name not in ("td_dpo", "sft")]


@pytest.mark.parametrize("settings", [{}, {"beta": BETA}, {"beta": BETA, "sharp": SHARPNESS}])
def test_settings_that_are_not_the_keywords_are_refused(settings):
    with pytest.raises(ValueError, match=r"^loss no_loss: its settings are .*beta, sharpness$"):
        Loss(no_loss, settings)


def test_rewards_read_no_more_than_the_loss():
    with pytest.raises(
        ValueError, match=r"^loss sft: .* read beta, which is none of its settings$"
    ):
        Loss(sft.sft, {}, rewards=scaled_log_ratios)


@pytest.mark.parametrize(("default", "choices"), [("c", ("a", "b")), ("a", ()), (1.0, ("a",))])
def test_a_default_that_is_not_allowed_is_refused(default, choices):
    with pytest.raises(ValueError, match="its default"):
        Setting(default=default, choices=choices, help="of nothing")


def test_losses_share_a_setting_or_name_it_differently(monkeypatch):
    other = dataclasses.replace(BETA, default=1.0)
    monkeypatch.setitem(LOSSES, "no_loss", Loss(no_loss, {"beta": other, "sharpness": SHARPNESS}))
    with pytest.raises(ValueError, match=r"^loss no_loss: another loss declares beta differently$"):
        all_settings()


def test_readers_of_a_setting():
    assert readers("tau") == "td_dpo"
    assert readers("label_smoothing") == "dpo, robust, exo_pair"
    assert readers("beta") == "all but sft"


def test_an_objective_holds_each_loss_and_number_once():
    """Beta and tau move between cells without another program; the form of the KL needs one."""
    cells = [{"name": "td_dpo", "margin": "policy", "kl": kl} for kl in ("k2", "full", "k2")]
    cells += [{"name": "dpo", "beta": beta} for beta in (0.1, 0.2)]
    objective = objective_of(cells)
    assert [objective.which(cell) for cell in cells] == [0, 1, 0, 2, 2]
    assert objective.scalar_names == ("beta", "ld_alpha", "tau", "label_smoothing")
    assert objective.exact_kl
    assert not objective_of([cells[0], cells[-1]]).exact_kl
    assert objective_of(cells) == objective


# ---- each loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_python_scalars_keep_the_dtype_of_the_pairs(dtype):
    with jax.enable_x64(True):
        pairs = jax.tree.map(lambda value: jnp.asarray(value, dtype), PAIRS)
        for objective in (ALL, *SINGLES):
            values = functools.partial(objective.values, 0, scalars=SCALARS._asdict())
            assert jax.eval_shape(values, pairs).dtype == dtype
        values = dpo.dpo(pairs, beta=0.1, label_smoothing=0.0, dpo_margin="log_ratio")
        assert values.dtype == dtype


def test_gradients_agree_with_finite_differences():
    @jax.jit
    def losses(pairs):
        return jnp.stack([loss.values(0, pairs, SCALARS._asdict()) for loss in SINGLES])

    with jax.enable_x64(True):
        pairs = jax.tree.map(jnp.asarray, PAIRS)
        check_grads(losses, (pairs,), order=1, modes=["fwd", "rev"], rtol=1e-6, atol=1e-6)


def test_rewards():
    """beta * s; the plain s for td_dpo and sft; beta * logp / |y| for simpo."""
    with jax.enable_x64(True):
        pairs = jax.tree.map(jnp.asarray, PAIRS)
        of_grid, scalars = jax.jit(ALL.rewards), SCALARS._asdict()
        for which, loss in enumerate(SINGLES):
            expected = SCALARS.beta * S_W, SCALARS.beta * S_L
            (name,) = (term.loss.name for term in loss.terms)
            if name in ("td_dpo", "sft"):
                expected = S_W, S_L
            if name == "simpo":
                per_token = (
                    PAIRS.logp_chosen / PAIRS.length_chosen,
                    PAIRS.logp_rejected / PAIRS.length_rejected,
                )
                expected = [SCALARS.beta * value for value in per_token]
            for value in (loss.rewards(0, pairs, scalars), of_grid(which, pairs, scalars)):
                np.testing.assert_allclose(value, expected, rtol=1e-14)


def test_the_gradient_weight_is_the_slope_in_the_margin():
    """dL/dz = -sigmoid(-z), as z and the preference term of the loss say apart from each other.

    Without label smoothing and KL term. The slope in logp_chosen is dL/dz * dz/dlogp_chosen.
    """
    known = {"label_smoothing": 0.0, "tau": 1.3, "simpo_gamma": 0.6, "beta": 0.7}
    names = [name for name, loss in LOSSES.items() if loss.logit is not None]
    assert names == ["td_dpo", "dpo", "sigmoid_norm", "simpo"]
    with jax.enable_x64(True):
        pairs = jax.tree.map(jnp.asarray, PAIRS)
        for name in names:
            row = LOSSES[name]
            texts = {key: one.default for key, one in row.settings.items() if one.choices}
            settings = {**known, **texts, "ld_alpha": 1.0}

            def logit(logp, row=row, settings=settings):
                return row.logits_of(pairs._replace(logp_chosen=logp), settings).sum()

            def loss(logp, row=row, settings=settings):
                return row.values(pairs._replace(logp_chosen=logp), settings).sum()

            z = row.logits_of(pairs, settings)
            expected = -jax.nn.sigmoid(-z) * jax.grad(logit)(pairs.logp_chosen)
            if name == "td_dpo":
                expected = expected + known["beta"] * S_W
            np.testing.assert_allclose(jax.grad(loss)(pairs.logp_chosen), expected, rtol=1e-10)


def test_a_saturated_pair_has_a_weight_below_005_or_above_095():
    z = jnp.array([-2.95, -2.94, 0.0, 2.94, 2.95])
    weights = jax.nn.sigmoid(-z)
    assert metrics.saturation(z)[SATURATED].tolist() == [1, 0, 0, 0, 1]
    assert ((weights < 0.05) | (weights > 0.95)).tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("loss", SINGLES)
@pytest.mark.parametrize("beta", [0.01, 2.5])
def test_float32_is_finite_and_right_at_extreme_margins(loss, beta):
    """Each of the four log-probabilities 0 or -10,000: margins to +-20,000, against float64.

    And an unused slot, which must not poison the gradient of its batch.
    """
    scalars = SCALARS._replace(beta=beta, discopop_tau=0.05, label_smoothing=0.1)
    exact, single = (
        evaluate(loss, EXTREME_PAIRS, scalars, dtype) for dtype in (np.float64, np.float32)
    )
    for expected, value in zip(jax.tree.leaves(exact), jax.tree.leaves(single), strict=True):
        assert np.isfinite(value).all()
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


# ---- one step for all losses ---------------------------------------------------------------------


def test_no_scalar_and_no_choice_of_loss_recompiles():
    step = jax.jit(ALL.values)
    pairs = in_float32(PAIRS)
    for which, loss in enumerate(SINGLES):
        values = step(which, pairs, in_float32(SCALARS._asdict()))
        np.testing.assert_allclose(values, evaluate(loss, PAIRS)[0], rtol=2e-5, atol=1e-5)
    for name, value in SCALARS._asdict().items():
        step(0, pairs, in_float32({**SCALARS._asdict(), name: value / 2}))
    assert step._cache_size() == 1


def grid_gradient(pairs, which, scalars):
    """Each cell differentiated on its own."""
    gradient = jax.value_and_grad(total, has_aux=True)
    (_, values), gradients = jax.vmap(gradient, in_axes=(0, None, 0, 0))(pairs, ALL, which, scalars)
    return values, gradients


def gradient_of_grid(pairs, which, scalars):
    """The sum over cells differentiated: the switch is a select before it meets autodiff."""

    def grid_total(pairs):
        totals, values = jax.vmap(total, in_axes=(0, None, 0, 0))(pairs, ALL, which, scalars)
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
            beta=0.5 if term.loss.name in ("ipo", "sppo_hard") else 0.0,
            discopop_tau=0.05 if term.loss.name == "discopop" else 3.0,
        )
        for term in ALL.terms
    ]
    pairs = jax.tree.map(lambda field: np.tile(field, (len(SINGLES), 1)), EXTREME_PAIRS)
    stacked = jax.tree.map(lambda *values: np.array(values), *lanes)
    grid = jax.jit(differentiate)(in_float32(pairs), np.arange(len(SINGLES)), in_float32(stacked))
    for which, (loss, scalars) in enumerate(zip(SINGLES, lanes, strict=True)):
        alone = evaluate(loss, EXTREME_PAIRS, scalars, np.float32)
        for expected, value in zip(jax.tree.leaves(alone), jax.tree.leaves(grid), strict=True):
            assert np.isfinite(value).all()
            np.testing.assert_allclose(value[which], expected, rtol=1e-6)
