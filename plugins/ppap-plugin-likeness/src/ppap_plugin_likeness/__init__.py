"""Guidance by likeness to reference pictures in the features of any timm network."""
