"""Collects the facts for `run.json`: versions, commit, devices, hashes, row counts."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import platform
from typing import Any

import jax

from tddpo_jax import __version__
from tddpo_jax.models.architecture import expert_layers
from tddpo_jax.models.tensor_table import parameter_count
from tddpo_jax.runs.run_directory import EVEN_STEPS
from tddpo_jax.system.source import git_commit
from tddpo_jax.training.shared import Shared


def facts(shared: Shared) -> dict[str, Any]:
    """The content of `run.json`: versions, commit, devices, hashes, row counts."""
    data = shared.dataset
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    versions |= {"tddpo_jax": __version__, "python": platform.python_version()}
    return {
        "versions": versions,
        "git_commit": git_commit(),
        "device": {"kind": jax.devices()[0].device_kind, "count": jax.device_count()},
        "hosts": jax.process_count(),
        "mesh": dict(shared.mesh.shape),
        "model": {
            "path": shared.config.model.path,
            "sha256": shared.hashes.content,
            "adapter_sha256": shared.hashes.adapter,
            "reference": shared.config.model.reference,
            "reference_sha256": shared.reference and shared.reference.content,
            "reference_adapter_sha256": shared.reference and shared.reference.adapter,
            "parameters": parameter_count(shared.model_config.parameters),
            "has_experts": expert_layers(shared.model_config) is not None,
        },
        "data": {
            "path": shared.config.data.names,
            "sha256": data.content_hash,
            "template": data.template,
            "train_rows": len(data.train),
            "validation_rows": len(data.validation),
            "sources": data.counts,
            "dropped": {reason: len(rows) for reason, rows in data.dropped.items()},
            "dropped_rows": data.dropped,
            "cut_prompts": data.cut_prompts,
            "cut_responses": data.cut_responses,
            "not_read": data.not_read,
        },
        "step_sizes": EVEN_STEPS,
        "micro_batches": [dataclasses.asdict(shape) for shape in shared.shapes],
    }
