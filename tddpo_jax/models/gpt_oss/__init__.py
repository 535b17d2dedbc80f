"""gpt-oss: its shape, its tensors, its attributes in `config.json`, and its modules."""
