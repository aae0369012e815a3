"""Guidance by correspondence with a reference picture, and its loss."""
