"""Where the files of the package lie."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
# The checkout, where there is one: it holds `configs/`, and `eval/` beside the package.
CHECKOUT = PACKAGE.parent
EMBEDDED = PACKAGE / "embedded"
SHAPES = PACKAGE / "shapes"
EMBEDDED_CONFIG = CHECKOUT / "configs" / "embedded.yaml"
