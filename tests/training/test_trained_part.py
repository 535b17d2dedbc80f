"""What full fine-tuning of a model with experts trains."""

from pathlib import Path

import jax
import pytest
from flax import nnx

from tddpo_jax.config.schema import TrainConfig
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.placement.shardings import path_name
from tddpo_jax.training.trained_part import trained_part
from tddpo_jax.weights.hugging_face import read_config

FOLDER = Path(__file__).parents[1] / "models" / "golden" / "gpt-oss" / "model"


@pytest.mark.parametrize("router", ["frozen", "trained"])
def test_routers_are_frozen_unless_asked(router):
    """Expected: both arrays of both stacks' routers, and nothing else, are left out."""
    config = read_config(FOLDER)
    model = jax.eval_shape(lambda key: Decoder(config, key), jax.random.key(0))
    _, _, frozen = nnx.split(model, trained_part(TrainConfig(router=router), config), ...)
    left = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(frozen)}
    routers = {f"layers_0_{n}.router.{part}" for n in (0, 1) for part in ("weight", "bias")}
    assert left == (routers if router == "frozen" else set())
