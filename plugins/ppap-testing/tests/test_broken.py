"""Each check catches a component that was broken for it, and no other check complains of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppap_framework.plugin import ComponentKind
from ppap_testing import Conformance, isolated_registry, run_checks
from ppap_testing.checking import SUITES, suite_of
from ppap_testing.suite import checks_of

SITE = Path(__file__).parent / "broken"
sys.path.insert(0, str(SITE))
from ppap_broken.plugin import CHECKS, COMMON, name_of  # noqa: E402

BROKEN = [
    *(
        (kind, f"{kind}-{name_of(cls)}", check)
        for kind in CHECKS
        for cls, check in CHECKS[kind].items()
    ),
    *(("guider", name, check) for name, check in COMMON.items()),
]
AIMED = {"target": "0.3", "bad_targets": ("dusk",)}


@pytest.fixture(scope="module", autouse=True)
def plugins() -> Iterator[None]:
    with isolated_registry("ppap_broken.plugin", "ppap_broken.heavy"):
        yield


def failures(kind: ComponentKind, name: str) -> dict[str, tuple[str, str]]:
    """The checks that a component fails, each with the fault and the advice."""
    suite = suite_of(kind, name, **AIMED)
    found = {outcome.check: outcome for outcome in run_checks(suite)}
    assert list(found) == list(checks_of(suite))
    return {o.check: (o.fault, o.advice) for o in found.values() if o.status == "failed"}


@pytest.mark.parametrize("kind, name, check", BROKEN)
def test_only_its_check_catches_it(kind: ComponentKind, name: str, check: str) -> None:
    found = failures(kind, name)
    assert list(found) == [f"test_{check}"], found
    [(fault, _)] = found.values()
    assert fault


@pytest.mark.parametrize("kind", CHECKS)
def test_nothing_is_wrong_with_what_is_sound(kind: ComponentKind) -> None:
    assert failures(kind, f"{kind}-sound") == {}


@pytest.mark.parametrize("status, takes_pictures", [("skipped", False), ("failed", True)])
def test_a_refused_picture_costs_the_curve(status: str, takes_pictures: bool) -> None:
    suite = suite_of("guider", "guider-sound", **AIMED, takes_pictures=takes_pictures)
    found = {outcome.check: outcome for outcome in run_checks(suite)}
    refused = found.pop("test_pictures_as_targets")
    assert refused.status == status
    assert ("--scale is absolute" in refused.fault) == (status == "skipped")
    assert "failed" not in {outcome.status for outcome in found.values()}


def test_every_check_has_a_component_that_it_catches() -> None:
    for kind, suite in SUITES.items():
        common = {check for check in checks_of(Conformance) if check != "test_it_can_be_made"}
        own = {f"test_{check}" for _, check in CHECKS[kind].items()}
        assert own == set(checks_of(suite)) - common
    assert common == {f"test_{check}" for check in COMMON.values()}
