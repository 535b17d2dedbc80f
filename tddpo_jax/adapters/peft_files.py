"""Reads and writes adapters as PEFT's `adapter_config.json` and `adapter_model.safetensors`.

PEFT's factors have our orientation, A `[rank, inputs]` and B `[outputs, rank]`, with one pair for
each layer. Our factors are stacked on a leading axis. We support plain LoRA and rsLoRA on linear
layers of all blocks, and on the experts of all blocks (`target_parameters`, see
`expert_factors.py`). Everything else that PEFT supports (DoRA, biases, ranks by pattern, saved
modules, new tokens) is refused by name. An adapter that was trained on a base in four bits belongs
to that base. PEFT cannot record this, so we write an additional file, and that it is there says so.

References:
    Mangrulkar et al., "PEFT: State-of-the-art Parameter-Efficient Fine-Tuning methods" (2022),
    huggingface/peft, `LoraConfig`.
    Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA" (2023).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from qwix import QArray

from tddpo_jax.adapters.lora import whole_adapters
from tddpo_jax.adapters.peft_tensors import AdapterTensors, tensors_of
from tddpo_jax.config.schema import LoraConfig
from tddpo_jax.errors import UserError
from tddpo_jax.models.attribute_values import positive_number, whole_number
from tddpo_jax.models.decoder import Decoder, adaptable_layers
from tddpo_jax.models.linear import Adapter, LoraParam
from tddpo_jax.models.tensor_table import Parameter, adaptable_parameters, linear_parameters
from tddpo_jax.placement.shardings import adapter_specs, place
from tddpo_jax.system.agreement import is_first
from tddpo_jax.system.atomic import replace_folder
from tddpo_jax.system.json_files import read_object
from tddpo_jax.weights.companions import Companions, write_companions
from tddpo_jax.weights.locate import ADAPTER_CONFIG, BASE_FILE
from tddpo_jax.weights.tensor_files import read_tensors, write_tensors

WEIGHTS_FILE = "adapter_model.safetensors"
QUANTIZED_FILE = "quantized_base.json"  # only whether it is there matters
QUANTIZED_NOTE = (
    "This adapter was trained beside a base in four bits. Linear layers and experts are in NF4, "
    "except experts that the base itself stores in four bits."
)
OLD_WEIGHTS_FILE = "adapter_model.bin"  # a pickle, which can run any code when it is read

# These attributes do not change the mathematics of a plain LoRA, or the tensors repeat them.
IGNORED_ATTRIBUTES = (
    *("base_model_name_or_path", "revision", "peft_version", "auto_mapping", "inference_mode"),
    *("target_modules", "exclude_modules", "layers_pattern", "runtime_config", "megatron_core"),
    *("qalora_group_size", "loftq_config"),
)
# These attributes would change the mathematics. Only these values and empty ones are accepted.
UNDERSTOOD_VALUES: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM",),
    "bias": ("none",),
    # Other initialisations (PiSSA, OLoRA, …) change the base too, which the folder does not hold.
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva"),
}


class PeftConfig(NamedTuple):
    """The values that we read from `adapter_config.json`."""

    rank: int
    scale: float
    dropout: float
    parameters: tuple[str, ...]  # names of parameters of experts


def read_peft_config(folder: Path) -> PeftConfig:
    """Reads the settings of the adapter in a PEFT folder.

    Raises:
        UserError: the file is missing, or describes something other than plain LoRA.
    """
    path = folder / ADAPTER_CONFIG
    attributes = read_object(path)
    names = ("r", "lora_alpha", "lora_dropout", "use_rslora", "target_parameters")
    taken = {name: attributes.pop(name, None) for name in names}
    for name, value in attributes.items():
        empty = value is None or value is False or value in ({}, [])
        if name in IGNORED_ATTRIBUTES or empty or value in UNDERSTOOD_VALUES.get(name, ()):
            continue
        raise UserError(f"{path}: {name} = {value!r} is not supported")
    dropout, stabilised = taken["lora_dropout"] or 0, taken["use_rslora"]
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise UserError(f"{path}: lora_dropout must be a number in [0, 1), got {dropout!r}")
    if stabilised not in (True, False, None):
        raise UserError(f"{path}: use_rslora must be true or false, got {stabilised!r}")
    parameters = taken["target_parameters"] or []
    if not isinstance(parameters, list) or not all(isinstance(one, str) for one in parameters):
        raise UserError(f"{path}: target_parameters must be a list of names, got {parameters!r}")
    rank = whole_number(taken["r"], "r", str(path))
    alpha = positive_number(taken["lora_alpha"], "lora_alpha", str(path))
    scale = LoraConfig(rank=rank, alpha=alpha, rslora=bool(stabilised)).scale
    return PeftConfig(rank, scale, float(dropout), tuple(parameters))


def load_adapter(model: Decoder, folder: Path, mesh: Mesh) -> None:
    """Puts the adapter of a PEFT folder beside the weights of the model, in place, in float32.

    Args:
        model: a model without an adapter, in four bits if the adapter was trained beside such a
            one; changed in place.
        folder: a folder as PEFT's `save_pretrained` writes it.
        mesh: the devices; each holds the adapter whole, except what belongs to others' experts.

    Raises:
        UserError: the folder's settings or tensors cannot be read; the message names the file.
    """
    config = read_peft_config(folder)
    path = folder / WEIGHTS_FILE
    if not path.exists() and (folder / OLD_WEIGHTS_FILE).exists():
        raise UserError(
            f"{folder}: holds {OLD_WEIGHTS_FILE}, but only {WEIGHTS_FILE} is read; load the "
            f"adapter with a current version of PEFT, and save it again with save_pretrained"
        )
    parameters = model.config.parameters
    tensors = _by_module(read_tensors(path), path, linear_parameters(parameters)[0])
    experts = _experts_named(config.parameters, parameters, folder / ADAPTER_CONFIG)
    targets = _targets(tensors, path, parameters, experts)
    shapes = {name: shape for one in targets for name, shape in one.shapes(config.rank).items()}
    _check_tensors(path, tensors, shapes)
    layers = adaptable_layers(model)
    for one in targets:
        *_, outputs, inputs = one.weight.shape
        sizes = inputs, outputs, config.rank, config.scale, config.dropout
        adapter = Adapter(*sizes, jax.random.key(0))
        stacked, specs = one.read(tensors), adapter_specs(one.weight)
        for factor, array, spec in zip(("a", "b"), stacked, specs, strict=True):
            setattr(adapter, factor, LoraParam(place(array, NamedSharding(mesh, spec))))
        layers[one.weight.module].adapter = adapter


def has_quantized_base(adapter: Path | None) -> bool:
    """Whether the adapter in a PEFT folder was trained on a base in four bits; False for None."""
    return adapter is not None and (adapter / QUANTIZED_FILE).is_file()


def export_adapter(
    model: Decoder,
    folder: Path,
    base_name: str,
    base_fingerprint: str | None = None,
    companions: Companions | None = None,
    *,
    rslora: bool = False,
) -> None:
    """Writes the adapters of the model as a PEFT folder, which appears whole or not at all.

    Args:
        model: a model with adapters on some or all of its linear layers, all of one rank and scale;
            a first and a second adapter of a layer are written as one.
        folder: the folder to write; replaced if it exists.
        base_name: hub id or path of the base, for `base_model_name_or_path`.
        base_fingerprint: the fingerprint by which `weights.locate.resolve` checks the base; None:
            no check.
        companions: what to write beside the adapter.
        rslora: whether the folder describes the adapters as rsLoRA. They compute the same.

    Raises:
        ValueError: the model has no adapter.
    """
    adapters = whole_adapters(model)
    if not adapters:
        raise ValueError(f"{folder}: the model has no adapter to write")
    weights = adaptable_parameters(model.config.parameters)
    weights = [weight for weight in weights if weight.module in adapters]
    tensors = {
        name: tensor
        for one in tensors_of(weights)
        for name, tensor in one.written(adapters[one.weight.module]).items()
    }
    if not is_first():
        return
    with replace_folder(folder) as partial:
        targets = _target_attributes(weights, model.config.parameters)
        adapter = next(iter(adapters.values()))
        attributes = {**_attributes(adapter, base_name, rslora), **targets}
        (partial / ADAPTER_CONFIG).write_text(json.dumps(attributes, indent=2) + "\n")
        specs = {
            name: jax.ShapeDtypeStruct(each.shape, each.dtype) for name, each in tensors.items()
        }
        write_tensors(partial / WEIGHTS_FILE, specs, tensors.__getitem__)
        if companions is not None:
            write_companions(companions, partial)
        if base_fingerprint is not None:
            known_by = {"fingerprint": base_fingerprint}
            (partial / BASE_FILE).write_text(json.dumps(known_by) + "\n")
        stored = (layer.weight.get_value() for layer in adaptable_layers(model).values())
        if any(isinstance(weight, QArray) for weight in stored):
            (partial / QUANTIZED_FILE).write_text(json.dumps({"note": QUANTIZED_NOTE}) + "\n")


def _target_attributes(
    weights: Sequence[Parameter], parameters: Sequence[Parameter]
) -> dict[str, Any]:
    """What says in a PEFT folder which layers are adapted.

    If experts are stored one by one, PEFT takes the names of their products to mean all experts. So
    other layers of these names are given by their weights, for which PEFT allows no dropout.
    """
    of_experts = {
        name.split(".")[-2]
        for each in parameters
        if each.tensor.pieces is not None
        for name in each.pieces_at(0).values()
    }
    by_weight = [weight for weight in weights if weight.name in of_experts]
    modules = {"target_modules": _modules([each for each in weights if each not in by_weight])}
    names = {".".join(weight.tensor.hub_name.split(".")[-3:]) for weight in by_weight}
    targets = [target for weight in weights if (target := weight.tensor.target)]
    names |= {target.name.partition("{}.")[2] for target in targets}
    if not names:
        return modules
    return {**modules, "target_parameters": sorted(names), "lora_dropout": 0.0}


def _modules(weights: Sequence[Parameter]) -> list[str] | str:
    """`target_modules`: the last names of the adapted layers, or a pattern for their whole names.

    Beside a part that we do not train, names alone would also reach that part's layers.
    """
    weights = linear_parameters(weights)
    names = sorted({weight.tensor.hub_name.split(".")[-2] for weight in weights})
    if all(weight.tensor.module_name is None for weight in weights):
        return names
    begins = {weight.module_names()[0].partition("layers.")[0] for weight in weights}
    alternatives = ("|".join(map(re.escape, sorted(each))) for each in (begins, names))
    return r"({})layers\..*\.({})".format(*alternatives)


def _attributes(adapter: Adapter, base_name: str, rslora: bool) -> dict[str, Any]:
    rank = adapter.a.shape[-2]
    unit = LoraConfig(rank=rank, alpha=1.0, rslora=rslora).scale
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        # Computing the scale has rounded it, so round alpha back to the user's number.
        "lora_alpha": float(f"{adapter.scale / unit:.12g}"),
        "lora_dropout": adapter.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": rslora,
        "use_dora": False,
        "inference_mode": True,
    }


def _by_module(
    tensors: dict[str, np.ndarray], path: Path, weight: Parameter
) -> dict[str, np.ndarray]:
    """The tensors of a file whose names may begin as those of the checkpoint.

    transformers has two models of other modules for a Llama 4 with a vision part, and its older
    versions have other modules for a Gemma 3.

    Args:
        tensors: the content of the file.
        path: the file, for messages.
        weight: any weight of a layer.
    """
    names = next(iter(weight.hub_names())), weight.module_names()[0]
    theirs, ours = (f"base_model.model.{name.partition('layers.')[0]}" for name in names)
    found: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        own = ours + name.removeprefix(theirs) if name.startswith(theirs) else name
        if own in found:
            raise UserError(f"{path}: tensor {own} is there twice, also as {name}")
        found[own] = tensor
    return found


def _targets(
    tensors: dict[str, np.ndarray],
    path: Path,
    parameters: Sequence[Parameter],
    experts: Sequence[Parameter],
) -> list[AdapterTensors]:
    """The tensors of the adapters in a file.

    Args:
        tensors: the content of the file.
        path: the file, for messages.
        parameters: those of the model.
        experts: the weights of experts that the adapter adapts.
    """
    weights = [*linear_parameters(parameters), *experts]
    order = list(parameters)
    candidates = tensors_of(sorted(weights, key=order.index))
    known = {name: one.weight.name for one in candidates for pair in one.names() for name in pair}
    for name in tensors:
        if name not in known:
            raise UserError(f"{path}: tensor {name} is unknown")
    found = {known[name] for name in tensors}
    if not found:
        raise UserError(f"{path}: holds no tensor")
    return [one for one in candidates if one.target or one.weight.name in found]


def _experts_named(
    named: Sequence[str], parameters: Sequence[Parameter], path: Path
) -> list[Parameter]:
    """The weights of experts that `target_parameters` names, which must be so in all layers.

    An entry is the name of a parameter, or an end of it from a dot on. It may stand for one layer
    or for several. It may also name the weights of linear layers, which their tensors show anyway.

    Args:
        named: the entries.
        parameters: those of the model.
        path: the file, for messages.
    """
    ends = tuple(f".{name}" for name in named)
    experts = [weight for weight in parameters if weight.tensor.target]
    names = {
        weight: _parameter_names(weight) for weight in (*linear_parameters(parameters), *experts)
    }
    everywhere = [each for of_layers in names.values() for layer in of_layers for each in layer]
    for name, end in zip(named, ends, strict=True):
        if not any(each.endswith(end) for each in everywhere):
            raise UserError(
                f"{path}: target_parameters has {name}, which names nothing that can have an "
                "adapter here"
            )
    layers: dict[str, list[bool]] = {}  # whether it is named in each layer, by the weight's name
    for weight in experts:
        found = [any(each.endswith(ends) for each in layer) for layer in names[weight]]
        layers.setdefault(weight.name, []).extend(found)
    for name, found in layers.items():
        if any(found) and not all(found):
            raise UserError(
                f"{path}: target_parameters names {name} in {sum(found)} of {len(found)} layers; "
                "adapters of experts must be in all layers"
            )
    return [weight for weight in experts if all(layers[weight.name])]


def _parameter_names(weight: Parameter) -> list[tuple[str, str]]:
    """The names of its tensors in transformers' two models, layer by layer, after a dot."""
    target = weight.tensor.target
    ours = weight.module_names()
    if target is not None:
        ours = [target.name.format(layer) for layer in weight.layers or ()]
    return [(f".{own}", f".{hub}") for own, hub in zip(ours, weight.hub_names(), strict=True)]


def _check_tensors(
    path: Path, tensors: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]
) -> None:
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            found, wanted = list(tensor.shape), list(shapes[name])
            raise UserError(
                f"{path}: {name} has shape {found}, but the base and r require {wanted}"
            )
    for name in shapes:
        if name not in tensors:
            raise UserError(f"{path}: tensor {name} is missing")
