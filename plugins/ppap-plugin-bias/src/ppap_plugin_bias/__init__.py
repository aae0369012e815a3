"""Experts as biases, norms and running statistics."""
