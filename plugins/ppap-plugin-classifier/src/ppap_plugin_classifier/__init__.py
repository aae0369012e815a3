"""Guidance by any timm classifier, and the cross-entropy loss."""
