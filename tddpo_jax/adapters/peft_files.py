"""Reads and writes adapters as PEFT's `adapter_config.json` and `adapter_model.safetensors`.

PEFT's factors have our orientation, A `[rank, inputs]` and B `[outputs, rank]`, with one pair for
each layer. Our factors are stacked on a leading axis. We support plain LoRA and rsLoRA on linear
layers of all blocks. Everything else that PEFT supports (DoRA, biases, ranks by pattern, saved
modules, new tokens) is refused by name. An adapter that was trained on a base in NF4 belongs to
that base. PEFT cannot record this, so we write an additional file.

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
from jax.sharding import Mesh
from qwix import QArray

from tddpo_jax.adapters.lora import whole_adapters
from tddpo_jax.adapters.nf4 import NF4_BLOCK, quantize
from tddpo_jax.config.schema import LoraConfig
from tddpo_jax.errors import UserError
from tddpo_jax.models.attribute_values import positive_number, whole_number
from tddpo_jax.models.decoder import Decoder, linear_layers
from tddpo_jax.models.linear import Adapter, LoraParam
from tddpo_jax.models.tensor_table import Parameter, linear_parameters
from tddpo_jax.placement.shardings import replicated
from tddpo_jax.system.agreement import is_first
from tddpo_jax.system.atomic import replace_folder
from tddpo_jax.system.json_files import read_object
from tddpo_jax.weights.companions import Companions, write_companions
from tddpo_jax.weights.hugging_face import checkpoint_dtype
from tddpo_jax.weights.locate import ADAPTER_CONFIG, BASE_FILE
from tddpo_jax.weights.tensor_files import read_tensors, write_tensors

WEIGHTS_FILE = "adapter_model.safetensors"
QUANTIZED_FILE = "quantized_base.json"
OLD_WEIGHTS_FILE = "adapter_model.bin"  # a pickle, which can run any code when it is read

# These attributes do not change the mathematics of a plain LoRA, or the tensors repeat them.
IGNORED_ATTRIBUTES = (
    *("base_model_name_or_path", "revision", "peft_version", "auto_mapping", "inference_mode"),
    *(
        "target_modules",
        "target_parameters",
        "exclude_modules",
        "layers_pattern",
        "runtime_config",
        "megatron_core",
    ),
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


def read_peft_config(folder: Path) -> PeftConfig:
    """Reads the settings of the adapter in a PEFT folder.

    Raises:
        UserError: the file is missing, or describes something other than plain LoRA.
    """
    path = folder / ADAPTER_CONFIG
    attributes = read_object(path)
    numbers = ("r", "lora_alpha", "lora_dropout", "use_rslora")
    taken = {name: attributes.pop(name, None) for name in numbers}
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
    rank = whole_number(taken["r"], "r", str(path))
    alpha = positive_number(taken["lora_alpha"], "lora_alpha", str(path))
    scale = LoraConfig(rank=rank, alpha=alpha, rslora=bool(stabilised)).scale
    return PeftConfig(rank, scale, float(dropout))


def load_adapter(model: Decoder, folder: Path, mesh: Mesh) -> None:
    """Puts the adapter of a PEFT folder beside the weights of the model, in place, in float32.

    If the adapter was trained on a base in NF4, the weights become NF4 too.

    Args:
        model: a model without an adapter; changed in place.
        folder: a folder as PEFT's `save_pretrained` writes it.
        mesh: the devices; each holds the adapter whole.

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
    weights = linear_parameters(model.config.parameters)
    tensors = _by_module(read_tensors(path), path, weights[0])
    targets = _targets(tensors, path, weights)
    shapes = {
        name: shape for weight in targets for name, shape in _expected(weight, config.rank).items()
    }
    _check_tensors(path, tensors, shapes)
    if has_quantized_base(folder):
        quantize(model)
    place = replicated(mesh)
    linears = linear_layers(model)
    for weight in targets:
        outputs, inputs = weight.shape
        sizes = inputs, outputs, config.rank, config.scale, config.dropout
        adapter = Adapter(*sizes, jax.random.key(0))
        for factor in ("a", "b"):
            names = _names(weight, factor)
            stacked = np.stack([tensors[name].astype(np.float32) for name in names])
            setattr(adapter, factor, LoraParam(jax.device_put(stacked, place)))
        linears[weight.module].adapter = adapter


def has_quantized_base(adapter: Path | None) -> bool:
    """Whether the adapter in a PEFT folder was trained on a base in four bits; False for None."""
    return adapter is not None and (adapter / QUANTIZED_FILE).is_file()


def base_dtype(base: Path, adapters: Sequence[Path | None], dtype: Any) -> Any:
    """The dtype in which to load a base under these adapters.

    If an adapter was trained on a quantised base, this is the checkpoint's own dtype. Then every
    load gets the same four bits as the training. Otherwise it is `dtype`.

    Args:
        base: the Hugging Face folder of the base.
        adapters: PEFT folders; None for the base alone.
        dtype: dtype of the computation.
    """
    return checkpoint_dtype(base) if any(map(has_quantized_base, adapters)) else dtype


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
    weights = [one for one in linear_parameters(model.config.parameters) if one.module in adapters]
    tensors = {
        name: np.ascontiguousarray(stacked[place])
        for weight in weights
        for factor in ("a", "b")
        for stacked in [np.asarray(getattr(adapters[weight.module], factor)[...], np.float32)]
        for place, name in enumerate(_names(weight, factor))
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
        stored = (linear.weight.get_value() for linear in linear_layers(model).values())
        if any(isinstance(weight, QArray) for weight in stored):
            quantized = {"format": "nf4", "block_size": NF4_BLOCK}
            (partial / QUANTIZED_FILE).write_text(json.dumps(quantized) + "\n")


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
    if not by_weight:
        return modules
    names = {".".join(weight.tensor.hub_name.split(".")[-3:]) for weight in by_weight}
    return {**modules, "target_parameters": sorted(names), "lora_dropout": 0.0}


def _modules(weights: Sequence[Parameter]) -> list[str] | str:
    """`target_modules`: the last names of the adapted layers, or a pattern for their whole names.

    Beside a part that we do not train, names alone would also reach that part's layers.
    """
    names = sorted({weight.tensor.hub_name.split(".")[-2] for weight in weights})
    if all(weight.tensor.module_name is None for weight in weights):
        return names
    begins = {weight.module_names()[0].partition("layers.")[0] for weight in weights}
    alternatives = ("|".join(map(re.escape, sorted(each))) for each in (begins, names))
    return r"(.*\.)?({})layers\..*\.({})".format(*alternatives)


def _attributes(adapter: Adapter, base_name: str, rslora: bool) -> dict[str, Any]:
    rank = adapter.a.shape[1]
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


def _names(weight: Parameter, factor: str) -> list[str]:
    """PEFT's names for one factor of the adapter beside a weight, layer by layer."""
    ending = f"lora_{factor.upper()}.weight"
    return [
        f"base_model.model.{name.removesuffix('weight')}{ending}" for name in weight.module_names()
    ]


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
    tensors: dict[str, np.ndarray], path: Path, weights: Sequence[Parameter]
) -> list[Parameter]:
    """The weights of the linear layers that have adapters among these tensors."""
    known = {
        name: weight.name
        for weight in weights
        for factor in ("a", "b")
        for name in _names(weight, factor)
    }
    for name in tensors:
        if name not in known:
            raise UserError(f"{path}: tensor {name} is unknown")
    found = {known[name] for name in tensors}
    if not found:
        raise UserError(f"{path}: holds no tensor")
    return [weight for weight in weights if weight.name in found]


def _expected(weight: Parameter, rank: int) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors of the adapter beside a weight, by PEFT's names."""
    outputs, inputs = weight.shape
    shapes = {"a": (rank, inputs), "b": (outputs, rank)}
    return {name: shape for factor, shape in shapes.items() for name in _names(weight, factor)}


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
