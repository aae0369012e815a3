"""Experts with their own parameters and running statistics."""
