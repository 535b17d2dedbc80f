"""TD-DPO, DPO, DiscoPOP and related losses for Llama-family models, in JAX, on a device mesh."""

__version__ = "0.1.0"
