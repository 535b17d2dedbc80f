"""Python reads this before it starts, in every process that tests start: there is no PyTorch.

So it is for most who use JAX; and transformers takes two seconds to import it.
"""

import sys

sys.modules["torch"] = None  # type: ignore[assignment]
