"""`ppap run`, typed as a user types it; most of it in this process, for speed."""

from __future__ import annotations

import json
import pickle
import shlex
import signal
import struct
import time
from pathlib import Path
from typing import Any

import attrs
import click
import numpy as np
import pytest
import torch
from commands import Run
from PIL import Image
from toy_distribution import TIMESTEPS, ppap, start, write_backend

from ppap_framework.cli.run import command
from ppap_framework.run import Compute, Drawing, GuideRequest, Sampling

BASE = ("run", "--backend", "toy", "--steps", "3", "--num", "2")
STEER = (*BASE, "--guider", "colour")


def record(folder: str | Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((Path(folder) / "run.json").read_text())
    return loaded


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


class TestResults:
    def test_prints_the_grid_and_nothing_else(self, run: Run) -> None:
        assert run(*STEER, "--target", "blue", "--out", "there/out") == (
            *(0, "there/out/grid.png\n", ""),
        )
        files = {path.name for path in Path("there/out").glob("[!.]*")}
        assert files == {"000.png", "001.png", "grid.png", "run.json", "seen"}
        assert record("there/out")["config"]["guides"][0]["target"] == "blue"
        code, out, err = run(*STEER, "--target", "blue", "--out", "out", "--json")
        assert (code, err) == (0, "")
        assert json.loads(out) == {"folder": "out", **record("out")}
        assert record("out")["grid"] == "grid.png"

    def test_without_target_says_which_it_picked(self, run: Run) -> None:
        code, _, err = run(*STEER, "--out", "out")
        assert (code, err) == (
            *(0, "ppap: colour aims at 'green', its default; --target picks another\n"),
        )
        assert record("out")["config"]["guides"][0]["target_is_default"]
        assert run("-q", *STEER, "--out", "quiet").err == ""

    def test_without_out_makes_a_numbered_folder(self, run: Run, tmp_path: Path) -> None:
        assert (
            run(*STEER, "--target", "light red").out == "runs/0001-toy-colour-light-red/grid.png\n"
        )
        assert run(*BASE).out == "runs/0002-toy/grid.png\n"
        (tmp_path / "runs" / "0041-mine").mkdir()
        (tmp_path / "runs" / "notes").mkdir()
        assert run(*BASE, "--guider", "none").out == "runs/0042-toy/grid.png\n"

    def test_the_same_seed_gives_the_same_bytes(self, run: Run) -> None:
        seeds = {"a": ("3", "8"), "b": ("3", "8"), "c": ("4", "8"), "d": ("3", "1")}
        for name, (seed, batch) in seeds.items():
            run(
                *STEER,
                "--seed",
                seed,
                "--batch",
                batch,
                "--sampler",
                "ddim",
                "--eta",
                "1",
                "--out",
                name,
            )
        a, b, c, d = map(Path, seeds)
        files = [path.relative_to(a) for path in a.rglob("*.png")]
        assert len(files) == 5
        assert all((a / file).read_bytes() == (b / file).read_bytes() for file in files)
        for name in ("000.png", "001.png"):
            assert (a / name).read_bytes() != (c / name).read_bytes()
            assert abs(pixels(a / name) - pixels(d / name)).max() <= 2

    def test_compare_draws_both(self, run: Run) -> None:
        run(*STEER, "--target", "blue", "--scale", "500", "--compare", "--out", "out")
        run(*BASE, "--out", "alone")
        images = record("out")["images"]
        names = [entry["unguided"]["file"] for entry in images]
        assert names == ["unguided/000.png", "unguided/001.png"]
        for entry in images:
            without, alone = entry["unguided"], Path("alone") / entry["file"]
            assert entry["seen"]["colour"]["hit"] == 1.0
            assert without["seen"]["colour"]["hit"] == 0.0
            assert (Path("out") / without["file"]).read_bytes() == alone.read_bytes()

    def test_several_guides(self, run: Run, tmp_path: Path) -> None:
        Image.new("L", (8, 8), 230).save(tmp_path / "ref.png")
        options = """--guider colour=40:0.2-0.9 --guider ppap-plugin-toy:grey=7 --out out
            --target grey=ref.png --target colour=blue --loss colour=toy-margin
            --guider-option colour.sharpness=3 --guider-option colour.upside-down=true
            --guider-model colour=tiny --normalize --through clean --conflicts remove"""
        code, _, err = run(*BASE, *options.split())
        assert (code, err) == (0, "")
        config = record("out")["config"]
        colour, grey = config["guides"]
        assert (colour["name"], colour["scale"], colour["interval"]) == ("colour", 40.0, [0.2, 0.9])
        assert (colour["loss"], colour["target"]) == ("toy-margin", "blue")
        assert colour["options"] == {"sharpness": 3.0, "upside_down": True, "model": "tiny"}
        assert (grey["name"], grey["scale"], grey["interval"]) == ("grey", 7.0, [0.0, 1.0])
        assert grey["target"] == "ref.png"
        assert (config["through"], config["normalize"]) == ("clean", True)
        assert config["conflicts"] == "remove"
        assert config["moments"] is None
        counted = [guide["conflicts"] for guide in record("out")["guidance"]["guides"]]
        assert all(isinstance(count, int) for count in counted)
        assert Path("out/seen/000-grey.png").is_file()

    def test_moments_through_the_detached_image(self, run: Run) -> None:
        options = ("--guider", "colour=40", "--target", "blue", "--through", "detached")
        for number, more in enumerate(((), ("--moments", "0.9", "0.99"))):
            code, _, err = run(*BASE, *options, *more, "--out", f"out{number}")
            assert (code, err) == (0, "")
        told = record("out1")
        assert told["config"]["moments"] == [0.9, 0.99]
        assert told["config"]["through"] == "detached"
        assert told["guidance"]["denoiser_backwards"] == 0
        assert Path("out0/000.png").read_bytes() != Path("out1/000.png").read_bytes()

    def test_one_guide_needs_no_prefix_and_takes_one(self, run: Run, site: Path) -> None:
        weights = str(site / "ppap_plugin_toy" / "colour-3.safetensors")
        for prefix in ("", "colour=", "ppap-plugin-toy:colour="):
            code, _, err = run(
                *BASE,
                *("--guider", "ppap-plugin-toy:colour", "--target", f"{prefix}blue"),
                *("--guider-checkpoint", f"{prefix}{weights}", "--out", f"out{len(prefix)}"),
            )
            assert (code, err) == (0, "")

    def test_steps_from_one_to_the_base_length(self, run: Run) -> None:
        for steps in (1, 33, TIMESTEPS):
            assert run(*BASE, "--steps", str(steps), "--out", f"out{steps}").code == 0
            assert len(record(f"out{steps}")["config"]["timesteps"]) == steps

    def test_overwrite(self, run: Run) -> None:
        run(*BASE, "--num", "3", "--out", "out")
        before = record("out")
        refused = run(*BASE, "--out", "out")
        assert refused.code == 2
        assert "'out' holds an earlier run" in refused.err
        assert "--overwrite" in refused.err
        assert record("out") == before
        assert run(*BASE, "--out", "out", "--overwrite").code == 0
        assert not Path("out/002.png").exists()
        assert run(*BASE, "--out", "new", "--overwrite").code == 0

    def test_a_run_that_fails_says_so_in_its_record(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TOY_BROKEN", "1")
        code, out, err = run(*BASE, "--out", "out")
        assert (code, out) == (3, "")
        assert "'toy' of ppap-plugin-toy failed in denoise: image 0 came out not finite" in err
        assert record("out")["status"] == "failed"
        assert "not finite" in record("out")["error"]
        assert record("out")["finished"] == 0
        monkeypatch.delenv("TOY_BROKEN")
        assert run(*BASE, "--out", "out", "--overwrite").code == 0
        assert record("out")["status"] == "complete"


class TestMemory:
    def test_as_many_at_once_as_there_is_room_for(self, run: Run) -> None:
        assert run(*BASE, "--batch", "auto", "--num", "5", "--out", "out").code == 0
        assert record("out")["config"]["batch"] == "auto"
        assert record("out")["most_images_at_once"] == 5
        assert "5 of 8x8, 5 at once" in run(*BASE, "--batch", "auto", "--num", "5", "--dry-run").out

    def test_what_changes_nothing_is_told(self, run: Run) -> None:
        code, _, err = run(*BASE, "--offload", "--device", "cpu", "--out", "out")
        assert (code, err) == (0, "ppap: --offload changes nothing on the CPU\n")
        assert record("out")["config"]["offload"] is True

    def test_memory_that_runs_out_is_one_line(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory.\nMuch more of that")

        monkeypatch.setattr(Drawing, "__call__", full)
        code, _, err = run(*BASE, "--out", "out")
        assert code == 1
        said, hint = err.splitlines()
        assert "out of memory with 2 images at once: OutOfMemoryError: CUDA out of memory." in said
        assert hint.startswith("hint: what takes less: a smaller --batch")
        assert record("out")["status"] == "failed"


class TestDryRun:
    def test_shows_plan_and_cost_and_writes_nothing(self, run: Run, tmp_path: Path) -> None:
        code, out, _ = run(*STEER, "--compare", "--through", "clean", "--dry-run", "--out", "out")
        assert code == 0
        assert list(tmp_path.iterdir()) == []
        for fact in ("toy-8", "ppap-plugin-toy", "0.7", "green", "193", "3 of 100", "2 of 8x8"):
            assert fact in out
        assert "sharpness=10, upside_down=False" in out
        assert "prompt" not in out
        assert "brighter" in run(*BASE, "--prompt", "brighter", "--dry-run").out

    def test_json(self, run: Run) -> None:
        plan = json.loads(run(*STEER, "--dry-run", "--json", "--compare").out)
        assert plan["cost"] == {
            "denoiser_parameters": 193,
            "stage_parameters": {"base": 193},
            "denoiser_forwards": 12,
            "denoiser_backwards": 0,
            "guide_parameters": {"colour": 12},
            "expert_parameters": {},
            "guide_forwards": {"colour": 6},
        }
        assert plan["estimate"]["guides"]["colour"]["forward"] == 2 * 3 * 4  # one linear layer
        run(*STEER, "--compare", "--out", "out")
        assert record("out")["config"] == plan["config"] | {
            "backend": record("out")["config"]["backend"],  # but for the time it took to load
            "guides": record("out")["config"]["guides"],
        }


WRONG = {  # what is typed behind these words, the exit code, the culprit and the hint
    ("run",): [
        ("", 2, "--backend is required", "--help"),
        ("--backend tou", 3, "'tou'", "did you mean 'toy'"),
        ("--backend", 2, "requires an argument", "ppap run --help"),
    ],
    BASE: [
        ("--guider color", 3, "'color'", "did you mean 'colour'"),
        ("--guider Colour=2", 2, "'Colour=2'", "mean 'colour'?"),
        ("--stesp 3", 2, "--stesp", "--help"),
        ("--checkpoint no/x.pt", 4, "no/x.pt", "folder"),
        ("--checkpoint toy-9", 4, "'toy-9'", "toy-8"),
        ("--checkpoint empty.pt", 4, "'empty.pt' is empty", "again"),
        ("--checkpoint cut.safetensors", 4, "cut.safe", "again"),
        ("--checkpoint lies.safetensors", 4, "lies.safe", "again"),
        ("--checkpoint evil.pt", 4, "evil.pt", "trust"),
        ("--checkpoint other.safetensors", 4, "'mean' (3, 4, 4) instead of", "architecture"),
        ("--checkpoint .", 4, "'.'", "in '.' there is cut"),
        ("--prompt louder", 2, "'louder' is no prompt", "darker"),
        ("--steps 0", 2, "steps must be", "50"),
        ("--steps -4", 2, "not -4", "50"),
        ("--steps 101", 2, "101 steps", "100"),
        ("--steps many", 2, "--steps: 'many'", "--help"),
        ("--num 0", 2, "num must be", "4"),
        ("--num -1", 2, "not -1", "4"),
        ("--batch many", 2, "'many' is neither", "--help"),
        ("--batch 0", 2, "batch must be", "8"),
        ("--threads 0", 2, "threads must be", "use 1"),
        ("--guider colour=nan", 2, "must be finite, not nan", "4"),
        ("--guider colour=big", 2, "'colour=big'", "NAME=SCALE"),
        ("--guider 'Colour!'", 2, "'Colour!'", "mean 'colour'?"),
        ("--guider colour:0.9-0.2", 2, "from 0.9 to 0.2", "0.2-0.9"),
        ("--guider colour=1:0-2", 2, "from 0.0 to 2.0", "0.2-0.9"),
        ("--guider colour=1:0.5", 2, "'colour=1:0.5'", "LO-HI"),
        ("--guider colour=1:", 2, "'colour=1:'", "LO-HI"),
        ("--target blue", 2, "there is none", "--guider"),
        ("--guider-model x", 2, "--guider-model 'x'", "--guider"),
        ("--guider grey", 2, "'grey' has nothing to aim", "--target"),
        ("--sampler euler", 2, "--sampler: 'euler'", "--help"),
        ("--moments 0.9 1", 2, "moments must be two numbers from 0 to below 1", "0.9 and 0.999"),
        ("--eta -2", 2, "eta must be a number from 0, not -2", "use 1 for eta"),
        ("--eta 0.5 --sampler ddpm", 2, "'ddpm' has none", "ddim"),
        ("--device abacus", 2, "'abacus'", "cpu"),
        ("--compare", 2, "nothing to compare", "guide"),
        ("--out empty.pt/out", 2, "'empty.pt' is no folder", "another"),
        ("--out empty.pt", 2, "'empty.pt' is no folder", "another"),
        ("--out /proc/none/out", 2, "/proc", "another folder"),
        ("--out .", 2, "other files", "empty folder"),
        ("--out ''", 2, "--out is empty", "leave it out"),
        ("--overwrite", 2, "--overwrite goes with --out", "--out"),
    ],
    STEER: [
        ("--target purple", 2, "'purple'", "green"),
        ("--target red", 2, "'red' is ambiguous", "light red"),
        ("--target ' '", 2, "target is empty", "words"),
        ("--target no.png", 4, "'no.png' is not there", "path"),
        ("--guider-checkpoint other.safetensors", 4, "1 missing ('weight')", "architecture"),
        ("--guider-checkpoint no.safetensors", 4, "no.safetensors", "other.safetensors"),
        ("--guider-checkpoint empty.pt", 4, "'empty.pt' is empty", "again"),
        ("--guider-checkpoint cut.safetensors", 4, "cut.safe", "again"),
        ("--guider-checkpoint lies.safetensors", 4, "lies.safe", "again"),
        ("--guider-checkpoint evil.pt", 4, "evil.pt", "trust"),
        ("--scale inf", 2, "'colour' must be finite, not inf", "4"),
        ("--guider colour=2", 2, "colour is given twice", "once"),
        ("--guider none", 2, "none goes with no other", "leave out"),
        ("--target depth=blue", 2, "'depth', which is not", "colour"),
        ("--target blue --target green", 2, "--target is given twice", "once"),
        (
            "--guider grey --target 'light red'",
            2,
            "does not say for which",
            "--target 'colour=light red' or",
        ),
        ("--loss toy-square", 2, "for brightness", "toy-margin"),
        ("--loss toy-marginn", 3, "toy-marginn", "toy-margin"),
        ("--guider-option sharpnes=1", 2, "'sharpnes'", "sharpness"),
        (
            "--guider-option sharpness=much",
            2,
            "option 'sharpness': 'much' is not a number",
            "its options are sharpness",
        ),
        ("--guider-option sharpness", 2, "'sharpness'", "KEY="),
    ],
}
CASES = [
    ((*words, *shlex.split(typed)), *expected)
    for words, cases in WRONG.items()
    for typed, *expected in cases
]


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


@pytest.fixture
def files(tmp_path: Path) -> None:
    """Checkpoints with something wrong, in the current folder."""
    (tmp_path / "empty.pt").touch()
    whole = write_backend(tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-40])
    length = struct.unpack("<Q", whole[:8])[0]
    header = whole[8 : 8 + length].replace(b"[3,8,8]", b"[3,8,9]")
    (tmp_path / "lies.safetensors").write_bytes(whole[:8] + header + whole[8 + length :])
    torch.save({"mean": Evil()}, tmp_path / "evil.pt", pickle_module=pickle)
    write_backend(tmp_path / "other.safetensors", size=4, stated=8)


class TestWrongInput:
    @pytest.mark.parametrize(("arguments", "exit_code", "culprit", "hint"), CASES)
    def test_one_line_a_hint_and_nothing_written(
        self,
        run: Run,
        tmp_path: Path,
        files: None,
        arguments: tuple[str, ...],
        exit_code: int,
        culprit: str,
        hint: str,
    ) -> None:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        code, out, err = run(*arguments)
        assert (code, out) == (exit_code, ""), err
        first, second = err.splitlines()
        assert first.startswith("ppap: error: ")
        assert culprit in first
        assert second.startswith("hint: ")
        assert hint in second
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before

    def test_everything_that_is_wrong_is_told_at_once(self, run: Run, tmp_path: Path) -> None:
        code, _, err = run(
            *("run", "--backend", "toi", "--guider", "colour:1-0", "--target", "no.png"),
            *("--steps", "0", "--num", "few", "--scale", "inf", "--eta", "-3", "--threads", "0"),
            *("--guider-checkpoint", "no/such.pt", "--sampler", "x", "--out", "/dev/null/x"),
        )
        assert code == 2
        first, hint = err.splitlines()
        for culprit in (
            *("'toi'", "from 1.0 to 0.0", "no.png", "steps", "'few'", "inf", "eta", "threads"),
            *("such.pt", "--sampler: 'x'", "/dev/null"),
        ):
            assert culprit in first
        assert "'toy'" in hint
        assert list(tmp_path.iterdir()) == []

        _, _, err = run(*STEER, "--steps", "101", "--target", "purple")  # what is known when loaded
        assert "101 steps" in err
        assert "'purple'" in err

    def test_a_wrong_guide_does_not_make_its_target_wrong(self, run: Run) -> None:
        _, _, err = run(*BASE, "--guider", "colour=big", "--target", "colour=blue")
        assert "'colour=big'" in err
        assert "--target" not in err


class TestOptions:
    def test_defaults_are_those_of_the_python_call(self) -> None:
        given = command.make_context("run", ["--backend", "x"]).params
        for record in (Sampling(), Compute()):
            for name, value in attrs.asdict(record).items():
                assert given[name] == value
        assert given["num"] == 4
        assert given["scale"] == GuideRequest(source="x").scale

    def test_help_names_every_option(self, run: Run) -> None:
        code, out, _ = run("run", "--help")
        assert code == 0
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert any(name in out for name in option.opts)


class TestProcess:
    """What only a process of its own shows."""

    @pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
    def test_a_run_that_is_interrupted_leaves_what_is_finished(
        self, site: Path, tmp_path: Path, how: signal.Signals
    ) -> None:
        process = start(
            site,
            tmp_path,
            *("run", "--backend", "toy", "--guider", "colour", "--num", "1000", "--batch", "2"),
            *("--steps", "10", "--out", "out", "--compare"),
            TOY_DELAY="0.05",
        )
        out = tmp_path / "out"
        patience = time.monotonic() + 300
        while not (out / "003.png").exists():
            assert time.monotonic() < patience
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(how)
        printed, err = process.communicate(timeout=300)
        assert process.returncode == 130, err
        assert "Traceback" not in err
        kept = record(out)
        finished = kept["finished"]
        assert kept["status"] == "interrupted"
        assert finished % 2 == 0
        assert 2 <= finished < 1000
        assert f"{finished} of 1000" in err
        assert len(kept["images"]) == finished
        names = [path.relative_to(out).as_posix() for path in out.rglob("[!.]*.*")]
        kinds = [part + file for part in ("", "unguided/") for file in ("{}", "seen/{}-colour")]
        drawn = [kind.format(f"{i:03d}") + ".png" for kind in kinds for i in range(finished)]
        assert sorted(names) == sorted(["run.json", "grid.png", *drawn])
        for path in out.rglob("*.png"):
            Image.open(path).load()
        assert printed == "out/grid.png\n"

    def test_results_on_stdout_and_the_rest_on_stderr(self, site: Path, tmp_path: Path) -> None:
        done = ppap(site, tmp_path, *STEER, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["status"] == "complete"
        assert done.stderr.count("\n") == 1
        assert "'green'" in done.stderr
