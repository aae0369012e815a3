"""Backends of one Gaussian."""

import torch
from torch import nn

from ppap_framework.author import (
    CascadedStage,
    CascadeSampling,
    DiffusionBackend,
    NoiseSchedule,
    Prediction,
    Stage,
    UsageError,
)
from ppap_testing import FakeBackend


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
            return super().denoise(x_t, (t + 1).clamp_max(len(self.schedule.betas) - 1), condition)


class Loose(Prediction):
    @property
    def eps(self):
        return 1.1 * super().eps


class NotPreserving(Sound):
    class stage(Broken):  # noqa: N801
        def denoise(self, x_t, t, condition):
            found = super().denoise(x_t, t, condition)
            return Loose(found.x_t, found.alpha, found.sigma, None, found.x0)


class FaintNoise(Sound):
    class stage(Broken):  # noqa: N801
        def __init__(self):
            super().__init__()
            betas = torch.full((100,), 1.0 - 0.25**0.01, dtype=torch.float64)
            self.schedule = self.inner.schedule = NoiseSchedule("faint", betas)


class FirstTimestep(Sound):
    class stage(Broken):  # noqa: N801
        def denoise(self, x_t, t, condition):
            x0 = super().denoise(x_t, t[:1].expand(len(t)), condition).x0
            return super().denoise(x_t, t, condition).with_x0(x0)


class Random(Sound):
    class stage(Broken):  # noqa: N801
        def denoise(self, x_t, t, condition):
            found = super().denoise(x_t, t, condition)
            return found.with_x0(found.x0 + 1e-4 * torch.rand(()))


class Counting(Sound):
    class stage(Broken):  # noqa: N801
        def __init__(self):
            super().__init__()
            self.network.register_buffer("calls", torch.zeros(()))

        def denoise(self, x_t, t, condition):
            self.network.calls += 1
            return super().denoise(x_t, t, condition)


class Deaf(Sound):
    def encode(self, prompts, batch):
        return None


class Exploding(Sound):
    class stage(Broken):  # noqa: N801
        def denoise(self, x_t, t, condition):
            found = super().denoise(x_t, t, condition)
            between = ((t > 35) & (t < 64))[:, None, None, None]
            return found.with_x0(found.x0.masked_fill(between, torch.nan))


class Adding(Sound):
    class stage(Broken):  # noqa: N801
        def denoise(self, x_t, t, condition):
            return super().denoise(x_t, t, condition).with_x0(3.0 * x_t)


class Detached(Sound):
    class stage(Broken):  # noqa: N801
        def denoise(self, x_t, t, condition):
            return super().denoise(x_t, t, condition).detach()


class Versioned(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.mean, self.spread = inner.mean, inner.spread

    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


class ExtraState(Sound):
    class stage(Broken):  # noqa: N801
        def __init__(self):
            super().__init__()
            self.network = self.inner.network = Versioned(self.network)


class Branching(Sound):
    class stage(Broken):  # noqa: N801
        def denoise(self, x_t, t, condition):
            if x_t.abs().max() > 1e6:
                x_t = x_t.clamp(-1e6, 1e6)
            return super().denoise(x_t, t, condition)


class Lambda(Sound):
    def __init__(self, options, checkpoint):
        super().__init__(options, checkpoint)
        self.words = lambda prompts: prompts
