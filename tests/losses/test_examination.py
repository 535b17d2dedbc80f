"""The examination of losses: ours pass, and what it says of them is known."""

import jax
import jax.numpy as jnp
import numpy as np
import own_losses
import pytest

from tddpo_jax.losses.catalogue import LOSSES
from tddpo_jax.losses.examination import curve_of, examine
from tddpo_jax.losses.loss import BETA, Loss
from tddpo_jax.losses.pair_logps import scaled_margin

BETA_ALONE = {"beta": 0.05}


def said(loss, settings):
    return {finding.text: finding.passed for finding in examine(loss, settings)}


def failed(function):
    findings = said(Loss(function, {"beta": BETA}), BETA_ALONE)
    return [text for text, passed in findings.items() if passed is False]


@pytest.mark.parametrize("name", LOSSES)
def test_our_losses_pass(name):
    settings = {key: setting.default for key, setting in LOSSES[name].settings.items()}
    found = said(LOSSES[name], settings)
    assert False not in found.values()
    reads = "does not read" if name in ("sft", "simpo") else "reads"
    assert f"{reads} the reference's log-probs" in found
    pulled = "not up" if name == "discopop" else "up"
    assert f"at the start the margin is pulled {pulled}" in found
    pushed = "is not" if name in ("discopop", "apo_down") else "is"
    assert f"at the start the chosen response {pushed} pushed up" in found


def test_the_value_at_the_reference():
    """DPO's is log 2 for every pair; that of SFT is the pair's own."""
    assert "where the policy is the reference, the value is 0.6931 for every pair" in said(
        LOSSES["dpo"], {"beta": 0.05, "label_smoothing": 0.0}
    )
    assert "where the policy is the reference, the value is 3.5 to 90 by pair" in said(
        LOSSES["sft"], {}
    )


def overflows(pairs, *, beta):
    return jnp.log1p(jnp.exp(-scaled_margin(pairs, beta)))


@jax.custom_vjp
def _twice(x):
    return 2 * x


_twice.defvjp(lambda x: (2 * x, None), lambda _, slope: (slope,))


def has_a_wrong_gradient(pairs, *, beta):
    return -_twice(scaled_margin(pairs, beta))


def has_the_wrong_sign(pairs, *, beta):
    return scaled_margin(pairs, beta)


def is_always_float32(pairs, *, beta):
    return -scaled_margin(pairs, beta).astype(jnp.float32)


def test_each_failure_is_named():
    """log(1 + e^-x) overflows beyond x = -88.7, which is 1,775 nats at beta 0.05."""
    (text,) = failed(overflows)
    assert text.startswith("value or gradient is not finite at a margin of -")
    nats = float(text.split()[-2].replace(",", ""))
    assert -88.7 / 0.05 * 2 < nats < -88.7 / 0.05
    assert failed(has_a_wrong_gradient)[0].startswith("gradient does not agree with finite")
    assert failed(has_the_wrong_sign) == ["a large margin costs no less than a negative one"]
    assert failed(is_always_float32) == [
        "gives float32 for pairs in float64, which loses their digits"
    ]
    (text,) = failed(own_losses.mixes_pairs)
    assert text == "mixes_pairs: the value of a pair depends on the other pairs of its batch"


def test_a_curve_is_the_loss_along_the_margin():
    """DPO: softplus(-x) with the slope -beta sigmoid(-x)."""
    margins, values, slopes = curve_of(LOSSES["dpo"], {"beta": 0.5, "label_smoothing": 0.0})
    np.testing.assert_allclose(values, np.logaddexp(0, -0.5 * margins), rtol=1e-5)
    np.testing.assert_allclose(slopes, -0.5 / (1 + np.exp(0.5 * margins)), rtol=1e-5, atol=1e-7)
    assert (margins[0], margins[-1]) == (-16, 16)
