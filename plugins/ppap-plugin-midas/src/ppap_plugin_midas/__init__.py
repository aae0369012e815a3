"""Guidance by any depth network of transformers, and the losses of depth."""
