"""Judges of classes and of scenes, on networks and images whose answers are known."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from bench_toy import NAMES
from torch import Tensor, nn

import ppap_framework as ppap
from ppap_framework.components import GuidanceModel, Target, TargetInput
from ppap_framework.errors import PluginError
from ppap_framework.guidance import Guide
from ppap_framework.noise import NoiseLevel
from ppap_framework.origin import Origin
from ppap_plugin_bench import Experiment
from ppap_plugin_bench.assessment import projection
from ppap_plugin_bench.judges import ClassJudge, Judges
from ppap_plugin_bench.setup import Setup


class Watcher(GuidanceModel):
    """A classifier with its classes in an order of its own, one of which nobody asks about."""

    classes = ("other", "blue", "red")

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network

    network = property(lambda self: self._network)  # type: ignore[assignment]  # as the class wants

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Tensor:
        return self._network(images)

    def target(self, given: TargetInput) -> Target:
        return Target(value=torch.tensor([self.classes.index(given.text or "")]), label="")


def judge(network: nn.Module) -> ClassJudge:
    loss = ppap.guide("colour", target="green").loss
    origin = Origin(component="watcher")
    guide = Guide(name="judge", model=Watcher(network), loss=loss, target=None, origin=origin)
    return ClassJudge(guide, ("red", "blue"), torch.device("cpu"))


def test_features_are_the_input_of_the_last_linear_layer() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 7),
        nn.Linear(7, 3),
    )
    pixels = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 3), np.uint8)
    features, classes, confidence = judge(network).look(pixels)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert np.allclose(features, network[:4](x).detach().numpy(), atol=1e-5)
    probabilities = network(x).softmax(1).detach()
    assert np.allclose(confidence, probabilities.max(1).values, atol=1e-5)
    wanted = torch.tensor([-1, 1, 0])[probabilities.argmax(1)]
    assert (classes == wanted.numpy()).all()


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten()), "shows no features"),
        (nn.Linear(8, 3), "shows no features"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 3), nn.Unflatten(1, (3, 1))), "no classif"),
    ],
)
def test_what_is_no_classifier_with_a_linear_layer_is_refused(
    network: nn.Module, says: str
) -> None:
    with pytest.raises(PluginError, match=says):
        judge(network).look(np.zeros((2, 8, 8, 3), np.uint8))


def test_many_features_are_projected() -> None:
    rng = np.random.default_rng(0)
    flat = rng.standard_normal((500, 5)) @ rng.standard_normal((5, 80))  # of 5 dimensions
    reduced = projection(flat, 5)(flat)
    assert reduced.shape == (500, 5)
    assert np.allclose(
        np.linalg.norm(reduced[0] - reduced[1:], axis=1),
        np.linalg.norm(flat[0] - flat[1:], axis=1),
    )
    assert projection(flat, 80)(flat) is flat


def test_the_reciprocal_of_a_truth_may_count(scene_experiment: Experiment, home: Path) -> None:
    spec = attrs.evolve(scene_experiment.judges[0], truth="distance", reciprocal=True)
    changed = attrs.evolve(scene_experiment, judges=(spec,))
    (truth,) = Judges.load(Setup.load(changed, NAMES, "cpu"))._truths
    assert np.allclose(truth, np.load(home / "scenes.npz")["brightness"][:8] + 2.0, atol=1e-5)
