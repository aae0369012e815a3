"""The losses of embeddings against their definitions, and what holds for any embeddings."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppap_plugin_clip.loss import Cosine, Spherical

quick = settings(max_examples=20, deadline=None)
seeds, weights = st.integers(0, 2**31), st.floats(-3, 3).filter(lambda w: abs(w) > 0.05)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def angle(u: Tensor, v: Tensor) -> float:
    return math.acos(float(u @ v / (u.norm() * v.norm())))


@quick
@given(seeds, st.lists(weights, min_size=1, max_size=4))
def test_energies_are_their_definition(seed: int, given_weights: list[float]) -> None:
    u, v = drawn(seed, 3, 6), drawn(seed + 1, len(given_weights), 6)
    total = sum(map(abs, given_weights))
    w = torch.tensor(given_weights).double() / total
    target = (w[:, None] * v / v.norm(dim=1, keepdim=True))[None].float()
    opposed = [-vk if weight < 0 else vk for vk, weight in zip(v, given_weights, strict=True)]
    for loss, distance in (
        (Spherical(), lambda a: a**2 / 2),
        (Cosine(), lambda a: 1 - math.cos(a)),
    ):
        expected = [
            sum(
                abs(float(wk)) * distance(angle(row, vk)) for wk, vk in zip(w, opposed, strict=True)
            )
            for row in u
        ]
        found = loss.energy(u, target)
        torch.testing.assert_close(found, torch.tensor(expected).double(), atol=2e-3, rtol=1e-3)
        cosine = sum(wk * math.cos(angle(u[0], vk)) for wk, vk in zip(w.tolist(), v, strict=True))
        assert float(loss.metrics(u, target)["cosine"][0]) == pytest.approx(cosine, abs=1e-5)


@quick
@given(seeds)
def test_transfer_is_the_distance_of_two_embeddings(seed: int) -> None:
    u, v = drawn(seed, 4, 5), drawn(seed + 1, 4, 5)
    unit = (v / v.norm(dim=1, keepdim=True))[:, None]
    for loss in (Spherical(), Cosine()):
        torch.testing.assert_close(loss.transfer(u, v), loss.energy(u, unit))
        torch.testing.assert_close(loss.transfer(3 * u, v / 7), loss.transfer(u, v))
        assert (loss.transfer(u, u) < 1e-6).all()


@pytest.mark.parametrize("loss", [Spherical(), Cosine()], ids=["spherical", "cosine"])
class TestGradients:
    def test_is_that_of_differences(self, loss: Spherical | Cosine) -> None:
        u, v = drawn(0, 2, 4).requires_grad_(True), drawn(1, 2, 3, 4) / 6
        assert torch.autograd.gradcheck(lambda x: loss.energy(x, v), u, atol=1e-4, eps=1e-4)

    def test_equal_and_opposite_embeddings_are_safe(self, loss: Spherical | Cosine) -> None:
        v = drawn(0, 1, 4).float()
        for sign in (1.0, -1.0):
            u = (sign * v).requires_grad_(True)
            energy = loss.energy(u, torch.nn.functional.normalize(v, dim=1)[:, None])
            (gradient,) = torch.autograd.grad(energy.sum(), u)
            assert energy.isfinite().all()
            assert gradient.isfinite().all()

    def test_descent_comes_nearer_to_one_text_and_leaves_the_other(
        self, loss: Spherical | Cosine
    ) -> None:
        wanted, unwanted = torch.eye(3)[:2]
        target = torch.stack([0.5 * wanted, -0.5 * unwanted])[None]
        u = torch.tensor([[0.1, 0.9, 0.4]], requires_grad=True)
        before = u.detach().clone()
        (gradient,) = torch.autograd.grad(loss.energy(u, target).sum(), u)
        after = torch.nn.functional.normalize(u.detach() - 0.1 * gradient, dim=1)
        before = torch.nn.functional.normalize(before, dim=1)
        assert after[0, 0] > before[0, 0]
        assert after[0, 1] < before[0, 1]


def test_a_near_negative_text_pulls_harder_than_a_far_one() -> None:
    """Which the squared angle with a negative sign would not do."""
    target = -torch.eye(2)[:1][None]
    sizes = []
    for degrees in (10.0, 170.0):
        a = math.radians(degrees)
        u = torch.tensor([[math.cos(a), math.sin(a)]], requires_grad=True)
        (gradient,) = torch.autograd.grad(Spherical().energy(u, target).sum(), u)
        sizes.append(float(gradient.norm()))
    near, far = sizes
    assert near == pytest.approx(math.radians(170), rel=1e-3)
    assert far == pytest.approx(math.radians(10), rel=1e-3)
