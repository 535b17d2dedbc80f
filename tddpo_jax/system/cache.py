"""Where things that can be made again are kept; imports no JAX."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Of tokenised data, reference log-probs, compiled programs and downloads: `TDDPO_CACHE`."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "tddpo_jax"
    return Path(os.environ.get("TDDPO_CACHE") or default).expanduser()


def use_compilation_cache() -> None:
    """Keeps compiled programs between processes, unless the user says where and which."""
    import jax

    # JAX's own bound, a second, leaves out most programs of a small model.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
