"""The conformance suite of backends."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

import ppap_framework as ppap
from ppap_framework.components import CascadedStage, Prediction, Stage
from ppap_framework.errors import PluginError, PpapError, UsageError
from ppap_framework.run import LoadedBackend, plan
from ppap_framework.run.estimate import estimate
from ppap_framework.runtime import evaluating, isolated
from ppap_testing.probes import close, finite, safetensors_copy, same, scrambled, tensors_in
from ppap_testing.suite import Conformance, NotConformingError, require, shared, skip

_NOISE = 0.1  # alpha_T at most, since x_T is drawn from N(0, I)
_BATCH = 2


class BackendConformance(Conformance):
    """Checks of a backend, at its first stage; later ones are drawn.

    Attributes:
        checkpoint: Name or path of its weights; None for the default.
        prompts: Two prompts, if it takes any.
        trained: Whether its weights are trained, so that it removes noise.
    """

    kind = "backend"
    checkpoint: ClassVar[str | None] = None
    prompts: ClassVar[Sequence[str]] = ("a red cube", "a blue sphere")
    trained: ClassVar[bool] = True

    @shared
    def made(self) -> LoadedBackend:
        return ppap.backend(self.component, checkpoint=self.checkpoint, options=self.options)

    @property
    def stage(self) -> Stage:
        return self.made().stages[0]

    def _times(self) -> Tensor:
        last = self.stage.schedule.num_timesteps - 1
        return torch.tensor([last // 3, (2 * last) // 3])

    def _noisy(self) -> Tensor:
        generator = torch.Generator("cpu").manual_seed(0)
        return torch.randn(_BATCH, *self.stage.image_shape, generator=generator)

    def _denoised(
        self, x_t: Tensor, t: Tensor, condition: Any = None, stage: Any = None
    ) -> Prediction:
        stage = stage or self.stage
        with isolated(), evaluating(stage.network):
            condition = condition or self.made().encode(None, len(x_t))
            return stage.denoise(x_t, t, condition)  # type: ignore[no-any-return]  # a stage

    @shared
    def predicted(self) -> Prediction:
        last = self.stage.schedule.num_timesteps - 1
        with torch.no_grad():
            for t in (0, last):
                found = self._denoised(self._noisy(), torch.tensor([t] * _BATCH))
                require(
                    finite(found._x0 if found._eps is None else found._eps),
                    f"at timestep {t} the prediction is not finite",
                    "compute in float32, and divide by nothing that is 0 at an end of the schedule",
                )
            return self._denoised(self._noisy(), self._times())

    @shared
    def repeated(self) -> Prediction:
        """The prediction, which is the same every time."""
        first = self.predicted()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(12345)
            again = self._denoised(self._noisy(), self._times())
        require(
            same(first.x0, again.x0),
            "the same images are denoised differently the second time",
            "draw nothing at random in `denoise`: noise comes from the sampler",
        )
        return first

    @shared
    def drawn(self) -> Tensor:
        """Images of the first stage, drawn in few steps: (B, 3, H, W) in [-1, 1]."""
        self.predicted()
        stages = self.made().stages
        last = stages[0].name if len(stages) > 1 else None
        images = ppap.sample(self.made(), num=_BATCH, steps=5, seed=0, stage=last).images
        require(
            finite(images),
            "the images that it draws are not finite",
            "look at the predictions at every timestep",
        )
        return images

    @shared
    def staged(self) -> Sequence[Stage]:
        stages = self.made().stages
        names = [stage.name for stage in stages]
        require(
            len(set(names)) == len(names) > 0,
            f"the stages are called {names}",
            "give each stage a name of its own",
        )
        require(
            not isinstance(stages[0], CascadedStage)
            and all(isinstance(stage, CascadedStage) for stage in stages[1:]),
            "the first stage must be a Stage, and later ones CascadedStages",
            "derive a stage that refines images from CascadedStage",
        )
        require(
            all(
                isinstance(stage.network, torch.nn.Module) and min(stage.image_shape) > 0
                for stage in stages
            ),
            "a stage has no network or no size",
            "set `network` and `image_shape` of each stage",
        )
        return stages

    def test_stages(self) -> None:
        """stages have names of their own, sizes and networks, and the first one stands alone"""
        self.staged(first=True)

    def test_predictions(self) -> None:
        """predictions are finite at every timestep"""
        self.made()
        self.predicted(first=True)

    def test_the_schedule_is_kept(self) -> None:
        """predictions state alpha and sigma of their timesteps, and the x_t that was given"""
        found, abar = self.predicted(), self.stage.schedule.alphas_cumprod[self._times()]
        wanted = {"alpha": abar.sqrt(), "sigma": (1.0 - abar).sqrt()}
        for name, value in wanted.items():
            stated = getattr(found, name).double().flatten()
            require(
                torch.allclose(stated, value, rtol=1e-4, atol=1e-6),
                f"at t = {self._times().tolist()} it states {name} = {stated.tolist()}, "
                f"and the schedule says {value.tolist()}",
                "take alpha = sqrt(abar_t), sigma = sqrt(1 - abar_t) of `self.schedule`, at t",
            )
        require(
            torch.equal(found.x_t, self._noisy()),
            "the prediction's x_t is not the noisy image that was given",
            "give the Prediction the x_t that `denoise` got, unscaled",
        )

    def test_eps_and_x0_agree(self) -> None:
        """x_t is alpha x0 + sigma eps, and eps and x0 follow from each other"""
        found, x_t = self.predicted(), self._noisy()
        x0, eps = found.x0, found.eps
        again = found.alpha.to(x0) * x0 + found.sigma.to(x0) * eps
        require(
            close(again, x_t, 1e-3)
            and close(found.with_eps(eps).x0, x0, 1e-2)
            and close(found.with_x0(x0).eps, eps, 1e-2),
            "alpha x0 + sigma eps is not x_t",
            "make the prediction by from_eps, from_x0 or from_v, with alpha^2 + sigma^2 = 1",
        )

    def test_the_schedule_is_monotone(self) -> None:
        """noise grows from timestep to timestep, up to nearly nothing else"""
        for stage in self.made().stages:
            abar = stage.schedule.alphas_cumprod
            require(
                bool((abar.diff() < 0).all()) and len(abar) > 1,
                f"abar of stage {stage.name} does not fall from timestep to timestep",
                "order the betas from the least to the most noise",
            )
            require(
                abar[-1].sqrt() <= _NOISE,
                f"at its last timestep {abar[-1].sqrt():.2g} of the image are left in stage "
                f"{stage.name}, and drawing begins with noise alone",
                f"use a schedule that ends with alpha below {_NOISE}",
            )

    def test_images_are_denoised_independently(self) -> None:
        """an image's prediction does not depend on the rest of the batch"""
        together, x_t, t = self.predicted(), self._noisy(), self._times()
        with torch.no_grad():
            for row in range(_BATCH):
                alone = self._denoised(x_t[[row]], t[[row]])
                require(
                    close(together.x0[[row]], alone.x0, 1e-2),
                    "an image is denoised differently if another one is in its batch",
                    "use each image's own timestep, and normalize nothing over dimension 0",
                )

    def test_the_same_image_is_denoised_the_same(self) -> None:
        """predictions are the same every time"""
        self.repeated(first=True)

    def test_nothing_else_is_changed(self) -> None:
        """a call changes neither its image nor the network, nor its mode"""
        self.predicted()
        network = self.stage.network
        before = tensors_in(network.state_dict())
        x_t = self._noisy()
        with torch.no_grad(), evaluating(network):
            self.stage.denoise(x_t, self._times(), self.made().encode(None, _BATCH))
            evaluates = not any(module.training for module in network.modules())
        after = tensors_in(network.state_dict())
        changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
        changed += [] if torch.equal(x_t, self._noisy()) else ["x_t"]
        changed += [] if evaluates else ["the training mode"]
        require(
            not changed, f"`denoise` changes {changed[:3]}", "compute new tensors, never in place"
        )

    def test_prompts(self) -> None:
        """prompts are used, or refused with a hint"""
        self.predicted()
        prompts = (list(self.prompts) * _BATCH)[:_BATCH]
        try:
            condition = self.made().encode(prompts, _BATCH)
        except UsageError as error:
            require(
                error.hint,
                f"prompts are refused without a hint: {error.message}",
                'raise UsageError(fault, hint="leave out --prompt")',
            )
            return
        with torch.no_grad():
            found = self._denoised(self._noisy(), self._times(), condition)
        require(
            finite(found.x0) and not same(found.x0, self.predicted().x0),
            "prompts are accepted, and change nothing",
            "raise UsageError in `encode` if there are prompts and the model takes none",
        )

    def test_it_draws(self) -> None:
        """it draws finite images from noise"""
        self.drawn(first=True)

    def test_it_removes_noise(self) -> None:
        """its prediction is nearer to the clean image than the noisy image is"""
        if not self.trained:
            skip("its weights are not trained")
        clean, stage = self.drawn().float(), self.stage
        generator = torch.Generator("cpu").manual_seed(3)
        noise = torch.randn(clean.shape, generator=generator)
        t = stage.schedule.log_snr.abs().argmin().expand(_BATCH)
        x_t = stage.schedule.add_noise(clean, t, noise)
        with torch.no_grad():
            x0 = self._denoised(x_t, t).x0
        wrong, trivial = ((y - clean).square().mean() for y in (x0, x_t))
        require(
            wrong < trivial,
            f"at log-SNR 0 the squared error of x0 is {wrong:.3g}, that of x_t {trivial:.3g}",
            "check what the network predicts (eps, x0 or v) and that images are in [-1, 1]",
        )

    def test_it_is_differentiable(self) -> None:
        """the prediction can be differentiated in x_t, as with --through clean"""
        self.predicted()
        x_t = self._noisy().requires_grad_()
        x0 = self._denoised(x_t, self._times()).x0
        require(
            x0.requires_grad and self._differs(x0, x_t),
            "x0 is no differentiable function of x_t",
            "leave no_grad to the framework, and detach nothing in `denoise`",
        )

    def _differs(self, x0: Tensor, x_t: Tensor) -> bool:
        """Whether x0 has another gradient than the term alpha x_t or x_t / alpha has."""
        (gradient,) = torch.autograd.grad(x0.sum(), x_t)
        found = self.predicted()
        scale = found.alpha if found._eps is None else 1.0 / found.alpha
        plain = scale.to(gradient).expand_as(gradient)
        return finite(gradient) and not close(gradient, plain, 1e-6)

    def test_weights_are_saved(self) -> None:
        """the networks' weights can be saved as safetensors, and loaded again"""
        expected = self.repeated()
        network = self.stage.network
        kept = copy.deepcopy(network.state_dict())
        state = safetensors_copy(network.state_dict())
        try:
            scrambled(network)
            network.load_state_dict(state)
            with torch.no_grad():
                found = self._denoised(self._noisy(), self._times())
        finally:
            network.load_state_dict(kept)
        require(
            same(found.x0, expected.x0),
            "after loading the weights that it saved, it predicts something else",
            "register every tensor that it computes with as a parameter or buffer",
        )

    def test_its_cost_is_known(self) -> None:
        """its cost can be counted on fake tensors, as `ppap run --dry-run` does"""
        self.predicted(), self.staged()
        try:
            estimate(plan(self.made(), (), 1, ppap.Sampling(steps=2), ppap.Compute(device="cpu")))
        except (PluginError, PpapError) as error:
            raise NotConformingError(
                error.message,
                "avoid item(), numpy and branches on values of tensors in `denoise`",
            ) from error

    def test_it_is_pickled(self) -> None:
        """it can be pickled, for the worker processes of `ppap synthesize`"""
        self.repeated()
        try:
            stage = pickle.loads(pickle.dumps(self.made())).stages[0]
        except Exception as error:
            raise NotConformingError(
                f"it cannot be pickled: {error}",
                "use functions and classes of modules, not lambdas, in its attributes",
            ) from error
        with torch.no_grad():
            found = self._denoised(self._noisy(), self._times(), stage=stage)
        require(
            same(found.x0, self.repeated().x0),
            "its copy predicts something else",
            "keep what it computes with in attributes, not in globals",
        )
