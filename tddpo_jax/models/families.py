"""The model families by their `model_type`. No other module names a family."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from tddpo_jax.errors import UserError
from tddpo_jax.models.architecture import DecoderConfig
from tddpo_jax.models.deepseek import attributes as deepseek
from tddpo_jax.models.deepseek import tensors as deepseek_tensors
from tddpo_jax.models.gemma3 import attributes as gemma3
from tddpo_jax.models.gemma3 import tensors as gemma3_tensors
from tddpo_jax.models.gpt_oss import attributes as gpt_oss
from tddpo_jax.models.gpt_oss import tensors as gpt_oss_tensors
from tddpo_jax.models.llama import attributes as llama
from tddpo_jax.models.llama.tensors import LINEAR_NAMES
from tddpo_jax.models.llama4 import attributes as llama4
from tddpo_jax.models.llama4 import tensors as llama4_tensors
from tddpo_jax.system.foreign_code import not_run


class Family(NamedTuple):
    """A family of models with the same architecture. Everything else follows from its config."""

    # Takes the attributes of a `config.json`, and the path of that file for error messages.
    read_config: Callable[[Mapping[str, Any], str], DecoderConfig]
    linear_names: tuple[str, ...]  # names of all linear layers of its blocks
    # From the attributes of a `config.json` to those of an export, which transformers reads.
    exported: Callable[[dict[str, Any]], dict[str, Any]] = lambda attributes: attributes


LLAMA = Family(llama.read_config, LINEAR_NAMES)
GEMMA3 = Family(gemma3.read_config, gemma3_tensors.LINEAR_NAMES)
GPT_OSS = Family(gpt_oss.read_config, gpt_oss_tensors.LINEAR_NAMES)
LLAMA4 = Family(llama4.read_config, llama4_tensors.LINEAR_NAMES, llama4.exported)
DEEPSEEK = Family(deepseek.read_config, deepseek_tensors.LINEAR_NAMES, deepseek.exported)
FAMILIES = {
    **dict.fromkeys(llama.MODEL_TYPES, LLAMA),
    **dict.fromkeys(gemma3.MODEL_TYPES, GEMMA3),
    **dict.fromkeys(gpt_oss.MODEL_TYPES, GPT_OSS),
    **dict.fromkeys(llama4.MODEL_TYPES, LLAMA4),
    **dict.fromkeys(deepseek.MODEL_TYPES, DEEPSEEK),
}


def read_config(attributes: Mapping[str, Any], path: str) -> DecoderConfig:
    """The shape of a model of any family.

    Args:
        attributes: the content of its `config.json`.
        path: the path of that file, for error messages.

    Returns:
        The shape.

    Raises:
        UserError: the family is unknown, or an attribute is missing, unsupported or unknown.
    """
    model_type = attributes.get("model_type")
    if model_type is None:
        raise UserError(f"{path}: model_type is missing")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        code = not_run(attributes)
        raise UserError(
            f"{path}: model_type = {model_type!r} is not supported (only {known})"
            + (f"; {code}" if code else "")
        )
    return FAMILIES[model_type].read_config(attributes, path)


def exported_attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes of an export of a folder whose `config.json` has these.

    Exports are never packed, so they have no `quantization_config`.
    """
    whole = dict(attributes)
    if whole.get("quantization_config") is not None:
        del whole["quantization_config"]
    return FAMILIES[whole["model_type"]].exported(whole)


def are_all_linear_layers(names: Collection[str]) -> bool:
    """Whether these names are exactly those of all linear layers in the blocks of some family."""
    return any(set(names) == set(family.linear_names) for family in FAMILIES.values())
