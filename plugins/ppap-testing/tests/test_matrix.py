"""Every component of the project's own plugins passes its suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import glide_files
import pytest

from ppap_framework.plugin import ComponentKind
from ppap_framework.registry import registry
from ppap_testing import (
    AdapterConformance,
    BackendConformance,
    Conformance,
    GuiderConformance,
    TaskLossConformance,
    run_checks,
)

SUITES: dict[ComponentKind, type[Conformance]] = {
    "backend": BackendConformance,
    "guider": GuiderConformance,
    "loss": TaskLossConformance,
    "adapter": AdapterConformance,
}
OWN: dict[str, dict[str, Any]] = {
    "guider classifier": {"bad_targets": ("zebra crossing", "-1", "100000")},
    "guider adm-classifier": {"bad_targets": ("zebra crossing", "-1")},
    "guider depth": {"bad_targets": ("near",)},
    "guider segmentation": {"bad_targets": ("zebra crossing",)},
    "guider clip": {"target": "a red cube", "bad_targets": ("",)},
}
"""What the suites are told of a component."""
COMPONENTS = [
    (kind, spec.name)
    for kind in SUITES
    for spec in registry().specs(kind)
    if registry().provider(spec).distribution.startswith("ppap-plugin-")
]


@pytest.mark.parametrize("kind, name", COMPONENTS)
def test_it_conforms(kind: ComponentKind, name: str, tmp_path: Path) -> None:
    settings = {"component": name, **OWN.get(f"{kind} {name}", {})}
    if name == "clip":  # no small weights are published
        settings["checkpoint"] = str(glide_files.clip(tmp_path).path)
    outcomes = list(run_checks(type("Suite", (SUITES[kind],), settings)))
    for outcome in outcomes:
        print(outcome)
    assert not [outcome for outcome in outcomes if outcome.status == "failed"]
