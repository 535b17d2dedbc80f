"""TD-DPO, DPO, DiscoPOP and related losses for language models, in JAX, on a device mesh.

From Python, `tddpo_jax.train` and its neighbours do what the verbs of the command line do. They are
described in `tddpo_jax.api`. `UserError` is what a caller catches. `tddpo_jax.losses` holds the
losses, which are functions of arrays.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tddpo_jax.errors import UserError

if TYPE_CHECKING:
    from tddpo_jax.api import Run, Runs, export, generate, log_probs, plan, report, sample, train

__all__ = [
    "Run",
    "Runs",
    "UserError",
    "export",
    "generate",
    "log_probs",
    "plan",
    "report",
    "sample",
    "train",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports what is asked for at its first use: `--help` does not wait for it."""
    if name == "losses":
        return importlib.import_module("tddpo_jax.losses")
    if name in __all__:
        return getattr(importlib.import_module("tddpo_jax.api"), name)
    raise AttributeError(f"module 'tddpo_jax' has no attribute {name!r}")
