"""Training on several devices, with PyTorch's own engines."""
