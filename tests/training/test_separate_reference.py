"""`model.reference`: the first model stays the reference of a second round of training."""

import shutil

import numpy as np
import pytest
import tiny_models
import tiny_runs

from tddpo_jax.config.reading import resolve
from tddpo_jax.errors import UserError
from tddpo_jax.placement.computation import computation
from tddpo_jax.training.separate_reference import find_reference
from tddpo_jax.weights.hugging_face import read_config

CHANGES = {"loss.name": "dpo", "train.max_steps": 2, "train.eval_every": None}


@pytest.fixture(scope="module")
def rounds(inputs, tmp_path_factory):
    """The directories of two rounds."""
    first, second = (tmp_path_factory.mktemp("rounds") / name for name in ("first", "second"))
    tiny_runs.run_on_one_device(inputs, first, CHANGES)
    tiny_runs.run_on_one_device(inputs, second, again(inputs, first))
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
        ({"loss.name": "simpo"}, "has no effect: simpo reads no reference$"),
        ({"loss.name": "sft"}, "has no effect: sft reads no reference$"),
        ({"loss.dpo_margin": "policy"}, "has no effect: dpo reads no reference$"),
        ({"model.reference": "nowhere"}, "'nowhere' is neither a folder nor a hub id"),
    ],
)
def test_where_it_cannot_be_had_it_is_refused_by_name(inputs, tmp_path, others, message):
    with pytest.raises(UserError, match=rf"^model\.reference: {message}"):
        tiny_runs.run(inputs, tmp_path, {**CHANGES, "model.reference": "embedded", **others})


@pytest.fixture
def other(inputs, tmp_path):
    """A copy of the first model, whose config may be changed."""
    return shutil.copytree(inputs.model, tmp_path / "other")


@pytest.mark.usefixtures("one_device")
def test_one_with_a_context_below_the_data_is_refused(inputs, other, tmp_path):
    tiny_models.change_config(other, max_position_embeddings=16)
    message = (
        r"^model\.reference: its context is 16 tokens, .* response of 2\d; give --data\.max-len"
    )
    with pytest.raises(UserError, match=message):
        tiny_runs.run(inputs, tmp_path / "run", {**CHANGES, "model.reference": str(other)})


def test_one_with_another_attention_than_the_back_end_s_is_refused(inputs, other):
    tiny_models.change_config(other, head_dim=12)
    changes = {**CHANGES, "model.reference": str(other)}
    config, mesh = resolve(tiny_runs.settings(inputs, other, changes)), tiny_models.one_device()
    policy = read_config(inputs.model)
    how = computation(config.model, mesh, policy)._replace(attention="cudnn")
    message = r"^model\.reference: .*/other: model\.attention: cudnn .*, but this model's is 12; "
    with pytest.raises(UserError, match=message):
        find_reference([config], policy, how, mesh)
