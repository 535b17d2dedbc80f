"""How fast training steps and decoding are, as shares of what the same device can do."""
