"""The tensors of adapters in PEFT's `adapter_model.safetensors`: names, shapes and contents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from tddpo_jax.adapters.expert_factors import Factors, PeftFactors, factors, stored, stored_shapes
from tddpo_jax.models.linear import Adapter
from tddpo_jax.models.tensor_table import Parameter, TargetParameter
from tddpo_jax.system.agreement import whole

Tensors = Mapping[str, np.ndarray]


class AdapterTensors(NamedTuple):
    """The tensors of the adapters beside one weight, two for each of its layers."""

    weight: Parameter
    # How many adapters of other parameters of the same module PEFT wraps around this one.
    wrappers: int

    @property
    def target(self) -> TargetParameter | None:
        """How PEFT adapts the weight if it is one of experts."""
        return self.weight.tensor.target

    def names(self) -> list[tuple[str, str]]:
        """The names of A and B, layer by layer."""
        if self.target is None:
            modules = [name.rpartition(".")[0] for name in self.weight.module_names()]
        else:
            modules = [self.target.module.format(layer) for layer in self.weight.layers or ()]
        inner = ".base_layer" * self.wrappers
        return [
            (f"{start}.lora_A.weight", f"{start}.lora_B.weight")
            for start in (f"base_model.model.{module}{inner}" for module in modules)
        ]

    def shapes(self, rank: int) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors, by name."""
        *outputs, inputs = self.weight.shape
        of_layer: tuple[tuple[int, ...], ...] = (rank, inputs), (outputs[0], rank)
        if self.target is not None:
            experts, *outputs = outputs
            of_layer = stored_shapes(math.prod(outputs), inputs, experts, rank, self.target)
        return {
            name: shape for pair in self.names() for name, shape in zip(pair, of_layer, strict=True)
        }

    def written(self, adapter: Adapter) -> dict[str, np.ndarray]:
        """The tensors of the stacked adapters; every host must call this function."""
        pairs = zip(_on_host(adapter.a[...]), _on_host(adapter.b[...]), strict=True)
        of_layers: list[Sequence[np.ndarray]] = [
            pair if self.target is None else stored(Factors(*pair), self.target) for pair in pairs
        ]
        return {
            name: np.ascontiguousarray(tensor)
            for pair, tensors in zip(self.names(), of_layers, strict=True)
            for name, tensor in zip(pair, tensors, strict=True)
        }

    def read(self, tensors: Tensors) -> tuple[np.ndarray, np.ndarray]:
        """The factors of the stacked adapters, A and B, in float32."""
        pairs: list[Sequence[np.ndarray]] = [
            [tensors[name].astype(np.float32) for name in pair] for pair in self.names()
        ]
        if self.target is not None:
            experts = self.weight.shape[0]
            pairs = [factors(PeftFactors(*pair), self.target, experts) for pair in pairs]
        a, b = zip(*pairs, strict=True)
        return np.stack(a), np.stack(b)


def tensors_of(weights: Sequence[Parameter]) -> list[AdapterTensors]:
    """The tensors of the adapters beside these weights, all that are adapted together.

    PEFT wraps the adapters of one module's parameters around each other, the last one outermost.
    """
    found = []
    for number, weight in enumerate(weights):
        target, later = weight.tensor.target, weights[number + 1 :]
        wrappers = [
            each
            for each in later
            if target is not None
            and each.layers == weight.layers
            and each.tensor.target is not None
            and each.tensor.target.module == target.module
        ]
        found.append(AdapterTensors(weight, len(wrappers)))
    return found


def _on_host(array: jax.Array) -> np.ndarray:
    return np.asarray(array if array.is_fully_addressable else whole(array), np.float32)
