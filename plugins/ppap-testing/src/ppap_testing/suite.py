"""What the suites share: how a check fails, what is computed once, and checks of every component.

A check is a method `test_...` whose docstring says what holds if it passes. What several checks
need (the component, a prediction) is computed once for a suite; if that fails, one check reports
it, and the others are skipped.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
import unittest
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, NoReturn, TypeVar

import attrs

from ppap_framework.errors import PpapError, one_line
from ppap_framework.plugin import ComponentKind, ComponentSpec
from ppap_framework.registry import PluginRecord, registry

T = TypeVar("T")

_LONGEST = 100  # characters of a summary, which is one line of a table
_IMPORTS = (
    "import importlib, sys; importlib.import_module(sys.argv[1]); print('torch' in sys.modules)"
)


class NotConformingError(AssertionError):
    """A check that failed: the fault, and what the author does about it."""

    def __init__(self, fault: str, advice: str) -> None:
        super().__init__(f"{fault}\nWhat to do: {advice}")
        self.fault, self.advice = fault, advice


def require(condition: object, fault: str, advice: str) -> None:
    """NotConformingError unless a condition is true."""
    if not condition:
        raise NotConformingError(fault, advice)


def skip(reason: str) -> NoReturn:
    """End a check that does not apply; pytest knows the exception, too."""
    raise unittest.SkipTest(reason)


def shared(computed: Callable[..., T]) -> Callable[..., T]:
    """A method computed once for a suite. With `first=True`, in the check that reports it, its
    exception is raised; other checks are skipped then.
    """

    @functools.wraps(computed)
    def once(self: Conformance, *, first: bool = False) -> T:
        known = self._known
        if computed.__name__ not in known:
            try:
                known[computed.__name__] = computed(self), None
            except Exception as raised:
                known[computed.__name__] = None, raised
        value, error = known[computed.__name__]
        if error is not None and first:
            raise error
        if error is not None:
            text = str(error).partition("\n")[0]
            raise unittest.SkipTest(
                text if isinstance(error, unittest.SkipTest) else f"not checked: {text}"
            )
        return value  # type: ignore[no-any-return]

    return once


class Conformance:
    """Checks of every component; use the suite of its kind.

    Attributes:
        component: Its name, as in `ppap plugins list`.
        options: Its options.
    """

    kind: ClassVar[ComponentKind]
    component: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any]] = {}
    _known: ClassVar[dict[str, Any]]

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls._known = {}

    @classmethod
    def teardown_class(cls) -> None:
        """Free what was made."""
        cls._known.clear()

    @property
    def spec(self) -> ComponentSpec:
        """The component's record."""
        found: ComponentSpec = registry().spec(self.kind, self.component)
        return found

    @property
    def plugin(self) -> PluginRecord:
        """The record of its plugin."""
        return registry().provider(self.spec)

    @shared
    def made(self) -> Any:
        """The component."""
        return registry().make(self.spec, self.options)

    def test_it_can_be_made(self) -> None:
        """it can be made"""
        try:
            self.made(first=True)
        except PpapError as error:
            raise NotConformingError(error.message, error.hint or "see the traceback") from error

    def test_the_spec_is_complete(self) -> None:
        """the spec has a summary and a licence"""
        spec = self.spec
        words = spec.summary.strip()
        fits = words and words == spec.summary and "\n" not in words and len(words) <= _LONGEST
        require(
            fits,
            f"the summary {spec.summary!r:.60} is no line of 1 to {_LONGEST} characters",
            "write one in the spec; `ppap plugins list` shows it",
        )
        require(
            spec.licence,
            "the spec states no licence",
            'add licence="Apache-2.0", say: the SPDX identifier of your own code',
        )

    def test_what_the_spec_names_is_there(self) -> None:
        """the factory, options and other components that the spec names are there and fit"""
        faults = "; ".join(registry().faults(self.spec))
        require(not faults, faults, "correct the name in the spec, or install what it names")

    def test_listing_it_imports_no_torch(self) -> None:
        """listing plugins does not import torch"""
        plugin = self.plugin
        try:
            importlib.metadata.distribution(plugin.distribution)
        except importlib.metadata.PackageNotFoundError:
            skip("a single file may import torch; an installed plugin should not")
        modules = [plugin.module, self.spec.options or plugin.module]
        for module in dict.fromkeys(name.partition(":")[0] for name in modules):
            done = _imported_alone(module, os.pathsep.join(filter(None, sys.path)))
            require(
                done.returncode == 0,
                f"{module} cannot be imported alone: {done.stderr.strip().rpartition(chr(10))[2]}",
                "make it independent of what was imported before",
            )
            require(
                done.stdout.split()[-1:] == ["False"],
                f"{module} imports torch when plugins are listed, which takes seconds",
                "import ppap_framework.plugin there, not .author, and name factories as strings",
            )

    def test_options_are_described(self) -> None:
        """every option has a type and a help text"""
        options = registry().options_class(self.spec)
        if options is None:
            skip("it has no options")
        for field in attrs.fields(options):
            text = inspect.cleandoc(options.__doc__ or "")
            require(
                field.type is not None,
                f"option {field.name!r} has no type",
                f"annotate it, as in `{field.name}: float = 1.0`: what is typed becomes that",
            )
            require(
                not field.init or re.search(rf"^ +{field.name}: \S", text, re.MULTILINE),
                f"option {field.name!r} has no help text",
                f"describe it below `Attributes:` in the docstring of {options.__name__}",
            )


@functools.cache
def _imported_alone(module: str, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _IMPORTS, module],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@attrs.frozen
class Outcome:
    """The result of one check: its name, what it checks, and the fault and the advice of a failure;
    the fault of a skipped one is the reason.
    """

    check: str
    what: str
    status: Literal["ok", "failed", "skipped"]
    fault: str = ""
    advice: str = ""


def checks_of(suite: type[Conformance]) -> dict[str, str]:
    """The checks of a suite in order, each with what it checks."""
    found: dict[str, str] = {}
    for base in reversed(suite.__mro__):
        for name, method in vars(base).items():
            if name.startswith("test_"):
                found[name] = inspect.cleandoc(method.__doc__ or name).partition("\n")[0]
    return found


def run_checks(suite: type[Conformance]) -> Iterator[Outcome]:
    """Run the checks of a suite without pytest."""
    try:
        for name, what in checks_of(suite).items():
            yield _outcome(suite, name, what)
    finally:
        suite.teardown_class()


def _outcome(suite: type[Conformance], name: str, what: str) -> Outcome:
    try:
        getattr(suite(), name)()
    except unittest.SkipTest as reason:
        return Outcome(name, what, "skipped", str(reason))
    except NotConformingError as error:
        return Outcome(name, what, "failed", error.fault, error.advice)
    except PpapError as error:
        return Outcome(name, what, "failed", error.message, error.hint)
    except Exception as error:
        return Outcome(name, what, "failed", one_line(error), "`pytest` shows the traceback")
    return Outcome(name, what, "ok")
