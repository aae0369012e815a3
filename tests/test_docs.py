"""The plugin that docs/plugins.md makes, made from its text and used."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import toy_distribution
from distributions import REPOSITORY, Project
from PIL import Image

PLUGINS = "ppap-plugin-toy,ppap-plugin-brightness"
PAGE = (REPOSITORY / "docs" / "plugins.md").read_text(encoding="utf-8")


def _files() -> dict[str, str]:
    """The page's files by the names in its headings."""
    found = re.findall(r"## `([^`]+)`\n\n```\w+\n(.*?)```", PAGE, flags=re.DOTALL)
    return dict(found)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = _files()
    entry_points = re.search(
        r"\[project.entry-points.ppap\]\n(\w+) = \"(.+)\"", files.pop("pyproject.toml")
    )
    assert entry_points is not None
    site = toy_distribution.install(tmp_path_factory.mktemp("docs") / "site")
    Project(
        name="ppap-plugin-brightness",
        version="0.1.0",
        entry_points={entry_points[1]: entry_points[2]},
        files={**files, "ppap_plugin_brightness/__init__.py": ""},
    ).install(site)
    return site


def test_the_guider_of_the_page_steers(site: Path, tmp_path: Path) -> None:
    done = toy_distribution.ppap(
        site,
        tmp_path,
        *("run", "--backend", "toy", "--guider", "brightness=200", "--target", "0.9"),
        *("--num", "4", "--compare", "--out", "out"),
        PPAP_PLUGINS=PLUGINS,
    )
    assert done.returncode == 0, done.stderr

    def brightness(folder: Path) -> float:
        return (
            float(np.mean([np.asarray(Image.open(path)) for path in folder.glob("00?.png")])) / 255
        )

    out = tmp_path / "out"
    assert brightness(out / "unguided") + 0.1 < brightness(out) < 1.0


def test_what_is_no_target_is_answered_in_one_line(site: Path, tmp_path: Path) -> None:
    done = toy_distribution.ppap(
        site,
        tmp_path,
        "run",
        "--backend",
        "toy",
        "--guider",
        "brightness",
        "--target",
        "dusk",
        PPAP_PLUGINS=PLUGINS,
    )
    assert done.returncode == 2
    assert "type a number from 0 to 1" in done.stderr
