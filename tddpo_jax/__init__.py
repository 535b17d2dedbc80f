"""TD-DPO, DPO, DiscoPOP and their relatives for Llama-family models, in JAX, over a device mesh."""

import os

__version__ = "0.1.0"

# Or every command would say that PyTorch is not installed, of which none has any need.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
