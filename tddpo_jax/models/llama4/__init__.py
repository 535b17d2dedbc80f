"""Llama 4: its shape, its tensors, its attributes in `config.json`, and its modules."""
