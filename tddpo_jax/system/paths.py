"""Paths of the package's files."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
# The folder that holds the package: a checkout, or the folder of all installed packages.
ABOVE = PACKAGE.parent
EMBEDDED = PACKAGE / "embedded"
SHAPES = PACKAGE / "shapes"


def beside_or_inside(name: str) -> Path:
    """A folder that lies beside the package in a checkout, and inside it when installed."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else ABOVE / name


CONFIGS = beside_or_inside("configs")
EMBEDDED_CONFIG = CONFIGS / "embedded.yaml"
