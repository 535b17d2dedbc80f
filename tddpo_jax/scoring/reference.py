"""The reference's log-probabilities, computed once and kept in the cache.

The reference is the policy before its first step, run through the same compiled program. Its
log-probs do not depend on loss, beta, tau or seed. So a whole grid shares one pass, and memory
holds no second model.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from tddpo_jax.system.agreement import agree, first_only
from tddpo_jax.system.atomic import write_file

# Part of every entry's name. Raise it when the same settings, model and examples give new values.
VERSION = 2


def reference_log_probs(
    compute: Callable[[], Float[np.ndarray, "examples values"]], cache: Path, **depends_on: Any
) -> Float[np.ndarray, "examples values"]:
    """The reference's log-probs, in nats. They are read from the cache or computed and stored.

    Args:
        compute: runs the reference pass.
        cache: folder of the cache.
        depends_on: everything that the values depend on, as plain data; its hash names the file.
    """
    named = json.dumps({"version": VERSION, **depends_on}, sort_keys=True)
    key = hashlib.sha256(named.encode()).hexdigest()
    path = cache / "reference" / f"{key}.npy"
    values = agree(lambda: _stored(path))
    if values is None:
        values = compute()
        _store(path, values)
    return values


def _stored(path: Path) -> np.ndarray | None:
    if not path.exists():
        return None
    try:
        return np.load(path, allow_pickle=False)
    except Exception:  # whatever a damaged file makes numpy raise
        warnings.warn(f"{path} is damaged; computing the reference again", stacklevel=2)
        return None


@first_only
def _store(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_file(path) as file:
        np.save(file, values)
