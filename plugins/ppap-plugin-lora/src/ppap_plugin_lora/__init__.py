"""Experts as low-rank changes of Linear and Conv2d weights."""
