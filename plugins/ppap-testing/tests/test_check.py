"""`ppap plugins check`, and plugins of one file on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from commands import Run, refused

import ppap_framework as ppap
from ppap_framework.registry import registry
from ppap_testing import FakeBackend, FakeGuider, isolated_registry
from ppap_testing.packages import write_file

BROKEN = Path(__file__).parent / "broken"


@pytest.fixture
def fakes() -> None:
    with isolated_registry("ppap_testing.fakes_plugin"):
        yield


def test_a_component_is_checked(typed: Run, fakes: None) -> None:
    done = typed("plugins", "check", "fake", "--target", "red", "--json")
    guider, backend = sorted(json.loads(done.out), key=lambda row: row["kind"], reverse=True)
    assert (done.code, guider["kind"], backend["kind"]) == (0, "guider", "backend")
    for row in (guider, backend):
        assert row["ok"]
        assert {check["status"] for check in row["checks"]} <= {"ok", "skipped"}
        assert sum(check["status"] == "ok" for check in row["checks"]) > 10


def test_a_distribution_is_checked(typed: Run, fakes: None) -> None:
    done = typed("plugins", "check", "ppap-isolated", "--target", "red")
    assert done.code == 0
    for name in ("backend ppap-isolated:fake", "guider ppap-isolated:fake", "fake-cross-entropy"):
        assert name in done.out


def test_a_fault_has_an_advice_and_exit_code_3(typed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BROKEN)
    with isolated_registry("ppap_broken.plugin"):
        done = typed("plugins", "check", "loss-likelihood")
    assert done.code == 3
    assert "failed: what matches the target has a lower energy" in done.out
    assert "what to do: return a distance: guidance descends it" in done.out


def test_a_name_that_nobody_has(typed: Run, fakes: None) -> None:
    refused(typed("plugins", "check", "nobody"), 3, "no component and no plugin", "plugins list")


def test_fakes_draw(fakes: None) -> None:
    guide = ppap.guide("fake", target="red", scale=50)
    result = ppap.sample(ppap.backend("fake"), guides=[guide], num=2, steps=10)
    plain = ppap.sample(FakeBackend(), num=2, steps=10)
    loss, target = guide.loss, guide.target.value
    seen = [loss.energy(FakeGuider().eval()(x), target) for x in (result.images, plain.images)]
    assert (seen[0] < seen[1]).all()


def test_the_isolated_registry_ends(fakes: None) -> None:
    assert {record.distribution for record in registry().records if record.status == "ok"} == {
        "ppap-isolated"
    }


def test_it_leaves_the_process_as_it_was() -> None:
    before, path = registry().records, list(sys.path)
    with isolated_registry("ppap_testing.fakes_plugin"):
        pass
    assert (registry().records, sys.path) == (before, path)


class TestPluginFile:
    @pytest.fixture
    def file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.chdir(tmp_path)
        return f"./{write_file('guider', 'acme-quick')}"

    def test_it_guides(self, typed: Run, fakes: None, file: str) -> None:
        guider = ("--guider", "acme-quick", "--target", "0.3", "--plugin-file", file)
        more = ("--num", "1", "--steps", "3", "--out", "out")
        for _ in range(2):  # nothing of the file is left in the process
            done = typed("run", "--backend", "fake", *guider, *more, "--overwrite")
            assert done.code == 0, done.err
        record = json.loads(Path("out/run.json").read_text())
        assert "acme-quick" in json.dumps(record["config"]["guides"])
        assert registry().specs("guider")[0].name == "fake"
        assert "acme_quick_guider" not in sys.modules

    def test_it_is_diagnosed(self, typed: Run, fakes: None, file: str) -> None:
        pytest.importorskip("ppap_plugin_diagnose", reason="the command")
        more = ("--backend", "fake", "--guider", "acme-quick", "--plugin-file", file)
        few = ("--num", "4", "--steps", "2")
        done = typed("diagnose", *more, *few, "--levels", "3", "--target", "0.3", "--out", "d")
        assert done.code == 0, done.err

    def test_it_is_adapted(self, typed: Run, fakes: None, file: str) -> None:
        adapter = write_file("adapter", "acme-scale")
        text = Path(file).read_text().replace("acme-quick", "acme-other")
        Path("both.py").write_text(
            text.replace("acme_quick_guider", "both")
            + adapter.read_text().replace("acme_scale_adapter", "both")
        )
        more = ("--backend", "fake", "--guider", "acme-other", "--plugin-file", "both.py")
        learn = ("--iterations", "8", "--learn-batch", "2", "--num-experts", "2", "--no-keep")
        done = typed(
            *("adapt", *more, "--num", "20", "--steps", "2", *learn, "--no-calibrate"),
            *("--adapter", "acme-scale", "--workers", "1", "--out", "a"),
        )
        assert done.code == 0, done.err

    @pytest.mark.parametrize(
        "name, text, code, said",
        [
            ("missing.py", None, 2, "no Python file"),
            ("notes.txt", "", 2, "no Python file"),
            ("two words.py", "", 2, "no Python file"),
            ("random.py", "PPAP_API = (1, 0)", 2, "a module name of its own"),
            ("wrong.py", "def f(:", 3, "SyntaxError"),
            ("empty.py", "", 3, "it states no PPAP_API"),
            ("hooks.py", "PPAP_API = (1, 0)", 3, "implements none of"),
            ("ends.py", "raise SystemExit", 3, "SystemExit"),
        ],
    )
    def test_a_bad_file_ends_in_one_line(
        self,
        typed: Run,
        fakes: None,
        tmp_path: Path,
        name: str,
        text: str | None,
        code: int,
        said: str,
    ) -> None:
        if text is not None:
            (tmp_path / name).write_text(text)
        path = list(sys.path)
        done = typed("run", "--backend", "fake", "--plugin-file", tmp_path / name, "--num", "1")
        refused(done, code, said, name)
        assert sys.path == path
