"""DeepSeek V3 and V3.2: their shape, tensors, attributes in `config.json`, and modules."""
