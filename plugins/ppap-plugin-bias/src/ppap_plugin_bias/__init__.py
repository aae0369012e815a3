"""Experts as parameters and running statistics of their own."""
