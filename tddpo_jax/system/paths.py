"""Paths of the package's files."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
# The folder that holds the package. In a checkout it also holds `configs/` and `eval/`.
CHECKOUT = PACKAGE.parent
EMBEDDED = PACKAGE / "embedded"
SHAPES = PACKAGE / "shapes"
EMBEDDED_CONFIG = CHECKOUT / "configs" / "embedded.yaml"
