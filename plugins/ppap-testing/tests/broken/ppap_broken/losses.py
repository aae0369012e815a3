"""Losses of classification, and that of the broken guiders."""

from torch import nn

from ppap_framework.author import TaskLoss


class ColourLoss(TaskLoss):
    def energy(self, prediction, target):
        seen = prediction[0] if isinstance(prediction, tuple) else prediction
        return (seen - target).square().mean(1)


class Sound(TaskLoss):
    def energy(self, prediction, target):
        classes = target.expand(len(prediction))
        return nn.functional.cross_entropy(prediction, classes, reduction="none")

    def transfer(self, student, teacher):
        return (student - teacher).square().mean(1)


class Unmakeable(Sound):
    def __init__(self, options=None):
        raise RuntimeError("no such loss")


class LogOfZero(Sound):
    def energy(self, prediction, target):
        energy = super().energy(prediction, target)
        return energy + (energy * 0.0).log()


class FirstOnly(Sound):
    def energy(self, prediction, target):
        energy = super().energy(prediction, target)
        return energy if len(target) == 1 else energy * 2.0


class BatchMean(Sound):
    def energy(self, prediction, target):
        energy = super().energy(prediction, target)
        return energy + 0.1 * energy.mean()


class Counted(Sound):
    def energy(self, prediction, target):
        return super().energy(prediction, target).round(decimals=3) + 0.0 * prediction.sum(1)


class HalfDetached(Sound):
    def energy(self, prediction, target):
        return super().energy(prediction * prediction.detach().abs().amax(1, keepdim=True), target)


class Likelihood(Sound):
    def energy(self, prediction, target):
        return -super().energy(prediction, target)


class InPlace(Sound):
    def energy(self, prediction, target):
        energy = super().energy(prediction.clone(), target)
        if not prediction.requires_grad:
            prediction.neg_()
        return energy


class Reversed(Sound):
    def transfer(self, student, teacher):
        return -super().transfer(student, teacher)


class Norm(Sound):
    def transfer(self, student, teacher):
        return super().transfer(student, teacher).sqrt()


class Undefined(Sound):
    def metrics(self, prediction, target):
        return {"ratio": prediction[:, 0] / 0.0}
