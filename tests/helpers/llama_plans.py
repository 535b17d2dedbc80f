"""Configurations of plans for Llama-2-7B."""

from typing import Any

from places import CONFIGS

from tddpo_jax.config.cells import expand
from tddpo_jax.config.reading import read_yaml, resolve
from tddpo_jax.config.schema import Config
from tddpo_jax.weights import locate

LLAMA = locate.model_folder("meta-llama/Llama-2-7b-hf")


def config_of(name: str, **settings: dict[str, Any]) -> Config:
    """A configuration of `configs/`, with some settings of its sections changed."""
    mapping = expand(read_yaml(CONFIGS / f"{name}.yaml"))[0]
    return resolve(
        mapping | {section: mapping.get(section, {}) | s for section, s in settings.items()}
    )
