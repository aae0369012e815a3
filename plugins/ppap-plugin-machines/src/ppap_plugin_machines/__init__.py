"""Work on many machines: `ppap experts merge`, and `ppap jobs`."""
