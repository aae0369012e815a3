"""Backends of one Gaussian."""

import torch
from ppap_framework.author import *
from ppap_testing import FakeBackend
from torch import nn


class Broken(Stage):
    """The stage of the fake backend, with a fault."""

    def __init__(self):
        self.inner = FakeBackend(8).stages[0]
        for name in ("name", "image_shape", "schedule", "variance", "network"):
            setattr(self, name, getattr(self.inner, name))

    def denoise(self, x_t, t, condition):
        return self.inner.denoise(x_t, t, condition)


class Sound(DiffusionBackend):
    stage = Broken

    def __init__(self, options, checkpoint):
        self.stages = (self.stage(),)

    def encode(self, prompts, batch):
        if prompts is not None:
            raise UsageError("no prompts, please", hint="leave them out")


class Unmakeable(Sound):
    def __init__(self, options, checkpoint):
        raise RuntimeError("no such network")


class Twins(Sound):
    def __init__(self, options, checkpoint):
        self.stages = (Broken(), Second())


class Second(CascadedStage):
    sampling = CascadeSampling(respacing="2")

    def __init__(self):
        self.inner = FakeBackend(8).stages[0]
        for name in ("name", "image_shape", "schedule", "variance", "network"):
            setattr(self, name, getattr(self.inner, name))

    def conditioned(self, condition, images):
        return condition

    def denoise(self, x_t, t, condition):
        return self.inner.denoise(x_t, t, condition)


class InfiniteAtTheEnd(Sound):
    class stage(Broken):  # noqa: N801
        def denoise(self, x_t, t, condition):
            found = super().denoise(x_t, t, condition)
            return found.with_x0(found.x0 / (t > 0)[:, None, None, None])


class NextTimestep(Sound):
    class stage(Broken):  # noqa: N801
        def denoise(self, x_t, t, condition):
            return super().denoise(x_t, (t + 1).clamp_max(self.schedule.num_timesteps - 1), condition)


class NotPreserving(Sound):
    class stage(Broken):  # noqa: N801
        def denoise(self, x_t, t, condition):
            found = super().denoise(x_t, t, condition)
            return Loose(found.x_t, found.alpha, found.sigma, found.eps * 1.01, found.x0)
