"""New plugins, written from the templates in this package."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from string import Template

from ppap_framework.errors import UsageError
from ppap_framework.files import expanded, refusals

_NAME = re.compile(r"(?!(none|auto)$)[a-z][a-z0-9]*(-[a-z0-9]+)*")
_COMMON = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "LICENSE": "LICENSE",
    ".gitignore": "gitignore",
    ".github/workflows/test.yml": "test.yml",
    "src/$package/__init__.py": "init.py",
    "src/$package/py.typed": "py.typed",
}
_OWN = {
    "src/$package/plugin.py": "plugin.py",
    "src/$package/options.py": "options.py",
    "src/$package/$kind.py": "component.py",
    "tests/test_conformance.py": "conformance.py",
    "tests/test_$kind.py": "test.py",
}


def write_package(kind: str, name: str, folder: str | os.PathLike[str] = ".") -> Path:
    """Write the distribution `ppap-plugin-NAME` with one component into a folder.

    Args:
        kind: "guider", "backend", "loss" or "adapter".
        name: Name of the component: lower-case words joined by hyphens.
        folder: Where the new folder is made.

    Returns:
        The new folder. It is there completely or not at all.

    Raises:
        UsageError: If the name cannot be one, or the folder exists.
    """
    words = _words(kind, name)
    path = _free(expanded(folder) / words["distribution"])
    texts = {target: _template(source) for target, source in _COMMON.items()}
    texts |= {target: _template(f"{kind}/{source}") for target, source in _OWN.items()}
    with refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".ppap-new-", dir=path.parent))
        try:
            draft.chmod(0o777 & ~_umask())
            for target, text in texts.items():
                file = draft / Template(target).substitute(words)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text.substitute(words), encoding="utf-8")
            draft.rename(path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return path


def write_file(kind: str, name: str, folder: str | os.PathLike[str] = ".") -> Path:
    """Write a plugin of one file, NAME_KIND.py, for `--plugin-file`; as `write_package`."""
    words = _words(kind, name)
    path = _free(expanded(folder) / f"{words['module']}.py")
    text = _template(f"minimal/{kind}.py").substitute(words)
    with refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    return path


def _words(kind: str, name: str) -> dict[str, str]:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"a component cannot be called {name!r}",
            hint="use lower-case words joined by hyphens, such as my-edges",
        )
    word = name.replace("-", "_")
    return {
        "kind": kind,
        "name": name,
        "distribution": f"ppap-plugin-{name}",
        "package": f"ppap_plugin_{word}",
        "module": f"{word}_{kind}",
        "Class": "".join(part.title() for part in name.split("-")),
    }


def _free(path: Path) -> Path:
    if path.exists() or path.is_symlink():
        raise UsageError(f"{str(path)!r} is there already", hint="choose another name or --out")
    return path


def _template(name: str) -> Template:
    file = resources.files("ppap_testing") / "templates" / f"{name}.txt"
    return Template(file.read_text(encoding="utf-8"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
