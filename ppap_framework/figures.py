"""Figures of what was measured, drawn by whichever installed distribution can.

An entry point of the group `ppap.figures`, such as `diagnosis = "mine:draw"`, is a function of what
is drawn and a path without suffix. It writes files PATH.* and returns their paths.
"""

from __future__ import annotations

import contextlib
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from ppap_framework.errors import calling


def draw_figures(kind: str, *subject: Any) -> list[Path]:
    """The files that the first distribution which can has drawn; none if none can.

    A "diagnosis" is a `Diagnosis`; a "training" the lines of its log and its `Phase`s. The path
    comes last. PluginError if drawing fails, PpapError if a file cannot be written.
    """
    for distribution in distributions():
        entries: Any = ()
        with contextlib.suppress(Exception):  # its file is damaged: `ppap doctor` says so
            entries = distribution.entry_points.select(group="ppap.figures", name=kind)
        for entry in entries:
            with calling(f"figure {kind!r} of {distribution.name}", ""):
                return list(entry.load()(*subject))
    return []
