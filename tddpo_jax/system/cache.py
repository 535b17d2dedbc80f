"""The folder for things that can be made again; this module does not import JAX at its top."""

from __future__ import annotations

import os
from pathlib import Path

from tddpo_jax.errors import UserError


def cache_folder() -> Path:
    """The folder of tokenised data, reference log-probs, compiled programs and downloads.

    The environment variable `TDDPO_CACHE` sets it. The folder is made if it is missing.

    Raises:
        UserError: the folder cannot be made.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "tddpo_jax"
    folder = Path(os.environ.get("TDDPO_CACHE") or default).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"TDDPO_CACHE: the cache's folder {folder} cannot be made: {error.strerror}"
        ) from None
    return folder


def use_compilation_cache() -> None:
    """Keeps compiled programs between processes; JAX's own environment variables come first."""
    import jax

    # By default JAX keeps only programs that took a second to compile. Most programs of a small
    # model take less.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
