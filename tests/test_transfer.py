"""Knowledge transfer in this process: what is made, what is kept, and what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from experts_toy import SCHEDULE, Backend
from reaper import Death, Reaper
from torch import Tensor, nn
from transfer_toy import (
    Convolutions,
    Means,
    Pictures,
    Square,
    anatomy,
    npz,
    pictures,
    seen,
    stopping,
)

from ppap_framework.data import LabelledImages
from ppap_framework.diagnosis import disagreement, evenly_spaced, propose_boundaries, propose_number
from ppap_framework.errors import AssetError, PluginError, PpapError, UsageError
from ppap_framework.experts import (
    BundleFile,
    NoiseRanges,
    backend_sha256,
    choose_experts,
    experts_dir,
    guide_sha256,
    has_experts,
    load_bundle,
    verify_bundle,
    write_bundle,
)
from ppap_framework.files import opened
from ppap_framework.guidance import Guide
from ppap_framework.learn import Recipe, distillation, load_teacher, transfer
from ppap_framework.learn.batches import validation_batch
from ppap_framework.learn.plan import TransferPlan
from ppap_framework.noise import NoiseLevel, NoiseSchedule, Prediction, cosine_schedule
from ppap_framework.run import FunctionLoss, GuideRequest
from ppap_framework.runtime import Progress

MODULE = sys.modules["ppap_framework.learn.transfer"]  # the package calls the function so

BIAS = (("bias", {}),)
ADAPTERS = (("lora", {"rank": 2, "targets": ("1", "7")}), *BIAS)
SHORT = Recipe(iterations=12, shared=0.25, batch=6, held_out=0.25, validate_every=2)
NAME = "backend-convolutions-2"
FILE = f"{NAME}.experts.safetensors"


def hasten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Few batches for statistics, a plot that takes no time, a cache of one's own."""

    def plot(kind: str, lines: Any, phases: Any, path: Path) -> None:
        for suffix in (".svg", ".png"):
            path.with_suffix(suffix).write_text(f"{len(lines)} lines")

    monkeypatch.setattr(distillation, "_STATISTICS_BATCHES", 2)
    monkeypatch.setattr(MODULE, "draw_figures", plot)
    monkeypatch.setenv("PPAP_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hasten(monkeypatch, tmp_path)


def network(model: nn.Module | None = None) -> Guide:
    return load_teacher(model or Convolutions(), Square())


def run(out: Path, **changes: Any) -> BundleFile:
    settings: dict[str, Any] = {
        "backend": Backend(),
        "guide": network(),
        "data": Pictures({"base": pictures()}),
        "num_experts": 2,
        "adapters": ADAPTERS,
        "recipe": SHORT,
        "keep": False,
        "calibrate": False,
        "device": "cpu",
        **changes,
    }
    return transfer(out=out, **settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed call leaves."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patched:
        hasten(patched, out.parent)
        run(out)
    return content(out)


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the diary."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "transfer.json"
    }


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "transfer.json").read_text())
    return found


class TestResult:
    def test_an_undisturbed_call(self, tmp_path: Path, whole: dict[str, bytes]) -> None:
        data, backend, model = Pictures({"base": pictures()}), Backend(), Convolutions().train()
        before, sha256, reports = anatomy(model), guide_sha256(Convolutions()), []
        bundle = run(
            tmp_path,
            data=data,
            guide=network(model),
            backend=backend,
            command=["ppap", "transfer"],
            progress=reports.append,
        )
        assert anatomy(model) == before
        assert content(tmp_path) == whole
        assert set(whole) == {FILE, "log.jsonl", "loss.png", "loss.svg", ".lock"}
        diary = record(tmp_path)
        assert diary["status"] == "complete"
        [call] = diary["calls"]
        assert (call["iterations"], call["command"]) == (12, ["ppap", "transfer"])
        assert diary["seconds"] == call["seconds"] > 0
        steps = [(report.task, report.done, report.total) for report in reports]
        assert steps == [("learning", i, 12) for i in range(1, 13)]
        assert all(float(report.detail.removeprefix("loss ")) > 0 for report in reports)

        assert bundle == BundleFile(NAME, tmp_path / FILE)
        info = bundle.info
        assert (info.guide.component, info.guide.sha256) == ("Convolutions", sha256)
        assert info.backend.sha256 == backend_sha256(backend)
        assert (info.timesteps, info.resolution, info.seed) == ((0, 50, 100), (8, 8), 0)
        assert info.data_sha256 == data.manifest_hash
        assert [adapter.name for adapter in info.adapters] == ["lora", "bias"]
        assert info.recipe["iterations"] == 12
        assert info.recipe["loss"] == {"name": "Square", "options": {}}
        assert info.metrics["held_out_images"] == 5
        keys = {"held_out", "untouched", "best_iteration"}
        assert [set(score) for score in info.metrics["experts"]] == [keys] * 2

    def test_global_state_of_torch(self, tmp_path: Path, whole: dict[str, bytes]) -> None:
        guide, backend, data = network(), Backend(), Pictures({"base": pictures()})
        torch.set_default_dtype(torch.float64)
        try:
            with torch.inference_mode():
                run(tmp_path, guide=guide, backend=backend, data=data)
        finally:
            torch.set_default_dtype(torch.float32)
        assert content(tmp_path) == whole

    def test_the_log(self, tmp_path: Path, whole: dict[str, bytes]) -> None:
        lines = [json.loads(line) for line in whole["log.jsonl"].splitlines()]
        # Of 3, 5 and 4 iterations every tenth is logged, and the last; every second is validated.
        assert [
            " ".join([line["phase"], str(line["iteration"]), *({"loss", "held_out"} & {*line})])
            for line in lines
        ] == [
            *("shared 2 held_out", "shared 3 loss", "shared 3 held_out"),
            *("expert 0 2 held_out", "expert 0 4 held_out"),
            *("expert 0 5 loss", "expert 0 5 held_out"),
            *("expert 1 2 held_out", "expert 1 4 loss", "expert 1 4 held_out"),
        ]
        recipe = Recipe(iterations=25, shared=0, batch=4, validate_every=100)
        run(tmp_path, num_experts=1, recipe=recipe)
        lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert [line["iteration"] for line in lines if "loss" in line] == [10, 20, 25]

    @pytest.mark.parametrize("through", ["noisy", "detached"])
    def test_the_experts_say_of_noise_what_was_scored(
        self, tmp_path: Path, through: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """From the file, on another instance, against the teacher's answers."""

        def denoise(self: Any, x_t: Tensor, t: Tensor, condition: Any) -> Prediction:
            level = SCHEDULE.level(t)
            alpha, sigma = (x[:, None, None, None].to(x_t) for x in (level.alpha, level.sigma))
            return Prediction.from_x0(2.0 * x_t, x_t, alpha, sigma)

        monkeypatch.setattr(Backend, "encode", lambda self, prompts, batch: None)
        monkeypatch.setattr(type(Backend().stages[0]), "denoise", denoise)
        bundle = run(tmp_path, through=through)
        assert bundle.info.reads == through
        model, x0 = Convolutions(), seen(pictures())
        with torch.no_grad():
            answers = model(x0[15:])
        experts = load_bundle(bundle.path, model, Backend())
        for expert, score in enumerate(bundle.info.metrics["experts"]):
            timesteps = (range(50), range(50, 100))[expert]
            exam = validation_batch((0, 1 + expert), 5, timesteps, (3, 8, 8))
            x_t = SCHEDULE.add_noise(x0[15:], exam.timesteps, exam.noise)
            level = SCHEDULE.level(exam.timesteps)
            read = x_t if through == "noisy" else (2.0 * x_t).clamp(-1.0, 1.0)
            with torch.no_grad():
                said = experts.at(level)(read, level)
            assert (said - answers).square().mean().item() == pytest.approx(score["held_out"])

    @pytest.mark.parametrize("keep", [True, False])
    def test_kept_where_it_is_found(self, tmp_path: Path, keep: bool) -> None:
        bundle = run(tmp_path / "out", keep=keep)
        found = choose_experts("auto", "toy", Convolutions(), Backend())
        assert (found is not None) is keep
        if found is not None:
            assert found == bundle
            assert found.path == experts_dir() / FILE
            assert found.path.read_bytes() == (tmp_path / "out" / FILE).read_bytes()
        assert choose_experts("auto", "toy", Convolutions(1), Backend()) is None

    def test_an_interrupted_call_leaves_the_network_as_it_was(self, tmp_path: Path) -> None:
        model = Convolutions().train()
        before = anatomy(model)
        interrupted(tmp_path, 7, guide=network(model))
        assert not has_experts(model.network)
        assert anatomy(model) == before
        assert record(tmp_path)["status"] == "interrupted"

    def test_names(self, tmp_path: Path) -> None:
        assert run(tmp_path / "a", name="mine", keep=True).name == "mine"
        assert (experts_dir() / "mine.experts.safetensors").exists()

        class Inner(Backend):
            pass

        inner = run(tmp_path / "b", backend=Inner(), boundaries=[20, 60], num_experts=None)
        assert inner.name == "inner-convolutions-3"
        assert inner.info.timesteps == (0, 20, 60, 100)


def test_experts_begin_as_others(tmp_path: Path) -> None:
    first = run(tmp_path / "first")
    other = Backend(seed=1, schedule=cosine_schedule(50))  # its timesteps have other noise levels
    how: dict[str, Any] = {"num_experts": None, "adapters": None, "begin_with": str(first.path)}
    info = run(tmp_path / "second", backend=other, learning_rate=1e-12, **how).info
    assert (info.ranges, info.adapters) == (first.info.ranges, first.info.adapters)
    assert info.timesteps != first.info.timesteps
    assert info.backend.sha256 == backend_sha256(other)
    assert info.recipe["begin_with"] == first.sha256
    (_, before), (_, after) = (verify_bundle(tmp_path / n / FILE) for n in ("first", "second"))
    learned = [name for name in before if "running" not in name and "num_batches" not in name]
    assert before.keys() == after.keys()
    assert len(learned) > 4
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in learned)
    unchanged = anatomy(model := Convolutions(seed=1))
    with pytest.raises(AssetError, match="do not match: guide"):
        run(tmp_path / "third", guide=network(model), **how)
    assert anatomy(model) == unchanged
    recipe = {**first.info.recipe, "through": ["detached", "noisy"]}
    write_bundle(first.path, before, attrs.evolve(first.info, recipe=recipe))
    with pytest.raises(UsageError, match="different images do not learn together"):
        run(tmp_path / "fourth", **how)


class Watching(Means):
    """Remembers what it was shown, and in which size."""

    def __init__(self) -> None:
        super().__init__()
        self.clean: list[Tensor] = []
        self.noisy: list[Tensor] = []

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Any:
        said = super().forward(images, level)
        if level is not None:  # None while it is measured how the network is fed
            clean = bool(level.log_snr.isinf().all())
            (self.clean if clean else self.noisy).extend(images.detach())
        return said


def shown(images: list[Tensor]) -> list[bytes]:
    return sorted(image.contiguous().numpy().tobytes() for image in images)


class TestTeacherAndStudent:
    def test_the_teacher_looks_at_each_image_once(self, tmp_path: Path) -> None:
        model = Watching()
        run(tmp_path, guide=network(model), adapters=BIAS)
        assert shown(model.clean) == shown(list(seen(pictures())))
        assert not set(shown(model.noisy)) & set(shown(model.clean))

    @pytest.mark.parametrize("size", [16, 8])
    def test_two_stages(self, tmp_path: Path, size: int) -> None:
        """The teacher sees what the last one made, students the first one's, noised."""
        model = Watching()
        base, large = pictures(20), pictures(20, size, seed=1)
        data = Pictures({"base": base, "upsampler": large})
        schedule = NoiseSchedule("hardly noisy", torch.full((100,), 1e-9, dtype=torch.float64))
        backend = Backend(schedule=schedule)
        run(tmp_path, backend=backend, guide=network(model), data=data, adapters=BIAS)
        assert shown(model.clean) == shown(list(seen(large)))
        firsts = seen(base)
        for image in model.noisy:
            distances = (firsts - image).square().mean((1, 2, 3))
            assert distances.min() < 1e-5

    def test_supervised_experts_have_no_teacher(self, tmp_path: Path) -> None:
        model = Watching()
        labels = np.stack([np.arange(20.0), np.ones(20)], 1)
        file = npz(tmp_path / "labelled.npz", pictures(), labels)
        told: list[Tensor] = []

        class Labels(Square):
            def energy(self, prediction: Any, target: Tensor) -> Tensor:
                told.extend(target)
                return super().energy(prediction, target)

            def transfer(self, student: Any, teacher: Any) -> Tensor:
                raise NotImplementedError

        guide = load_teacher(model, Labels())
        run(tmp_path / "out", guide=guide, data=LabelledImages(file), adapters=BIAS)
        assert model.clean == []
        assert {row.tolist()[0] for row in told} == set(range(20))
        assert record(tmp_path / "out")["settings"]["supervised"] is True


@pytest.fixture(scope="module")
def reaper() -> Reaper:
    return Reaper()


class TestGoingOn:
    @pytest.mark.parametrize("seconds", [0.0, pytest.param(10.0, marks=pytest.mark.slow)])
    def test_after_any_iteration(
        self,
        tmp_path: Path,
        whole: dict[str, bytes],
        seconds: float,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Saved at every iteration, or at looks alone."""
        monkeypatch.setattr(MODULE, "_SAVE_SECONDS", seconds)
        for last in range(1, 13):
            out = tmp_path / str(last)
            interrupted(out, last)
            assert record(out)["status"] == "interrupted"
            again: list[int] = []
            run(out, progress=lambda progress, again=again: again.append(progress.done))
            # Of looks and what ends a phase nothing is kept before the look is over.
            looks = (0, 2, 3, 5, 7, 8, 10, 12)
            kept = max(look for look in looks if look < last) if seconds else last - 1
            assert again == list(range(kept + 1, 13))
            assert content(out) == whole
            calls = record(out)["calls"]
            assert [call["iterations"] for call in calls] == [last, 12 - kept]

    def test_again_and_again(
        self, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(MODULE, "_SAVE_SECONDS", 0.0)

        def leave(progress: Progress) -> None:
            left.append(progress.done)
            if len(left) % 2 == 0:
                raise KeyboardInterrupt

        left: list[int] = []
        for _ in range(100):
            with contextlib.suppress(KeyboardInterrupt):
                run(tmp_path, progress=leave)
                break
        assert len(record(tmp_path)["calls"]) > 6
        assert content(tmp_path) == whole

    @pytest.mark.parametrize("overwrite", [False, pytest.param(True, marks=pytest.mark.slow)])
    def test_after_death_at_every_change_of_the_file_system(
        self, tmp_path: Path, reaper: Reaper, overwrite: bool
    ) -> None:
        """While a training is begun, or another one is overwritten."""
        few: dict[str, Any] = {
            "guide": network(Means()),
            "adapters": BIAS,
            "recipe": Recipe(iterations=2, shared=0, batch=4, held_out=0.2),
            "keep": not overwrite,
        }
        other = {**few, "recipe": Recipe(iterations=3, shared=0, batch=4), "name": "other"}
        run(tmp_path / "whole", **few)
        wanted = content(tmp_path / "whole")
        for changes in range(1000):
            out = tmp_path / str(changes)
            few["guide"] = network(Means())
            if overwrite:
                run(out, **other)
            try:
                with reaper.after(changes):
                    run(out, overwrite=overwrite, **few)
            except Death:
                try:
                    run(out, **few)
                    assert content(out) == wanted, changes
                except UsageError as error:  # the other one is still there
                    assert overwrite
                    assert "recipe.iterations was 3, is now 2" in error.message
                if overwrite:
                    run(out, overwrite=True, **few)
                assert {path.name for path in out.iterdir()} == {*wanted, "transfer.json"}, changes
            else:
                break
            assert content(out) == wanted, changes
        assert 25 < changes < 1000
        assert content(out) == wanted

    def test_what_is_finished(self, tmp_path: Path, whole: dict[str, bytes]) -> None:
        """It is left alone, made again if it was removed, and refused if it was damaged."""
        run(tmp_path)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        run(tmp_path, progress=lambda progress: pytest.fail("it learned"))
        assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
        (tmp_path / FILE).unlink()
        run(tmp_path)
        assert content(tmp_path) == whole
        damaged = bytearray(whole[FILE])
        damaged[-3] ^= 1
        (tmp_path / FILE).write_bytes(damaged)
        with pytest.raises(AssetError, match="damaged or changed"):
            run(tmp_path, keep=True)
        assert not experts_dir().exists()

    def test_a_log_that_was_tampered_with(self, tmp_path: Path, whole: dict[str, bytes]) -> None:
        """Neither experts nor the log that is left depend on it."""
        damages = (b"", None, b"\x00{\n", b"3\n{}\n", whole["log.jsonl"][:70])
        for number, damage in enumerate(damages):
            out = tmp_path / str(number)
            interrupted(out, 9)
            if damage is None:
                (out / "log.jsonl").unlink()
            else:
                (out / "log.jsonl").write_bytes(damage)
            run(out)
            assert content(out) == whole

    def test_a_full_disk(
        self, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(file: int) -> None:
            raise OSError(28, "No space left on device")

        for iterations in (0, 5):
            out = tmp_path / str(iterations)
            if iterations:
                interrupted(out, iterations)
            with monkeypatch.context() as patched:
                patched.setattr(os, "fsync", full)
                with pytest.raises(PpapError, match="No space left on device") as caught:
                    run(out)
            assert str(out) in caught.value.message
            assert "continues" in caught.value.hint
            run(out)
            assert content(out) == whole

    def test_a_loss_that_once_was_not_finite(self, tmp_path: Path, whole: dict[str, bytes]) -> None:
        class Once(Square):
            calls = 0

            def transfer(self, student: Any, teacher: Any) -> Tensor:
                self.calls += torch.is_grad_enabled()
                return super().transfer(student, teacher) * (torch.nan if self.calls == 7 else 1)

        Once.__name__ = "Square"  # the same settings
        with pytest.raises(PpapError, match="the loss of expert 0 is nan at iteration 4"):
            run(tmp_path, guide=load_teacher(Convolutions(), Once()))
        assert record(tmp_path)["status"] == "failed"
        assert not (tmp_path / FILE).exists()
        run(tmp_path)
        assert content(tmp_path) == whole

    def test_another_process_in_the_folder(self, tmp_path: Path) -> None:
        with (
            opened(tmp_path),
            pytest.raises(UsageError, match="another process is writing"),
        ):
            run(tmp_path)

    def test_what_killed_processes_were_writing_is_removed(self, tmp_path: Path) -> None:
        interrupted(tmp_path, 5)
        left = [
            tmp_path / f".{FILE}.12.tmp",
            tmp_path / ".log.jsonl.12.tmp",
            tmp_path / ".transfer.json.12.tmp",
            tmp_path / ".partial" / ".state.12.tmp",
        ]
        kept = [tmp_path / ".notes.tmp", tmp_path / "notes.txt"]
        for path in (*left, *kept):
            path.touch()
        interrupted(tmp_path, 8)
        assert [path.exists() for path in left] == [False] * 4
        assert [path.exists() for path in kept] == [True] * 2


def interrupted(out: Path, after: int, **changes: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(out, progress=stopping(after), **changes)


class Other(Square):
    """Another loss, by its name."""


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"iterations": 13}, "recipe.iterations was 12, is now 13"),
            ({"seed": 1}, "recipe.seed was 0, is now 1"),
            ({"chain": True}, "recipe.chain was False, is now True"),
            ({"precision": "bfloat16"}, "precision was float32, is now bfloat16"),
            ({"num_experts": 3}, "recipe.boundaries was"),
            ({"num_experts": None, "boundaries": [40]}, "recipe.boundaries was"),
            ({"adapters": BIAS}, "recipe.adapters was"),
            (
                {"adapters": (("lora", {"rank": 1, "targets": ["1", "7"]}), ("bias", {}))},
                "recipe.adapters was",
            ),
            ({"guide": network(Convolutions(1))}, "guide.sha256 was"),
            ({"guide": load_teacher(Convolutions(), Other())}, "loss.name was Square, is now Oth"),
            ({"backend": Backend(seed=1)}, "backend.sha256 was"),
            ({"data": Pictures({"base": pictures(seed=1)})}, "data was"),
            ({"name": "other"}, f"bundle was {FILE}, is now other.experts.safetensors"),
        ],
    )
    def test_other_settings(self, tmp_path: Path, changes: dict[str, Any], told: str) -> None:
        out = tmp_path / "out"
        interrupted(out, 6)
        before = content(out)
        with pytest.raises(UsageError, match="was begun with other settings") as caught:
            run(out, **changes)
        assert told in caught.value.message
        assert "--overwrite" in caught.value.hint
        assert content(out) == before
        run(out, overwrite=True, **changes)
        undisturbed = tmp_path / "new"
        run(undisturbed, **changes)
        assert content(out) == content(undisturbed)

    def test_a_tuple_is_what_it_was(self, tmp_path: Path, whole: dict[str, bytes]) -> None:
        """JSON gives back a list."""
        interrupted(
            tmp_path, 6, adapters=(("lora", {"rank": 2, "targets": ["1", "7"]}), ADAPTERS[1])
        )
        run(tmp_path)
        assert content(tmp_path) == whole

    def test_a_damaged_state(self, tmp_path: Path, whole: dict[str, bytes]) -> None:
        interrupted(tmp_path, 9)
        file = tmp_path / ".partial" / "state"
        sound = file.read_bytes()
        places = torch.randint(len(sound), (30,), generator=torch.Generator().manual_seed(0))
        damages = [sound[:-1], sound[:40], b"", sound + b"x", b"no state at all"]
        for place in [0, 64, len(sound) - 1, *places.tolist()]:
            changed = bytearray(sound)
            changed[place] ^= 1 << place % 8
            damages.append(bytes(changed))
        for damage in damages:
            file.write_bytes(damage)
            with pytest.raises(AssetError, match=r"state' is damaged") as caught:
                run(tmp_path)
            assert "\n" not in str(caught.value)
            assert caught.value.hint == "--overwrite begins anew"
        run(tmp_path, overwrite=True)
        assert content(tmp_path) == whole

    def test_a_state_of_other_settings(self, tmp_path: Path) -> None:
        interrupted(tmp_path, 9)
        (tmp_path / "transfer.json").unlink()
        (tmp_path / "log.jsonl").unlink()
        with pytest.raises(AssetError, match="is of other settings"):
            run(tmp_path, num_experts=3)

    @pytest.mark.parametrize(
        "text", ["{", "[]", "{}", '{"settings": []}', '{"settings": {}, "calls": 3}', "\x00"]
    )
    def test_a_damaged_record(self, tmp_path: Path, whole: dict[str, bytes], text: str) -> None:
        interrupted(tmp_path, 4)
        (tmp_path / "transfer.json").write_text(text)
        with pytest.raises(AssetError, match=r"transfer\.json'") as caught:
            run(tmp_path)
        assert caught.value.hint == "--overwrite begins anew"
        run(tmp_path, overwrite=True)
        assert content(tmp_path) == whole

    def test_a_strange_diary_does_not_matter(self, tmp_path: Path) -> None:
        interrupted(tmp_path, 4)
        diary = record(tmp_path)
        for calls in ([3], [{}], [{"seconds": "long"}], []):
            (tmp_path / "transfer.json").write_text(json.dumps({**diary, "calls": calls}))
            interrupted(tmp_path, 5)
        run(tmp_path)
        assert record(tmp_path)["status"] == "complete"

    @pytest.mark.parametrize("overwrite", [True, False])
    @pytest.mark.parametrize("name", ["thesis.tex", "mine.experts.safetensors", "log.jsonl"])
    def test_a_folder_of_other_things(self, tmp_path: Path, overwrite: bool, name: str) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / name).touch()
        with pytest.raises(UsageError, match=re.escape(name)):
            run(out, overwrite=overwrite)
        assert [path.name for path in out.iterdir()] == [name]

    @pytest.mark.parametrize("text", ["{", "[]", '{"settings": {"bank": 1}}'])
    def test_overwriting_a_record_of_another_program(self, tmp_path: Path, text: str) -> None:
        out = tmp_path / "out"
        out.mkdir()
        for name in ("transfer.json", "log.jsonl", "loss.png", "loss.svg"):
            (out / name).write_text(text)
        with pytest.raises(UsageError, match=r"transfer\.json'"):
            run(out, overwrite=True)
        assert {path.read_text() for path in out.iterdir() if path.name != ".lock"} == {text}
        assert len([*out.iterdir()]) == 5

    def test_overwriting_leaves_what_is_not_its_own(self, tmp_path: Path) -> None:
        run(tmp_path, name="first")
        (tmp_path / "mine.experts.safetensors").touch()
        (tmp_path / "notes.txt").touch()
        run(tmp_path, name="second", overwrite=True)
        names = {path.name for path in tmp_path.iterdir()}
        assert {"mine.experts.safetensors", "notes.txt", "second.experts.safetensors"} < names
        assert "first.experts.safetensors" not in names

    def test_everything_that_is_wrong_at_once(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(UsageError) as caught:
            run(
                tmp_path / "file",
                recipe=Recipe(iterations=0, batch=0),
                num_experts=0,
                name="a/b",
                device="abacus",
            )
        for said in ("iterations", "batch", "num_experts", "'a/b'", "abacus", "is no folder"):
            assert said in caught.value.message

    @pytest.mark.parametrize(
        ("changes", "said", "kind"),
        [
            ({"num_experts": 101}, "cannot share 100 timesteps among 101 experts", UsageError),
            ({"num_experts": True}, "num_experts must be a whole number", UsageError),
            ({"begin_with": "mine"}, "begin with a bundle have its number", UsageError),
            ({"begin_with": 5}, "begin_with must be a bundle's name", UsageError),
            ({"through": "clean"}, "through must be", UsageError),
            (
                {"begin_with": "m", "through": "detached", "num_experts": None, "adapters": None},
                "begin with a bundle have its number",
                UsageError,
            ),
            ({"through": "detached", "boundaries": "auto"}, "noisy images alone", UsageError),
            ({"num_experts": 2, "boundaries": [5, 9]}, "2 boundaries make 3 experts", UsageError),
            ({"num_experts": None, "boundaries": [9, 5]}, r"at timesteps \[9, 5\]", UsageError),
            ({"num_experts": None, "boundaries": [100]}, r"begin at timesteps \[100\]", UsageError),
            ({"recipe": Recipe(iterations=1)}, "1 iterations cannot be shared out", UsageError),
            ({"adapters": ()}, "experts need an adapter", UsageError),
            ({"adapters": BIAS * 2}, "'bias' is given twice", UsageError),
            ({"adapters": (("biass", {}),)}, "biass", PluginError),
            ({"adapters": (("lora", {"rank": 0}),)}, "rank", UsageError),
            ({"adapters": (("lora", {"rank": {1}}),)}, "of ppap-plugin-lora: option", UsageError),
            ({"adapters": (("full", {}), ("bias", {}))}, "another adapter", UsageError),
            ({"adapters": (("lora", {"rank": 64}),)}, "large enough", UsageError),
            ({"name": ""}, "a bundle cannot be called ''", UsageError),
            ({"name": ".hidden"}, "cannot be called", UsageError),
            ({"loss": "cross-entropy"}, "the guide has a loss already, 'Square'", UsageError),
            ({"data": Pictures({"b": pictures(size=9)})}, r"data are of \(3, 9, 9\)", AssetError),
            ({"data": Pictures({"b": pictures(1)})}, "cannot learn from 1 image", AssetError),
            ({"data": "nowhere"}, "no synthetic set in 'nowhere'", AssetError),
            ({"recipe": Recipe(iterations=9, batch=1)}, "batch of one image", UsageError),
        ],
    )
    def test_what_cannot_be(
        self, tmp_path: Path, changes: dict[str, Any], said: str, kind: type[PpapError]
    ) -> None:
        out = tmp_path / "out"
        model = Convolutions()
        before = anatomy(model)
        with pytest.raises(kind, match=said) as caught:
            run(out, **{"guide": network(model), **changes})
        assert type(caught.value) is kind
        assert "\n" not in str(caught.value)
        assert not out.exists()
        assert anatomy(model) == before

    def test_data_that_do_not_say_what_they_are(self, tmp_path: Path) -> None:
        class Nameless(Pictures):
            manifest_hash = "about 20 pictures"  # type: ignore[assignment]  # that is the point

        with pytest.raises(AssetError, match="manifest_hash of the data is 'about 20 pictures'"):
            run(tmp_path, data=Nameless({"base": pictures()}))

    def test_a_plot_that_cannot_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
    ) -> None:
        def refused(*_: Any) -> None:
            raise PpapError("cannot write 'loss.png': Permission denied")

        with monkeypatch.context() as patched:
            patched.setattr(MODULE, "draw_figures", refused)
            with pytest.raises(PpapError, match=r"cannot write .*Permission denied"):
                run(tmp_path)
        run(tmp_path)
        assert content(tmp_path) == whole

    def test_if_nothing_draws_figures(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
    ) -> None:
        monkeypatch.setattr(MODULE, "draw_figures", lambda *_: [])
        run(tmp_path)
        assert content(tmp_path) == {k: v for k, v in whole.items() if not k.startswith("loss.")}


class TestTeacher:
    def test_a_network_and_a_loss(self) -> None:
        request = GuideRequest(
            source=nn.Conv2d(3, 4, 1), loss="cross-entropy", loss_options={"temperature": 2.0}
        )
        found = load_teacher(request)
        assert (found.loss_name, found.loss_options) == ("cross-entropy", {"temperature": 2.0})
        assert type(found.loss).__name__ == "CrossEntropy"
        assert found.target is None
        assert found.origin is not None
        assert found.origin.component == "Conv2d"
        assert load_teacher(found) is found

    @pytest.mark.parametrize(
        ("source", "loss", "said"),
        [
            ("adm-classifier", None, "understands noise already"),
            (nn.Identity(), None, "'Identity' needs a loss"),
            (nn.Identity(), lambda p, t: p, "does not say how a student learns"),
            (nn.Identity(), FunctionLoss(lambda p, t: p), "does not say how a student learns"),
            (network(), "cross-entropy", "has a loss already, 'Square'"),
            (GuideRequest(source="classifier", mean=[0.5] * 3), None, "takes no mean"),
            (
                GuideRequest(source=nn.Flatten(), loss=Square(), loss_options={"a": 1}),
                None,
                "options",
            ),
            (GuideRequest(source=nn.Identity(), loss=Square(), model="b0"), None, "takes no model"),
            (
                GuideRequest(
                    source=nn.Identity(), loss="cross-entropy", loss_options={"temperature": -1.0}
                ),
                None,
                "temperature",
            ),
        ],
    )
    def test_refusals(self, source: Any, loss: Any, said: str) -> None:
        with pytest.raises(UsageError, match=said) as caught:
            load_teacher(source, loss)
        assert "\n" not in str(caught.value)

    def test_unknown_names(self) -> None:
        with pytest.raises(PluginError, match="cross-entropi"):
            load_teacher(nn.Identity(), "cross-entropi")
        with pytest.raises(PluginError, match="clasifier"):
            load_teacher("clasifier")
        with pytest.raises(UsageError, match="no setting 'num_expert'") as caught:
            transfer(Backend(), network(), "nowhere", out="out", num_expert=3)
        assert caught.value.hint == "did you mean 'num_experts'?"


AUTO: dict[str, Any] = {
    "boundaries": "auto",
    "num_experts": None,
    "adapters": BIAS,
    "recipe": Recipe(iterations=24, batch=6, held_out=0.25, validate_every=4, seed=3),
}
"""Experts that begin where the data propose it."""


def curve() -> tuple[list[int], list[float]]:
    """As the training should find it."""
    t = evenly_spaced(SCHEDULE, 21)
    return t, disagreement(Convolutions(), Square(), SCHEDULE, t, pictures(), seed=3)


@pytest.mark.parametrize("number", [None, 2, 6])
def test_they_begin_where_the_curve_proposes(tmp_path: Path, number: int | None) -> None:
    timesteps, values = curve()
    model = Convolutions().train()
    before = anatomy(model)
    bundle = run(tmp_path, guide=network(model), **AUTO | {"num_experts": number})
    assert anatomy(model) == before
    experts = number or propose_number(timesteps, values, 100)
    starts = propose_boundaries(timesteps, values, 100, experts)
    assert starts != [k * 100 // experts for k in range(1, experts)]  # which would prove nothing
    info = bundle.info
    assert info.timesteps == (0, *starts, 100)
    assert info.ranges == NoiseRanges.from_timesteps(SCHEDULE, starts)
    assert bundle.name == f"backend-convolutions-{experts}"
    said = record(tmp_path)["settings"]
    assert said["proposal"]["timesteps"] == timesteps
    assert said["proposal"]["disagreement"] == pytest.approx(values, rel=1e-5)
    assert said["proposal"]["images"] == 20


def test_the_teacher_looks_at_the_last_stage(tmp_path: Path) -> None:
    small, large = pictures(), pictures(seed=1)
    run(tmp_path, data=Pictures({"base": small, "large": large}), **AUTO)
    timesteps = evenly_spaced(SCHEDULE, 21)
    wanted = disagreement(Convolutions(), Square(), SCHEDULE, timesteps, small, large, seed=3)
    said = record(tmp_path)["settings"]["proposal"]["disagreement"]
    assert said == pytest.approx(wanted, rel=1e-5)


class TestResumingBoundaries:
    def test_keeps_the_curve_without_another_look(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = run(tmp_path / "whole", **AUTO).path.read_bytes()

        out = tmp_path / "out"
        with pytest.raises(KeyboardInterrupt):
            run(out, progress=stopping(15), **AUTO)
        said = record(out)["settings"]

        def measured(*_: Any, **__: Any) -> None:
            raise AssertionError("it was measured before")

        monkeypatch.setattr(TransferPlan, "measure", measured)
        assert run(out, **AUTO).path.read_bytes() == whole
        assert record(out)["settings"] == said
        assert run(out, **AUTO).path.read_bytes() == whole  # complete

    def test_of_another_kind_is_refused(self, tmp_path: Path) -> None:
        run(tmp_path, **AUTO | {"num_experts": 2})
        for changes in (
            {"boundaries": None, "num_experts": 2},
            {"num_experts": 3},
            {"data": Pictures({"base": pictures(seed=5)}), "num_experts": 2},
        ):
            with pytest.raises(UsageError, match="other settings"):
                run(tmp_path, **AUTO | changes)
        bundle = run(tmp_path, overwrite=True, **AUTO | {"boundaries": [50]})
        assert bundle.info.timesteps == (0, 50, 100)
        with pytest.raises(UsageError, match="other settings"):
            run(tmp_path, **AUTO | {"num_experts": 2})

    def test_of_a_record_that_makes_no_sense(self, tmp_path: Path) -> None:
        run(tmp_path, **AUTO)
        path = tmp_path / "transfer.json"
        said = json.loads(path.read_text())
        said["settings"]["proposal"] = {"images": 3}
        path.write_text(json.dumps(said))
        with pytest.raises(AssetError, match="proposal"):
            run(tmp_path, **AUTO)
        run(tmp_path, overwrite=True, **AUTO)


def test_too_few_iterations_for_as_many_experts_as_there_may_be(tmp_path: Path) -> None:
    few = Recipe(iterations=12, batch=6, held_out=0.25)
    with pytest.raises(UsageError, match="6 iterations cannot be shared out among 10 experts"):
        run(tmp_path / "out", **AUTO | {"recipe": few})
    assert not (tmp_path / "out").exists()
    assert len(run(tmp_path / "out", **AUTO | {"recipe": few, "num_experts": 4}).info) == 4


def test_a_word_that_is_no_boundary(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="boundaries must be timesteps or auto, not even"):
        run(tmp_path, **AUTO | {"boundaries": "even"})


def test_labels_do_not_matter_for_boundaries(tmp_path: Path) -> None:
    """What a supervised expert has to learn is measured by the untouched network as well."""
    labels = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).numpy()
    npz(tmp_path / "set.npz", pictures(), labels)
    run(tmp_path / "out", data=LabelledImages(tmp_path / "set.npz"), **AUTO)
    _, values = curve()
    said = record(tmp_path / "out")["settings"]["proposal"]["disagreement"]
    assert said == pytest.approx(values, rel=1e-5)
