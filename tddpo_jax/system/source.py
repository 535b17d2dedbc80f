"""Which version of the source is running."""

from __future__ import annotations

import subprocess

from tddpo_jax.system.paths import PACKAGE


def git_commit() -> str | None:
    """The commit of the running source, with `-dirty` after changes; None outside a checkout."""
    # A package that is installed inside another project's checkout is not of that checkout.
    tracked = ["git", "ls-files", "--error-unmatch", "__init__.py"]
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        if subprocess.run(tracked, cwd=PACKAGE, capture_output=True, check=False).returncode:
            return None
        found = subprocess.run(describe, cwd=PACKAGE, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None
