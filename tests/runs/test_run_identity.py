"""Which settings make a run another run."""

from tddpo_jax.config.schema import resolve
from tddpo_jax.models.llama.tensors import LINEAR_NAMES
from tddpo_jax.runs.run_directory import identity


def settings_with(targets):
    config = resolve({"train": {"mode": "lora"}, "lora": {"targets": targets}})
    return config.model_dump(mode="json")


def test_naming_all_linear_layers_is_the_default():
    """Runs of earlier versions wrote all seven names out, and go on; fewer are another run."""
    default = identity(settings_with(None))
    assert identity(settings_with(LINEAR_NAMES)) == default
    assert identity(settings_with(LINEAR_NAMES[1:])) != default
