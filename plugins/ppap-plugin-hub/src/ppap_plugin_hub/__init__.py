"""Sharing: bundles of experts and synthetic sets, on the Hugging Face Hub or any fsspec URL."""
