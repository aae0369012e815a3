"""`ppap evaluate`, `ppap bench` and `ppap report`."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
import torch
import toy_distribution
from bench_toy import row

from ppap_framework.cli import main


def typed(site: Path, home: Path, *arguments: str) -> str:
    done = toy_distribution.ppap(site, home, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_make_a_page_of_an_experiment(
    home: Path,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def ppap(*arguments: str) -> str:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        out, err = capsys.readouterr()
        assert left.value.code == 0, err
        return out

    monkeypatch.chdir(home)
    evaluating = ("evaluate", "toy.toml", "--rows", "guided", "--images", "images")
    out = ("--out", "again", "--device", "cpu")  # nothing is drawn or timed again
    (found,) = json.loads(ppap(*evaluating, *out, "--json"))
    before = row(results, "guided")
    assert found | {"command": 0} == before | {"command": 0}
    hit = f"{before['figures']['hit']['value']:.3g}"
    assert hit in ppap(*evaluating, *out)
    said = ppap("report", "again", "--out", "again/results.md")
    assert said.split() == ["again/results.md", "again/curves.png"]


@pytest.mark.slow  # several processes that import torch
def test_measure_costs_alone(site: Path, home: Path) -> None:
    options = ("--num", "3", "--rounds", "2", "--rows", "guided", "--json")
    table = json.loads(typed(site, home, "bench", "toy.toml", *options))
    assert list(table) == ["guided"]
    assert len(table["guided"]["rounds"]) == 2
    assert table["guided"]["images_at_once"] == 3


def test_speed_of_a_step(
    site: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    asked = ["bench", "speed", "--backend", "toy", "--guider", "colour", "--rounds", "2"]
    with pytest.raises(SystemExit) as left:
        main([*asked, "--batch", "3", "--device", "cpu", "--json"])
    out, err = capsys.readouterr()
    assert left.value.code == 0, err
    record = json.loads(out)
    parts, ceiling = record["parts"], max(record["ceiling"].values())
    assert list(parts) == ["denoiser", "guide forward", "guide gradient", "sampler", "step"]
    assert parts["step"]["flops"] == parts["denoiser"]["flops"] + parts["guide gradient"]["flops"]
    for part in parts.values():
        assert len(part["rounds"]) == 2
        assert part["share"] == pytest.approx(part["flops"] / part["seconds"] / ceiling, rel=1e-3)
    with pytest.raises(SystemExit) as left:
        main([*asked[:-3], "none"])
    assert left.value.code == 2
    assert "names no network" in capsys.readouterr().err


@pytest.mark.slow  # several processes that import torch
def test_go_on_after_a_kill(site: Path, home: Path, results: Path) -> None:
    """SIGKILL while batches are drawn, three times over: figures come out as undisturbed."""
    images = home / "killed"
    arguments = (
        "evaluate", "toy.toml", "--rows", "guided", "--out", "killed-out", "--images",
        str(images), "--device", "cpu", "--threads", str(torch.get_num_threads()),
    )  # fmt: skip
    for number in (1, 3, 5):
        process = toy_distribution.start(site, home, *arguments, TOY_DELAY="0.05")
        while len(list(images.glob("batches/*/*.npz"))) < number:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    typed(site, home, *arguments)
    found, before = row(home / "killed-out", "guided"), row(results, "guided")
    for name in ("figures", "points", "default", "per_image"):
        assert found[name] == before[name]
