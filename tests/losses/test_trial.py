"""The trial of a loss finds each mistake that training would not notice, and nothing in ours."""

import jax
import numpy as np
import own_losses
import pytest

from tddpo_jax.errors import UserError
from tddpo_jax.losses import trial
from tddpo_jax.losses.catalogue import LOSSES
from tddpo_jax.losses.loss import BETA, Loss

MISTAKES = {
    "keeps_a_tracer": "is not pure: it keeps a value of its call",
    "counts_its_calls": "is not pure: for the same pairs it gives another value the second time",
    "draws_at_random": "is not pure: for the same pairs it gives another value the second time",
    "gives_a_mean": r"must give one number per pair, float \[P\]; .* float32 of the shape \[\]$",
    "gives_nothing": r"must give one number per pair, float \[P\]; for 5 pairs it gives NoneType$",
    "mixes_pairs": "the value of a pair depends on the other pairs of its batch",
    "starts_infinite": r"is not finite where the policy is the reference, but \[inf\]$",
    "starts_without_a_slope": "its gradient is not finite where the policy is the reference",
    "has_steps": "its gradient is zero everywhere, so there is nothing to learn",
    "leaves_jax": "cannot be compiled: TracerArrayConversionError: ",
    "branches": "cannot be compiled: TracerBoolConversionError: ",
    "misspells": "fails: AttributeError: 'PairLogps' object has no attribute 'logp'",
    "gives_up": "fails: SystemExit: 3",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line_that_names_the_loss(name):
    loss = Loss(getattr(own_losses, name), {"beta": BETA})
    with pytest.raises(UserError, match=rf"^loss\.name: {name}: {MISTAKES[name]}") as error:
        trial.check(loss, {"beta": 0.1})
    assert "\n" not in str(error.value)


def test_our_own_losses_pass():
    for loss in LOSSES.values():
        trial.check(loss, {name: setting.default for name, setting in loss.settings.items()})


def test_a_start_may_depend_on_the_settings():
    """IPO divides by beta."""
    trial.check_start(LOSSES["ipo"], {"beta": 0.1})
    with pytest.raises(UserError, match=r"^loss\.name: ipo: is not finite"):
        trial.check_start(LOSSES["ipo"], {"beta": 0.0})


def test_who_reads_the_exact_kl():
    """Also while a step is compiled, which then holds nothing of the question."""
    settings = {"beta": BETA}
    assert trial.reads_kl(own_losses.with_kl, settings)
    assert not trial.reads_kl(own_losses.has_steps, settings)
    asked = []
    jax.jit(lambda x: asked.append(trial.reads_kl(own_losses.with_kl, settings)) or x)(1.0)
    assert asked == [True]


def test_the_pairs_of_a_trial():
    start, later = trial.at_start(), trial.moved()
    np.testing.assert_array_equal(start.logp_chosen, start.ref_logp_chosen)
    assert all(column.shape == (5,) for column in later[:8])
    assert (later.logp_chosen != later.ref_logp_chosen).all()
