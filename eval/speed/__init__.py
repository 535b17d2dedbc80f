"""The speed of training steps and of decoding, as shares of what the same device can do."""
