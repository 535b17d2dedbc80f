"""What full fine-tuning of a model with experts trains."""

import jax
import pytest
from flax import nnx
from places import GOLDEN

from tddpo_jax.config.schema import TrainConfig
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.placement.shardings import path_name
from tddpo_jax.training.trained_part import trained_part
from tddpo_jax.weights.hugging_face import read_config


def left_out(family, router):
    """The paths of the parameters that full training leaves out."""
    config = read_config(GOLDEN / family / "model")
    model = jax.eval_shape(lambda key: Decoder(config, key), jax.random.key(0))
    _, _, frozen = nnx.split(model, trained_part(TrainConfig(router=router), config), ...)
    return {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(frozen)}


@pytest.mark.parametrize("router", ["frozen", "trained"])
def test_routers_are_frozen_unless_asked(router):
    """Expected: both arrays of both stacks' routers, and nothing else, are left out."""
    left = left_out("gpt-oss", router)
    routers = {f"layers_0_{n}.router.{part}" for n in (0, 1) for part in ("weight", "bias")}
    assert left == (routers if router == "frozen" else set())


@pytest.mark.parametrize("router", ["frozen", "trained"])
def test_buffers_are_always_frozen(router):
    """The correction of a router's choice, and the indexers of both stacks; the router's weight is
    no buffer."""
    parts = ("queries", "keys", "norm_weight", "norm_bias", "weights")
    stacks = ("layers_0_0", "layers_1_0")
    indexers = {f"{stack}.attention.indexer.{part}" for stack in stacks for part in parts}
    buffers = {"layers_1_0.router.correction", *indexers}
    weight = {"layers_1_0.router.weight"} if router == "frozen" else set()
    assert left_out("deepseek-v32", router) == buffers | weight
