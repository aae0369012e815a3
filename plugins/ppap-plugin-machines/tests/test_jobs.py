"""What the folders of jobs tell: `ppap jobs`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import attrs
import pytest
from commands import Run, refused
from experts_toy import Backend
from transfer_toy import Convolutions, Pictures, Square, pictures

from ppap_framework.data import claims, synthesize
from ppap_framework.learn import load_teacher, transfer
from ppap_framework.runtime import Progress
from ppap_plugin_machines.jobs import Job, jobs_in

DRAW: dict[str, Any] = {"num": 12, "steps": 2, "batch": 2, "shard": 4}


def seen(folder: Path) -> dict[str, Job]:
    return {job.kind: job for job in jobs_in(folder)}


def test_who_begins_when_others_have_completed_the_set_has_nothing_to_do(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    working = claims.Claims.working

    def late(self: claims.Claims, label: str) -> Any:
        monkeypatch.setattr(claims.Claims, "working", working)
        synthesize("toy", out=tmp_path, **DRAW)
        return working(self, label)

    monkeypatch.setattr(claims.Claims, "working", late)
    assert len(synthesize("toy", out=tmp_path, **DRAW).manifest["shards"]) == 3
    assert not list(tmp_path.glob(".partial/*"))


def test_a_set_while_it_is_drawn(site: Path, tmp_path: Path) -> None:
    told: list[Job] = []

    def look(progress: Progress) -> None:
        if progress.done == 18:
            told.extend(jobs_in(tmp_path.parent))

    synthesize("toy", out=tmp_path, progress=look, **DRAW)
    [now] = [job for job in told if job.folder == str(tmp_path)]
    assert (now.status, now.done, now.total) == ("running", 8, 12)
    [worker] = now.workers
    [call] = json.loads((tmp_path / "run.json").read_text())["calls"]
    assert (worker["label"], worker["lives"]) == (call["process"], True)
    assert now.per_second is not None
    assert now.per_second > 0.0
    assert now.seconds_left == pytest.approx(4 / now.per_second)
    finished = seen(tmp_path)["synthesize"]
    assert finished == Job(
        folder=str(tmp_path), kind="synthesize", status="complete", done=12, total=12
    )


def test_a_set_whose_worker_is_gone(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(progress: Progress) -> None:
        if progress.done == 10:
            shutil.copytree(tmp_path / "set", tmp_path / "killed")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize("toy", out=tmp_path / "set", progress=leave, **DRAW)
    assert attrs.evolve(seen(tmp_path / "set")["synthesize"], folder="") == Job(
        folder="", kind="synthesize", status="interrupted", done=4, total=12
    )
    killed = seen(tmp_path / "killed")["synthesize"]  # nobody holds the copy's files
    assert (killed.status, killed.done, killed.per_second) == ("stopped", 4, None)
    assert [worker["lives"] for worker in killed.workers] == [False]
    monkeypatch.setattr(claims, "_machine", lambda: "another one")
    killed = seen(tmp_path / "killed")["synthesize"]
    assert (killed.status, [w["lives"] for w in killed.workers]) == ("running", [None])


def test_a_training_of_a_part(every_plugin: None, tmp_path: Path) -> None:
    told: list[Job] = []

    def look(progress: Progress) -> None:
        if (progress.task, progress.done) == ("learning", 8):
            told.extend(jobs_in(tmp_path))
            raise KeyboardInterrupt

    settings: dict[str, Any] = {
        "num_experts": 2,
        "iterations": 12,
        "shared": 0.5,
        "experts_of": (1, 2),  # 6 iterations of the start, and 3 of the first expert
        "batch": 4,
        "validate_every": 2,
        "adapters": [("bias", {})],
        "keep": False,
        "device": "cpu",
    }
    guide, data = load_teacher(Convolutions(), Square()), Pictures({"base": pictures()})
    with pytest.raises(KeyboardInterrupt):
        transfer(Backend(), guide, data, out=tmp_path, progress=look, **settings)
    [now] = told
    assert (now.kind, now.status, now.unit, now.total) == ("transfer", "running", "iterations", 9)
    assert now.done in (6, 7, 8)  # as the record was written last
    stopped = seen(tmp_path)["transfer"]
    assert (stopped.status, stopped.per_second, stopped.done) == ("interrupted", None, 8)
    transfer(Backend(), guide, data, out=tmp_path, **settings)
    finished = seen(tmp_path)["transfer"]
    assert (finished.status, finished.done) == ("complete", 9)


class TestCommand:
    def test_all_that_is_below(self, run: Run, site: Path) -> None:
        synthesize("toy", out="runs/one/data", **DRAW)
        assert run("run", "--backend", "toy", "--num", "1", "--steps", "1").code == 0
        code, out, err = run("jobs", "--json")
        assert (code, err) == (0, "")
        rows = {(job["kind"], job["status"], job["done"]) for job in json.loads(out)}
        assert rows == {("synthesize", "complete", 12), ("run", "complete", 1)}
        code, out, err = run("jobs")
        assert (code, err) == (0, "")
        assert "12 of 12 images" in out

    def test_what_is_no_job(self, run: Run, tmp_path: Path) -> None:
        refused(run("jobs", "none"), 2, "'none' is no folder")
        assert run("jobs", tmp_path) == (0, f"There are no jobs in {tmp_path}.\n", "")
        (tmp_path / "run.json").write_text("{")
        (tmp_path / "transfer.json").write_text('{"settings": {}, "calls": []}')
        code, out, _ = run("jobs", tmp_path, "--json")
        jobs = json.loads(out)
        assert (code, [job["status"] for job in jobs]) == (0, ["unreadable"] * 2)
        assert "is damaged" in jobs[0]["fault"]
        assert "recipe" in jobs[1]["fault"]
