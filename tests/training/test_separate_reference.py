"""`model.reference`: the first model stays the reference of a second round of training."""

import numpy as np
import pytest
import tiny_runs

from tddpo_jax.errors import UserError

CHANGES = {"loss.name": "dpo", "train.max_steps": 2, "train.eval_every": None}


@pytest.fixture(scope="module")
def rounds(inputs, tmp_path_factory):
    """The directories of two rounds."""
    first, second = (tmp_path_factory.mktemp("rounds") / name for name in ("first", "second"))
    with pytest.MonkeyPatch.context() as patch:
        tiny_runs.use_devices(patch, 1)
        tiny_runs.run(inputs, first, CHANGES)
        tiny_runs.run(inputs, second, again(inputs, first))
    return first, second


def again(inputs, first, **others):
    return {**CHANGES, "model.path": str(first), "model.reference": str(inputs.model), **others}


def array(run, name):
    return np.load(run / "evaluations" / f"{name}.npy")


def test_the_kl_at_step_0_is_that_to_the_first_model(rounds):
    first, second = rounds
    reference = array(second, "reference")
    np.testing.assert_allclose(reference, array(first, "reference"), rtol=1e-5)
    ratios = array(second, "000000").astype(np.float64) - reference
    (start, *_), (best, *_) = map(tiny_runs.validation_lines, (second, first))
    expected = 0.5 * (ratios**2).sum(axis=1).mean()
    assert start["eval_kl"] == pytest.approx(expected, rel=1e-4)
    assert start["eval_kl"] > 1e-3 > best["eval_kl"]
    assert start["eval_loss"] == pytest.approx(
        np.logaddexp(0, -0.05 * (ratios[:, 0] - ratios[:, 1])).mean(), rel=1e-5
    )


@pytest.mark.usefixtures("one_device")
def test_it_is_part_of_the_run(rounds, inputs):
    first, second = rounds
    before = tiny_runs.times(second)
    tiny_runs.run(inputs, second, again(inputs, first))
    assert tiny_runs.times(second) == before
    with pytest.raises(UserError, match=r"model\.reference is .*, asked for None$"):
        tiny_runs.run(inputs, second, again(inputs, first, **{"model.reference": None}))
    with pytest.raises(UserError, match=r"model\.reference is None, asked for "):
        tiny_runs.run(inputs, first, {**CHANGES, "model.reference": str(second)})


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"loss.name": "td_dpo", "loss.kl": "full"}, "td_dpo reads the exact KL, for which every"),
        ({"loss.name": "simpo"}, "simpo has no reference$"),
        ({"loss.name": "sft"}, "sft has no reference$"),
        ({"loss.dpo_margin": "policy"}, "dpo has no reference$"),
        ({"model.reference": "nowhere"}, "'nowhere' is neither a folder nor a hub id"),
    ],
)
def test_where_it_cannot_be_had_it_is_refused_by_name(inputs, tmp_path, others, message):
    with pytest.raises(UserError, match=rf"^model\.reference: {message}"):
        tiny_runs.run(inputs, tmp_path, {**CHANGES, "model.reference": "embedded", **others})
