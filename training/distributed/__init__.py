"""Training on many devices, by PyTorch's own engines."""
