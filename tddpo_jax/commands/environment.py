"""The verb `env`: the facts about a machine that a bug report needs."""

from __future__ import annotations

import importlib.metadata
import platform

from tddpo_jax import __version__
from tddpo_jax.errors import one_line
from tddpo_jax.system.cache import cache_folder
from tddpo_jax.system.paths import CONFIGS, PACKAGE
from tddpo_jax.system.source import git_commit

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "qwix", "transformers", "tokenizers"),
    *("datasets", "huggingface-hub", "safetensors", "numpy"),
)


def environment() -> dict[str, str]:
    """Versions, devices and folders by name."""
    return {
        "tddpo_jax": __version__,
        "commit": git_commit() or "unknown: not a checkout",
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) for name in PACKAGES},
        "devices": _devices(),
        "package": str(PACKAGE),
        "configs": str(CONFIGS),
        "cache": str(cache_folder()),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> str:
    """The devices, or why JAX does not start: a bug report may be about just that."""
    try:
        import jax

        return f"{jax.device_count()} x {jax.devices()[0].device_kind} ({jax.default_backend()})"
    except Exception as error:
        return f"JAX does not start: {one_line(error)}"
