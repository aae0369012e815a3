"""The documents: the pages for plugin authors are followed, docs/results.md is made from its
figures again.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_distribution
from distributions import REPOSITORY, Project
from PIL import Image

from ppap_framework.errors import UsageError
from ppap_framework.plugin import ComponentKind
from ppap_framework.registry import plugin_file
from ppap_framework.targets import decode_target
from ppap_plugin_bench.report import render
from ppap_plugin_bench.results import find_results
from ppap_testing import isolated_registry, run_checks
from ppap_testing.checking import suite_of

PLUGINS = "ppap-plugin-toy,ppap-plugin-brightness"
RESULTS = REPOSITORY / "docs" / "results"
DOCS = REPOSITORY / "docs"
PAGES = [DOCS / "plugins.md", *sorted((DOCS / "plugins").glob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def _files() -> dict[str, str]:
    """The pages' files by the names in their headings."""
    found = re.findall(r"## `([^`]+)`\n\n```\w+\n(.*?)```", TEXT, flags=re.DOTALL)
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
        files={
            "ppap_plugin_brightness/__init__.py": "",
            **{name: text for name, text in files.items() if name.startswith("ppap_plugin")},
        },
    ).install(site)
    return site


def test_the_page_is_short() -> None:
    code = [_files()[f"ppap_plugin_brightness/{name}.py"] for name in ("plugin", "guider")]
    assert sum(bool(line.strip()) for line in "".join(code).splitlines()) <= 25


def test_the_guider_of_the_page_steers(site: Path, tmp_path: Path) -> None:
    done = toy_distribution.ppap(
        site,
        tmp_path,
        *("run", "--backend", "toy", "--guider", "brightness=250", "--target", "0.9"),
        *("--num", "4", "--compare", "--out", "out", "--sampler", "ddim", "--steps", "25"),
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
    assert "type a number" in done.stderr


@pytest.mark.parametrize(
    "file, kind, name",
    [
        ("my_loss.py", "loss", "margin"),
        ("my_backend.py", "backend", "gaussian"),
        ("my_adapter.py", "adapter", "channel-scale"),
    ],
)
def test_the_single_files_conform(
    file: str, kind: ComponentKind, name: str, tmp_path: Path
) -> None:
    path = tmp_path / file
    path.write_text(_files()[file])
    with plugin_file(str(path)):
        outcomes = list(run_checks(suite_of(kind, name)))
    assert [outcome for outcome in outcomes if outcome.status == "failed"] == []
    assert sum(outcome.status == "ok" for outcome in outcomes) > 10


def _block(text: str) -> dict[str, Any]:
    """What the pages' only block of Python with this text defines."""
    [block] = [b for b in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if text in b]
    found: dict[str, Any] = {}
    exec(block, found)
    return found


def test_the_options_of_the_page() -> None:
    options = _block("class EdgesOptions")["EdgesOptions"]
    assert (options(gain="2").gain, options().filter, options().size) == (2.0, "sobel", None)
    for wrong in ({"gain": 0}, {"filter": "laplace"}):
        with pytest.raises(ValueError):
            options(**wrong)


def test_the_targets_of_the_page() -> None:
    guider = _block("class MeanColour")["MeanColour"](None, None)
    picture = Image.new("RGB", (4, 4), (255, 0, 0))
    target = guider.target(decode_target(picture))
    assert target.value.tolist() == [[1.0, -1.0, -1.0]]
    assert target.picture.shape == (3, 4, 4)
    assert guider.target(decode_target([0.5, 0, 0])).value.tolist() == [[0.5, 0, 0]]
    with pytest.raises(UsageError, match="no colour in 'dusk'"):
        guider.target(decode_target("dusk"))


def test_every_block_of_python_is_tried() -> None:
    """A block of a new page has to be added to these tests."""
    tried = ["class EdgesOptions", "class MeanColour", "class TestBrightness", "def test_it_"]
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    rest = [b for b in blocks if b not in _files().values() and not any(t in b for t in tried)]
    assert rest == []
    assert len(blocks) == len(tried) + 5


def test_the_tests_of_the_page_are_green(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(site)
    with isolated_registry("ppap_plugin_brightness.plugin"):
        outcomes = list(run_checks(_block("class TestBrightness")["TestBrightness"]))
        assert [outcome for outcome in outcomes if outcome.status == "failed"] == []
    _block("def test_it_brightens")["test_it_brightens"]()


def test_the_results_are_those_of_the_figures() -> None:
    page = REPOSITORY / "docs" / "results.md"
    if not list(RESULTS.glob("**/differences.json")):  # which is written last
        assert not page.exists()
    else:
        assert page.read_text(encoding="utf-8") == render(find_results(RESULTS), page.parent)


def test_make_measures_every_experiment_as_its_file_says() -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "results"],
        cwd=REPOSITORY,
        env=plain,
        capture_output=True,
        text=True,
        check=True,
    )
    commands = [line.removeprefix(".venv/bin/") for line in done.stdout.splitlines()]
    experiments = sorted(RESULTS.glob("*.toml"))
    assert experiments
    for experiment in experiments:
        header = experiment.read_text(encoding="utf-8").partition("\ntitle = ")[0]
        said = re.findall(r"^#   (.+)$", header, flags=re.MULTILINE)
        where = f"docs/results/{experiment.name}"
        out = where.removesuffix(".toml")
        assert f"ppap evaluate {where} --out {out} --images runs/evaluate" in said
        places = [commands.index(command) for command in said]
        assert places == sorted(places)
    assert commands[-1] == "ppap report docs/results --out docs/results.md"


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return runpy.run_path(str(REPOSITORY / "docs" / "make_adapters.py"))


class TestAdaptersPage:
    def test_its_tables_are_those_of_the_records(self, made: dict[str, Any]) -> None:
        page = made["PAGE"].read_text()
        for name in ("shares", "costs"):
            record = json.loads((made["RECORDS"] / f"{name}.json").read_text())
            between = re.search(rf"<!-- {name} -->\n(.*)<!-- end of {name} -->", page, re.DOTALL)
            assert between is not None
            assert between[1].splitlines() == made[f"{name}_table"](record)

    def test_shares(self, made: dict[str, Any]) -> None:
        rows = made["count_shares"]()
        assert rows == json.loads((made["RECORDS"] / "shares.json").read_text())
        for row in rows:  # in the same layers, to the last parameter
            assert row["parameters"] == row["published_network"]
            assert row["ours_in_the_released_layers"]["lora"] == row["published"]["lora"]
        # DeiT-S at rank 16 by hand: qkv and projection of 12 blocks.
        assert rows[-1]["published"]["lora"] == 12 * 16 * ((384 + 3 * 384) + (384 + 384))

    def test_memory(self, made: dict[str, Any]) -> None:
        """One copy beside the network, whatever the number of experts; their own grow with it."""
        rows = json.loads((made["RECORDS"] / "costs.json").read_text())["memory"]
        assert [row["experts"] for row in rows] == [1, 5, 20]
        for row in rows:
            assert row["kept"] <= 1.001 * row["network"]
            assert row["experts_own"] == row["experts"] * rows[0]["experts_own"]
