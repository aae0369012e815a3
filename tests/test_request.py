"""Backends and guides as they are asked for from Python."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from toy_distribution import SIZE, green, write_backend
from toy_guides import Brightness

import ppap_framework as ppap
from ppap_framework.components import DiffusionBackend, Target, TaskLoss
from ppap_framework.errors import AssetError, PluginError, PpapError, UsageError
from ppap_framework.experts import guide_sha256
from ppap_framework.guidance import Guide
from ppap_framework.run import GuideRequest, ModuleGuide

pytestmark = pytest.mark.usefixtures("site")


def check_error(call: Any, kind: type[PpapError], says: str) -> PpapError:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert says in caught.value.message
    return caught.value


class TestBackend:
    def test_says_where_it_came_from(self, toy: Any, site: Path) -> None:
        assert toy.origin.distribution == "ppap-plugin-toy"
        assert toy.origin.version == "0.7"
        assert toy.origin.checkpoint == "toy-8"
        assert toy.origin.path == site / "ppap_plugin_toy" / "toy-8.safetensors"
        assert len(toy.origin.sha256) == 64
        assert ppap.backend(toy) is toy

    def test_from_a_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_backend(tmp_path / "mine.safetensors", size=4, stated=4)
        (tmp_path / "mine").symlink_to(path)
        monkeypatch.chdir(tmp_path)
        for loaded in (
            ppap.backend(path),
            ppap.backend(str(path)),
            ppap.backend("toy", checkpoint=path),
            ppap.backend("ppap-plugin-toy:toy", checkpoint=str(path)),
            ppap.backend("toy", checkpoint="mine"),
        ):
            assert loaded.stages[0].image_shape == (3, 4, 4)
            assert loaded.origin.path.samefile(path)

    def test_of_the_users_own(self, toy: Any) -> None:
        own = ppap.backend(toy.inner)
        assert own.origin.component == "ToyBackend"
        assert own.origin.distribution is None
        one, other = (ppap.sample(each, num=1, steps=2) for each in (toy.inner, own))
        assert torch.equal(one.images, other.images)

    @pytest.mark.parametrize(
        ("source", "changes", "kind", "says"),
        [
            ("toi", {}, PluginError, "no installed backend is called 'toi'"),
            ("toy", {"checkpoint": "toy-9"}, AssetError, "'toy-9'"),
            ("toy", {"checkpoint": "a/b.pt"}, AssetError, "'a/b.pt'"),
            ("nothing.safetensors", {}, AssetError, "nothing.safetensors"),
            ("a.pt", {"checkpoint": "b.pt"}, UsageError, "two checkpoints"),
            ("toy", {"options": {"a": 1}}, UsageError, "'a'"),
            ("toy", {"dtype": "int8"}, UsageError, "dtype cannot be 'int8'"),
            ("toy", {"dtype": torch.bfloat16}, UsageError, "not cast its weights to bfloat16"),
            ("toy", {"dtype": "bfloat16"}, UsageError, "not cast its weights to bfloat16"),
        ],
    )
    def test_errors(self, source: str, changes: Any, kind: type[PpapError], says: str) -> None:
        assert check_error(lambda: ppap.backend(source, **changes), kind, says).hint

    def test_a_checkpoint_of_another_architecture(self, tmp_path: Path) -> None:
        path = write_backend(tmp_path / "mine.safetensors", size=4, stated=8)
        with pytest.raises(AssetError, match=r"'mean' \(3, 4, 4\) instead of \(3, 8, 8\)"):
            ppap.backend(path)

    def test_an_object_takes_no_checkpoint(self, toy: DiffusionBackend) -> None:
        with pytest.raises(UsageError, match="already made"):
            ppap.backend(toy, checkpoint="x.pt")


class TestGuide:
    def test_without_target_takes_the_default(self, site: Path) -> None:
        own = site / "ppap_plugin_toy" / "colour-3.safetensors"
        for changes in ({}, {"checkpoint": own}):  # one's own takes another checkpoint's
            guide = ppap.guide("colour", **changes)
            assert guide.target.label == "green"
            assert guide.target_is_default
        assert not green().target_is_default
        with pytest.raises(UsageError, match="'grey' has nothing to aim at"):
            ppap.guide("grey")

    def test_one_that_only_teaches_needs_no_target(self) -> None:
        assert GuideRequest(source="grey").load(aim=False).target is None

    def test_pictures_as_targets(self, toy: DiffusionBackend) -> None:
        picture = Image.new("RGB", (SIZE, SIZE), (200, 200, 200))
        guide = ppap.guide("grey", target=picture, scale=300.0)
        result = ppap.sample(toy, [guide], num=2, steps=20, sampler="ddim", compare=True)
        before, after = result.unguided.seen["grey"], result.seen["grey"]
        assert (after.figures["energy"] < 0.5 * before.figures["energy"]).all()
        wanted = 200 / 127.5 - 1.0
        expected = (result.images.mean(1) - wanted).square().mean((1, 2))
        assert torch.allclose(after.figures["energy"], expected, atol=1e-6)

    def test_a_model_of_ones_own_does_not_get_the_default_weights(self, site: Path) -> None:
        def weights(**changes: Any) -> str | None:
            guide = ppap.guide("grey", target=Image.new("RGB", (SIZE, SIZE)), **changes)
            return guide.origin.checkpoint

        path = site / "ppap_plugin_toy" / "colour-3.safetensors"
        assert weights() == "grey-1"
        assert weights(model="other") is None
        assert weights(model="other", checkpoint=path) == "colour-3.safetensors"

    def test_options_and_loss(self) -> None:
        guide = ppap.guide("colour", loss="toy-margin", options={"sharpness": 3.0}, model="x")
        assert guide.loss_name == "toy-margin"
        assert type(guide.loss).__name__ == "Margin"
        assert guide.origin.options == {"sharpness": 3.0, "model": "x"}

    @pytest.mark.parametrize(
        ("changes", "kind", "says"),
        [
            ({"scale": float("nan")}, UsageError, "must be finite, not nan"),
            ({"scale": float("inf")}, UsageError, "must be finite, not inf"),
            ({"scale": "4"}, UsageError, "the scale '4' is no number"),
            ({"interval": (0.5, 0.5)}, UsageError, "cannot act from 0.5 to 0.5"),
            ({"interval": (0.2, 1.5)}, UsageError, "cannot act from 0.2 to 1.5"),
            ({"interval": (float("nan"), 1.0)}, UsageError, "cannot act from nan"),
            ({"target": "purple"}, UsageError, "'purple'"),
            ({"target": "red"}, UsageError, "'red' is ambiguous"),
            ({"target": "no/such.png"}, AssetError, "no/such.png"),
            ({"target": 1.5}, UsageError, "float"),
            ({"checkpoint": "none-such"}, AssetError, "none-such"),
            ({"loss": "toy-crossentropy"}, PluginError, "toy-crossentropy"),
            ({"loss": "toy-square"}, UsageError, "is for brightness"),
            ({"options": {"sharp": 1.0}}, UsageError, "did you mean 'sharpness'"),
            ({"options": {"sharpness": -1.0}}, UsageError, "sharpness"),
            ({"mean": (0, 0, 0)}, UsageError, "guider 'colour' takes no mean"),
        ],
    )
    def test_errors(self, changes: Any, kind: type[PpapError], says: str) -> None:
        check_error(lambda: ppap.guide("colour", **changes), kind, says)

    def test_everything_wrong_is_told_at_once(self) -> None:
        with pytest.raises(UsageError) as caught:
            ppap.guide(
                "colour",
                scale=float("inf"),
                interval=(1.0, 0.0),
                target="no/such.png",
                checkpoint="no/such.pt",
                options={"sharp": 1},
            )
        for culprit in ("inf", "from 1.0 to 0.0", "such.png", "such.pt", "'sharp'"):
            assert culprit in caught.value.message


class TestModuleGuide:
    def test_any_network_guides_and_is_left_as_it_was(self, toy: DiffusionBackend) -> None:
        network = Brightness().train()
        network.dropout.eval()
        guide = ppap.guide(network, loss="toy-cross-entropy", target=1, scale=2000.0)
        result = ppap.sample(toy, [guide], num=2, steps=10, compare=True)
        assert (result.images.mean((1, 2, 3)) > result.unguided.images.mean((1, 2, 3)) + 0.1).all()
        assert result.seen["Brightness"].words == ("most: 1", "most: 1")
        assert network.training
        assert not network.dropout.training
        assert network.weight.requires_grad
        assert network.weight.grad is None

    def test_an_error_leaves_it_as_it_was_too(self, toy: DiffusionBackend) -> None:
        network = Brightness().train()
        guide = ppap.guide(network, loss=lambda p, t: p.sum(), target=1, name="wrong")
        with pytest.raises(PluginError, match="energy of guide 'wrong'"):
            ppap.sample(toy, [guide], num=2, steps=2)
        assert network.training
        assert network.weight.requires_grad

    def test_normalization_and_size(self) -> None:
        network = Brightness()
        images = torch.rand(2, 3, 6, 6) * 2 - 1
        ppap.ModuleGuide(network)(images)
        assert torch.allclose(network.given, images, atol=1e-6)
        mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
        ppap.ModuleGuide(network, mean=mean, std=std, size=3)(images)
        assert network.given.shape == (2, 3, 3, 3)
        ppap.ModuleGuide(network, mean=mean, std=std)(images)
        for channel in range(3):
            expected = ((images[:, channel] + 1) / 2 - mean[channel]) / std[channel]
            assert torch.allclose(network.given[:, channel], expected, atol=1e-6)

    def test_resizing_is_differentiable_and_keeps_a_constant(self) -> None:
        guide = ppap.ModuleGuide(nn.Identity(), size=4)
        images = torch.full((1, 3, 9, 9), 0.25, requires_grad=True)
        seen = guide(images)
        assert torch.allclose(seen, torch.tensor(0.25))
        seen.sum().backward()
        assert torch.allclose(images.grad.sum(), torch.tensor(3 * 16.0))

    @pytest.mark.parametrize(
        "arguments",
        [
            {"mean": (0, 0, 0)},
            {"std": (1, 1, 1)},
            {"mean": (0, 0), "std": (1, 1)},
            {"mean": (0, 0, 0), "std": (1, 0, 1)},
            {"mean": (0, float("nan"), 0), "std": (1, 1, 1)},
            {"size": 0},
        ],
    )
    def test_wrong_arguments(self, arguments: Any) -> None:
        with pytest.raises(UsageError):
            ppap.ModuleGuide(nn.Identity(), **arguments)

    @pytest.mark.parametrize("loss", ["toy-cross-entropy", "toy-margin"])
    def test_an_index_beyond_the_outputs_is_one_line(self, toy, loss: str) -> None:
        beyond = ppap.guide(Brightness(), loss=loss, target=99, name="mine")
        with pytest.raises(UsageError, match=r"'99' of guide 'mine' is out of range") as caught:
            ppap.sample(toy, [beyond], num=1, steps=2)
        assert "number of its outputs" in caught.value.hint

    @pytest.mark.parametrize(
        ("layers", "says", "hint"),
        [
            ([nn.Conv2d(1, 2, 8)], "'mine' takes 1 channel, and images have 3", "mean(1, keepdim"),
            ([nn.Conv2d(4, 2, 8)], "'mine' takes 4 channels, and images have 3", "forward"),
            (
                [nn.Flatten(), nn.Linear(64, 2)],
                "guide 'mine' failed in forward: RuntimeError: mat1 and mat2",
                "it was given (1, 3, 8, 8)",
            ),
        ],
    )
    def test_a_network_that_cannot_read_images_is_one_line(
        self, toy: DiffusionBackend, layers: list[nn.Module], says: str, hint: str
    ) -> None:
        network = nn.Sequential(*layers, nn.Flatten())
        guide = ppap.guide(network, loss="toy-margin", target=1, name="mine")
        for through in ("noisy", "clean"):
            error = check_error(
                lambda through=through: ppap.sample(toy, [guide], num=2, steps=2, through=through),
                UsageError,
                says,
            )
            assert hint in error.hint
            assert "\n" not in error.message

    def test_a_plugins_network_that_fails_is_the_plugins_fault(self, toy, monkeypatch) -> None:
        guide = green()

        def fail(images: Tensor) -> Tensor:
            raise RuntimeError("shapes do not match\nat all")

        monkeypatch.setattr(guide.model.network, "forward", fail)
        with pytest.raises(PluginError, match="'colour' of ppap-plugin-toy failed in forward"):
            ppap.sample(toy, [guide], num=1, steps=2)

    @pytest.mark.parametrize(
        ("given", "value"),
        [(1, [1]), ("1", [1]), (torch.tensor(1), [1]), ([0, 1, 1], [0, 1, 1]),
         (torch.ones(1, 4), [[1.0] * 4])],
    )  # fmt: skip
    def test_targets(self, given: object, value: list[Any]) -> None:
        guide = ppap.guide(Brightness(), loss="toy-margin", target=given)
        assert guide.target.value.tolist() == value

    def test_pictures_as_targets(self) -> None:
        def value(target: object) -> Tensor:
            made = ppap.guide(Brightness(), loss="toy-margin", target=target).target
            assert made is not None
            return made.value

        picture = value(Image.new("RGB", (5, 4), (255, 0, 51)))
        assert picture.shape == (1, 3, 4, 5)
        assert torch.allclose(picture[0, :, 0, 0], torch.tensor([1.0, -1.0, -0.6]))
        deep = value(Image.fromarray(np.array([[0, 65_535]], np.uint16)))
        assert deep[0, :, 0].tolist() == [[-1.0, 1.0]] * 3

    def test_maps_are_shown_as_grey(self) -> None:
        guide = ppap.ModuleGuide(nn.Identity())
        images = torch.zeros(2, 3, 4, 4)
        depth = torch.tensor([[[0.0, 5.0]], [[3.0, 3.0]]])
        for prediction in (depth, depth[:, None]):
            shown = guide.render(prediction, images)
            assert shown.shape == (2, 3, 1, 2)
            assert shown[0, 0].tolist() == [[-1.0, 1.0]]
            assert shown[1].isfinite().all()
        assert guide.render(torch.zeros(2, 7), images) is images
        assert guide.describe(depth) == []

    def test_losses(self, toy: DiffusionBackend) -> None:
        def darkness(prediction: Tensor, target: Tensor) -> Tensor:
            return prediction[:, 1]

        guide = ppap.guide(Brightness(), loss=darkness, target=0, scale=2000.0)
        assert guide.loss_name == "darkness"
        result = ppap.sample(toy, [guide], num=2, steps=8, compare=True)
        assert (result.images.mean((1, 2, 3)) < result.unguided.images.mean((1, 2, 3)) - 0.1).all()
        with pytest.raises(UsageError, match="student"):
            guide.loss.transfer(None, None)
        made = ppap.guide("colour").loss
        assert isinstance(made, TaskLoss)
        assert ppap.guide(Brightness(), loss=made, target=0).loss is made

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({}, "needs a loss"),
            ({"loss": "toy-margin"}, "needs a target"),
            ({"loss": "toy-margin", "target": "red cube"}, "no name for 'red cube'"),
            ({"loss": "toy-margin", "target": 1, "checkpoint": "x.pt"}, "already made"),
            ({"loss": "toy-margin", "target": 1, "scale": float("inf")}, "finite"),
        ],
    )
    def test_errors(self, changes: Any, says: str) -> None:
        with pytest.raises(UsageError, match=says):
            ppap.guide(Brightness(), **changes)


def classifier(channels: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )


class Returning(nn.Module):
    """A classifier that makes something else of its logits."""

    def __init__(self, change: Any = lambda logits: logits) -> None:
        super().__init__()
        self.inner, self._change = classifier(), change

    def forward(self, images: Tensor) -> Any:
        return self._change(self.inner(images))


class Stateful(Returning):
    """One with a state that is no tensor, and counters that move whenever it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("anew", torch.zeros(2))

    def forward(self, images: Tensor) -> Any:
        self.calls += 1
        self.anew = self.anew + 1
        return super().forward(images)

    def get_extra_state(self) -> Any:
        return {"written": "by hand", "scale": torch.ones(2)}

    def set_extra_state(self, state: Any) -> None:
        """Nothing is kept."""


class Logits(TaskLoss):
    def energy(self, prediction: Any, target: Tensor) -> Tensor:
        return -prediction.softmax(1)[:, int(target)]


@pytest.mark.filterwarnings("ignore:.torch.jit")
class TestAnyNetwork:
    """A network of any kind that people have guides, or is refused in a line."""

    @pytest.mark.parametrize(
        "make",
        [
            lambda: Returning(lambda y: {"logits": y, "features": y}),
            lambda: Returning(lambda y: {"out": y, "aux": y}),
            lambda: Returning(lambda y: {"any": y, "none": None}),
            lambda: Returning(lambda y: (y,)),
            lambda: Returning(lambda y: SimpleNamespace(logits=y, loss=None)),
            lambda: classifier().half(),
            lambda: classifier().bfloat16(),
            lambda: classifier().double(),
            lambda: torch.jit.trace(classifier(), torch.zeros(1, 3, SIZE, SIZE)),  # type: ignore[no-untyped-call]
            Stateful,
        ],
    )
    def test_guides(self, toy: DiffusionBackend, make: Any) -> None:
        network = make()
        before = {name: value.clone() for name, value in network.named_buffers()}
        guide = Guide(
            name="own",
            model=ModuleGuide(network, task="classification"),
            loss=Logits(),
            target=Target(value=torch.tensor([3]), label="3"),
        )
        assert len(guide_sha256(guide.model)) == 64
        result = ppap.sample(toy, [guide], num=1, steps=2)
        assert result.stats.guidance.guides[0].skipped == 0
        assert result.stats.guidance.guides[0].gradient_norms[0]
        for name, value in network.named_buffers():
            assert torch.equal(value, before[name])

    @pytest.mark.parametrize(
        ("make", "says"),
        [
            (lambda: Returning(lambda y: (y, y)), "a tuple with 2 tensors"),
            (lambda: Returning(lambda y: {"a": y, "b": y}), "a dict with 2 tensors"),
            (lambda: Returning(lambda y: None), "a NoneType with no tensors"),
            (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), "not known yet"),
            (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 10, device="meta")), "no weights"),
            (lambda: classifier(1), "takes 1 channel"),
            (lambda: torch.jit.script(classifier(1)), "takes 1 channel"),
            (lambda: Returning, "'Returning' is no network"),
            (lambda: lambda images: images, "'<lambda>' is no network"),
            (lambda: 3, "'int' is no network"),
        ],
    )
    def test_is_refused(self, toy: DiffusionBackend, make: Any, says: str) -> None:
        request = {"source": make(), "loss": Logits(), "target": 3, "experts": None}

        def draw() -> None:
            guide = GuideRequest(**request).load()
            network = getattr(guide.model, "network", None)
            guide = attrs.evolve(guide, model=ModuleGuide(network, task="classification"))
            ppap.sample(toy, [guide], num=1, steps=2)

        assert check_error(draw, UsageError, says).hint

    def test_a_loss_of_ones_own_gets_all_that_it_returns(self, toy: DiffusionBackend) -> None:
        network = Returning(lambda y: (y, y))
        guide = ppap.guide(network, loss=lambda both, target: both[1][:, 3], target=3)
        assert ppap.sample(toy, [guide], num=1, steps=2).stats.guidance.guides[0].gradient_norms[0]

    def test_what_does_not_reach_the_images(self, toy: DiffusionBackend) -> None:
        network = Returning(lambda y: y.detach())
        guide = ppap.guide(network, loss=Logits(), target=3)
        check_error(lambda: ppap.sample(toy, [guide], num=1, steps=2), PluginError, "no gradient")


def test_numbers_of_numpy_are_numbers(toy: DiffusionBackend) -> None:
    one, other = (
        ppap.sample(toy, num=n(1), steps=n(2), seed=n(5), batch=n(3)) for n in (int, np.int64)
    )
    assert torch.equal(one.images, other.images)
    assert json.dumps(one.plan.record()) == json.dumps(other.plan.record())
    check_error(lambda: ppap.sample(toy, num=np.float64(1.5)), UsageError, "whole number")
