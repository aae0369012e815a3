"""`ppap transfer` and `ppap adapt`, and `adapt` from Python, with the toy plugin."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Run, refused
from torch import nn
from toy_distribution import install, plugged, write_backend
from transfer_toy import Means, Square, anatomy

import ppap_framework as ppap
from ppap_framework.checkpoints import save_checkpoint
from ppap_framework.data import LabelledImages, SyntheticData, synthesize
from ppap_framework.diagnosis import propose_boundaries
from ppap_framework.errors import AssetError, PluginError, PpapError, UsageError
from ppap_framework.experts import BundleFile, choose_experts, experts_dir
from ppap_framework.learn import Recipe, adapt, distillation, load_teacher, transfer
from ppap_framework.learn.distillation import Distillation
from ppap_framework.plugin import Card
from ppap_framework.registry import Registry, registry
from ppap_framework.runtime import Progress

MODULE = sys.modules["ppap_framework.learn.transfer"]  # the package calls the function so
PLUGINS = "ppap-plugin-toy,ppap-plugin-bias,ppap-plugin-lora,ppap-plugin-classifier"
FULL = (("full", {}),)
LEARN = (
    *("--num-experts", "2", "--iterations", "24", "--learn-batch", "4", "--held-out", "0.2"),
    *("--validate-every", "5", "--adapter", "full", "--device", "cpu"),
)
RECIPE = Recipe(
    num_experts=2, adapters=FULL, iterations=24, batch=4, held_out=0.2, validate_every=5
)
NAMED = ("--backend", "toy", "--guider", "colour")
DRAW = ("--num", "8", "--steps", "1", "--workers", "1")
FILE = "toy-colour-2.experts.safetensors"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with plugged(install(tmp_path_factory.mktemp("toy") / "site")) as folder:
        os.environ["PPAP_PLUGINS"] = PLUGINS
        registry.cache_clear()
        yield folder


@pytest.fixture(autouse=True)
def quick(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few batches for statistics, no plots, a cache and a folder of one's own."""
    monkeypatch.setattr(distillation, "_STATISTICS_BATCHES", 2)
    monkeypatch.setattr(MODULE, "draw_figures", lambda *_: [])
    monkeypatch.setenv("PPAP_CACHE_DIR", str(tmp_path / "cache"))
    for command in ("ADAPT", "TRANSFER"):
        monkeypatch.setenv(f"PPAP_{command}_CALIBRATE", "false")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture(scope="module")
def drawn(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize("toy", out=tmp_path_factory.mktemp("drawn") / "set", num=20, steps=2).path


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the diaries and locks."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("transfer.json", "run.json", ".lock")
    }


@pytest.fixture
def run(typed: Run) -> Run:
    return typed


class TestTransfer:
    def test_the_command(self, run: Run, drawn: Path) -> None:
        command = ("transfer", *NAMED, "--data", str(drawn))
        code, out, err = run(*command, "--out", "out", *LEARN)
        assert (code, err) == (0, "")
        *table, path = out.splitlines()
        assert Path(path) == experts_dir() / FILE
        info = BundleFile("mine", Path(path)).info
        cells = [line.split() for line in table if re.match(r"\s*\d", line)]
        scores = [f"{score['held_out']:.4g}" for score in info.metrics["experts"]]
        assert [(row[0], row[1:4], row[4], row[-1]) for row in cells] == [
            (str(i), [str(50 * i), "to", str(50 * i + 49)], scores[i], "100.00%") for i in (0, 1)
        ]
        code, out, err = run(*command, "--out", "out", *LEARN, "--json", "--no-keep")
        assert (code, err) == (0, "")
        told = json.loads(out)
        assert told["path"] == f"out/{FILE}"
        assert told["timesteps"] == [0, 50, 100]
        assert told["share_of_network"] == [1.0, 1.0]
        assert told["metrics"] == info.metrics

    def test_is_what_python_does(self, run: Run, drawn: Path) -> None:
        arguments = ("transfer", *NAMED, "--data", str(drawn))
        assert run(*arguments, "--out", "shell", *LEARN).code == 0
        transfer("toy", "colour", drawn, out="python", recipe=RECIPE, calibrate=False)
        assert content(Path("python")) == content(Path("shell"))

    def test_every_option_counts(self, run: Run, drawn: Path) -> None:
        code, out, _ = run(
            *("transfer", *NAMED, "--data", str(drawn)),
            *("--out", "out", "--guider-option", "sharpness=5", "--loss", "toy-margin"),
            *("--boundaries", "10,20", "--adapter", "lora:rank=1,alpha=2,targets=*,*,seed=3"),
            *("--iterations", "30", "--shared", "0.2", "--learn-batch", "3"),
            *("--learning-rate", "0.01", "--held-out", "0.3", "--validate-every", "4"),
            *("--patience", "2", "--precision", "bfloat16", "--name", "mine", "--no-keep"),
            *("--seed", "-3", "--device", "cpu", "--json", "--checkpoint", "toy-8"),
            *("--guider-checkpoint", "colour-3"),
        )
        assert code == 0
        assert json.loads(out)["timesteps"] == [0, 10, 20, 100]
        info = BundleFile("mine", Path("out/mine.experts.safetensors")).info
        [adapter] = info.adapters
        assert (adapter.name, adapter.options["rank"]) == ("lora", 1)
        assert info.recipe == {
            "num_experts": 3,
            "boundaries": [10, 20],
            "adapters": [["lora", adapter.options]],
            "iterations": 30,
            "shared": 0.2,
            "chain": False,
            "batch": 3,
            "learning_rate": 0.01,
            "weight_decay": 0.0,
            "held_out": 0.3,
            "validate_every": 4,
            "patience": 2,
            "precision": "bfloat16",
            "seed": -3,
            "loss": {"name": "toy-margin", "options": {}},
        }
        assert not experts_dir().exists()
        code, out, _ = run(
            *("transfer", "--backend", "ppap-plugin-toy:toy", "--guider", "ppap-plugin-toy:colour"),
            *("--data", str(drawn), "--out", "chained", *LEARN[:-4], "--chain", "--json"),
            *("--adapter", "ppap-plugin-bias:full"),
        )
        assert code == 0
        [chained] = Path("chained").glob("*.safetensors")
        assert chained.name == FILE
        assert BundleFile("c", chained).info.recipe["chain"] is True

    def test_a_guider_that_has_no_checkpoint_of_its_own(
        self, run: Run, drawn: Path, site: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cards = Registry.cards

        def no_guiders(self: Registry, component: str, kind: Any) -> list[Card]:
            return [] if kind == "guider" else cards(self, component, kind)

        monkeypatch.setattr(Registry, "cards", no_guiders)
        command = ("transfer", *NAMED, "--data", str(drawn), "--out", "out", *LEARN)
        refused(run(*command), 4, "checkpoint")
        weights = site / "ppap_plugin_toy" / "colour-3.safetensors"
        code, _, err = run(*command, "--guider-checkpoint", str(weights))
        assert (code, err) == (0, "")

    def test_supervised(self, run: Run) -> None:
        images = np.zeros((12, 8, 8, 3), np.uint8)
        images[::2] = 200
        np.savez("labelled.npz", images=images, labels=np.arange(12) % 2 * 3)
        code, out, _ = run(
            *("transfer", *NAMED, "--data", "labelled.npz"),
            *("--supervised", "--out", "out", *LEARN, "--iterations", "60", "--json"),
        )
        assert code == 0
        for score in json.loads(out)["metrics"]["experts"]:
            assert score["held_out"] < score["untouched"]

    def test_options_from_a_file(self, run: Run, drawn: Path) -> None:
        Path("ppap.toml").write_text(
            f'[transfer]\nbackend = "toy"\nguider = "colour"\ndata = "{drawn}"\nnum-experts = 2\n'
            "iterations = 24\nlearn-batch = 4\nheld-out = 0.2\nvalidate-every = 5\nkeep = false\n"
            'adapter = ["full"]\n'
        )
        assert run("transfer", "--out", "out", "--device", "cpu").code == 0
        assert (Path("out") / FILE).exists()
        assert not experts_dir().exists()

    def test_ctrl_c(self, run: Run, drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        command = ("transfer", *NAMED, "--data", str(drawn), "--out", "out", *LEARN)
        learn = Distillation._learn
        calls = iter(range(100))

        def interrupted(self: Distillation, *arguments: Any) -> float:
            if next(calls) == 9:
                raise KeyboardInterrupt
            return learn(self, *arguments)

        with monkeypatch.context() as patched:
            patched.setattr(Distillation, "_learn", interrupted)
            stopped = (130, "", "ppap: interrupted; the same command goes on in out\n")
            assert run(*command) == stopped
        assert run(*command).code == 0
        transfer("toy", "colour", drawn, out="new", recipe=RECIPE, calibrate=False)
        assert content(Path("out")) == content(Path("new"))


BAD_EVERYWHERE = [
    (("--backend", "toi"), 3, "toi"),
    (("--checkpoint", "nothing"), 4, "nothing"),
    (("--guider", "color"), 3, "color"),
    (("--guider", "colour=4"), 2, "takes no scale and no interval here"),
    (("--guider", "none"), 2, "--guider none names no network"),
    (("--guider-checkpoint", "nowhere.safetensors"), 4, "nowhere.safetensors"),
    (("--guider-option", "sharpness=-1"), 2, "sharpness"),
    (("--guider-option", "sharpness"), 2, "--guider-option 'sharpness' cannot be read"),
    (("--guider-option", "sharpness=dull"), 2, "option 'sharpness': 'dull' is not a number"),
    (("--guider-option", "shrapness=1"), 2, "shrapness"),
    (("--guider-option", "sharpness=1", "--guider-option", "sharpness=2"), 2, "given twice"),
    (("--loss", "toy-square"), 2, "'toy-square' is for brightness"),
    (("--loss", "toy-sqare"), 3, "toy-sqare"),
    (("--loss-option", "temperature=1"), 2, "temperature"),
    (("--loss-option", "=1"), 2, "--loss-option '=1' cannot be read"),
    (("--out", "file"), 2, "'file' is no folder"),
    (("--out", "full"), 2, "holds other files, such as 'thesis.tex'"),
    (("--num-experts", "0"), 2, "num_experts must be a whole number from 1, not 0"),
    (("--num-experts", "few"), 2, "--num-experts: 'few'"),
    (("--num-experts", "101"), 2, "cannot share 100 timesteps among 101 experts"),
    (("--boundaries", "a,b"), 2, "--boundaries 'a,b' cannot be read"),
    (("--boundaries", "60,20", "--num-experts", "3"), 2, "cannot begin at timesteps [60, 20]"),
    (("--boundaries", "100"), 2, "cannot begin at timesteps [100]"),
    (("--boundaries", "20,40"), 2, "2 boundaries make 3 experts, not 2"),
    (("--adapter", "fulll"), 3, "fulll"),
    (("--adapter", "full:rank=1"), 2, "rank"),
    (("--adapter", "lora:rank=many,targets=*"), 2, "option 'rank': 'many' is not a whole number"),
    (("--adapter", "lora:rank"), 3, "rank"),
    (("--adapter", "full", "--adapter", "full"), 2, "--adapter full is given twice"),
    (("--adapter", "full", "--adapter", "lora:targets=*"), 2, "another adapter of this network"),
    (("--adapter", "bias"), 2, "Linear has no biases"),
    (("--adapter", "lora"), 2, "large enough for LoRA"),
    (("--iterations", "0"), 2, "iterations must be a whole number from 1"),
    (("--iterations", "2", "--shared", "0.5"), 2, "1 iterations cannot be shared out"),
    (("--shared", "1"), 2, "shared must lie in [0, 1)"),
    (("--learn-batch", "0"), 2, "batch must be"),
    (("--learning-rate", "nan"), 2, "learning_rate must be above 0"),
    (("--held-out", "1"), 2, "held_out must lie between 0 and 1"),
    (("--validate-every", "0"), 2, "validate_every must be"),
    (("--patience", "-1"), 2, "patience must be"),
    (("--precision", "float16"), 2, "--precision: 'float16'"),
    (("--name", "a/b"), 2, "a bundle cannot be called 'a/b'"),
    (("--seed", "x"), 2, "--seed: 'x'"),
    (("--device", "abacus"), 2, "abacus"),
]


BAD = [
    *((command, *case) for command in ("transfer", "adapt") for case in BAD_EVERYWHERE),
    ("transfer", ("--data", "nowhere"), 4, "no synthetic set in 'nowhere'"),
    ("transfer", ("--data", "file", "--supervised"), 4, "cannot read 'file'"),
    ("transfer", (), 2, "--data is required"),
    ("adapt", ("--num", "0"), 2, "num must be a whole number from 1"),
    ("adapt", ("--num", "1"), 2, "cannot learn from one image"),
    ("adapt", ("--steps", "0"), 2, "steps must be"),
    ("adapt", ("--steps", "101"), 2, "101"),
    ("adapt", ("--workers", "0"), 2, "workers must be"),
    ("adapt", ("--data", "set"), 2, "--data"),
]


class TestBadInput:
    @pytest.mark.parametrize(("command", "given", "code", "said"), BAD)
    def test_is_a_line_and_a_hint(
        self, run: Run, drawn: Path, command: str, given: tuple[str, ...], code: int, said: str
    ) -> None:
        needed = ("--data", str(drawn)) if command == "transfer" else ("--num", "4", "--steps", "1")
        every = (*NAMED, "--out", "out", *LEARN, *needed)
        settings = dict(zip(every[::2], every[1::2], strict=True))
        for name in given[::2] or ["--data"]:
            settings.pop(name, None)
        Path("file").touch()
        Path("full").mkdir()
        (Path("full") / "thesis.tex").touch()
        outcome = run(command, *(text for pair in settings.items() for text in pair), *given)
        refused(outcome, code)
        assert said in outcome.err.splitlines()[0]
        assert {str(path) for path in Path().rglob("*")} == {"file", "full", "full/thesis.tex"}
        assert not experts_dir().exists()

    def test_everything_at_once(self, run: Run) -> None:
        code, out, err = run(
            *("adapt", "--backend", "toi", "--guider", "colour", "--boundaries", "x", "--num", "0"),
            *("--adapter", "fulll", "--iterations", "0", "--workers", "0", "--name", ""),
        )
        assert (code, out) == (2, "")
        first, _ = err.splitlines()
        for said in ("toi", "'x'", "num must", "fulll", "iterations", "workers", "called ''"):
            assert said in first

    def test_a_part_without_a_folder(self, run: Run) -> None:
        outcome = run("adapt", *NAMED, *LEARN, "--num", "4", "--steps", "1", "--experts-of", "3")
        refused(outcome, 2)
        assert "experts_of must be k of n, with k from 1 to n, not (3,)" in outcome.err
        assert not any(Path().iterdir())

    def test_data_of_another_backend(self, run: Run, drawn: Path) -> None:
        other = {"mean": torch.zeros(3, 8, 8), "spread": torch.tensor(0.5)}
        save_checkpoint(Path("other.safetensors"), other, {"size": 8, "timesteps": 100})
        write_backend(Path("large.safetensors"), 16, 16)
        command = ("transfer", *NAMED, "--data", str(drawn), "--out", "out", *LEARN)
        for file, said in (
            ("other.safetensors", "were drawn by a backend with other weights"),
            ("large.safetensors", "the data are of (3, 8, 8), and 'toy' draws (3, 16, 16)"),
        ):
            refused(run(*command, "--checkpoint", file), 4, said)
        assert not Path("out").exists()

    def test_help(self, run: Run) -> None:
        for command in ("transfer", "adapt"):
            code, out, _ = run(command, "--help")
            assert code == 0
            for option in ("--num-experts", "--adapter", "--shared", "--keep / --no-keep"):
                assert option in out


class TestAdapt:
    def test_the_command_and_what_run_would_find(self, run: Run) -> None:
        command = (
            *("adapt", *NAMED, "--num", "20", "--steps", "2", "--workers", "1", *LEARN, "--json"),
        )
        code, out, err = run(*command)
        assert (code, err) == (0, "")
        told = json.loads(out)
        folder = Path("runs/adapt/toy-colour-2")
        assert {path.name for path in folder.iterdir()} == {
            *("data", "transfer.json", "log.jsonl", ".lock", FILE)
        }
        assert len(SyntheticData(folder / "data")) == 20
        model = load_teacher("colour").model
        found = choose_experts("auto", "toy", model, ppap.backend("toy"))
        assert found is not None
        assert str(found.path) == told["path"]
        assert run(*command).out == out  # and again, at once

    def test_is_synthesize_and_transfer(self, run: Run, drawn: Path) -> None:
        adapt("toy", "colour", out="both", num=20, steps=2, recipe=RECIPE, calibrate=False)
        transfer("toy", "colour", drawn, out="learned", recipe=RECIPE, calibrate=False)
        images = {f"data/{name}": data for name, data in content(drawn).items()}
        assert content(Path("both")) == images | content(Path("learned"))

    def test_boundaries_name_the_folder(self, run: Run) -> None:
        code, out, _ = run(
            *("adapt", *NAMED, *DRAW, *LEARN[2:], "--boundaries", "10,20", "--no-keep", "--json"),
        )
        assert code == 0
        assert json.loads(out)["path"] == (
            "runs/adapt/toy-colour-3/toy-colour-3.experts.safetensors"
        )

    def test_boundaries_that_the_data_propose(self, run: Run) -> None:
        code, out, _ = run(
            *("adapt", *NAMED, *DRAW, *LEARN[2:], "--boundaries", "auto", "--no-keep", "--json"),
        )
        assert code == 0
        said = json.loads(Path("runs/adapt/toy-colour-auto/transfer.json").read_text())["settings"]
        starts = propose_boundaries(
            said["proposal"]["timesteps"],
            said["proposal"]["disagreement"],
            100,
            json.loads(out)["experts"],
        )
        assert json.loads(out)["timesteps"] == [0, *starts, 100]

    @pytest.mark.parametrize("kind", ["module", "guidance model", "teacher"])
    def test_any_network_from_python(self, kind: str) -> None:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model = Means()
        guide: Any = {
            "module": module,
            "guidance model": model,
            "teacher": load_teacher(model, Square()),
        }[kind]
        network = module if kind == "module" else model
        before = anatomy(network)
        bundle = ppap.adapt(
            ppap.backend("toy"),
            guide,
            loss=None if kind == "teacher" else "cross-entropy",
            out="out",
            num=16,
            steps=1,
            iterations=12,
            num_experts=2,
            adapters=(("bias", {}),),
        )
        assert anatomy(network) == before
        wrapped = ppap.ModuleGuide(module) if kind == "module" else model
        assert choose_experts("auto", "toy", wrapped, ppap.backend("toy")) == bundle
        assert bundle.info.guide.component == {"module": "Sequential"}.get(kind, "Means")

    def test_progress_and_going_on(self) -> None:
        settings: dict[str, Any] = {"num": 20, "steps": 2, "recipe": RECIPE}
        calls: list[str] = []

        def watch(progress: Progress) -> None:
            calls.append(progress.task)
            if len(calls) == at:
                raise KeyboardInterrupt

        for at in (1, 2, 9):
            calls.clear()
            with pytest.raises(KeyboardInterrupt):
                adapt("toy", "colour", out="out", progress=watch, **settings)
            assert set(calls) == ({"drawing"} if at < 3 else {"drawing", "learning"})
        adapt("toy", "colour", out="out", **settings)
        adapt("toy", "colour", out="new", **settings)
        assert content(Path("out")) == content(Path("new"))

    @pytest.mark.parametrize(
        ("changes", "said", "kind"),
        [
            ({"guide": nn.Linear(3, 2)}, "'Linear' needs a loss", UsageError),
            ({"loss": "toy-sqare"}, "toy-sqare", PluginError),
            ({"loss": "toy-square"}, "is for brightness", UsageError),
            ({"adapters": (("bias", {}),)}, "has no biases", UsageError),
            ({"boundaries": [3, 2], "num_experts": None}, "cannot begin at", UsageError),
            ({"iterations": 1}, "cannot be shared out", UsageError),
            ({"recipe": Recipe(batch=0), "num": 0}, "batch must be .*num must be", UsageError),
            ({"seed": "7"}, "seed must be", UsageError),
            ({"step": 3}, "no setting 'step'", UsageError),
        ],
    )
    def test_what_cannot_be_is_found_before_anything_is_drawn(
        self, changes: dict[str, Any], said: str, kind: type[PpapError]
    ) -> None:
        settings: dict[str, Any] = {"guide": "colour", "num": 8, "steps": 1, "recipe": RECIPE}
        with pytest.raises(kind, match=said) as caught:
            adapt("toy", out="out", **{**settings, **changes})
        assert caught.value.message.count("seed must be") <= 1
        assert not Path("out").exists()

    @pytest.mark.parametrize("cache", ["file", "file/below", "loop", "dangling"])
    def test_where_experts_cannot_be_kept_is_found_first(
        self, cache: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path("file").touch()
        Path("loop").symlink_to("loop")
        Path("dangling").symlink_to("nowhere")
        monkeypatch.setenv("PPAP_CACHE_DIR", cache)
        settings: dict[str, Any] = {"num": 8, "steps": 1, "recipe": RECIPE}
        with pytest.raises(UsageError, match="cannot write to") as caught:
            adapt("toy", "colour", out="out", **settings)
        assert "--no-keep" in caught.value.hint
        assert not Path("out").exists()

    def test_overwriting(self) -> None:
        settings: dict[str, Any] = {"steps": 1, "recipe": RECIPE}
        adapt("toy", "colour", out="out", num=8, **settings)
        with pytest.raises(UsageError, match="num was 8, is now 9"):
            adapt("toy", "colour", out="out", num=9, **settings)
        adapt("toy", "colour", out="out", num=9, overwrite=True, **settings)
        adapt("toy", "colour", out="new", num=9, **settings)
        assert content(Path("out")) == content(Path("new"))

    def test_labels_of_classes_that_there_are_not(self) -> None:
        np.savez("l.npz", images=np.zeros((9, 8, 8, 3), np.uint8), labels=np.arange(9))
        with pytest.raises(AssetError, match="the labels do not fit the network's answers"):
            transfer("toy", "colour", LabelledImages("l.npz"), out="out", recipe=RECIPE)
