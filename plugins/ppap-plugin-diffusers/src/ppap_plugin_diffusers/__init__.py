"""Pipelines of Hugging Face diffusers as backends, driven by this framework's own samplers."""
