"""The plugin that docs/plugins.md makes, made from its text and used."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import toy_distribution
from distributions import REPOSITORY, Project

PAGE = (REPOSITORY / "docs" / "plugins.md").read_text(encoding="utf-8")


def _files() -> dict[str, str]:
    """The page's files by the names in its headings."""
    found = re.findall(r"## `([^`]+)`\n\n```\w+\n(.*?)```", PAGE, flags=re.DOTALL)
    return dict(found)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = _files()
    entry_points = re.search(r"\[project.entry-points.ppap\]\n(\w+) = \"(.+)\"", files.pop("pyproject.toml"))
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
    def brightness(*guider: str) -> float:
        out = tmp_path / str(len(guider))
        done = toy_distribution.ppap(
            site, tmp_path, "run", "--backend", "toy", *guider, "--num", "4", "--out", str(out),
            PPAP_PLUGINS="ppap-plugin-toy,ppap-plugin-brightness",
        )
        assert done.returncode == 0, done.stderr
        record = json.loads((out / "run.json").read_text())
        return record["images"]

    steered = brightness("--guider", "brightness=20", "--target", "0.9")
    assert len(steered) == 4


def test_what_is_no_target_is_answered_in_one_line(site: Path, tmp_path: Path) -> None:
    done = toy_distribution.ppap(
        site, tmp_path, "run", "--backend", "toy", "--guider", "brightness", "--target", "dusk",
        PPAP_PLUGINS="ppap-plugin-toy,ppap-plugin-brightness",
    )
    assert done.returncode == 2
    assert "type a number from 0 to 1" in done.stderr
