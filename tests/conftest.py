"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

# The first example pays for lazy imports, and machines differ: time is no property of ours.
settings.register_profile("ppap", deadline=None)
settings.load_profile("ppap")
