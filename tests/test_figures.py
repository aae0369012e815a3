"""Which distribution draws figures of what was measured."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from distributions import Project

from ppap_framework.errors import PluginError
from ppap_framework.figures import draw_figures

DRAW = """
def draw(number, path):
    path.with_suffix(".txt").write_text(str(number))
    return (path.with_suffix(".txt"),)

def fail(number, path):
    raise ZeroDivisionError("so much")
"""


@pytest.fixture
def draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installs a distribution whose function of this name draws figures."""
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])

    def install(name: str, function: str, **replaced: bytes) -> None:
        points = f"[ppap.figures]\npie = {name}:{function}\n".encode()
        made = {"entry_points.txt": points, **replaced}
        files = {f"{name}.py": DRAW}
        Project(name=name, entry_points={}, files=files, replaced=made).install(tmp_path / "site")
        monkeypatch.delitem(sys.modules, name, raising=False)

    return install


def test_the_first_that_can(tmp_path: Path, draws: Callable[..., None]) -> None:
    assert draw_figures("pie", 3, tmp_path / "a") == []
    draws("acme_pie", "draw")
    assert draw_figures("cake", 3, tmp_path / "a") == []
    assert draw_figures("pie", 3, tmp_path / "a") == [tmp_path / "a.txt"]
    assert (tmp_path / "a.txt").read_text() == "3"


def test_one_that_fails_is_named(tmp_path: Path, draws: Callable[..., None]) -> None:
    draws("acme_pie", "fail")
    with pytest.raises(PluginError, match=r"figure 'pie' of acme_pie failed: ZeroDivisionError"):
        draw_figures("pie", 3, tmp_path / "a")


def test_a_damaged_distribution_is_passed_over(tmp_path: Path, draws: Callable[..., None]) -> None:
    for folder in ("broken-1.0.dist-info", "empty-1.0.dist-info"):
        (tmp_path / "site" / folder).mkdir(parents=True)
    (tmp_path / "site" / "broken-1.0.dist-info" / "entry_points.txt").write_text("pie = a[b]c")
    draws("acme_pie", "draw")
    assert draw_figures("pie", 3, tmp_path / "a") == [tmp_path / "a.txt"]
