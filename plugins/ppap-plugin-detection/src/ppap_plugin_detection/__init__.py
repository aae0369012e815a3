"""Guidance by object detectors of transformers and torchvision, and its loss."""
