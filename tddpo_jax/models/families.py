"""The model families by their `model_type`: the only place where a family is named."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from tddpo_jax.errors import UserError
from tddpo_jax.models.architecture import DecoderConfig
from tddpo_jax.models.llama import attributes as llama
from tddpo_jax.models.llama.tensors import LINEAR_NAMES


class Family(NamedTuple):
    """Models that are built alike; the config that it reads tells everything else."""

    # From the attributes of a `config.json`, and its path for errors.
    read_config: Callable[[Mapping[str, Any], str], DecoderConfig]
    linear_names: tuple[str, ...]  # of all linear layers of its blocks


FAMILIES = {"llama": Family(llama.read_config, LINEAR_NAMES)}


def read_config(attributes: Mapping[str, Any], path: str) -> DecoderConfig:
    """The shape of a model whose `config.json`, at a path that errors name, has these attributes.

    Raises:
        UserError: the family is unknown; an attribute is missing, or is not understood.
    """
    model_type = attributes.get("model_type")
    if model_type is None:
        raise UserError(f"{path}: model_type is missing")
    if model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(f"{path}: model_type = {model_type!r} is not supported (only {known})")
    return FAMILIES[model_type].read_config(attributes, path)


def are_all_linear_layers(names: Collection[str]) -> bool:
    """Whether these are the names of all linear layers of some family's blocks."""
    return any(set(names) == set(family.linear_names) for family in FAMILIES.values())
