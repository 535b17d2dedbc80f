"""The verbs that measure: they call the programs of `eval/`.

`eval/` lies beside the package in a checkout and inside it when installed. Here it is always
`tddpo_jax.eval`, so that a folder `eval` of the user's hides nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import tddpo_jax
from tddpo_jax.system.paths import beside_or_inside


def run_program(name: str, arguments: Sequence[str]) -> int:
    """Runs a program of `eval/` and returns its exit status.

    Args:
        name: the program's folder.
        arguments: the command line after the verb.
    """
    above = str(beside_or_inside("eval").parent)
    if above not in tddpo_jax.__path__:
        tddpo_jax.__path__.append(above)
    status: int = importlib.import_module(f"tddpo_jax.eval.{name}.__main__").main(arguments)
    return status
