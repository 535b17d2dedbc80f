"""The step of a model whose routers are trained."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_gpt_oss
import tiny_models
from flax import nnx

from tddpo_jax.batches.layout import Shape, stream_length
from tddpo_jax.batches.packing import pack
from tddpo_jax.config.cells import ignored_in
from tddpo_jax.config.reading import resolve
from tddpo_jax.losses.metric_names import ROUTER_LOSS
from tddpo_jax.losses.objective import objective_of
from tddpo_jax.placement.computation import computation
from tddpo_jax.training.optimizer import make_optimizer
from tddpo_jax.training.state import Frozen, Knobs, Totals
from tddpo_jax.training.step import StepSetting, loss_and_metrics
from tddpo_jax.training.trained_part import router_loss, trained_part
from tddpo_jax.weights.hugging_face import read_config


def test_the_loss_of_routers_counts_as_much_as_asked(tmp_path):
    """A micro-batch of two of the step's three pairs. Expected: with a weight of 3, the loss is
    greater by 3 times two thirds of the routers' loss. That would be 2 if the two experts of a
    token were any two. The other results are the same."""
    mesh = tiny_models.one_device()
    model = tiny_models.load(tiny_gpt_oss.write(tmp_path / "model"), jnp.float32)
    config = resolve({"train": {"router": "trained"}})
    graphdef, trained, base = nnx.split(model, trained_part(config.train, model.config), ...)
    objective = objective_of([config.loss.settings])
    setting = StepSetting(
        graphdef,
        model.config,
        objective,
        make_optimizer(config.train, model.config),
        computation(config.model, mesh, model.config),
    )
    numbers = {name: jnp.float32(getattr(config.loss, name)) for name in objective.scalar_names}
    knobs, totals = Knobs(0, numbers, jnp.float32(0.1), jnp.float32(0)), Totals(3.0, 12.0)
    pairs = tiny_models.random_examples([(3, 5, 2), (7, 4, 6)], vocabulary=448)
    (batch,) = pack(pairs, [Shape(1, 64, 40, 2)])

    def results(weight):
        own = dataclasses.replace(setting, router_loss=weight)
        run = tiny_models.quick_jit(functools.partial(loss_and_metrics, own))
        return run(trained, Frozen(base, None), knobs, batch, totals, None)

    loss, (metrics, choices) = results(3.0)
    without, (others, same_choices) = results(0.0)
    routers = metrics.pop(ROUTER_LOSS) / 2
    assert routers > 2
    np.testing.assert_allclose(loss - without, 3 * routers * 2 / 3, rtol=1e-5)
    del metrics["loss"], others["loss"]
    jax.tree.map(np.testing.assert_array_equal, (metrics, choices), (others, same_choices))
    assert choices.sum() == 2 * sum(map(stream_length, pairs))


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"router": "trained"}, 0.001),
        ({"router": "frozen"}, 0),
        ({"router": "trained", "mode": "lora"}, 0),
    ],
)
def test_routers_have_a_loss_only_if_they_are_trained(changes, wanted):
    experts = read_config(tiny_gpt_oss.FOLDER)
    config = resolve({"train": changes})
    assert router_loss(config, experts) == wanted
    assert router_loss(config, tiny_models.CONFIG) == 0


def test_a_weight_that_has_no_effect_is_named():
    for train, cause in (({}, "train.router=frozen"), ({"mode": "lora"}, "train.mode=lora")):
        config = resolve({"train": {**train, "router_aux": 0.5}})
        assert f"train.router_aux has no effect with {cause}" in ignored_in([config])
