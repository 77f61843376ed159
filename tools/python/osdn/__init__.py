"""Reference OSDN language model in plain PyTorch: checking, training and data."""
