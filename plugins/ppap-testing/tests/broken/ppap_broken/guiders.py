"""Guiders of the mean colour of images, (B, 3)."""

import threading

import torch
from torch import nn

from ppap_framework.author import GuidanceModel, Target


class Sound(GuidanceModel):
    def __init__(self, options, checkpoint):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = nn.Linear(3, 3)

    def seen(self, images):
        return self.network(images.mean((2, 3)))

    def forward(self, images, level=None):
        return self.seen(images)

    def target(self, given):
        return Target(value=torch.full((1, 3), given.number()), label=given.text)


class Unmakeable(Sound):
    def __init__(self, options, checkpoint):
        raise RuntimeError("no such network")


class Pixelwise(Sound):
    """Half of what it says is infinite, and its loss reads the other half."""

    def forward(self, images, level=None):
        seen = self.seen(images)
        return seen, torch.full_like(seen.detach(), torch.inf)


class OneSize(Sound):
    def forward(self, images, level=None):
        if images.shape[-1] != 64:
            raise ValueError("64 pixels, please")
        return self.seen(images)


class BatchNormalized(Sound):
    def forward(self, images, level=None):
        seen = self.seen(images)
        return seen - 0.5 * seen.mean(0)


class Random(Sound):
    def forward(self, images, level=None):
        return self.seen(images) + 1e-6 * torch.rand((), device=images.device)


class Switching(Sound):
    def forward(self, images, level=None):
        self.eval()
        return self.seen(images)


class Counting(Sound):
    def __init__(self, options, checkpoint):
        super().__init__(options, checkpoint)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images, level=None):
        self.calls += 1
        return self.seen(images)


class InPlace(Sound):
    def forward(self, images, level=None):
        seen = self.seen(images)
        if not images.requires_grad:
            images *= 0.5
        return seen


class FarTarget(Sound):
    def target(self, given):
        return Target(
            value=torch.full((1, 3), torch.inf if given.number() == 0.3 else 0.0), label="x"
        )


class Rounded(Sound):
    def forward(self, images, level=None):
        seen = self.seen(images)
        return seen.round() + 0.0 * seen


class HalfDetached(Sound):
    def forward(self, images, level=None):
        return self.seen(images) + self.seen(images.detach() ** 3)


class Unregistered(Sound):
    def __init__(self, options, checkpoint):
        super().__init__(options, checkpoint)
        self.inner = self.network
        del self.network

    @property
    def network(self):
        return Renamed(self.inner)

    def seen(self, images):
        return self.inner(images.mean((2, 3)))


class Renamed(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner


class OnTheCpu(Sound):
    def forward(self, images, level=None):
        return self.seen(images) + torch.ones(3, dtype=images.dtype)


class Scattering(Sound):
    def forward(self, images, level=None):
        seen = self.seen(images)
        order = torch.arange(3, device=seen.device).expand_as(seen)
        return torch.zeros_like(images[:, :, 0, 0]).scatter(1, order, seen)


class Listening(Sound):
    def forward(self, images, level=None):
        seen = self.seen(images)
        return seen if level is None else seen + level.sigma.to(seen)[:, None]


class Training(Sound):
    def __init__(self, options, checkpoint):
        super().__init__(options, checkpoint)
        self.network = nn.Sequential(self.network, nn.Dropout(0.5))


class Rambling(Sound):
    def target(self, given):
        return Target(value=torch.full((1, 3), given.number()), label="so " * 100)


class Careless(Sound):
    def target(self, given):
        return Target(value=torch.full((1, 3), float(given.text)), label=given.text)


class Gullible(Sound):
    def target(self, given):
        number = 0.0 if given.text == "dusk" else given.number()
        return Target(value=torch.full((1, 3), number), label=given.text)


class TwoColours(Sound):
    """What it makes of a picture is nothing that its loss can compare."""

    def target(self, given):
        if given.image is not None:
            return Target(value=given.pixels().mean((1, 2))[None, :2], label="a picture")
        return super().target(given)


class Glaring(Sound):
    def render(self, prediction, images):
        return 255.0 * images


class Chatty(Sound):
    def describe(self, prediction):
        return ["a\nb"] * len(prediction)


class ExtraState(Sound):
    def __init__(self, options, checkpoint):
        super().__init__(options, checkpoint)
        self.network = Versioned(3, 3)


class Versioned(nn.Linear):
    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


class Locked(Sound):
    def __init__(self, options, checkpoint):
        super().__init__(options, checkpoint)
        self.lock = threading.Lock()
