"""Guidance by semantic segmentation networks, and their task loss."""
