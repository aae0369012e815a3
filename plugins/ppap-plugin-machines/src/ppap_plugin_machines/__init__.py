"""Commands for work on many machines: `ppap experts merge`."""
