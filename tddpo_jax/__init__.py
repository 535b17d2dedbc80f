"""TD-DPO, DPO, DiscoPOP and their relatives for Llama-family models, in JAX, over a device mesh."""

__version__ = "0.1.0"
