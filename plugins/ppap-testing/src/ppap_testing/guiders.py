"""The conformance suite of guiders."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ppap_framework.errors import PluginError, PpapError
from ppap_framework.noise import NoiseLevel
from ppap_framework.plugin import GuiderSpec
from ppap_framework.predictions import tensors_of, widened
from ppap_framework.runtime import attending, computing_in, evaluating, isolated
from ppap_testing.guider_targets import LONGEST, TargetChecks
from ppap_testing.probes import (
    close,
    finite,
    pictures,
    safetensors_copy,
    same,
    scrambled,
    slope_fault,
    tensors_in,
)
from ppap_testing.suite import NotConformingError, require, shared, skip

_FORMS = {"classification": "(B, K)", "depth": "(B, h, w)", "segmentation": "(B, K, h, w)"}
_BATCH = 2


def _shapes(tensors: Sequence[Tensor]) -> str:
    return " and ".join(str(tuple(tensor.shape)) for tensor in tensors)


class GuiderConformance(TargetChecks):
    """Checks of a guider.

    Attributes:
        checkpoint: Name or path of its weights; None for the default.
        target: A target, as `ppap.guide` takes it; None for the default one.
        takes_pictures: Whether it fails a check if it refuses pictures as targets, without which
            its experts cannot be calibrated.
        bad_targets: Targets that it must refuse.
        sizes: Heights and widths of images; the first is that of most checks.
    """

    sizes: ClassVar[Sequence[tuple[int, int]]] = ((64, 64), (40, 56), (65, 33))

    @shared
    def twin(self) -> Any:
        """A copy of the component."""
        return copy.deepcopy(self.made())

    def _copy(self) -> Any:
        self.twin()
        return copy.deepcopy(self.made())

    @property
    def _aware(self) -> bool:
        spec = self.spec
        return isinstance(spec, GuiderSpec) and spec.noise_aware

    def _seen(self, images: Tensor, model: Any = None, snr: float = 0.0) -> Any:
        """The prediction in evaluation mode."""
        model = self.made() if model is None else model
        level = NoiseLevel(torch.full((len(images),), snr, dtype=torch.float64))
        with isolated(), evaluating(model):
            return model(images, level if self._aware else None)

    def _images(self, size: int = 0, batch: int = _BATCH) -> Tensor:
        return pictures(batch, self.sizes[size])

    def _energy(self, images: Tensor) -> Tensor:
        aim = self.aim()
        prediction = widened(self._seen(images))
        return self.guide().loss.energy(prediction, aim.value)

    @shared
    def predicted(self) -> Any:
        with torch.no_grad():
            seen = self._seen(self._images())
        found = tensors_of(seen)
        require(
            any(tensor.is_floating_point() for tensor in found) and finite(found),
            f"the predictions {_shapes(found)} are not finite floating-point numbers",
            "return logits, maps or embeddings of images in [-1, 1], whatever their values there",
        )
        return seen

    @shared
    def repeated(self) -> Any:
        """The prediction, which is the same every time."""
        first, images = self.predicted(), self._images()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(12345)
            again = self._seen(images)
        require(
            same(first, again),
            "the same images are read differently the second time",
            "draw nothing at random and keep no state between calls in evaluation mode",
        )
        return first

    @shared
    def energies(self) -> Tensor:
        self.predicted()
        with torch.no_grad():
            energy = self._energy(self._images())
        require(
            energy.shape == (_BATCH,) and finite(energy),
            f"for the target {self.aim().label!r} the energies of {_BATCH} images are {energy}",
            "let `target` make what the default loss compares with a prediction",
        )
        return energy

    @shared
    def gradient(self) -> Tensor:
        """The gradient of the sum of all energies in the images."""
        self.energies()
        images = self._images().requires_grad_()
        energy = self._energy(images).sum()
        require(
            energy.requires_grad,
            "the energy does not depend on the images differentiably",
            "use torch's operations on the images in `forward`, without no_grad, detach or numpy",
        )
        (gradient,) = torch.autograd.grad(energy, images)
        norms = gradient.flatten(1).norm(dim=1)
        require(
            finite(gradient) and bool((norms > 0).all()),
            f"the gradients of the energy have the norms {norms.tolist()}",
            "avoid rounding, argmax and comparisons in `forward`, and square roots and logs of 0",
        )
        return gradient

    def test_predictions(self) -> None:
        """predictions have B rows, are finite, and have the form of the task"""
        found = tensors_of(self.predicted(first=True))
        form = _FORMS.get(getattr(self.spec, "task", ""))
        fits = form is None or (len(found) == 1 and found[0].ndim == form.count(",") + 1)
        require(
            fits,
            f"the predictions have the shapes {_shapes(found)}, and the task's losses read {form}",
            "return that form, or state a task of your own in the spec, with a loss for it",
        )

    def test_images_of_any_size(self) -> None:
        """images of other sizes and numbers are accepted"""
        self.predicted()
        for index, size in enumerate(self.sizes[1:], 1):
            batch = 1 if index % 2 else 3
            with torch.no_grad():
                found = self._seen(self._images(index, batch))
            require(
                finite(found) and {len(tensor) for tensor in tensors_of(found)} == {batch},
                f"the prediction of {batch} images of {size} is not finite, or of another number",
                "resize in `forward`, differentiably, as `ImageInput` of the author API does",
            )

    def test_images_are_read_independently(self) -> None:
        """an image's prediction does not depend on the rest of the batch"""
        together, images = self.predicted(), self._images()
        with torch.no_grad():
            for row in range(_BATCH):
                alone = self._seen(images[[row]])
                own = [tensor[[row]] for tensor in tensors_of(together)]
                require(
                    close(own, tensors_of(alone), 1e-3),
                    "an image is read differently if another one is in its batch",
                    "normalize each image alone, not over dimension 0",
                )

    def test_the_same_image_is_read_the_same(self) -> None:
        """predictions are the same every time"""
        self.repeated(first=True)

    def test_modes_are_left_alone(self) -> None:
        """a call does not change the training mode"""
        self.predicted()
        for mode in (False, True):
            model = self._copy().train(mode)
            model(self._images(), NoiseLevel.clean(_BATCH) if self._aware else None)
            require(
                all(module.training == mode for module in model.modules()),
                f"a call in {'training' if mode else 'evaluation'} mode changes the mode",
                "leave train() and eval() to the framework; nothing in `forward` calls them",
            )

    def test_weights_are_left_alone(self) -> None:
        """a call in evaluation mode changes no parameter and no buffer"""
        self.predicted()
        model = self._copy()
        before = tensors_in(model.state_dict())
        self._seen(self._images(), model)
        after = tensors_in(model.state_dict())
        changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
        require(
            not changed,
            f"a call changes {changed[:3]}",
            "update statistics in training mode only",
        )

    def test_images_are_left_alone(self) -> None:
        """a call does not change its images"""
        self.predicted()
        images = self._images()
        with torch.no_grad():
            self._seen(images)
        require(
            torch.equal(images, self._images()),
            "a call changes the images that it was given",
            "write `images = images * 2`, not `images *= 2`",
        )

    def test_the_energy_fits(self) -> None:
        """the guider's loss compares its predictions with its target"""
        self.energies(first=True)

    def test_the_gradient_guides(self) -> None:
        """the energy's gradient is finite and not zero"""
        self.gradient(first=True)

    def test_the_gradient_is_right(self) -> None:
        """the gradient in the images agrees with differences in float64"""
        self.repeated()
        model, images = self._copy().double(), self._images().double()
        try:
            found = tensors_of(self._seen(images, model))
        except (PpapError, RuntimeError):
            found = []
        found = [tensor for tensor in found if tensor.is_floating_point()]
        if not found or any(tensor.dtype != torch.float64 for tensor in found):
            skip("it computes in another precision than float64")
        generator = torch.Generator("cpu").manual_seed(2)
        weights = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in found]

        def projected(x: Tensor) -> Tensor:
            seen = [
                tensor for tensor in tensors_of(self._seen(x, model)) if tensor.is_floating_point()
            ]
            return torch.stack([(w * s).sum() for w, s in zip(weights, seen, strict=True)]).sum()

        try:
            fault = slope_fault(projected, images, 1e-6, 1e-2)
        except ZeroDivisionError:
            skip("it has no gradient")
        require(
            not fault,
            f"the gradient is wrong: {fault}",
            "detach nothing that depends on the images, and check your own backward passes",
        )

    def test_the_network_belongs_to_it(self) -> None:
        """`network` is a submodule, so that it moves with the guider"""
        model = self.made()
        require(
            any(module is model.network for module in model.modules() if module is not model),
            "`network` is no submodule of the guider",
            "set `self.network = network` after super().__init__(), and not by a property",
        )

    def test_other_devices(self) -> None:
        """`forward` makes its tensors on the images' device"""
        self.predicted()
        model = self._copy().to("meta")
        try:
            with torch.no_grad():
                found = tensors_of(self._seen(self._images().to("meta"), model))
        except PluginError as error:
            if not any(word in error.message for word in ("meta", "device")):
                raise
            raise NotConformingError(
                f"it computes on the CPU what belongs to another device: {error.message}",
                "make tensors with device=images.device, and constants as buffers; avoid item()",
            ) from error
        require(
            all(tensor.device.type == "meta" for tensor in found),
            "the prediction is not on the device of the images",
            "make tensors with device=images.device",
        )

    def test_lower_precision(self) -> None:
        """it works in bfloat16, as with --precision bfloat16"""
        self.gradient()
        try:
            cpu = torch.device("cpu")
            with computing_in("bfloat16", cpu), attending(cpu):
                images = self._images().requires_grad_()
                (gradient,) = torch.autograd.grad(self._energy(images).sum(), images)
        except (PluginError, RuntimeError) as error:
            raise NotConformingError(
                f"it cannot compute in bfloat16: {error}",
                "convert what needs float32 with .float() first",
            ) from error
        require(finite(gradient), "its gradient in bfloat16 is not finite", "use .float() first")

    def test_noise_levels(self) -> None:
        """it reads the noise level if it is noise-aware, and ignores it otherwise"""
        expected, model = self.repeated(), self.made()
        with isolated(), evaluating(model), torch.no_grad():
            for snr in (torch.inf, 0.0, -20.0):
                level = NoiseLevel(torch.full((_BATCH,), snr, dtype=torch.float64))
                found = model(self._images(), level)
                require(
                    finite(found),
                    f"at the log-SNR {snr} the prediction is not finite",
                    "accept any level: inf is a clean image",
                )
                require(
                    self._aware or same(found, expected),
                    "it answers differently if it is told the noise level",
                    "set noise_aware=True in the spec, or ignore `level`",
                )
            require(
                not self._aware or not same(model(self._images(), NoiseLevel.clean(_BATCH)), found),
                "its prediction does not depend on the noise level",
                "leave out noise_aware=True in the spec, or use `level`",
            )

    def test_drawings(self) -> None:
        """`render` draws in [-1, 1]"""
        drawn = self.made().render(self.predicted(), self._images())
        require(
            bool(drawn.abs().max() <= 1.001),
            f"`render` draws numbers from {drawn.min():.3g} to {drawn.max():.3g}",
            "scale them to [-1, 1]",
        )

    def test_descriptions(self) -> None:
        """`describe` says a few words on each image"""
        said = self.made().describe(self.predicted())
        require(
            all(0 < len(words) <= LONGEST and "\n" not in words for words in said),
            f"`describe` says {said!r:.100}",
            f"say one line of at most {LONGEST} characters on each image, or return []",
        )

    def test_weights_are_saved(self) -> None:
        """the network's weights can be saved as safetensors, and loaded again"""
        expected, model = self.repeated(), self._copy()
        state = safetensors_copy(model.network.state_dict())
        scrambled(model.network)
        model.network.load_state_dict(state)
        with torch.no_grad():
            found = self._seen(self._images(), model)
        require(
            same(found, expected),
            "after loading the weights that it saved, it reads images differently",
            "register every tensor that it computes with as a parameter or buffer",
        )

    def test_it_is_copied(self) -> None:
        """a copy is independent and reads images the same"""
        expected = self.repeated()
        try:
            model = self.twin(first=True)
        except Exception as error:
            raise NotConformingError(
                f"it cannot be copied: {error}",
                "keep no locks, files or graphs in its attributes: its cost is counted on a copy",
            ) from error
        with torch.no_grad():
            found = self._seen(self._images(), model)
            require(same(found, expected), "its copy reads images differently", "copy all of it")
            scrambled(model.network)
            require(
                same(self._seen(self._images()), expected),
                "a change of its copy changes itself",
                "leave __deepcopy__ to torch",
            )
