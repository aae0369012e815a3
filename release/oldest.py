"""Print the oldest versions that the distributions here allow, as constraints for pip.

python release/oldest.py > oldest.txt && pip install -c oldest.txt ...
"""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
NEWER = ("ppap-plugin-diffusers",)
"""Distributions whose libraries require newer versions than all others allow."""

_BOUND = re.compile(r"([\w-]+)(?:\[.*?\])?>=([\w.]+)(.*)")


def constraints(repository: Path = REPOSITORY) -> dict[str, str]:
    """The lower bound of everything that is required when the software runs, by name."""
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    found = {}
    for path in [repository / "pyproject.toml", *repository.glob("plugins/*/pyproject.toml")]:
        if path.parent.name in NEWER:
            continue
        project = toml.loads(path.read_text(encoding="utf-8"))["project"]
        for requirement in project["dependencies"]:
            if match := _BOUND.fullmatch(requirement):
                found[match[1]] = match[2]
    return dict(sorted(found.items()))


if __name__ == "__main__":
    for name, version in constraints().items():
        print(f"{name}=={version}")
