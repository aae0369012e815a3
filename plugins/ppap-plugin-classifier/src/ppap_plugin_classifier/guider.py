"""Any classifier of timm, torchvision or transformers as a guide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import attrs
import torch
from torch import Tensor, nn

from ppap_figures.classes import draw_top_classes
from ppap_framework.author import (
    Checkpoint,
    ImageInput,
    NoiseLevel,
    Preprocessing,
    PreprocessingGuide,
    Target,
    TargetInput,
    UsageError,
    class_target,
    describe_top_class,
)
from ppap_plugin_classifier import timm_models, torchvision_models
from ppap_plugin_classifier.options import ClassifierOptions
from ppap_plugin_classifier.torchvision_models import of_torchvision
from ppap_plugin_classifier.transformers_models import from_transformers, of_transformers

__all__ = ["ClassifierGuide", "make_classifier"]


def make_classifier(options: ClassifierOptions, checkpoint: Checkpoint | None) -> ClassifierGuide:
    """Factory of the guider `classifier`.

    Raises:
        UsageError: If the model is not specified or unknown, or has no ReLU for `softplus`.
        AssetError: If the checkpoint does not fit, or the weights are unavailable.
    """
    made = _made(options.model, checkpoint)
    if options.softplus is not None:
        _smooth(made.network, options.softplus)
    return made


def _made(model: str | None, checkpoint: Checkpoint | None) -> ClassifierGuide:
    if model is None and checkpoint is None:
        raise UsageError(
            "guider 'classifier' needs a model or a checkpoint",
            hint="type --guider-model resnet50 for timm's weights, torchvision/resnet50 for"
            " torchvision's, a folder or owner/name of the hub, or --guider-checkpoint PATH",
        )
    if not of_torchvision(model) and of_transformers(model, checkpoint):
        return ClassifierGuide(*from_transformers(model, checkpoint))
    if checkpoint is not None and (checkpoint.architecture or not of_torchvision(model)):
        return ClassifierGuide(*timm_models.from_checkpoint(checkpoint, model))
    assert model is not None
    if not of_torchvision(model):
        return ClassifierGuide(*timm_models.from_hub(model))
    if checkpoint is not None:
        return ClassifierGuide(*torchvision_models.from_checkpoint(checkpoint, model))
    return ClassifierGuide(*torchvision_models.from_torchvision(model))


def _smooth(network: nn.Module, beta: float) -> None:
    """Replace each ReLU by a softplus; UsageError if there is none."""
    found = [
        (module, name)
        for module in network.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ReLU)
    ]
    if not found:
        reason = f"option softplus: {type(network).__name__} has no ReLU to replace"
        raise UsageError(reason, hint="leave it out, or take a ResNet")
    for module, name in found:
        setattr(module, name, nn.Softplus(beta))


@final
class ClassifierGuide(PreprocessingGuide):
    """A frozen classifier with its preprocessing and class names.

    The network is shown what its library's evaluation transforms show it. If these crop to the
    center, guidance does not reach the border. A `Preprocessing`, such as a checkpoint's own
    `input_size`, shows the whole image.

    Args:
        network: Maps images (B, 3, size, size) to logits (B, K).
        class_names: Names of the K classes, in order.
        shown: Resize and normalisation of the network.
    """

    def __init__(
        self, network: nn.Module, class_names: Sequence[str], shown: Preprocessing | ImageInput
    ) -> None:
        super().__init__()
        # Convolutions of this layout are faster: a ResNet-50's gradient takes two thirds the time.
        self.network = network.to(memory_format=torch.channels_last)
        self.class_names = tuple(class_names)
        if isinstance(shown, Preprocessing):
            shown = ImageInput(**attrs.asdict(shown))
        self.shown = shown
        self.eval().requires_grad_(False)

    def preprocessed(self, preprocessing: Preprocessing) -> ClassifierGuide:
        """See `PreprocessingGuide.preprocessed`."""
        other = ClassifierGuide(self.network, self.class_names, preprocessing)
        other.shown.to(next(self.shown.buffers()))  # device and dtype
        return other

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Tensor:
        """Logits (B, K) of images (B, 3, H, W); the noise level is ignored."""
        said = self.network(self.shown(images).contiguous(memory_format=torch.channels_last))
        logits: Tensor = said if isinstance(said, Tensor) else said.logits  # of transformers
        return logits

    def target(self, given: TargetInput) -> Target:
        """Read a class by index, name or unambiguous part of a name; B indices; or a picture, whose
        predicted class becomes the target.
        """
        device = next(self.network.parameters()).device
        return class_target(given, self.class_names, lambda images: self(images.to(device)))

    def render(self, prediction: Tensor, images: Tensor) -> Tensor:
        """Each image beside its five likeliest classes: (B, 3, 144, 288)."""
        return draw_top_classes(prediction, images, self.class_names)

    def describe(self, prediction: Tensor) -> list[str]:
        """The likeliest class of each image, such as "red cube 0.97"."""
        return describe_top_class(prediction, self.class_names)
