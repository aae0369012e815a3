"""Which bundle is found, in what order, and what `ppap experts` says of it."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from experts_toy import SCHEDULE, Backend, TinyGuide, trained

from ppap_framework.cli import main
from ppap_framework.errors import AssetError, PluginError, UsageError
from ppap_framework.experts import (
    ScaleCurve,
    bundle_by_name,
    choose_experts,
    experts_dir,
    find_bundles,
    keep_bundle,
    read_bundle_info,
    save_bundle,
    verify_bundle,
)
from ppap_framework.experts.bundle import write_bundle
from ppap_framework.files import file_sha256
from ppap_framework.plugin import AdapterSpec, ExpertBundle
from ppap_framework.registry import PluginRecord, Registry, conflicts

Capsys, Caplog, Patch = pytest.CaptureFixture[str], pytest.LogCaptureFixture, pytest.MonkeyPatch
Offer = Callable[..., ExpertBundle]
OPTIONS = "experts_toy:ShiftOptions"


@pytest.fixture(autouse=True)
def plugins(tmp_path: Path, monkeypatch: Patch) -> list[PluginRecord]:
    """The plugins that are installed, and a cache of the test's own."""
    records: list[PluginRecord] = []
    monkeypatch.setenv("PPAP_CACHE_DIR", str(tmp_path / "cache"))
    shift = AdapterSpec(name="shift", summary="x", factory="experts_toy:shift", options=OPTIONS)
    own = {"distribution": "toys", "version": "1.0", "entry_point": "main", "module": "m"}
    records.append(PluginRecord(**own, specs=(shift,)))
    for module in ("experts.choice", "experts.bundle", "cli.experts"):
        monkeypatch.setattr(f"ppap_framework.{module}.registry", lambda: Registry(tuple(records)))
    return records


@pytest.fixture
def offer(tmp_path: Path, plugins: list[PluginRecord], monkeypatch: Patch) -> Offer:
    """Make a distribution offer a bundle that lies in its package."""
    (tmp_path / "acme_experts").mkdir()
    (tmp_path / "acme_experts" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "acme_experts", raising=False)

    def make(distribution: str, name: str, path: Path | None = None, **known: Any) -> ExpertBundle:
        if path:
            path.rename(tmp_path / "acme_experts" / path.name)
            path = tmp_path / "acme_experts" / path.name
            known |= {
                "uri": f"package://acme_experts/{path.name}",
                "sha256": file_sha256(path),
                "size": path.stat().st_size,
            }
        known = {"uri": "https://acme.invalid/x", "sha256": None, "size": 10} | known
        bundle = ExpertBundle(
            name=name, summary="", licence="CC0-1.0", guider="look", backend="toy", **known
        )
        own = {"distribution": distribution, "version": "1.0", "entry_point": "main", "module": "m"}
        plugins.append(PluginRecord(**own, assets=(bundle,)))
        return bundle

    return make


def bundle(name: str, age: float = 0, model: TinyGuide | None = None, **kwargs: Any) -> Path:
    experts_dir().mkdir(parents=True, exist_ok=True)
    path = experts_dir() / f"{name}.experts.safetensors"
    save_bundle(path, *trained(model or TinyGuide(), kwargs.pop("backend", Backend()), **kwargs))
    now = path.stat().st_mtime
    os.utime(path, (now - age, now - age))
    return path


def choose(source: str, model: TinyGuide, backend: Backend | None = None, **said: Any) -> Any:
    """The name of the bundle that is chosen, if one is."""
    chosen = choose_experts(source, "toy", model, backend or Backend(), **said)
    return chosen and chosen.name


def ppap(capsys: Capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["experts", *arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code, *capsys.readouterr()


class TestFinding:
    def test_own_bundles_come_first_the_newest_before_the_others(self, offer: Offer) -> None:
        installed = offer("acme", "ready", bundle("x"))
        bundle("old", age=100)
        bundle("new", age=1)
        bundle("middle", age=10)
        (experts_dir() / "unfinished.experts.safetensors.tmp").touch()
        offer("acme", "far")
        found = find_bundles()
        assert [b.name for b in found] == ["new", "middle", "old", "ready"]
        assert [b.distribution for b in found] == [None, None, None, "acme"]
        assert found[-1].path.name == installed.uri.rpartition("/")[2]

    def test_no_folder_is_no_fault(self) -> None:
        assert find_bundles() == []
        assert choose("auto", TinyGuide()) is None

    def test_a_kept_copy_is_found(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.experts.safetensors"
        save_bundle(path, *trained(TinyGuide(), Backend()))
        kept = keep_bundle(path)
        assert kept.read_bytes() == path.read_bytes()
        assert [entry.name for entry in experts_dir().iterdir()] == [path.name]
        assert bundle_by_name("mine").path == kept

    def test_a_kept_bundle_is_not_lost(self, tmp_path: Path, caplog: Caplog) -> None:
        contents = []
        for seed in range(3):
            path = tmp_path / "mine.experts.safetensors"
            save_bundle(path, *trained(TinyGuide(), Backend(), seed=seed))
            contents.append(path.read_bytes())
            assert keep_bundle(path) == keep_bundle(path)  # the same twice changes nothing
        said = [record.getMessage() for record in caplog.records]
        assert said == [
            f"the experts that were kept as 'mine' are now 'mine-earlier-{n}'" for n in (1, 2)
        ]
        kept = [bundle_by_name(name).path for name in ("mine-earlier-1", "mine-earlier-2", "mine")]
        assert [path.read_bytes() for path in kept] == contents

    def test_by_path(self, tmp_path: Path, monkeypatch: Patch) -> None:
        path = tmp_path / "mine.experts.safetensors"
        assert bundle_by_name(str(path)).path == path
        assert bundle_by_name("a/b").path == Path("a/b")
        monkeypatch.chdir(tmp_path)
        assert bundle_by_name(Path("mine")).path == tmp_path / "mine"  # never a name
        Path("picture.png").write_bytes(b"x")
        with pytest.raises(AssetError, match=r"'picture\.png' is"):
            _ = bundle_by_name("picture.png").info

    def test_unknown_names(self, offer: Offer) -> None:
        with pytest.raises(AssetError, match="no experts are called 'mine'") as caught:
            bundle_by_name("mine")
        assert "ppap adapt" in caught.value.hint
        bundle("mine")
        with pytest.raises(AssetError) as caught:
            bundle_by_name("mime")
        assert caught.value.hint == "did you mean 'mine'?"

    def test_a_name_that_two_claim(self, offer: Offer, plugins: list[PluginRecord]) -> None:
        path = bundle("x")
        offer("acme", "ready", path)
        offer("beta", "ready")
        with pytest.raises(PluginError, match="claimed by 2 plugins"):
            bundle_by_name("ready")
        assert bundle_by_name("acme:ready").distribution == "acme"
        (conflict,) = conflicts(Registry(tuple(plugins)))
        assert conflict.subject == "experts 'ready'"

    def test_bundles_of_one_guider_or_backend(
        self, offer: Offer, plugins: list[PluginRecord]
    ) -> None:
        asset = offer("acme", "far")
        found = Registry(tuple(plugins))
        both = {"backend": "toy", "guider": "look"}
        assert found.bundles() == found.bundles(backend="toy") == found.bundles(**both) == [asset]
        assert found.bundles(guider="depth") == found.bundles(**both | {"backend": "adm"}) == []

    def test_what_is_not_here_is_not_downloaded_by_the_way(
        self, offer: Offer, monkeypatch: Patch
    ) -> None:
        offer("acme", "far")
        monkeypatch.setattr(
            "ppap_framework.checkpoints._fetch.download",
            lambda *_: pytest.fail("it was downloaded"),
        )
        assert choose("auto", TinyGuide()) is None
        assert find_bundles() == []
        with pytest.raises(AssetError, match="far"):
            choose("far", TinyGuide(), offline=True)


class TestChoosing:
    def test_auto_takes_the_newest_that_matches(self, offer: Offer) -> None:
        offer("acme", "ready", bundle("ready"))
        model = TinyGuide()
        assert choose("auto", model) == "ready"
        bundle("fits", age=50, seed=1)
        bundle("fits-newer", age=40, seed=2)
        bundle("other-guide", model=TinyGuide(seed=5))
        bundle("other-normalization", model=TinyGuide(mean=0.4))
        bundle("other-backend", backend=Backend(seed=4))
        bundle("other-size", backend=Backend(size=16))
        assert choose("auto", model) == "fits-newer"
        assert choose("auto", TinyGuide(seed=5)) == "other-guide"
        assert choose("auto", TinyGuide(seed=6)) is None
        assert choose("none", model) is None
        assert choose("auto", model, allow_mismatch=["backend"]) == "other-backend"

    def test_auto_passes_over_the_damaged_and_says_so(self, caplog: Caplog) -> None:
        bundle("whole", age=50)
        damaged = bundle("damaged")
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
        (experts_dir() / "rubbish.experts.safetensors").write_bytes(b"x")
        with caplog.at_level(logging.WARNING):
            assert choose("auto", TinyGuide()) == "whole"
        assert {record.args[0] for record in caplog.records} == {"damaged", "rubbish"}
        assert str(experts_dir()) not in caplog.text

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"name": "absent"}, "no installed adapter is called 'absent'"),
            ({"options": {"ending": "bias", "gone": 1}}, "unknown option 'gone'"),
            ({"options": {"ending": "weight"}}, "these differ: "),
            ({"options": {"ending": "nothing"}}, "there is no bias to shift"),
        ],
    )
    def test_what_cannot_be_attached_stops_no_other(
        self, caplog: Caplog, capsys: Capsys, change: dict[str, Any], words: str
    ) -> None:
        bundle("whole", age=50)
        path = bundle("changed")
        info, state = verify_bundle(path)
        (adapter,) = info.adapters
        name = change.get("name", "shift")
        tensors = {key.replace("shift/", f"{name}/"): tensor for key, tensor in state.items()}
        write_bundle(path, tensors, attrs.evolve(info, adapters=[attrs.evolve(adapter, **change)]))
        model = TinyGuide()
        before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
        assert choose("auto", model) == "whole"
        (said,) = (record.getMessage() for record in caplog.records)
        assert said.startswith("experts 'changed' are passed over: the experts in 'changed' cannot")
        assert words in said
        after = model.network.state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        for source in ("changed", str(path)):
            with pytest.raises((AssetError, PluginError), match=re.escape(words)) as caught:
                choose(source, model)
            assert repr(str(path)) in caught.value.message
        rows = json.loads(ppap(capsys, "list", "--json")[1])
        problems = {row["name"]: row["problem"] for row in rows}
        assert problems["whole"] is None
        if "is" in words:  # the others need the guide
            assert (words in (problems["changed"] or "")) == ("bias" not in words)

    def test_broken_neighbours_stop_no_other(self, caplog: Caplog, capsys: Capsys) -> None:
        bundle("whole", age=50)
        for name, target in (("dangling", "nowhere"), ("loop", "loop.experts.safetensors")):
            (experts_dir() / f"{name}.experts.safetensors").symlink_to(target)
        (experts_dir() / "folder.experts.safetensors").mkdir()
        assert choose("auto", TinyGuide()) == "whole"
        assert {record.args[0] for record in caplog.records} == {"dangling", "loop", "folder"}
        code, out, _ = ppap(capsys, "list", "--json")
        problems = {row["name"]: row["problem"] for row in json.loads(out)}
        assert (code, problems.pop("whole")) == (0, None)
        assert all(problems.values())
        assert len(problems) == 3
        assert ppap(capsys, "verify")[0] == 4

    def test_auto_prefers_the_calibrated_then_the_better(self, caplog: Caplog) -> None:
        """The loss counts, not its share of the untouched network's: that differs with what experts
        read.
        """

        def scored(name: str, age: float, loss: float | None, **more: Any) -> None:
            scores = [{"held_out": loss, "untouched": 2.0 * (loss or 0.0) ** 2}] * 3
            bundle(name, age, metrics={"experts": scores}, **more)

        scored("trial", 0, 1.5)
        assert choose("auto", TinyGuide()) == "trial"
        assert not caplog.records
        scored("strange", 1, None)
        scored("better", 2, 0.5)
        assert choose("auto", TinyGuide()) == "better"
        assert "experts 'better' before the newer 'trial': held-out losses are lower" in caplog.text
        caplog.clear()
        scored("calibrated", 3, 1.0, curve=ScaleCurve((0.0,), (2.0,), (0.1,)))
        assert choose("auto", TinyGuide()) == "calibrated"
        (said,) = (record.getMessage() for record in caplog.records)
        assert "'calibrated' before the newer 'trial': they are calibrated" in said
        assert "--experts NAME" in said

    def test_options_are_compared_where_both_state_them(self, caplog: Caplog) -> None:
        bundle("old", age=50)
        path = bundle("four", options={"guide.gain": 4, "guide.size": None, "backend.t": 1})
        model = TinyGuide()
        for here, chosen in (
            ({"guide.gain": 4, "guide.new": 1, "backend.t": 1}, "four"),
            ({"guide.gain": 3}, "old"),
            ({"guide.gain": 4, "backend.t": 2}, "old"),
            ({}, "four"),
            (None, "four"),
        ):
            assert choose("auto", model, options=here) == chosen
        told = "guide.gain was 4, and is 3 (--allow-mismatch options)"
        assert told in caplog.text
        with pytest.raises(AssetError, match=r"backend\.t was 1, and is 2"):
            choose(str(path), model, options={"backend.t": 2})
        waived = {"options": {"guide.gain": 3}, "allow_mismatch": ["options"]}
        assert choose("auto", model, **waived) == "four"

    def test_auto_tells_of_other_backends_if_none_fit_and_never_of_other_guides(
        self, caplog: Caplog
    ) -> None:
        bundle("other-guide", model=TinyGuide(seed=5))
        bundle("other-backend", backend=Backend(seed=4))
        assert choose("auto", TinyGuide()) is None
        (said,) = (record.getMessage() for record in caplog.records)
        assert said.startswith("experts 'other-backend' are passed over: they learned from ")
        assert said.endswith(" (--allow-mismatch backend)")
        caplog.clear()
        bundle("fits", age=50)
        assert choose("auto", TinyGuide()) == "fits"
        assert not caplog.records

    def test_a_name_or_path_that_does_not_match_is_refused(self) -> None:
        path = bundle("other", model=TinyGuide(seed=5))
        for source in ("other", str(path)):
            with pytest.raises(AssetError, match="guide: they are for the weights of look"):
                choose(source, TinyGuide())
            assert choose(source, TinyGuide(seed=5)) == "other"
        with pytest.raises(UsageError, match="cannot be allowed"):
            choose("auto", TinyGuide(), allow_mismatch=["guide"])
        with pytest.raises(AssetError, match="there is no file"):
            choose("no/such.experts.safetensors", TinyGuide())
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        with pytest.raises(AssetError, match="changed after it was written"):
            choose("other", TinyGuide())


class TestCommand:
    def test_nothing_to_list(self, capsys: Capsys) -> None:
        code, out, _ = ppap(capsys, "list")
        assert code == 0
        assert str(experts_dir()) in out
        assert ppap(capsys, "list", "--json")[1] == "[]\n"

    def test_list(self, offer: Offer, capsys: Capsys) -> None:
        offer("acme", "ready", bundle("x"))
        offer("acme", "far")
        path = bundle("mine", age=10, number=4)
        (experts_dir() / "rubbish.experts.safetensors").write_bytes(b"x")
        code, out, _ = ppap(capsys, "list", "--json")
        rows = {row["name"]: row for row in json.loads(out)}
        assert code == 0
        assert list(rows) == ["rubbish", "mine", "ready", "far"]
        assert rows["mine"] == {
            "name": "mine", "plugin": None, "guider": "look", "backend": "toy", "experts": 4,
            "size": path.stat().st_size, "path": str(path), "problem": None,
        }  # fmt: skip
        assert "is a truncated or damaged checkpoint" in rows["rubbish"]["problem"]
        assert rows["ready"]["plugin"] == "acme"
        assert rows["far"]["problem"] == "not downloaded"
        code, out, _ = ppap(capsys, "list")
        assert code == 0
        assert all(name in out for name in rows)
        assert f" {path.stat().st_size / 1000:.1f} kB " in out

    def test_doctor_shows_what_cannot_be_attached(self, capsys: Capsys) -> None:
        """It looks in a process of its own, where no plugin supplies the adapter."""
        bundle("mine")
        with pytest.raises(SystemExit) as caught:
            main(["doctor", "--json"])
        (row,) = json.loads(capsys.readouterr().out)["experts"]
        assert (caught.value.code, row["name"]) == (4, "mine")
        assert row["problem"] == "no installed adapter is called 'shift'"

    def test_inspect(self, capsys: Capsys) -> None:
        path = bundle("mine", metrics={"agreement": 0.75})
        code, out, _ = ppap(capsys, "inspect", "mine", "--json")
        said = json.loads(out)
        assert code == 0
        assert said["path"] == str(path)
        middle, top = said["experts"][1], read_bundle_info(path).boundaries
        assert middle["timesteps"] == [33, 65]
        assert middle["log_snr"] == list(top)
        assert top[0] == (SCHEDULE.log_snr[32] + SCHEDULE.log_snr[33]).item() / 2
        total = sum(p.numel() for p in TinyGuide().network.parameters())
        assert (middle["parameters"], middle["share"]) == (13, 13 / total)
        assert said["experts"][0]["log_snr"][0] is said["experts"][2]["log_snr"][1] is None

        code, out, _ = ppap(capsys, "inspect", str(path))
        assert code == 0
        for words in (
            *("33-65", f"{top[0]:.3f} to {top[1]:.3f}", f"{13 / total:.2%}", "8, 8"),
            *("agreement", "iterations", "shift ending=bias", "look 'first'"),
        ):
            assert words in out

    def test_verify(self, capsys: Capsys) -> None:
        one, two = bundle("one"), bundle("two", age=10)
        assert ppap(capsys, "verify", "one", str(two))[0] == 0
        code, out, _ = ppap(capsys, "verify")
        assert (code, out.splitlines()[0]) == (0, "one: 3 experts in 9 tensors are whole")
        content = one.read_bytes()
        one.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        code, out, err = ppap(capsys, "verify")
        assert code == 4
        assert out == "two: 3 experts in 9 tensors are whole\n"
        assert "changed after it was written" in err
        code, out, _ = ppap(capsys, "verify", "--json")
        assert code == 4
        assert [row["whole"] for row in json.loads(out)] == [False, True]
        assert ppap(capsys, "verify", "three")[0] == 4
        assert ppap(capsys, "inspect", "three")[0] == 4
