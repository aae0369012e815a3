"""Photographs of faces: what likeness says of them, and where its gradient leads.

The 100 faces and 100 other patches, 25 x 25 and grey, of scikit-image's subset of Labeled Faces in
the Wild (Huang et al. 2007). The network has random weights.
"""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
import timm
import torch
from PIL import Image
from torch import Tensor

from ppap_framework.author import Preprocessing
from ppap_framework.targets import decode_target
from ppap_plugin_likeness.guider import LikenessGuide
from ppap_plugin_likeness.loss import Mean

SIDE = 64


@pytest.fixture(scope="module")
def patches() -> Tensor:
    """(200, 3, 64, 64) in [-1, 1], the first 100 of faces."""
    grey = torch.from_numpy(skimage.data.lfw_subset()).float()[:, None]
    assert grey.shape == (200, 1, 25, 25)
    sized = torch.nn.functional.interpolate(grey, (SIDE, SIDE), mode="bilinear")
    return sized.expand(-1, 3, -1, -1) * 2 - 1


@pytest.fixture(scope="module")
def guide() -> LikenessGuide:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model("resnet18", layers=[1, 1, 1, 1], channels=[16, 32, 32, 64])
    shown = Preprocessing(interpolation="bilinear", size=SIDE, mean=(0.5,) * 3, std=(0.5,) * 3)
    return LikenessGuide(network, shown, "perceptual", [1, 2, 3])


def picture(patch: Tensor) -> Image.Image:
    pixels = ((patch + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels)


def rank(faces: Tensor, others: Tensor) -> float:
    """The chance that a face has a lower energy than another patch."""
    return float((faces[:, None] < others).float().mean())


@torch.no_grad()
def test_faces_are_like_faces(guide: LikenessGuide, patches: Tensor) -> None:
    loss = Mean()
    phi = guide(patches)
    ranks = []
    for index in range(10):
        target = guide.target(decode_target(picture(patches[index]))).value
        energy = loss.energy(phi, target)
        assert int(energy.argmin()) == index
        assert float(energy[index]) < 0.01 * float(energy[20:100].mean())
        ranks.append(rank(energy[20:100], energy[100:]))
    assert np.mean(ranks) > 0.7


def test_descent_leads_to_the_face_that_is_wanted(guide: LikenessGuide, patches: Tensor) -> None:
    """From grey; the likeness is judged by correlations of pixels, which no network computes."""
    loss = Mean()
    wanted = [3, 40, 77]
    targets = [guide.target(decode_target(picture(patches[index]))).value for index in wanted]
    target = torch.cat(targets)
    generator = torch.Generator().manual_seed(0)
    x = 0.1 * torch.randn(len(wanted), 3, SIDE, SIDE, generator=generator)
    x.requires_grad_()
    steps = torch.optim.Adam([x], 0.05)
    for _ in range(40):
        steps.zero_grad()
        loss.energy(guide(x), target).sum().backward()
        steps.step()
    found, faces = (
        torch.nn.functional.normalize((each - each.mean(1, keepdim=True)), dim=1)
        for each in (x.detach().mean(1).flatten(1), patches[:100, 0].flatten(1))
    )
    alike = found @ faces.T
    assert alike.argmax(1).tolist() == wanted
