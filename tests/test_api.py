"""The framework from Python, on a model and guides whose answers are known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributions import REPOSITORY
from PIL import Image
from torch import Tensor, nn
from toy_distribution import MEANS, SIZE, SPREAD, TIMESTEPS, install, plugged, write_backend

import ppap_framework as ppap
from ppap_framework.components import DiffusionBackend, TaskLoss
from ppap_framework.diffusion import NoiseSource, Process, ddpm_step, timesteps_for
from ppap_framework.diffusion import sample as walk
from ppap_framework.errors import AssetError, PluginError, PpapError, UsageError
from ppap_framework.experts import weights_sha256
from ppap_framework.guidance import EnergyGuidance
from ppap_framework.run import LoadedGuide, Progress, Settings, frozen, peak_memory, plan
from ppap_framework.run.pictures import to_uint8


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with plugged(install(tmp_path_factory.mktemp("toy") / "site")) as folder:
        yield folder


@pytest.fixture(scope="module")
def toy(site: Path) -> DiffusionBackend:
    return ppap.backend("toy")


def green(scale: float = 40.0, **changes: Any) -> LoadedGuide:
    return ppap.guide("colour", target="green", scale=scale, **changes)


class Brightness(nn.Module):
    """Two logits, the second larger the brighter the image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([-5.0, 5.0]))
        self.dropout = nn.Dropout(0.9)

    def forward(self, images: Tensor) -> Tensor:
        self.given = images
        return self.dropout(images.mean((1, 2, 3))[:, None] * self.weight)


class TestPackage:
    def test_importing_it_imports_nothing_heavy(self) -> None:
        code = (
            "import sys, ppap_framework; heavy = {'torch', 'numpy', 'PIL', 'attr', 'pluggy'}; "
            "print(sorted(heavy & set(sys.modules)))"
        )
        out = subprocess.run(
            [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        assert out.stdout == "[]\n"

    def test_every_public_name_is_there(self) -> None:
        assert {"backend", "guide", "sample", "synthesize", "SyntheticData"} <= {*ppap.__all__}
        assert all(hasattr(ppap, name) and name in dir(ppap) for name in ppap.__all__)
        with pytest.raises(AttributeError, match="no attribute 'sampel'"):
            ppap.sampel  # type: ignore[attr-defined]  # noqa: B018  # that is the test


class TestSample:
    def test_is_the_walk_of_its_parts(self, toy: DiffusionBackend) -> None:
        """Bit for bit what the pieces give when they are put together by hand."""
        result = ppap.sample(
            toy,
            [green(interval=(0.1, 0.9))],
            num=3,
            steps=7,
            seed=5,
            sampler="ddpm",
            normalize=True,
        )
        stage = toy.stages[0]
        noise = NoiseSource(5)
        expected = walk(
            stage,
            Process(stage.schedule, timesteps_for(TIMESTEPS, 7), stage.variance),
            noise((3, 3, SIZE, SIZE)),
            noise,
            step=ddpm_step,
            guidance=EnergyGuidance([green(interval=(0.1, 0.9)).guide], "noisy", True),
        )
        assert torch.equal(result.images, expected.clamp(-1.0, 1.0))
        assert not result.interrupted

    def test_images_that_guidance_pushed_out_of_range_are_clamped(
        self, toy: DiffusionBackend
    ) -> None:
        stage = toy.stages[0]
        noise = NoiseSource(0)
        pushed = walk(
            stage,
            Process(stage.schedule, timesteps_for(TIMESTEPS, 5), stage.variance),
            noise((2, 3, SIZE, SIZE)),
            noise,
            guidance=EnergyGuidance([green(scale=3000.0).guide]),
        )
        assert pushed.abs().max() > 1.0
        result = ppap.sample(toy, [green(scale=3000.0)], num=2, steps=5)
        assert torch.equal(result.images, pushed.clamp(-1.0, 1.0))

    def test_in_bfloat16_networks_multiply_and_losses_do_not(self, toy: DiffusionBackend) -> None:
        class Linear(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(3, 2)
                nn.init.constant_(self.linear.weight, 1.0 / 3.0)
                self.said: list[torch.dtype] = []

            def forward(self, images: Tensor) -> Tensor:
                logits: Tensor = self.linear(images.mean((2, 3)))
                self.said.append(logits.dtype)
                return logits

        class Squares(TaskLoss):
            given: list[torch.dtype] = []  # noqa: RUF012  # a record of the test

            def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
                products = prediction @ prediction.T
                self.given += [prediction.dtype, products.dtype]
                return products.diagonal()

            transfer = energy

            def metrics(self, prediction: Any, target: Tensor) -> dict[str, Tensor]:
                return {}

        network = Linear()
        guide = ppap.guide(network, loss=Squares(), target=0, scale=1.0)
        drawn = {
            precision: ppap.sample(toy, [guide], num=2, steps=3, precision=precision).images
            for precision in ("float32", "bfloat16")
        }
        *first, looked = network.said[: len(network.said) // 2]
        *second, looked_again = network.said[len(network.said) // 2 :]
        assert {*first, looked, looked_again} == {torch.float32}  # finished images are looked at so
        assert set(second) == {torch.bfloat16}
        assert set(Squares.given) == {torch.float32}
        assert not torch.equal(drawn["float32"], drawn["bfloat16"])
        torch.testing.assert_close(drawn["float32"], drawn["bfloat16"], atol=0.02, rtol=0)
        with pytest.raises(UsageError, match="precision cannot be 'float16'"):
            ppap.sample(toy, num=1, precision="float16")  # type: ignore[arg-type]

    def test_draws_the_model_distribution(self, toy: DiffusionBackend) -> None:
        images = ppap.sample(toy, num=32, steps=TIMESTEPS, batch=32).images
        assert images.dtype == torch.float32
        assert torch.allclose(images.mean((0, 2, 3)), torch.tensor(MEANS), atol=0.02)
        assert torch.allclose(images.std((0, 2, 3)), torch.full((3,), SPREAD), rtol=0.1)

    def test_guides_steer(self, toy: DiffusionBackend) -> None:
        result = ppap.sample(toy, [green(scale=300.0)], num=4, steps=10, compare=True)
        assert result.unguided is not None
        before, after = result.unguided.seen["colour"], result.seen["colour"]
        assert (after.figures["energy"] < before.figures["energy"]).all()
        assert after.figures["hit"].all()
        assert not before.figures["hit"].any()
        assert all(words.startswith("green ") for words in after.words)

    def test_a_scale_of_nothing_is_no_guide(self, toy: DiffusionBackend) -> None:
        result = ppap.sample(toy, [green(scale=0.0)], num=2, steps=5, compare=True)
        assert result.unguided is not None
        assert torch.equal(result.images, result.unguided.images)
        assert torch.equal(result.images, ppap.sample(toy, num=2, steps=5).images)

    def test_an_image_depends_on_seed_and_number_alone(self, toy: DiffusionBackend) -> None:
        def bytes_of(**changes: Any) -> np.ndarray:
            settings = {"num": 5, "steps": 6, "seed": 1, "eta": 1.0} | changes
            return to_uint8(ppap.sample(toy, [green()], **settings).images).astype(int)

        whole = bytes_of()
        assert np.array_equal(whole, bytes_of())
        assert abs(whole - bytes_of(batch=1)).max() <= 2
        assert abs(whole - bytes_of(batch=2)).max() <= 2
        assert abs(whole[:3] - bytes_of(num=3)).max() <= 2
        assert (abs(whole - bytes_of(seed=2)) > 2).mean() > 0.9

    def test_a_target_for_each_image_finds_its_image(self, toy: DiffusionBackend) -> None:
        classes = torch.tensor([2, 3, 2, 3, 3])
        guide = ppap.guide("colour", target=classes, scale=300.0)
        result = ppap.sample(toy, [guide], num=5, steps=8, batch=2)
        seen = [words.split()[0] for words in result.seen["colour"].words]
        assert seen == ["green", "blue", "green", "blue", "blue"]

    def test_prompts(self, toy: DiffusionBackend) -> None:
        def brightness(**changes: Any) -> Tensor:
            return ppap.sample(toy, num=4, steps=50, batch=3, **changes).images.mean((1, 2, 3))

        shift = brightness(prompt=["darker", "darker", "darker", "brighter"]) - brightness()
        assert torch.allclose(shift, torch.tensor([-0.5, -0.5, -0.5, 0.5]), atol=0.05)
        same = ["brighter"] * 4
        assert torch.equal(brightness(prompt="brighter"), brightness(prompt=same))
        with pytest.raises(UsageError, match="2 prompts were given for 4 images"):
            brightness(prompt=["darker", "darker"])
        with pytest.raises(UsageError, match="'louder' is no prompt"):
            brightness(prompt=["darker", "darker", "darker", "louder"])

    def test_through_the_clean_image(self, toy: DiffusionBackend) -> None:
        result = ppap.sample(toy, [green(scale=300.0)], num=2, steps=10, through="clean")
        assert result.seen["colour"].figures["hit"].all()
        assert result.stats.guidance.denoiser_backwards == 20

    def test_costs_what_was_planned(self, toy: DiffusionBackend) -> None:
        guides = [green(interval=(0.2, 0.6)), green(name="second", interval=(0.5, 0.7))]
        run = plan(toy, guides, Settings(num=3, steps=20, through="clean", batch=2))
        result = ppap.sample(toy, guides, num=3, steps=20, through="clean", batch=2)
        spent = result.stats.guidance
        # 20 steps are at t / T = 0, 0.05, ..., 0.95.
        assert run.cost.guide_forwards == {"colour": 3 * 8, "second": 3 * 4}
        assert {g.name: g.forwards for g in spent.guides} == run.cost.guide_forwards
        assert spent.denoiser_forwards == run.cost.denoiser_forwards == 60
        assert spent.denoiser_backwards == run.cost.denoiser_backwards == 3 * 10
        assert run.cost.denoiser_parameters == 3 * SIZE * SIZE + 1
        assert run.cost.guide_parameters == {"colour": 12, "second": 12}

    def test_progress_counts_every_image_of_every_step(self, toy: DiffusionBackend) -> None:
        seen: list[Progress] = []
        ppap.sample(toy, [green()], num=3, steps=4, batch=2, compare=True, progress=seen.append)
        assert [p.steps for p in seen] == [
            2,
            4,
            6,
            8,
            10,
            12,
            14,
            16,
            17,
            18,
            19,
            20,
            21,
            22,
            23,
            24,
        ]
        assert {p.of for p in seen} == {24}

    @pytest.mark.parametrize(("after", "finished"), [(1, 0), (9, 2), (17, 4)])
    def test_an_interrupt_leaves_what_is_finished(
        self, toy: DiffusionBackend, after: int, finished: int
    ) -> None:
        def stop(progress: Progress) -> None:
            if progress.steps >= after:
                raise KeyboardInterrupt

        result = ppap.sample(toy, [green()], num=5, steps=4, batch=2, progress=stop)
        assert result.interrupted
        whole = ppap.sample(toy, [green()], num=5, steps=4, batch=2)
        assert not whole.interrupted
        assert torch.equal(result.images, whole.images[:finished])
        assert result.seen["colour"].words == whole.seen["colour"].words[:finished]

    def test_images_that_are_not_finite_are_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TOY_BROKEN", "1")
        for guides, hint in (([], "backend"), ([green()], "scale")):
            with pytest.raises(PpapError, match="image 0 came out not finite") as caught:
                ppap.sample("toy", guides, num=2, steps=5)
            assert hint in caught.value.hint

    def test_gradients_that_are_not_finite_are_left_out_and_counted(
        self, toy: DiffusionBackend
    ) -> None:
        def uneven(prediction: Tensor, target: Tensor) -> Tensor:
            # Every other energy has an infinite slope: that of the square root at 0.
            logits = prediction[:, 0].unbind()
            return torch.stack(
                [(x - x.detach()).sqrt() if i % 2 else x for i, x in enumerate(logits)]
            )

        guide = ppap.guide(Brightness(), loss=uneven, target=0, scale=2000.0)
        result = ppap.sample(toy, [guide], num=4, steps=5, compare=True)
        (stats,) = result.stats.guidance.guides
        assert (stats.skipped, stats.forwards) == (10, 20)
        assert result.unguided is not None
        moved = abs(result.images - result.unguided.images).amax((1, 2, 3))
        assert (moved[1::2] < 1e-5).all()
        assert (moved[::2] > 0.1).all()


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
            assert loaded.origin.path is not None
            assert loaded.origin.path.samefile(path)

    def test_of_the_users_own(self, toy: Any) -> None:
        own = ppap.backend(toy.inner)
        assert own.origin.component == "ToyBackend"
        assert own.origin.distribution is None
        assert torch.equal(
            ppap.sample(toy.inner, num=1, steps=2).images, ppap.sample(own, num=1, steps=2).images
        )

    @pytest.mark.parametrize(
        ("call", "kind", "says"),
        [
            (lambda: ppap.backend("toi"), PluginError, "no installed backend is called 'toi'"),
            (lambda: ppap.backend("toy", checkpoint="toy-9"), AssetError, "'toy-9'"),
            (lambda: ppap.backend("toy", checkpoint="a/b.pt"), AssetError, "'a/b.pt'"),
            (lambda: ppap.backend("nothing.safetensors"), AssetError, "nothing.safetensors"),
            (lambda: ppap.backend("a.pt", checkpoint="b.pt"), UsageError, "two checkpoints"),
            (lambda: ppap.backend("toy", options={"a": 1}), UsageError, "'a'"),
        ],
    )
    def test_errors(self, call: Any, kind: type[PpapError], says: str) -> None:
        with pytest.raises(kind) as caught:
            call()
        assert type(caught.value) is kind
        assert says in caught.value.message
        assert caught.value.hint

    def test_a_checkpoint_of_another_architecture(self, tmp_path: Path) -> None:
        path = write_backend(tmp_path / "mine.safetensors", size=4, stated=8)
        with pytest.raises(AssetError, match=r"'mean' \(3, 4, 4\) instead of \(3, 8, 8\)"):
            ppap.backend(path)

    def test_an_object_takes_no_checkpoint(self, toy: DiffusionBackend) -> None:
        with pytest.raises(UsageError, match="already made"):
            ppap.backend(toy, checkpoint="x.pt")


class TestGuide:
    def test_without_target_takes_the_default(self) -> None:
        loaded = ppap.guide("colour")
        assert loaded.guide.target.label == "green"
        assert loaded.target_is_default
        assert not green().target_is_default

    def test_a_checkpoint_of_ones_own_takes_another_checkpoints_default(self, site: Path) -> None:
        path = site / "ppap_plugin_toy" / "colour-3.safetensors"
        loaded = ppap.guide("colour", checkpoint=path)
        assert loaded.guide.target.label == "green"
        assert loaded.target_is_default

    def test_without_any_default_needs_a_target(self) -> None:
        with pytest.raises(UsageError, match="'grey' has nothing to aim at"):
            ppap.guide("grey")

    def test_pictures_as_targets(self, toy: DiffusionBackend) -> None:
        picture = Image.new("RGB", (SIZE, SIZE), (200, 200, 200))
        guide = ppap.guide("grey", target=picture, scale=300.0)
        result = ppap.sample(toy, [guide], num=2, steps=20, compare=True)
        assert result.unguided is not None
        before, after = result.unguided.seen["grey"], result.seen["grey"]
        assert (after.figures["energy"] < 0.5 * before.figures["energy"]).all()
        wanted = 200 / 127.5 - 1.0
        expected = (result.images.mean(1) - wanted).square().mean((1, 2))
        assert torch.allclose(after.figures["energy"], expected, atol=1e-6)

    def test_a_model_of_ones_own_does_not_get_the_default_weights(self, site: Path) -> None:
        def weights(**changes: Any) -> str | None:
            picture = Image.new("RGB", (SIZE, SIZE))
            return ppap.guide("grey", target=picture, **changes).origin.checkpoint

        path = site / "ppap_plugin_toy" / "colour-3.safetensors"
        assert weights() == "grey-1"
        assert weights(model="other") is None
        assert weights(model="other", checkpoint=path) == "colour-3.safetensors"

    def test_options_and_loss(self) -> None:
        loaded = ppap.guide("colour", loss="toy-margin", options={"sharpness": 3.0}, model="x")
        assert loaded.loss_name == "toy-margin"
        assert type(loaded.guide.loss).__name__ == "Margin"
        assert loaded.origin.options == {"sharpness": 3.0, "model": "x"}

    @pytest.mark.parametrize(
        ("changes", "kind", "says"),
        [
            ({"scale": float("nan")}, UsageError, "must be finite, not nan"),
            ({"scale": float("inf")}, UsageError, "must be finite, not inf"),
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
            ({"mean": (0, 0, 0)}, UsageError, "its own normalisation"),
        ],
    )
    def test_errors(self, changes: Any, kind: type[PpapError], says: str) -> None:
        with pytest.raises(kind) as caught:
            ppap.guide("colour", **changes)
        assert type(caught.value) is kind
        assert says in caught.value.message

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
        assert result.unguided is not None
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

    def test_normalisation_and_size(self) -> None:
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
        assert images.grad is not None
        assert torch.allclose(images.grad.sum(), torch.tensor(3 * 16.0))

    @pytest.mark.parametrize(
        "arguments",
        [
            {"mean": (0, 0, 0)},
            {"std": (1, 1, 1)},
            {"mean": (0, 0), "std": (1, 1)},
            {"mean": (0, 0, 0), "std": (1, 0, 1)},
            {"size": 0},
        ],
    )
    def test_wrong_arguments(self, arguments: Any) -> None:
        with pytest.raises(UsageError):
            ppap.ModuleGuide(nn.Identity(), **arguments)

    def test_an_index_beyond_the_outputs_is_one_line(self, toy: DiffusionBackend) -> None:
        for loss in ("toy-cross-entropy", "toy-margin"):
            beyond = ppap.guide(Brightness(), loss=loss, target=99, name="mine")
            with pytest.raises(UsageError, match=r"'mine' says nothing with .* '99'") as caught:
                ppap.sample(toy, [beyond], num=1, steps=2)
            assert "number of its outputs" in caught.value.hint

    def test_targets(self) -> None:
        def value(target: object) -> Tensor:
            return ppap.guide(Brightness(), loss="toy-margin", target=target).guide.target.value

        assert value(1).tolist() == [1]
        assert value("1").tolist() == [1]
        assert value(torch.tensor(1)).tolist() == [1]
        assert value([0, 1, 1]).tolist() == [0, 1, 1]
        assert value(torch.ones(1, 4)).shape == (1, 4)
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

        loaded = ppap.guide(Brightness(), loss=darkness, target=0, scale=2000.0)
        assert loaded.loss_name == "darkness"
        result = ppap.sample(toy, [loaded], num=2, steps=8, compare=True)
        assert result.unguided is not None
        assert (result.images.mean((1, 2, 3)) < result.unguided.images.mean((1, 2, 3)) - 0.1).all()
        with pytest.raises(UsageError, match="student"):
            loaded.guide.loss.transfer(None, None)
        made = ppap.guide("colour").guide.loss
        assert isinstance(made, TaskLoss)
        assert ppap.guide(Brightness(), loss=made, target=0).guide.loss is made

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


class TestSettings:
    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"num": 0}, "num must be a whole number from 1, not 0"),
            ({"num": 2.0}, "num must"),
            ({"num": True}, "num must"),
            ({"steps": 0}, "steps must be a whole number from 1, not 0"),
            ({"steps": -5}, "not -5"),
            ({"steps": TIMESTEPS + 1}, f"{TIMESTEPS + 1} steps"),
            ({"batch": 0}, "batch must"),
            ({"seed": 1.5}, "seed must"),
            ({"sampler": "euler"}, "sampler cannot be 'euler'"),
            ({"through": "glass"}, "through cannot be 'glass'"),
            ({"eta": -0.1}, "eta must"),
            ({"eta": float("nan")}, "eta must"),
            ({"eta": 0.5, "sampler": "ddpm"}, "sampler 'ddpm' has none"),
            ({"device": "abacus"}, "device 'abacus'"),
            ({"device": "cuda:99"}, "device 'cuda:99'"),
            ({"compare": True}, "nothing to compare"),
            ({"prompt": 3}, "3 is none"),
            ({"prompt": ["brighter", 3], "num": 2}, "3 is none"),
            ({"guides": "colour"}, "'colour' is none"),
            ({"guides": ["colour"]}, "'colour' is none"),
            ({"guides": 3}, "a int is none"),
        ],
    )
    def test_errors(self, toy: DiffusionBackend, changes: Any, says: str) -> None:
        with pytest.raises(UsageError) as caught:
            ppap.sample(toy, **changes)
        assert says in caught.value.message

    def test_everything_wrong_is_told_at_once(self, toy: DiffusionBackend) -> None:
        with pytest.raises(UsageError) as caught:
            ppap.sample(toy, num=0, steps=-1, batch=0, eta=7.0, device="abacus")
        for culprit in ("num", "steps", "batch", "eta", "abacus"):
            assert culprit in caught.value.message

    @pytest.mark.parametrize("steps", [1, 2, 33, 99, TIMESTEPS])
    def test_any_number_of_steps(self, toy: DiffusionBackend, steps: int) -> None:
        assert ppap.sample(toy, num=1, steps=steps).images.isfinite().all()

    def test_guides_that_do_not_go_together(self, toy: DiffusionBackend) -> None:
        with pytest.raises(UsageError, match="a LoadedGuide is one"):
            ppap.sample(toy, green())  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="2 guides called 'colour'"):
            ppap.sample(toy, [green(), green()])
        with pytest.raises(UsageError, match="cannot be called 'a/b'"):
            ppap.sample(toy, [green(name="a/b")])
        with pytest.raises(UsageError, match="3 targets for 4 images"):
            ppap.sample(toy, [ppap.guide("colour", target=[1, 2, 3])], num=4)
        both = [green(), ppap.guide("colour", target="blue", name="other")]
        assert set(ppap.sample(toy, both, num=1, steps=2).seen) == {"colour", "other"}


class TestSave:
    def test_everything_is_there(self, toy: DiffusionBackend, tmp_path: Path) -> None:
        result = ppap.sample(toy, [green()], num=3, steps=4, seed=9, compare=True, batch=2)
        grid = result.save(tmp_path / "deep" / "out")
        folder = tmp_path / "deep" / "out"
        assert grid == folder / "grid.png"
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
        numbers = ("000", "001", "002")
        assert files == {
            "grid.png",
            "run.json",
            *(f"{i}.png" for i in numbers),
            *(f"seen/{i}-colour.png" for i in numbers),
            *(f"unguided/{i}.png" for i in numbers),
            *(f"unguided/seen/{i}-colour.png" for i in numbers),
        }
        for i in range(3):
            saved = np.asarray(Image.open(folder / f"{i:03d}.png"))
            assert np.array_equal(saved, to_uint8(result.images)[i])
            seen = np.asarray(Image.open(folder / "seen" / f"{i:03d}-colour.png"))
            assert np.array_equal(seen, saved[:, ::-1])

    def test_the_record(self, toy: DiffusionBackend, site: Path, tmp_path: Path) -> None:
        guide = green(scale=3.0, interval=(0.0, 0.5), options={"sharpness": 5.0})
        result = ppap.sample(toy, [guide], num=2, steps=4, seed=9, compare=True)
        assert "guided=<images (2, 3, 8, 8)>, compared=unguided" in repr(result)
        assert len(repr(result)) < 200
        result.save(tmp_path)

        def refuse(constant: str) -> None:
            pytest.fail(f"{constant} is no JSON")

        record = json.loads((tmp_path / "run.json").read_text(), parse_constant=refuse)
        assert record["status"] == "complete"
        assert record["finished"] == 2
        config = record["config"]
        assert (config["seed"], config["num"], config["steps"]) == (9, 2, 4)
        assert config["timesteps"] == [0, 25, 50, 75]
        assert config["guides"][0]["target"] == "green"
        assert config["guides"][0]["interval"] == [0.0, 0.5]
        assert config["guides"][0]["options"] == {
            "sharpness": 5.0,
            "upside_down": False,  # a default
            "model": None,
        }
        assert result.plan.guides[0].origin.record()["options"] == {"sharpness": 5.0}
        assert record["versions"]["plugins"] == {"ppap-plugin-toy": "0.7"}
        assert record["versions"]["torch"] == torch.__version__
        for part, file in ((config["backend"], "toy-8"), (config["guides"][0], "colour-3")):
            content = (site / "ppap_plugin_toy" / f"{file}.safetensors").read_bytes()
            import hashlib

            assert part["sha256"] == hashlib.sha256(content).hexdigest()
            assert part["weights_sha256"] is None  # the file's says it
        spent = record["guidance"]["guides"][0]
        assert spent["times"] == [0.25, 0.0]
        assert all(norm > 0 for norm in spent["gradient_norms"])
        assert spent["skipped"] == 0
        assert record["peak_memory_bytes"] > 1e7
        assert 0 < record["seconds"]["per_image"] < record["seconds"]["sampling"] / 2
        for i, entry in enumerate(record["images"]):
            seen = entry["seen"]["colour"]
            assert entry["file"] == f"00{i}.png"
            assert seen["says"] == result.seen["colour"].words[i]
            assert seen["energy"] == pytest.approx(
                float(result.seen["colour"].figures["energy"][i])
            )
            assert seen["broken"] is None  # it is not a number

    def test_weights_without_a_file_are_known_by_their_values(
        self, toy: DiffusionBackend, tmp_path: Path
    ) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
        hashes = []
        for name in ("one", "same", "other"):
            if name == "other":
                network[1].bias.data[0] += 1
            guide = ppap.guide(network, target=1, loss=lambda said, wanted: said[:, wanted[0]])
            ppap.sample(toy, [guide], num=1, steps=1).save(tmp_path / name)
            (recorded,) = json.loads((tmp_path / name / "run.json").read_text())["config"]["guides"]
            assert recorded["sha256"] is None
            assert recorded["weights_sha256"] == weights_sha256(network.state_dict())
            hashes.append(recorded["weights_sha256"])
        assert hashes[0] == hashes[1] != hashes[2]

    def test_what_is_there_is_not_overwritten(self, toy: DiffusionBackend, tmp_path: Path) -> None:
        ppap.sample(toy, num=3, steps=2).save(tmp_path)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
        fewer = ppap.sample(toy, [green()], num=1, steps=3)
        with pytest.raises(UsageError, match="earlier run") as caught:
            fewer.save(tmp_path)
        assert "--overwrite" in caught.value.hint
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
        (tmp_path / "notes.txt").write_text("mine")
        (tmp_path / "0.png").write_text("mine")
        fewer.save(tmp_path, overwrite=True)
        files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
        assert files == {
            "000.png", "grid.png", "run.json", "seen/000-colour.png", "notes.txt", "0.png",
        }  # fmt: skip
        assert (tmp_path / "notes.txt").read_text() == "mine"

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_other_peoples_folders(
        self, toy: DiffusionBackend, tmp_path: Path, overwrite: bool
    ) -> None:
        (tmp_path / "thesis.tex").write_text("mine")
        with pytest.raises(UsageError, match="thesis"):
            ppap.sample(toy, num=1, steps=1).save(tmp_path, overwrite=overwrite)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_file_where_the_folder_should_be(self, toy: DiffusionBackend, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        for folder in (tmp_path / "file", tmp_path / "file" / "out"):
            with pytest.raises(UsageError, match="is no folder"):
                ppap.sample(toy, num=1, steps=1).save(folder)

    def test_an_interrupted_result_saves_too(self, toy: DiffusionBackend, tmp_path: Path) -> None:
        def stop(progress: Progress) -> None:
            raise KeyboardInterrupt

        result = ppap.sample(toy, [green()], num=2, steps=2, progress=stop)
        assert result.save(tmp_path) is None
        record = json.loads((tmp_path / "run.json").read_text())
        assert (record["status"], record["finished"]) == ("interrupted", 0)


class TestNetworksInUse:
    def test_are_frozen_and_come_back_as_they_were(self) -> None:
        network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2))
        network[1].eval()
        network[2].weight.requires_grad_(False)
        modes = [module.training for module in network.modules()]
        asked = [parameter.requires_grad for parameter in network.parameters()]
        with pytest.raises(KeyboardInterrupt), frozen([network], torch.device("cpu")):
            assert not any(module.training for module in network.modules())
            assert not any(parameter.requires_grad for parameter in network.parameters())
            raise KeyboardInterrupt
        assert [module.training for module in network.modules()] == modes
        assert [parameter.requires_grad for parameter in network.parameters()] == asked

    @pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux says it there")
    @pytest.mark.parametrize("silent", [False, True])
    def test_peak_memory_is_in_bytes_and_rises(
        self, monkeypatch: pytest.MonkeyPatch, silent: bool
    ) -> None:
        if silent:  # as other systems are
            monkeypatch.setattr(
                "ppap_framework.run.in_use._STATUS", Path("/proc/self/no-such-file")
            )
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        now, before = pages * os.sysconf("SC_PAGESIZE"), peak_memory(torch.device("cpu"))
        assert before is not None
        more = max(0, before - now) + 2**26
        held = np.ones(more, np.uint8)
        after = peak_memory(torch.device("cpu"))
        assert after is not None
        assert 2**25 < after - before < 2**28
        assert held[-1] == 1
