"""Guidance by texts and pictures through two-tower networks such as CLIP, and its losses."""
