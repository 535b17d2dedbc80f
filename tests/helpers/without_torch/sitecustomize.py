"""Hides PyTorch. Python runs this file at the start of every process that tests start.

Most users of JAX have no PyTorch. Hiding it also saves the two seconds that importing it takes.
"""

import sys

sys.modules["torch"] = None  # type: ignore[assignment]
