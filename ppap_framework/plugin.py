"""The torch-free part of the author API: what a plugin's spec module imports.

A plugin is a module that an entry point of the group `ppap` names. It states the version of this
interface that it was written for and implements some of the `Hooks`:

    from ppap_framework.plugin import GuiderSpec, hookimpl

    PPAP_API = (1, 0)

    @hookimpl
    def ppap_guiders():
        return [GuiderSpec(name="mine", summary="...", factory="my_package.guider:MyGuider",
                           task="classification", default_loss="cross-entropy")]

The factory is imported only when the component is made, and may import `ppap_framework.author`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import attrs
import pluggy
from attrs.validators import in_, instance_of, optional

from ppap_framework.errors import AssetError, PluginError, PpapError, UsageError, must_be

__all__ = [
    "PPAP_API",
    "AdapterSpec",
    "Asset",
    "AssetError",
    "AssetFile",
    "BackendSpec",
    "Card",
    "ComponentKind",
    "ComponentSpec",
    "DefaultTarget",
    "ExpertBundle",
    "GuiderSpec",
    "PluginError",
    "PpapError",
    "TaskLossSpec",
    "UsageError",
    "hookimpl",
]

PPAP_API = (1, 0)
"""(major, minor). A plugin of another major version, or of a later minor one, is refused."""

ComponentKind = Literal["backend", "guider", "loss", "adapter"]
CardKind = Literal["backend", "guider"]

hookimpl, hookspec = pluggy.HookimplMarker("ppap"), pluggy.HookspecMarker("ppap")


def _like(what: str, pattern: str) -> Callable[[Any, Any, Any], None]:
    return must_be(what, lambda value: isinstance(value, str) and re.fullmatch(pattern, value))


_name = _like(
    'lower-case words joined by hyphens, and neither "none" nor "auto"',
    r"(?!(none|auto)$)[a-z0-9]+(-[a-z0-9]+)*",
)
_factory = _like(
    'a string "package.module:attribute"', r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
)
_text = instance_of(str)
_flag = instance_of(bool)
_count = instance_of(int)


@attrs.frozen(kw_only=True)
class ComponentSpec:
    """The record of a component; use one of the four kinds below.

    Attributes:
        name: Name as in `--guider NAME`; lower-case words joined by hyphens.
        summary: One line for `ppap plugins list`.
        factory: "package.module:attribute" of a callable that makes the component.
        options: "package.module:attribute" of an attrs class whose fields are the options; None
            for no options. The factory's first argument is an instance of it, or None.
        licence: SPDX identifier of the component's own code, if stated.
    """

    kind: ClassVar[ComponentKind]
    makes: ClassVar[str]  # the class of `ppap_framework.components` of what the factory returns
    name: str = attrs.field(validator=_name)
    summary: str = attrs.field(validator=_text)
    factory: str = attrs.field(validator=_factory)
    options: str | None = attrs.field(default=None, validator=optional(_factory))
    licence: str | None = attrs.field(default=None, validator=optional(_text))


@attrs.frozen(kw_only=True)
class BackendSpec(ComponentSpec):
    """A diffusion model; `factory(options, checkpoint)` gets a `Checkpoint`, or None if it has no
    cards, the user names no file, and `needs_checkpoint` is False.

    Attributes:
        opens: "package.module:attribute" of a function that makes the `Checkpoint` of what the user
            names, a string or a path, if checkpoints are more than files; None for files and cards.
        wraps: Class, as "package.module.Class", whose objects, already loaded, the factory takes in
            place of a `Checkpoint`, for `ppap_framework.backend(object)`.
    """

    kind = "backend"
    makes = "DiffusionBackend"

    needs_checkpoint: bool = attrs.field(default=True, validator=_flag)
    opens: str | None = attrs.field(default=None, validator=optional(_factory))
    wraps: str | None = attrs.field(default=None, validator=optional(_text))


@attrs.frozen(kw_only=True)
class GuiderSpec(ComponentSpec):
    """A network that can guide; `factory(options, checkpoint)` gets a `Checkpoint` or None.

    Attributes:
        task: Task such as "classification", "depth", "segmentation".
        default_loss: Name of the default task loss.
        noise_aware: Whether it was trained on noised images; `ppap adapt` declines it then.
        needs_checkpoint: Whether it can only be made from a checkpoint.
    """

    kind = "guider"
    makes = "GuidanceModel"

    task: str = attrs.field(validator=_text)
    default_loss: str = attrs.field(validator=_name)
    noise_aware: bool = attrs.field(default=False, validator=_flag)
    needs_checkpoint: bool = attrs.field(default=True, validator=_flag)


@attrs.frozen(kw_only=True)
class TaskLossSpec(ComponentSpec):
    """A distance of predictions of a task from targets, made by `factory(options)`."""

    kind = "loss"
    makes = "TaskLoss"

    task: str = attrs.field(validator=_text)


@attrs.frozen(kw_only=True)
class AdapterSpec(ComponentSpec):
    """A way to fine-tune few parameters, made by `factory(options)`.

    `default` holds the options with which it is used by default; None if it is not. One that
    `reads_latents` is added for diffusion models of latents, with their shapes, "latents" (C, h, w)
    and "images" (3, H, W), as options.
    """

    kind = "adapter"
    makes = "ExpertAdapter"

    default: Mapping[str, Any] | None = attrs.field(
        default=None, validator=optional(instance_of(dict))
    )
    reads_latents: bool = attrs.field(default=False, validator=_flag)


@attrs.frozen(kw_only=True)
class AssetFile:
    """The record of a file; use `Card` or `ExpertBundle`.

    Attributes:
        name: Name as in `--checkpoint NAME` or `--experts NAME`.
        summary: One line.
        uri: `https://...`, `hf://owner/name/file`, or `package://package/path/in/package`.
        sha256: Hash of the file, 64 hexadecimal digits; None if no trustworthy one is published.
        size: Size of the file in bytes, if known.
        licence: Licence of the weights.
    """

    name: str = attrs.field(validator=_name)
    summary: str = attrs.field(validator=_text)
    uri: str = attrs.field(validator=_like("a link", r"(https|hf|package)://.+"))
    sha256: str | None = attrs.field(validator=optional(_like("64 hex digits", "[0-9a-f]{64}")))
    size: int | None = attrs.field(validator=optional(_count))
    licence: str = attrs.field(validator=_text)


@attrs.frozen(kw_only=True)
class Card(AssetFile):
    """The record of a checkpoint.

    Attributes:
        component: Name of its backend or guider.
        kind: Which of the two that is.
        image_size: Height and width in pixels of the images that it draws or reads.
        parameters: Number of parameters. If no size is published, four bytes are assumed for each.
        prefix: Prefix of the file's tensors, such as "base.", in a component of several networks.
        architecture: What the factory needs to build the network, if the file does not say it.
        default: Whether it is the default. A card of the component's own distribution goes first.
        joined: For a checkpoint that is only of use with others, the names of all joined by "+",
            such as "glide-base+glide-upsample".
    """

    component: str = attrs.field(validator=_name)
    kind: CardKind = attrs.field(validator=in_(("backend", "guider")))
    image_size: int = attrs.field(validator=_count)
    parameters: int | None = attrs.field(default=None, validator=optional(_count))
    prefix: str = attrs.field(default="", validator=_text)
    architecture: Mapping[str, Any] = attrs.field(factory=dict)
    default: bool = attrs.field(default=False, validator=_flag)
    joined: str = attrs.field(default="", validator=_text)


@attrs.frozen(kw_only=True)
class ExpertBundle(AssetFile):
    """Experts of a guider for images of a backend, both by name; the file says which weights."""

    guider: str = attrs.field(validator=_name)
    backend: str = attrs.field(validator=_name)

    @property
    def component(self) -> str:
        return self.guider


@attrs.frozen(kw_only=True)
class DefaultTarget:
    """The default target of a guider with one checkpoint, both by name. `text` is the target as
    after `--target`; `package://package/path` for a file in a package.
    """

    guider: str = attrs.field(validator=_name)
    checkpoint: str = attrs.field(validator=_name)
    text: str = attrs.field(validator=_text)


Asset: TypeAlias = Card | ExpertBundle | DefaultTarget


class Hooks:
    """Functions that a plugin module may implement, each called once, at discovery, for records."""

    @hookspec
    def ppap_backends(self) -> Sequence[BackendSpec]:  # type: ignore[empty-body]  # a declaration
        """Diffusion models."""

    @hookspec
    def ppap_guiders(self) -> Sequence[GuiderSpec]:  # type: ignore[empty-body]  # a declaration
        """Networks that can guide."""

    @hookspec
    def ppap_task_losses(self) -> Sequence[TaskLossSpec]:  # type: ignore[empty-body]  # the same
        """Distances between predictions and targets."""

    @hookspec
    def ppap_expert_adapters(self) -> Sequence[AdapterSpec]:  # type: ignore[empty-body]  # the same
        """Ways to fine-tune few parameters of a frozen network."""

    @hookspec
    def ppap_assets(self) -> Sequence[Asset]:  # type: ignore[empty-body]  # a declaration
        """Checkpoints, bundles of experts, default targets, for components of any distribution."""
