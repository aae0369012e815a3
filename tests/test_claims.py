"""Claims on blocks of work, and a set that many processes draw while they die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import chaos
import pytest
from toy_distribution import REPOSITORY

from ppap_framework.data import claims, synthesize
from ppap_framework.data.claims import Claims
from ppap_framework.errors import PpapError, UsageError
from ppap_framework.files import replacing
from ppap_framework.runtime import Progress


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes this process one of another machine, which cannot ask for locks; time is `now[0]`."""
    now = [0.0]
    monkeypatch.setattr(claims.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(claims.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))

    def leave(machine: str) -> list[float]:
        monkeypatch.setattr(claims, "_machine", lambda: machine)
        return now

    return leave


class TestClaims:
    def test_a_block_has_one_worker_at_a_time(self, tmp_path: Path) -> None:
        one, two = Claims(tmp_path), Claims(tmp_path)
        with one.working(""):
            with two.working(""):
                assert one.take("ab") == "a"
                assert two.take("ab") == "b"
                assert two.take("ab") is None
                one.release()
                assert two.take("ab") == "a"
                assert one.busy()
            assert one.take("ab") == "a"  # what the other one held when it ended is free
        assert not one.busy()
        assert list(tmp_path.iterdir()) == []

    def test_a_dead_worker_of_this_machine_is_succeeded_at_once(self, tmp_path: Path) -> None:
        script = (
            "import os, sys, pathlib; from ppap_framework.data.claims import Claims;"
            "one = Claims(pathlib.Path(sys.argv[1])); at_work = one.working('label');"
            "at_work.__enter__();"
            "one.take('ab'); os._exit(0)"
        )
        subprocess.run([sys.executable, "-c", script, tmp_path], check=True)
        assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} > {"claim-a"}
        two = Claims(tmp_path)
        assert not two.busy()
        with two.working(""):
            assert two.take("ab") == "a"

    def test_one_of_another_machine_is_watched(
        self, tmp_path: Path, elsewhere: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, two = Claims(tmp_path), Claims(tmp_path)
        wait = claims.threading.Event.wait  # without a timeout a thread waits for its start
        untimed = lambda event, timeout=None: timeout is not None or wait(event)  # noqa: E731
        monkeypatch.setattr(claims.threading.Event, "wait", untimed)  # nobody touches files
        elsewhere("one")
        with one.working(""):
            one.take("a")
            [worker] = tmp_path.glob("worker-*")
            now = elsewhere("two")
            with two.working(""):
                for hours in (-1, 2, 0):  # its clock is wrong, and set right
                    now[0] += claims.EXPIRY - 1
                    os.utime(worker, (time.time() + 3600 * hours,) * 2)
                    assert two.take("a") is None
                now[0] += claims.EXPIRY - 1
                assert two.take("a") is None
                now[0] += 1
                assert two.take("a") == "a"
                elsewhere("one")
                one.release()  # it returns, and leaves its successor's claim alone
                elsewhere("two")
                assert Claims(tmp_path).take("a") is None

    def test_whether_one_of_another_machine_lives_is_seen_by_watching(
        self, tmp_path: Path, elsewhere: Any
    ) -> None:
        one = Claims(tmp_path)
        elsewhere("one")
        with one.working(""):
            now = elsewhere("two")
            started = now[0]
            assert not Claims(tmp_path).busy()  # no second passes, so the file is not touched
            assert now[0] - started >= claims.EXPIRY
        assert not Claims(tmp_path).busy()

    def test_a_claim_whose_worker_died_before_it_wrote_its_name(
        self, tmp_path: Path, elsewhere: Any
    ) -> None:
        (tmp_path / "claim-a.1").touch()
        now, one = elsewhere("here"), Claims(tmp_path)
        with one.working(""):
            assert one.take("a") is None
            now[0] += claims.EXPIRY
            assert one.take("a") == "a"

    def test_a_folder_that_was_removed_has_nothing_to_claim(self, tmp_path: Path) -> None:
        one, folder = Claims(tmp_path / "work"), tmp_path / "work"
        folder.mkdir()
        with one.working(""):
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
            assert one.take("a") is None


class TestOnce:
    def write(self, path: Path, text: str) -> None:
        with replacing(path, once=True) as temporary:
            temporary.write_text(text)

    @pytest.mark.parametrize("links", [True, False])
    def test_the_first_file_stays(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
    ) -> None:
        if not links:
            monkeypatch.setattr(os, "link", self.no_links)
        self.write(tmp_path / "a", "first")
        self.write(tmp_path / "a", "late")
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "first")]

    def no_links(self, *_: object) -> None:
        raise OSError(95, "Operation not supported")

    def test_a_removed_folder_stays_removed(self, tmp_path: Path) -> None:
        with pytest.raises(PpapError, match="No such file"):
            self.write(tmp_path / "gone" / "a", "late")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("seeds", "workers", "kills", "delay"),
    [
        pytest.param(range(3), 4, 3, "0.06", id="small"),
        pytest.param(range(20), 8, 12, "0.25", id="large", marks=pytest.mark.slow),
    ],
)
def test_a_set_is_completed_in_chaos(
    site: Path, tmp_path: Path, seeds: range, workers: int, kills: int, delay: str
) -> None:
    """`chaos.py` says what happens to it."""
    variables = {"PYTHONPATH": os.pathsep.join([str(site), str(REPOSITORY)]), "TOY_DELAY": delay}
    script = [sys.executable, str(Path(chaos.__file__)), str(tmp_path), str(workers), str(kills)]
    subprocess.run([*script, *map(str, seeds)], env={**os.environ, **variables}, check=True)
    whole = synthesize("toy", out=tmp_path / "whole", **chaos.SET)
    for seed in seeds:
        out = tmp_path / str(seed) / "set"
        data = synthesize("toy", out=out, **chaos.SET)  # removes what the last one left
        assert data.faults() == []
        assert data.manifest == whole.manifest
        names = {path.name for path in out.iterdir()}
        aside = {name for name in names if name.endswith(".damaged")}
        assert names - aside == {path.name for path in whole.path.iterdir()}
        assert len(aside) == 1  # the shard that was truncated
        indices = [i for shard in sorted(out.glob("*.tar")) for i in pictures_in(shard)]
        assert indices == list(range(chaos.SET["num"]))
        calls = json.loads((out / "run.json").read_text())["calls"]
        assert len({call["process"] for call in calls}) == len(calls) > workers


def pictures_in(shard: Path) -> list[int]:
    with tarfile.open(shard) as tar:
        return [int(name[:8]) for name in tar.getnames() if name.endswith(".png")]


def test_two_calls_draw_one_set_together(site: Path, tmp_path: Path) -> None:
    """The second call begins while the first is at its third batch, and is interrupted in the last
    one, which the first then takes over.
    """
    settings: dict[str, Any] = {"num": 12, "steps": 2, "batch": 2, "shard": 4, "out": tmp_path}
    seen: list[int] = []

    def interrupt(progress: Progress) -> None:
        seen.append(progress.done)
        if progress.done == 20:
            raise KeyboardInterrupt

    def begin(progress: Progress) -> None:
        if progress.done == 10 and not seen:
            with pytest.raises(KeyboardInterrupt):
                synthesize("toy", progress=interrupt, **settings)

    data = synthesize("toy", progress=begin, **settings)
    assert seen == [8, 10, 12, 14, 16, 18, 20]
    assert data.faults() == []
    calls = json.loads((tmp_path / "run.json").read_text())["calls"]
    drawn = {call["status"]: call["images"] for call in calls}
    assert drawn == {"interrupted": 4, "complete": 8}
    assert data.manifest == synthesize("toy", **{**settings, "out": tmp_path / "whole"}).manifest


def test_a_second_call_with_other_settings_says_what_differs(site: Path, tmp_path: Path) -> None:
    def begin(progress: Progress) -> None:
        with pytest.raises(UsageError, match="seed was 0, is now 1"):
            synthesize("toy", out=tmp_path, num=2, steps=1, batch=2, shard=2, seed=1)

    data = synthesize("toy", out=tmp_path, num=2, steps=1, batch=2, shard=2, progress=begin)
    assert data.faults() == []
