"""Synthesis: what is drawn, what is kept whatever ends it, and what is refused."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import multiprocessing
import os
import pickle
import random
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from commands import Run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from reaper import Death, Reaper
from toy_distribution import MEANS, start

import ppap_framework as ppap
from ppap_framework.data import SyntheticData, synthesize
from ppap_framework.data.shards import Layout, decode, end, member_names, members
from ppap_framework.errors import AssetError, PpapError, UsageError
from ppap_framework.files import digest, opened
from ppap_framework.pixels import to_uint8
from ppap_framework.run import LoadedBackend
from ppap_framework.runtime import Progress

SMALL: dict[str, Any] = {"num": 10, "steps": 3, "batch": 2, "shard": 4, "seed": 5}
"""Five batches in three shards, the last with a single one."""

TINY: dict[str, Any] = {"num": 3, "steps": 1, "batch": 1, "shard": 2}
"""Three batches in two shards, for what is done many times over."""

LARGE: dict[str, Any] = {"num": 96, "steps": 2, "batch": 2, "shard": 6}
"""For what takes a while."""

quick = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def backend(site: Path) -> LoadedBackend:
    return ppap.backend("toy")


@pytest.fixture(scope="module")
def finished(
    backend: LoadedBackend, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """What an undisturbed call writes."""

    @functools.cache
    def written(**settings: Any) -> Path:
        return synthesize(backend, out=tmp_path_factory.mktemp("whole") / "set", **settings).path

    return written


@pytest.fixture
def whole(finished: Callable[..., Path]) -> Path:
    return finished(**SMALL)


Draw = Callable[..., SyntheticData]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "set"


@pytest.fixture
def draw(backend: LoadedBackend, out: Path) -> Draw:
    """Synthesis of the small set into `out`, with some settings changed."""
    return lambda **changes: synthesize(backend, **{"out": out, **SMALL, **changes})


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the diary, the lock and what was set aside."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("run.json", ".lock") and path.suffix != ".damaged"
    }


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for name, data in content(folder).items():
        (to / name).write_bytes(data)
    return to


class TestLayout:
    @given(st.integers(1, 400), st.integers(1, 40), st.integers(1, 9))
    def test_batches_and_shards_hold_every_image_once(self, num: int, batch: int, per: int) -> None:
        layout = Layout(num, batch, batch * per)
        images = list(range(num))
        assert [i for b in layout.batches for i in layout.batch_images(b)] == images
        assert [i for s in layout.shards for i in layout.shard_images(s)] == images
        assert [b for s in layout.shards for b in layout.shard_batches(s)] == list(layout.batches)
        for shard in layout.shards:
            inside = [i for b in layout.shard_batches(shard) for i in layout.batch_images(b)]
            assert inside == list(layout.shard_images(shard))
            assert 1 <= len(inside) <= batch * per

    @given(st.integers(1, 100), st.integers(1, 300))
    def test_a_shard_is_made_of_whole_batches(self, batch: int, shard: int) -> None:
        if shard % batch == 0:
            Layout(10, batch, shard)
            return
        with pytest.raises(UsageError, match="whole batches") as caught:
            Layout(10, batch, shard)
        advised = int(caught.value.hint.split()[3].rstrip(","))
        Layout(10, batch, advised)


class TestShards:
    @given(st.integers(0, 10**8 - 1), st.integers(1, 70), st.integers(0, 2**32))
    def test_the_bytes_are_those_of_tarfile(self, image: int, width: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        pictures = {
            "base": random.integers(0, 256, (3, width, 3), dtype=np.uint8),
            "upsampler": random.integers(0, 256, (6, 2 * width, 3), dtype=np.uint8),
        }
        made = members(image, pictures, seed)
        made += end(len(made))
        expected = io.BytesIO()
        with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for stage, pixels in pictures.items():
                png = io.BytesIO()
                Image.fromarray(pixels).save(png, "PNG")
                info = tarfile.TarInfo(f"{image:08d}.{stage}.png")
                info.size = len(png.getvalue())
                tar.addfile(info, io.BytesIO(png.getvalue()))
            text = json.dumps({"index": image, "seed": seed}).encode()
            info = tarfile.TarInfo(f"{image:08d}.json")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
        assert made == expected.getvalue()

    def test_names(self) -> None:
        assert member_names(7, ["base"]) == ["00000007.png", "00000007.json"]
        assert member_names(7, ["base", "upsampler"]) == [
            "00000007.base.png",
            "00000007.upsampler.png",
            "00000007.json",
        ]

    @given(st.data())
    def test_a_damaged_picture_is_read_as_it_was_or_refused(self, data: st.DataObject) -> None:
        pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        png = bytearray(buffer.getvalue())
        where = data.draw(st.integers(0, len(png) - 1))
        png[where] ^= data.draw(st.integers(1, 255))
        with contextlib.suppress(ValueError):
            assert decode(bytes(png), (3, 8, 8)).shape == (8, 8, 3)

    def test_webdataset_reads_both_kinds(self, whole: Path, tmp_path: Path) -> None:
        read = [s for path in sorted(whole.glob("shard-*.tar")) for s in webdataset_samples(path)]
        images = SyntheticData(whole).load()
        assert [sample["__key__"] for sample in read] == [f"{i:08d}" for i in range(10)]
        for index, sample in enumerate(read):
            assert sample["json"] == {"index": index, "seed": 5}
            assert (sample["png"].transpose(2, 0, 1) == images[index].numpy()).all()

        two = {"base": np.zeros((2, 2, 3), np.uint8), "upsampler": np.ones((4, 4, 3), np.uint8)}
        made = members(3, two, 0)
        (tmp_path / "two.tar").write_bytes(made + end(len(made)))
        (both,) = webdataset_samples(tmp_path / "two.tar")
        assert both["__key__"] == "00000003"
        assert (both["base.png"] == two["base"]).all()
        assert (both["upsampler.png"] == two["upsampler"]).all()


def webdataset_samples(shard: Path) -> list[dict[str, Any]]:
    from webdataset import autodecode, tariterators

    decode_sample = autodecode.Decoder([autodecode.imagehandler("rgb8")])
    with shard.open("rb") as file:  # the whole pipeline would leave it open
        opened = [{"url": shard.name, "stream": file}]
        samples = tariterators.group_by_keys(tariterators.tar_file_expander(opened))
        return [decode_sample(sample) for sample in samples]


def sampled(backend: LoadedBackend, **settings: Any) -> NDArray[np.uint8]:
    """Images of a run as pixels, (N, 3, H, W)."""
    return to_uint8(ppap.sample(backend, **settings).images).transpose(0, 3, 1, 2)


class TestImages:
    def test_are_those_that_sampling_gives(self, backend: LoadedBackend, out: Path) -> None:
        settings: dict[str, Any] = {"num": 5, "steps": 4, "seed": 3, "sampler": "ddpm"}
        data = synthesize(backend, out=out, batch=2, shard=2, **settings)
        assert (data.load().numpy() == sampled(backend, batch=2, **settings)).all()

    def test_each_has_its_prompt(self, backend: LoadedBackend, out: Path) -> None:
        five = ["darker", "brighter", "darker", "darker", "brighter"]
        settings = {"num": 5, "steps": 4, "seed": 3, "sampler": "ddim", "prompt": five}
        data = synthesize(backend, out=out, batch=2, shard=4, **settings)
        assert (data.load().numpy() == sampled(backend, batch=2, **settings)).all()
        said: list[str] = []
        for shard in sorted(out.glob("*.tar")):
            with tarfile.open(shard) as tar:
                files = [tar.extractfile(name) for name in tar.getnames() if name.endswith("json")]
                said += [json.load(file)["prompt"] for file in files if file is not None]
        assert said == five
        other = out.with_name("other")
        for few in (five[:2], []):
            with pytest.raises(UsageError, match=f"{len(few)} prompts were given for 5 images"):
                synthesize(backend, out=other, **{**settings, "prompt": few})
        assert not other.exists()

    def test_come_from_the_distribution(self, backend: LoadedBackend, out: Path) -> None:
        data = synthesize(backend, out=out, num=512, steps=10)
        mean, spread = data.moments()
        assert mean.tolist() == pytest.approx(MEANS, abs=0.01)
        pixels = data.load().numpy().astype(np.float64) / 127.5 - 1.0
        np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(spread, pixels.std((0, 2, 3)), rtol=1e-12)

    @quick
    @given(st.lists(st.integers(0, 9), max_size=12))
    def test_any_of_them_in_any_order(self, whole: Path, indices: list[int]) -> None:
        data = SyntheticData(whole)
        picked = data.images(torch.tensor(indices, dtype=torch.int64))
        assert (picked.dtype, picked.shape) == (torch.uint8, (len(indices), 3, 8, 8))
        assert torch.equal(picked, data.load()[indices])
        assert len(data) == 10
        for index in (-1, 10):
            with pytest.raises(IndexError, match=f"no image {index}"):
                data.images([index])

    def test_a_set_of_the_first_format(self, draw: Draw, whole: Path, out: Path) -> None:
        """It called a batch a block."""
        copied(whole, out)
        manifest = json.loads((out / "manifest.json").read_text())
        manifest["settings"]["block"] = manifest["settings"].pop("batch")
        write_manifest(out, {**manifest, "format": 1})
        data = SyntheticData(out)
        assert torch.equal(data.load(), SyntheticData(whole).load())
        assert data.faults() == []
        with pytest.raises(UsageError, match="block was 2, is now None"):
            draw()
        write_manifest(out, {**manifest, "format": 3})
        with pytest.raises(AssetError, match="has format 3"):
            SyntheticData(out)

    def test_a_set_goes_to_other_processes(self, whole: Path) -> None:
        data = SyntheticData(whole)
        first = data.images([1])
        assert torch.equal(pickle.loads(pickle.dumps(data)).images([1]), first)

    def test_networks_are_left_as_they_were(self, backend: LoadedBackend, draw: Draw) -> None:
        network = backend.stages[0].network
        network.train()
        before = torch.get_num_threads()
        draw(threads=before + 1)
        assert network.training
        assert torch.get_num_threads() == before
        network.eval()


class TestResuming:
    @pytest.mark.parametrize(
        ("before", "fewest"),
        [("", 25), ("damaged", 15), pytest.param("other", 25, marks=pytest.mark.slow)],
    )
    def test_after_death_at_every_change_of_the_file_system(
        self, finished: Callable[..., Path], draw: Draw, tmp_path: Path, before: str, fewest: int
    ) -> None:
        """Of a new set, one with a damaged shard, and one of another seed that is overwritten."""
        overwrite, reaper = before == "other", Reaper()
        tiny = finished(**TINY)
        earlier = finished(**{**TINY, "seed": 6}) if overwrite else tiny
        for changes in range(1000):
            out = tmp_path / str(changes)
            settings = {**TINY, "out": out, "seed": 0}
            if before:
                copied(earlier, out)
            if before == "damaged":
                hurt(out / "shard-00001.tar", "flip")
            try:
                with reaper.after(changes):
                    draw(overwrite=overwrite, **settings)
            except Death:
                try:  # without --overwrite it is refused, or goes on with what is asked for
                    draw(**settings)
                    assert content(out) == content(tiny), changes
                except UsageError as error:
                    assert overwrite
                    assert "seed was 6, is now 0" in error.message
                draw(overwrite=overwrite, **settings)
                assert content(out) == content(tiny), changes
            else:
                break
        assert fewest < changes < 1000
        assert content(out) == content(tiny)

    def test_nothing_is_drawn_twice(self, draw: Draw, whole: Path, out: Path) -> None:
        drawn: list[int] = []

        def stop_in_the_third_batch(progress: Progress) -> None:
            assert (progress.task, progress.total) == ("drawing", 30)
            drawn.append(progress.done)
            if progress.done == 2 * 2 * 3 + 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            draw(progress=stop_in_the_third_batch)
        with pytest.raises(AssetError, match="no finished set"):
            SyntheticData(out)
        again: list[int] = []
        draw(progress=lambda p: again.append(p.done))
        assert drawn == [0, 2, 4, 6, 8, 10, 12, 14]
        assert again == list(range(12, 31, 2))
        assert content(out) == content(whole)
        run = json.loads((out / "run.json").read_text())
        calls = [(call["status"], call["images"]) for call in run["calls"]]
        assert calls == [("interrupted", 4), ("complete", 6)]
        assert run["seconds"] == pytest.approx(sum(call["seconds"] for call in run["calls"]))
        assert SyntheticData(out).seconds == run["seconds"]

    def test_a_finished_set_is_left_alone(self, draw: Draw, whole: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
        draw(out=whole)
        assert {path: path.stat().st_mtime_ns for path in whole.iterdir()} == before

    @pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
    def test_a_damaged_shard_is_set_aside_and_drawn_again(
        self, draw: Draw, whole: Path, out: Path, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        hurt(shard := copied(whole, out) / "shard-00001.tar", damage)
        before = None if damage == "remove" else shard.read_bytes()
        drawn: list[int] = []
        draw(progress=lambda p: drawn.append(p.done))
        assert drawn == list(range(18, 31, 2))
        assert content(out) == content(whole)
        aside = shard.with_name("shard-00001.tar.damaged")
        assert (aside.read_bytes() if aside.exists() else None) == before
        told = f"set aside as {aside.name!r}; it" if before else "is missing; it"
        [message] = caplog.messages
        assert message.startswith(str(shard))
        assert f"{told} is drawn again" in message
        draw(overwrite=True)  # removes all that belongs to the set
        assert not aside.exists()

    def test_a_full_disk(self, draw: Draw, whole: Path, out: Path) -> None:
        full = mock.patch.object(os, "fsync", side_effect=OSError(28, "No space left on device"))
        with full, pytest.raises(PpapError, match="No space left on device") as caught:
            draw()
        assert str(out) in caught.value.message
        assert "continues" in caught.value.hint
        draw()
        assert content(out) == content(whole)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """With the hash of its content."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    text = json.dumps({**content, "sha256": digest(content)})
    (folder / "manifest.json").write_text(text)


def hurt(path: Path, damage: str) -> None:
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
        return
    data[700] ^= 1
    path.write_bytes(data if damage == "flip" else path.read_bytes()[:-512])


class TestRefusals:
    @pytest.mark.parametrize(
        ("changed", "told"),
        [
            ({"seed": 6}, "seed was 5, is now 6"),
            ({"num": 12}, "num was 10, is now 12"),
            ({"steps": 4}, "steps was 3, is now 4"),
            ({"sampler": "ddpm"}, "sampler was ddim, is now ddpm"),
            ({"eta": 0.5}, "eta was 0.0, is now 0.5"),
            ({"prompt": "darker"}, "prompt was None, is now darker"),
            ({"batch": 4}, "batch was 2, is now 4"),
            ({"shard": 2}, "shard was 4, is now 2"),
            ({"threads": 2}, "threads was 1, is now 2"),
            ({"precision": "bfloat16"}, "precision was float32, is now bfloat16"),
        ],
    )
    @pytest.mark.parametrize("complete", [True, False])
    def test_other_settings(
        self, draw: Draw, whole: Path, out: Path, changed: Any, told: str, complete: bool
    ) -> None:
        copied(whole, out)
        if not complete:
            settings = json.loads((out / "manifest.json").read_text())["settings"]
            (out / ".partial").mkdir()
            (out / ".partial" / "settings.json").write_text(json.dumps(settings))
            (out / "manifest.json").unlink()
        before = content(out)
        with pytest.raises(UsageError, match="other settings") as caught:
            draw(**changed)
        assert told in caught.value.message
        assert "--overwrite" in caught.value.hint
        assert content(out) == before

    def test_other_weights(self, backend: LoadedBackend, draw: Draw, whole: Path) -> None:
        spread = next(p for p in backend.stages[0].network.parameters() if p.ndim == 0)
        spread.data.mul_(2.0)
        try:
            with pytest.raises(UsageError, match=r"backend\.weights_sha256 was"):
                draw(out=whole)
        finally:
            spread.data.div_(2.0)

    def test_overwriting_begins_anew(self, draw: Draw, whole: Path, out: Path) -> None:
        draw(num=20)
        (out / "manifest.json").write_text("{")
        with pytest.raises(AssetError, match="damaged"):
            draw()
        draw(overwrite=True)
        assert content(out) == content(whole)

    @pytest.mark.parametrize(
        ("name", "overwrite", "fault"),
        [
            ("shard-00000.tar", False, "without its settings"),
            ("thesis.tex", False, r"thesis\.tex"),
            ("thesis.tex", True, r"thesis\.tex"),
            ("shard-00000.tar", True, r"shard-00000\.tar"),
            ("manifest.json", True, r"manifest\.json"),
            ("run.json", True, r"run\.json"),
        ],
    )
    def test_a_folder_of_other_things(
        self, draw: Draw, tmp_path: Path, name: str, overwrite: bool, fault: str
    ) -> None:
        (tmp_path / name).touch()
        with pytest.raises(UsageError, match=fault):
            draw(out=tmp_path, overwrite=overwrite)
        assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == [name]

    def test_a_set_at_which_others_are_at_work_is_not_overwritten(
        self, draw: Draw, tmp_path: Path
    ) -> None:
        def overwrite(progress: Progress) -> None:
            if progress.done == 8:
                with pytest.raises(UsageError, match="another process is writing"):
                    draw(out=tmp_path, overwrite=True)

        assert len(draw(out=tmp_path, progress=overwrite)) == 10
        with opened(tmp_path), pytest.raises(UsageError, match="another process is writing"):
            draw(out=tmp_path, overwrite=True)

    def test_everything_that_is_wrong_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError) as caught:
            synthesize("toy", out=tmp_path, num=0, steps=-1, batch=0, workers=0, threads=0)
        for name in ("num", "steps", "batch", "workers", "threads"):
            assert f"{name} must be" in caught.value.message
        for shard, fault in ((3, "whole batches"), (-1, "shard must be"), (True, "shard must be")):
            with pytest.raises(UsageError, match=fault):
                synthesize("toy", out=tmp_path, batch=2, shard=shard)

    @pytest.mark.parametrize("workers", [1, 2])
    def test_images_that_are_not_finite(
        self, site: Path, out: Path, monkeypatch: pytest.MonkeyPatch, workers: int
    ) -> None:
        monkeypatch.setenv("TOY_BROKEN", "1")
        with pytest.raises(PpapError, match=r"image \d came out not finite"):
            synthesize("toy", out=out, workers=workers, **SMALL)
        assert multiprocessing.active_children() == []


class TestWorkers:
    @pytest.fixture
    def stage(self, backend: LoadedBackend) -> Any:
        return backend.stages[0]

    def test_any_number_gives_the_same_bytes_even_if_one_dies(
        self, stage: Any, draw: Draw, whole: Path, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        killed: list[int] = []

        def kill_one(progress: Progress) -> None:
            if progress.done > 0 and not killed:
                pid = multiprocessing.active_children()[0].pid
                assert pid is not None
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)

        with monkeypatch.context() as slow, pytest.raises(PpapError, match="process died"):
            slow.setattr(stage, "_delay", 0.3)  # both are at work when one is killed
            draw(workers=2, progress=kill_one)
        assert multiprocessing.active_children() == []
        draw(workers=2)
        assert content(out) == content(whole)
        assert multiprocessing.active_children() == []

    def test_a_backend_that_cannot_be_copied(
        self, stage: Any, draw: Draw, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stage, "_hook", lambda: None, raising=False)
        with pytest.raises(UsageError, match="cannot be copied to other processes"):
            draw(workers=2)


class TestProcesses:
    """Synthesis in processes of its own, which are killed or interrupted."""

    def images(self, folder: Path) -> int:
        """Number on the disk, in shards and batches."""
        batches, shards = folder.glob(".partial/*/[0-9]*"), folder.glob("shard-*.tar")
        return 2 * len(list(batches)) + 6 * len(list(shards))

    def drawing(self, site: Path, tmp_path: Path, workers: int, delay: str) -> Popen[str]:
        """A process that has begun to write."""
        before = self.images(tmp_path / "set")
        options = ("--num", "96", "--steps", "2", "--block", "2", "--shard", "6", "--out", "set")
        typed = ("synthesize", "--backend", "toy", *options, "--workers", str(workers))
        process = start(site, tmp_path, *typed, TOY_DELAY=delay)
        patience = time.monotonic() + 300  # for a machine that has much else to do
        while self.images(tmp_path / "set") <= before:
            assert time.monotonic() < patience
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.002)
        return process

    @pytest.mark.parametrize("count", [3, pytest.param(20, marks=pytest.mark.slow)])
    def test_killed_at_random_moments(
        self, site: Path, finished: Callable[..., Path], tmp_path: Path, count: int
    ) -> None:
        moments = random.Random(count)
        interruptions = 0
        for number in range(count):
            process = self.drawing(site, tmp_path, 1 + number % 2, "0.05")
            time.sleep(moments.uniform(0.0, 0.6 / count))
            process.send_signal(signal.SIGKILL)
            _, err = process.communicate(timeout=60)  # returns when workers let go of stderr
            assert process.returncode in (-signal.SIGKILL, 0), err
            if (tmp_path / "set" / "manifest.json").exists():
                break
            interruptions += 1
        assert interruptions >= min(count, 3)
        synthesize("toy", out=tmp_path / "set", **LARGE)
        assert content(tmp_path / "set") == content(finished(**LARGE))

    def test_ctrl_c_leaves_what_the_same_command_continues(
        self, site: Path, finished: Callable[..., Path], tmp_path: Path, out: Path
    ) -> None:
        process = self.drawing(site, tmp_path, 2, "0.05")
        process.send_signal(signal.SIGINT)
        printed, err = process.communicate(timeout=60)
        assert (process.returncode, printed) == (130, ""), err
        assert err == "ppap: interrupted; the same command continues in set\n"
        assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
        assert 0 < self.images(out) < 96
        assert not (out / "manifest.json").exists()
        synthesize("toy", out=out, **LARGE)
        assert content(out) == content(finished(**LARGE))


DRAW = (
    *("synthesize", "--backend", "toy", "--num", "10", "--steps", "3", "--batch", "2"),
    *("--shard", "4", "--seed", "5", "--workers", "1"),
)


class TestCommands:
    def test_synthesize(self, run: Run, whole: Path) -> None:
        assert run(*DRAW, "--out", "set") == (0, "set\n", "")
        assert content(Path("set")) == content(whole)
        code, out, _ = run(*DRAW, "--out", "set", "--json")
        manifest = json.loads((whole / "manifest.json").read_text())
        assert (code, json.loads(out)) == (0, {"folder": "set", **manifest})

    def test_refusals_are_a_line_and_a_hint(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "blank.txt").write_text(" \n\n")
        (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
        (tmp_path / "other.txt").write_text("louder\n")
        before = sorted(tmp_path.iterdir())
        to = ("--out", "set")
        for arguments, exit_code, culprit in (
            (("--out", "file"), 2, "'file' is no folder"),
            (("--out", "/proc/none"), 2, "/proc"),
            ((*to, "--shard", "5"), 2, "whole batches of 2"),
            ((*to, "--num", "many"), 2, "--num: 'many'"),
            ((), 2, "--out is required"),
            ((*to, "--prompts", "none.txt"), 4, "cannot read the prompts in 'none.txt': No such"),
            ((*to, "--prompts", "latin.txt"), 4, "no UTF-8 text"),
            ((*to, "--prompts", "blank.txt"), 2, "no prompts in 'blank.txt'"),
            ((*to, "--prompts", "other.txt"), 2, "'louder' is no prompt"),
        ):
            code, out, err = run(*DRAW, *arguments)
            assert (code, out) == (exit_code, "")
            first, hint = err.splitlines()
            assert culprit in first
            assert hint.startswith("hint: ")
        assert sorted(tmp_path.iterdir()) == before

    def test_prompts_from_a_file(self, run: Run, draw: Draw, tmp_path: Path) -> None:
        (tmp_path / "said.txt").write_text("darker\n\n  brighter  \r\n")
        assert run(*DRAW, "--prompts", "said.txt", "--out", "set").code == 0
        told = ["darker", "brighter"] * 5
        other = draw(out=tmp_path / "other", prompt=told)
        assert content(Path("set")) == content(other.path)
        code, _, err = run(*DRAW, "--out", "set")
        assert code == 2
        assert "prompt was" in err

    def test_options_from_a_file(self, run: Run, whole: Path, tmp_path: Path) -> None:
        (tmp_path / "ppap.toml").write_text(
            '[synthesize]\nbackend = "toy"\nnum = 10\nsteps = 3\nbatch = 2\nshard = 4\nseed = 5\n'
        )
        assert run("synthesize", "--workers", "1", "--out", "set").code == 0
        assert content(Path("set")) == content(whole)

    def test_verify_and_stats_of_what_is_whole(self, run: Run, whole: Path) -> None:
        assert run("data", "verify", str(whole)) == (0, "10 images in 3 shards are whole\n", "")
        code, out, _ = run("data", "verify", str(whole), "--json")
        assert (code, json.loads(out)["faults"]) == (0, [])
        code, out, _ = run("data", "stats", str(whole), "--json")
        stats = json.loads(out)
        assert (code, stats["images"]) == (0, 10)
        assert stats["bytes"] == sum(path.stat().st_size for path in whole.glob("*.tar"))
        assert stats["stages"][0]["image_shape"] == [3, 8, 8]
        code, out, _ = run("data", "stats", str(whole))
        assert code == 0
        assert str(stats["stages"][0]["mean"][0]) in out

    def test_verify_what_is_not(self, run: Run, whole: Path, out: Path) -> None:
        copied(whole, out)
        hurt(out / "shard-00001.tar", "flip")
        hurt(out / "shard-00002.tar", "cut")
        (out / "shard-00007.tar").touch()
        code, printed, err = run("data", "verify", "set")
        assert (code, printed) == (4, "")
        assert "shard-00001.tar' is damaged: its SHA-256" in err
        assert "2 more files" in err
        code, printed, _ = run("data", "verify", "set", "--json")
        assert code == 4
        faults = {fault["file"]: fault["reason"] for fault in json.loads(printed)["faults"]}
        assert list(faults) == ["shard-00001.tar", "shard-00002.tar", "shard-00007.tar"]
        assert faults["shard-00002.tar"] == "has 9728 bytes, not 10240"
        with pytest.raises(AssetError, match="shard-00001"):
            SyntheticData(out).images([0, 4])

    @quick
    @given(st.data())
    def test_any_flipped_byte_is_found(
        self, whole: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        out = copied(whole, tmp_path_factory.mktemp("flip") / "set")
        name = data.draw(st.sampled_from([*(f"shard-0000{i}.tar" for i in range(3))]))
        changed = bytearray((out / name).read_bytes())
        changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
        (out / name).write_bytes(changed)
        assert [fault.file for fault in SyntheticData(out).faults()] == [name]

    def test_shards_that_lie(self, whole: Path, out: Path) -> None:
        """A manifest made for shards that are swapped: the hashes are right, the images not."""
        copied(whole, out)
        one, two = out / "shard-00000.tar", out / "shard-00001.tar"
        first, second = one.read_bytes(), two.read_bytes()
        one.write_bytes(second)
        two.write_bytes(first)
        manifest = json.loads((out / "manifest.json").read_text())
        entries = manifest["shards"]
        entries[:2] = {**entries[1], "file": one.name}, {**entries[0], "file": two.name}
        write_manifest(out, manifest)
        assert [fault.file for fault in SyntheticData(out).faults()] == [one.name, two.name]

    def test_a_manifest_that_was_edited(self, run: Run, whole: Path, out: Path) -> None:
        copied(whole, out)
        text = (out / "manifest.json").read_text()
        (out / "manifest.json").write_text(text.replace('"seed": 5', '"seed": 6'))
        code, _, err = run("data", "verify", "set")
        assert code == 4
        assert "manifest.json' is damaged" in err

    @pytest.mark.parametrize("command", ["verify", "stats"])
    def test_no_set(self, run: Run, command: str) -> None:
        code, _, err = run("data", command, "nowhere")
        assert code == 4
        assert "no synthetic set in 'nowhere'" in err
