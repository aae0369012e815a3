"""What goes wrong in a plugin's component is said as its fault, in one line, by its name.

Every method of every kind of component raises, exits, returns something else, or prints.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Run
from distributions import HEADER, plugin

import ppap_framework as ppap
from ppap_framework.checkpoints import save_checkpoint
from ppap_framework.data import synthesize
from ppap_framework.errors import PluginError, UsageError
from ppap_framework.registry import registry

RECORDS = (
    HEADER
    + """
@hookimpl
def ppap_backends():
    return [BackendSpec(name="bad", summary=".", factory="acme_bad.parts:Back")]

@hookimpl
def ppap_guiders():
    return [GuiderSpec(name="bad", summary=".", factory="acme_bad.parts:Light", task="brightness",
                       default_loss="bad", needs_checkpoint=False)]

@hookimpl
def ppap_task_losses():
    return [TaskLossSpec(name="bad", summary=".", factory="acme_bad.parts:Distance",
                         task="brightness")]

@hookimpl
def ppap_expert_adapters():
    return [AdapterSpec(name="bad", summary=".", factory="acme_bad.parts:make_adapter")]

@hookimpl
def ppap_assets():
    return [Card(name="bad-8", component="bad", kind="backend", summary=".", licence="CC0-1.0",
                 uri="package://acme_bad/bad.safetensors", sha256=None, size=None, image_size=8,
                 default=True)]
"""
)
PARTS = """
import functools
import os
import sys

import torch
from torch import nn
from ppap_framework.author import *


def wrong(mode, found):
    if mode == "prints":
        print("a plugin's words")
    if mode == "type":
        return object()
    if isinstance(found, Prediction):
        x0, x_t, alpha = found.x0, found.x_t, found.alpha
        if mode == "shape":
            x0 = x0[:, :2]
        if mode == "batch":
            x0, x_t, alpha = x0[:1], x_t[:1], alpha[:1]
        if mode == "nan":
            x0 = x0 * torch.nan
        return Prediction.from_x0(x0, x_t, alpha, (1 - alpha**2).sqrt())
    if isinstance(found, Target) and mode in ("shape", "nan"):
        value = found.value[0] if mode == "shape" else found.value * torch.nan
        return Target(value=value, label=found.label)
    if isinstance(found, dict):
        return {name: wrong(mode, x) for name, x in found.items()}
    if isinstance(found, list):
        return {"shape": [found], "batch": found[:1]}.get(mode, found)
    if isinstance(found, torch.Tensor):
        changed = {"shape": found[..., None], "batch": found[:1], "nan": found * torch.nan}
        return changed.get(mode, found)
    return found


def faulty(method):
    @functools.wraps(method)
    def changed(*given, **more):
        name, _, mode = os.environ.get("BAD", "").partition(":")
        if name != method.__name__:
            return method(*given, **more)
        if mode == "raises":
            raise RuntimeError("such a\\npity")
        if mode == "exits":
            sys.exit(0)
        if mode == "interrupts":
            raise KeyboardInterrupt
        if mode == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if mode == "refuses":
            raise UsageError("not this way", hint="but that way")
        return wrong(mode, method(*given, **more))

    return changed


class Grey(Stage):
    name, image_shape, variance = "base", (3, 8, 8), "fixed_small"
    schedule = linear_schedule(50)

    def __init__(self):
        self.network = nn.Linear(1, 1)
        nn.init.zeros_(self.network.weight)
        nn.init.zeros_(self.network.bias)

    @faulty
    def denoise(self, x_t, t, condition):
        alpha = self.schedule.alphas_cumprod[t].sqrt().float()[:, None, None, None]
        return Prediction.from_x0(0.9 * x_t.clamp(-1, 1), x_t, alpha, (1 - alpha**2).sqrt())

    @faulty
    def evaluations(self, condition):
        return 1


class Larger(CascadedStage, Grey):
    name, sampling = "larger", CascadeSampling(respacing="2")

    @faulty
    def conditioned(self, condition, images):
        return images


class Back(DiffusionBackend):
    def __init__(self, options, checkpoint):
        made(None)
        self.stages = (Grey(), Larger())
        for name in ("image_shape", "variance"):
            if name in os.environ.get("BAD", ""):
                setattr(self.stages[0], name, "learned" if name == "variance" else (4, 8, 8))

    @faulty
    def encode(self, prompts, batch):
        return None


@faulty
def made(given):
    return given


class Light(GuidanceModel):
    def __init__(self, options, checkpoint):
        super().__init__()
        self.network = nn.Linear(3, 1, bias=False)
        nn.init.ones_(self.network.weight)

    @faulty
    def forward(self, images, level=None):
        return backward(self.network(images.mean((2, 3)))[:, 0])

    @faulty
    def target(self, given):
        if given.image is not None:
            return Target(value=given.pixels().mean()[None], label="picture")
        return Target(value=torch.tensor([given.number()]), label=given.text)

    @faulty
    def render(self, prediction, images):
        return 0.5 * images

    @faulty
    def describe(self, prediction):
        return [f"{value:.2f}" for value in prediction.tolist()]


class Passes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return slope(g)


@faulty
def slope(g):
    return g


backward = Passes.apply


class Distance(TaskLoss):
    @faulty
    def energy(self, prediction, target):
        return (prediction - target) ** 2

    @faulty
    def transfer(self, student, teacher):
        return (student - teacher) ** 2

    @faulty
    def metrics(self, prediction, target):
        return {"distance": (prediction - target).abs()}


class Shift(nn.Module):
    def __init__(self, start):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros_like(start))

    def forward(self, weight):
        return weight + self.shift


class Adapter(ExpertAdapter):
    def __init__(self):
        changes = Adaptation(parametrizations={"weight": Shift})
        self.inner = ParametrizationAdapter(lambda network: changes)


for name in ("attach", "activate", "training", "parameters", "state_dict", "load_state_dict",
             "detach"):
    def method(self, *given, name=name):
        return getattr(self.inner, name)(*given)
    method.__name__ = name
    setattr(Adapter, name, faulty(method))
Adapter.__abstractmethods__ = frozenset()


def make_adapter(options):
    return Adapter()
"""
RUN = (
    *("run", "--backend", "bad", "--guider", "bad", "--target", "0.5", "--num", "2"),
    *("--steps", "3", "--scale", "1", "--json", "--out", "out"),
)
OWNER = {
    **dict.fromkeys(("forward", "target", "render", "describe", "slope"), "guider"),
    **dict.fromkeys(("energy", "metrics", "transfer"), "loss"),
    **dict.fromkeys(("denoise", "evaluations", "conditioned", "encode", "made"), "backend"),
}
ADAPTERS = (
    *("attach", "activate", "training", "parameters", "state_dict", "load_state_dict", "detach"),
)
ALWAYS = ("raises", "exits", "prints")
WRONG = {
    "forward": ("type", "shape", "batch", "nan"),
    "target": ("type", "shape", "nan"),
    "render": ("type", "shape", "batch", "nan"),
    "describe": ("type", "shape", "batch"),
    "energy": ("type", "shape", "batch", "nan"),
    "metrics": ("type", "shape", "batch", "nan"),
    "denoise": ("type", "shape", "batch", "nan"),
    "evaluations": ("type",),
}
DRAWN = [
    (method, mode)
    for method in OWNER
    if method != "transfer"
    for mode in (*ALWAYS, *WRONG.get(method, ()))
]
TOLD = {("forward", "nan"), ("energy", "nan"), ("metrics", "nan")}
"""Gradients and figures that are not finite are left out, and a run goes on."""

MERGED = ("activate", "load_state_dict")
"""What adapters do while experts guide."""

LEARNT = [
    *(("transfer", mode) for mode in (*ALWAYS, "type", "shape", "batch", "nan")),
    *((method, mode) for method in ADAPTERS if method not in MERGED for mode in ALWAYS),
    *((method, "type") for method in ("training", "parameters", "state_dict")),
]


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The plugin acme-bad, and no other; the folder of a synthetic set of it."""
    site = tmp_path_factory.mktemp("bad") / "site"
    site.mkdir()
    project = plugin("bad", RECORDS)
    project.files["acme_bad/parts.py"] = PARTS  # type: ignore[index]  # a dict
    project.install(site)
    save_checkpoint(site / "acme_bad" / "bad.safetensors", {}, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PPAP_PLUGINS", "acme-bad")
        patch.syspath_prepend(str(site))
        registry.cache_clear()
        yield synthesize("bad", out=site.parent / "set", num=8, steps=2, batch=4, shard=4).path
    registry.cache_clear()
    for module in [name for name in sys.modules if name.startswith("acme_bad")]:
        del sys.modules[module]


@pytest.fixture(autouse=True)
def here(bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PPAP_CACHE_DIR", str(tmp_path / "cache"))


def blamed(outcome: tuple[int, str, str], owner: str, method: str, mode: str) -> None:
    """One line of the plugin's fault with its hint, or nothing but its words on stderr."""
    code, out, err = outcome
    if mode == "prints":
        assert code == 0, err
        assert "a plugin's words" in err
        assert "a plugin's words" not in out
        return
    assert (code, out) == (3, ""), err
    lines = err.splitlines()
    assert [line for line in lines if line.startswith("ppap: error: ")] == lines[:1]
    assert f"{owner} 'bad' of acme-bad failed" in lines[0]
    assert len(lines) < 3
    assert "a bug" not in err
    if mode in ("raises", "exits") and method != "made":
        said = "RuntimeError: such a pity" if mode == "raises" else "SystemExit: 0"
        where = "its backward pass" if method == "slope" else method
        assert f" failed in {where}: {said}" in lines[0]


@pytest.mark.parametrize(("method", "mode"), DRAWN)
def test_of_a_run(typed: Run, monkeypatch, method: str, mode: str) -> None:
    monkeypatch.setenv("BAD", f"{method}:{mode}")
    outcome = typed(*RUN)
    if (method, mode) in TOLD:
        assert outcome.code == 0
        assert json.loads(outcome.out)["status"] == "complete"
        return
    # A prediction of another shape is found out by the loss that reads it, or by the network's own.
    owner = "loss" if (method, mode) == ("forward", "shape") else OWNER[method]
    blamed(outcome, owner, method, mode)
    if mode == "prints":
        assert json.loads(outcome.out)["status"] == "complete"
    elif Path("out").exists():
        assert json.loads(Path("out/run.json").read_text())["status"] == "failed"
        assert not [path for path in Path("out").rglob("*") if "tmp" in path.name]


TRAIN = (
    *("transfer", "--data", "set", "--backend", "bad", "--guider", "bad", "--adapter", "bad"),
    *("--num-experts", "1", "--iterations", "1", "--learn-batch", "2", "--out", "learnt"),
    *("--no-calibrate", "--no-keep", "--device", "cpu"),
)


@pytest.mark.parametrize(("method", "mode"), LEARNT)
def test_of_a_training(typed: Run, bad: Path, monkeypatch, method: str, mode: str) -> None:
    Path("set").symlink_to(bad)
    monkeypatch.setenv("BAD", f"{method}:{mode}")
    outcome = typed(*TRAIN)
    blamed(outcome, OWNER.get(method, "adapter"), method, mode)
    assert mode == "prints" or not list(Path().rglob("*.experts.safetensors"))


@pytest.mark.parametrize("mode", ALWAYS)
@pytest.mark.parametrize("method", MERGED)
def test_of_experts_that_guide(typed: Run, bad: Path, monkeypatch, method: str, mode: str) -> None:
    Path("set").symlink_to(bad)
    assert typed(*TRAIN).code == 0
    monkeypatch.setenv("BAD", f"{method}:{mode}")
    [bundle] = Path("learnt").glob("*.safetensors")
    outcome = typed(*RUN, "--experts", bundle)
    blamed(outcome, "adapter", method, mode)
    if mode == "prints":
        assert json.loads(outcome.out)["status"] == "complete"


@pytest.mark.parametrize("attribute", ["image_shape", "variance"])
def test_of_a_stage(typed: Run, monkeypatch, attribute: str) -> None:
    monkeypatch.setenv("BAD", attribute)
    outcome = typed(*RUN)
    blamed(outcome, "backend", "stages", "attribute")
    assert attribute in outcome.err


@pytest.mark.parametrize("method", [method for method in OWNER if method != "transfer"])
class TestWhatPasses:
    def test_ctrl_c(self, typed: Run, monkeypatch, method: str) -> None:
        monkeypatch.setenv("BAD", f"{method}:interrupts")
        code, _, err = typed(*RUN)
        assert code == 130
        assert "error" not in err

    def test_out_of_memory(self, typed: Run, monkeypatch, method: str) -> None:
        monkeypatch.setenv("BAD", f"{method}:memory")
        code, out, err = typed(*RUN)
        assert (code, out) == (1, "")
        assert "out of memory" in err.splitlines()[0]
        assert "failed in" not in err

    def test_errors_on_purpose(self, typed: Run, monkeypatch, method: str) -> None:
        monkeypatch.setenv("BAD", f"{method}:refuses")
        code, out, err = typed(*RUN)
        assert (code, out) == (2, "")
        assert err == "ppap: error: not this way\nhint: but that way\n"


def test_the_traceback_is_shown_with_debug(typed: Run, monkeypatch) -> None:
    monkeypatch.setenv("BAD", "forward:raises")
    assert "acme_bad/parts.py" in typed("--debug", *RUN).err


@pytest.mark.slow
def test_workers_name_the_plugin_and_print_nothing(capfd, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    for mode in ("prints", "raises"):
        monkeypatch.setenv("BAD", f"denoise:{mode}")
        draw = {"num": 4, "steps": 2, "batch": 2, "shard": 2, "workers": 2, "out": mode}
        if mode == "prints":
            synthesize("bad", **draw)
        else:
            with pytest.raises(PluginError, match="backend 'bad' of acme-bad failed in denoise"):
                synthesize("bad", **draw)
        assert "words" not in capfd.readouterr().out


def test_a_network_of_ones_own_is_the_users(monkeypatch) -> None:
    from torch import nn

    class Broken(nn.Module):
        def forward(self, images: object) -> None:
            raise ValueError("no such thing")

    guide = ppap.guide(Broken(), loss="bad", target=1, name="mine")
    with pytest.raises(UsageError, match="guide 'mine' failed in forward: ValueError: no such"):
        ppap.sample("bad", [guide], num=1, steps=2)
