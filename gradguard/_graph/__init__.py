"""The autograd graph, inference tensors, and parameters by name and identity."""
