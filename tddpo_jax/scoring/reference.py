"""The reference's log-probabilities, computed once and kept.

The reference is the policy before its first step, run through the same compiled program. What it
says depends on no loss, beta, tau or seed, so a whole grid shares one pass, and no second model
stays in memory.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float

from tddpo_jax.system.agreement import agree, first_only
from tddpo_jax.system.atomic import write_file

# Part of every entry's name: raise it when the same settings, model and pairs give other values.
VERSION = 1


def reference_log_probs(
    compute: Callable[[], Float[np.ndarray, "examples N"]], cache: Path, **depends_on: Any
) -> Float[np.ndarray, "examples N"]:
    """The reference's log-probs from the cache, or computed and put there.

    Args:
        compute: runs the reference pass.
        cache: folder of the cache.
        depends_on: everything the values depend on, as plain data; its hash is their name.
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
    except (ValueError, OSError, EOFError, BadZipFile):
        warnings.warn(f"{path} is damaged; computing the reference again", stacklevel=2)
        return None


@first_only
def _store(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_file(path) as file:
        np.save(file, values)
