"""The paths of the project's files."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
HELPERS = ROOT / "tests" / "helpers"
GOLDEN = ROOT / "tests" / "models" / "golden"  # tiny models of every family
