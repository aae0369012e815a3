"""Real distributions, made on the spot, and scratch environments to install them in.

A scratch environment is a virtual environment with nothing in it but this repository's core and the
few pure-Python packages that the core's torch-free part needs; there is no torch in it.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib
import importlib.util
import io
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path

import attrs

REPOSITORY = Path(__file__).parent.parent
EVERY_PLUGIN = all(
    importlib.util.find_spec(path.parent.name)
    for path in REPOSITORY.glob("plugins/*/src/*/__init__.py")
)
"""Whether all of this repository's plugins are installed."""
PACKAGES = (
    *("attr", "attrs", "click", "markdown_it", "mdurl", "platformdirs", "pluggy", "pygments"),
    *("rich", "typing_extensions"),
)


def requirements() -> list[str]:
    """What the core's extras bring, as its metadata says it."""
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].items()
    return [f"{one}; extra == '{extra}'" for extra, brought in extras for one in brought]


HEADER = """
from ppap_framework.plugin import *
PPAP_API = (1, 0)
"""

GOOD = (
    HEADER
    + """
@hookimpl
def ppap_guiders():
    return [GuiderSpec(name="mirror", summary="Sees itself.", factory="acme_mirror.parts:Mirror",
                       options="acme_mirror.parts:Options", task="reflection",
                       default_loss="likeness", needs_checkpoint=False)]

@hookimpl
def ppap_task_losses():
    return [TaskLossSpec(name="likeness", summary="How alike.", factory="acme_mirror.parts:Loss",
                         task="reflection")]
"""
)
GOOD_PARTS = """
import attrs

@attrs.frozen
class Options:
    tint: str = "grey"

class Mirror: ...
class Loss: ...
"""


@attrs.frozen(kw_only=True)
class Project:
    """What goes into a wheel.

    Attributes:
        name: Of the distribution.
        entry_points: Name to "package.module", of the group `ppap`.
        files: Path to content.
        version: Of the distribution.
        replaced: Files of the dist-info folder by name, in place of the right ones.
    """

    name: str
    entry_points: Mapping[str, str]
    files: Mapping[str, str | bytes]
    version: str = "1.0"
    replaced: Mapping[str, bytes] = attrs.field(factory=dict)

    def build(self, folder: Path) -> Path:
        """Write the wheel, as the specification of the binary distribution format 1.0 has it."""
        stem = f"{self.name.replace('-', '_')}-{self.version}"
        lines = ["[ppap]", *(f"{name} = {value}" for name, value in self.entry_points.items())]
        metadata = f"Metadata-Version: 2.1\nName: {self.name}\nVersion: {self.version}\n"
        wheel = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        info = {
            "METADATA": metadata.encode(),
            "WHEEL": wheel.encode(),
            "entry_points.txt": "\n".join(lines).encode(),
            **self.replaced,
        }
        members = {
            path: content if isinstance(content, bytes) else content.encode()
            for path, content in self.files.items()
        }
        members |= {f"{stem}.dist-info/{name}": content for name, content in info.items()}
        record = f"{stem}.dist-info/RECORD"
        path = folder / f"{stem}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
            archive.writestr(record, _record(members, record))
        return path

    def install(self, site: Path) -> None:
        """Unpack the wheel into a site-packages folder, which is what installing a pure one is."""
        with zipfile.ZipFile(self.build(site.parent)) as archive:
            archive.extractall(site)


def _record(members: Mapping[str, bytes], own_path: str) -> str:
    table = io.StringIO()
    rows = csv.writer(table)
    for member, content in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.writerow([member, f"sha256={digest}", len(content)])
    rows.writerow([own_path, "", ""])
    return table.getvalue()


def plugin(name: str, source: str, **changes: object) -> Project:
    """A distribution `acme-NAME` of one plugin module `acme_NAME.plugin`, with entry point NAME."""
    package = f"acme_{name.replace('-', '_')}"
    project = Project(
        name=f"acme-{name}",
        entry_points={name: f"{package}.plugin"},
        files={f"{package}/__init__.py": "", f"{package}/plugin.py": source},
    )
    return attrs.evolve(project, **changes)


def good_plugin() -> Project:
    """A plugin with nothing wrong: guider `mirror` and loss `likeness` from `acme-mirror`."""
    good = plugin("mirror", GOOD)
    return attrs.evolve(good, files={**good.files, "acme_mirror/parts.py": GOOD_PARTS})


@attrs.frozen
class Environment:
    """A scratch environment."""

    folder: Path

    @classmethod
    def create(cls, folder: Path) -> Environment:
        """Make one, without pip."""
        venv.EnvBuilder(symlinks=True).create(folder)
        environment = cls(folder)
        borrowed = folder / "borrowed"
        borrowed.mkdir()
        for package in PACKAGES:
            spec = importlib.util.find_spec(package)
            if spec is not None and spec.origin is not None:
                origin = Path(spec.origin)
                source = origin.parent if origin.name == "__init__.py" else origin
                (borrowed / source.name).symlink_to(source)
        (environment.site / "core.pth").write_text(f"{REPOSITORY}\n{borrowed}\n")
        info = environment.site / "ppap_framework-0.1.0.dist-info"
        info.mkdir()
        lines = ["Name: ppap-framework", "Version: 0.1.0"]
        lines += [f"Requires-Dist: {requirement}" for requirement in requirements()]
        (info / "METADATA").write_text("\n".join(lines))
        return environment

    @property
    def site(self) -> Path:
        """Its site-packages."""
        return next(self.folder.glob("lib/python3*/site-packages"))

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Start `ppap` with these arguments and these variables, away from any other setting."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return subprocess.Popen(
            [self.python, "-m", "ppap_framework", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env={**kept, "HOME": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1", **variables},
        )

    def ppap(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run `ppap` to its end."""
        process = self.start(*arguments, **variables)
        out, err = process.communicate(timeout=600)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)
