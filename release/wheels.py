"""Build a wheel of every distribution here, reproducibly.

    python release/wheels.py dist

One commit gives the same bytes anywhere: members of a wheel have the time of the commit, or that
in SOURCE_DATE_EPOCH. Needs hatchling (in the extra dev), and downloads nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hatchling.build import build_wheel

REPOSITORY = Path(__file__).resolve().parent.parent


def projects(repository: Path = REPOSITORY) -> list[Path]:
    """The folders of the core and of every plugin."""
    plugins = sorted(path.parent for path in repository.glob("plugins/*/pyproject.toml"))
    return [repository, *plugins]


def build(folder: Path) -> list[Path]:
    """Write the wheels into a folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    found, before = [], Path.cwd()
    try:
        for project in projects():
            os.chdir(project)  # where a build backend expects to be (PEP 517)
            found.append(folder / build_wheel(str(folder)))
    finally:
        os.chdir(before)
    return found


def commit_time() -> str:
    """Seconds from 1970 to the last commit."""
    command = ["git", "-C", str(REPOSITORY), "log", "-1", "--format=%ct"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python release/wheels.py FOLDER")
    if "SOURCE_DATE_EPOCH" not in os.environ:
        os.environ["SOURCE_DATE_EPOCH"] = commit_time()
    for wheel in build(Path(sys.argv[1]).resolve()):
        print(wheel)
