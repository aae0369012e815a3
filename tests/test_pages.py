"""Every page is followed: its links lead somewhere, and what it shows is typed and run. What
cannot be run here is still parsed, in plugins/ppap-testing/tests/test_every_page.py.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import attrs
import pages
import pytest
from distributions import REPOSITORY
from pages import DOCS, PAGES

from ppap_framework import sample
from ppap_framework.experts import BundleInfo
from ppap_testing import FakeBackend

NAMES = [str(page.relative_to(REPOSITORY)) for page in PAGES]
ELSEWHERE = {
    "ARCHITECTURE.md": "plugins/ppap-testing/tests/test_every_page.py",
    "docs/cost.md": "plugins/ppap-plugin-hub/tests/test_recipe_cost.py",
    "docs/diffusers.md": "plugins/ppap-plugin-diffusers/tests/test_diffusers_page.py",
    "docs/howto/settings.md": "tests/test_pages.py",
    "docs/inside-diffusers.md": "plugins/ppap-plugin-diffusers/tests/test_inside.py",
    **{name: "tests/test_plugin_matrix.py" for name in NAMES if name.startswith("plugins/")},
}
"""Pages that other tests follow."""


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    for file, anchor in pages.links(REPOSITORY / name):
        assert file.exists(), f"{name} links to {file}"
        if anchor and file.suffix == ".md":
            assert anchor in pages.anchors(file), f"{name} links to {file}#{anchor}"


def test_every_page_is_in_the_contents() -> None:
    entries = re.findall(r"(?m)^(?:.* <)?([\w/-]+)>?$", (DOCS / "index.md").read_text())
    names = {str(p.relative_to(DOCS).with_suffix("")) for p in PAGES if DOCS in p.parents}
    assert names - {"index"} <= set(entries)


def test_a_page_is_followed(tmp_path: Path) -> None:
    pages.follow(DOCS / "howto" / "settings.md", tmp_path)
    assert (tmp_path / "home/runs/configured/001.png").exists()
    steps = (tmp_path / "home/runs/variable/run.json").read_text()
    assert '"steps": 5,' in steps


@pytest.fixture(scope="module")
def borrowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that sees this one's libraries, and takes others."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    site = next(environment.glob("lib/python3*/site-packages"))
    here = [path for path in sys.path if path.endswith("site-packages")]
    lines = [f"import site; site.addsitedir({path!r})" for path in here]
    (site / "borrowed.pth").write_text("\n".join(lines))
    return environment / "bin" / "python"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ELSEWHERE])
def test_pages_are_followed(name: str, tmp_path: Path, borrowed: Path) -> None:
    for command, needed in {"pip wheel": "trove_classifiers", "torchrun": "accelerate"}.items():
        if f"{command} " in pages.script(REPOSITORY / name):
            pytest.importorskip(needed, reason="in the extra dev, or machines")
    pages.follow(REPOSITORY / name, tmp_path, borrowed)


@pytest.mark.parametrize("name, test", ELSEWHERE.items())
def test_others_follow_the_rest(name: str, test: str) -> None:
    assert Path(name).name in (REPOSITORY / test).read_text()


@pytest.mark.slow
def test_the_pages_are_built_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="builds the pages; in the extra docs")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html"]
    done = subprocess.run([*command, DOCS, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def described(part: str) -> set[str]:
    """The names in the first column of a table of the page about files."""
    text = (DOCS / "reference" / "files.md").read_text()
    table = text.partition(f"<!-- {part} -->")[2].partition(f"<!-- end of {part} -->")[0]
    cells = (row.split("|")[1] for row in table.strip().splitlines())
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_the_fields_of_files_are_described(tmp_path: Path) -> None:
    assert described("bundle") == {field.name for field in attrs.fields(BundleInfo)}
    sample(FakeBackend(), num=1, steps=2).save(tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert described("run") == set(record)
    assert described("config") == set(record["config"])
