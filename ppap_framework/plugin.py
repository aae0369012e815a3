"""What a plugin module needs, and nothing that is heavy: importing this imports no torch.

A plugin is a module that an entry point of the group `ppap` names. It states the version of this
interface it was written for and implements some of the hooks of `ppap_framework.hookspecs`:

    from ppap_framework.plugin import GuiderSpec, hookimpl

    PPAP_API = (1, 0)

    @hookimpl
    def ppap_guiders():
        return [GuiderSpec(name="mine", summary="...", factory="my_package.guider:MyGuider",
        task="classification")]

A record names its factory as "module:attribute"; it is imported only when somebody asks for that
component.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import attrs
import pluggy

__all__ = [
    "PPAP_API",
    "AdapterSpec",
    "Asset",
    "AssetFile",
    "BackendSpec",
    "Card",
    "ComponentKind",
    "ComponentSpec",
    "DefaultTarget",
    "ExpertBundle",
    "GuiderSpec",
    "TaskLossSpec",
    "hookimpl",
]

PPAP_API = (1, 0)
"""(major, minor). A plugin of another major version, or of a later minor one, is refused."""

ComponentKind = Literal["backend", "guider", "loss", "adapter"]

hookimpl = pluggy.HookimplMarker("ppap")

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def _check_name(instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(
            f"{attribute.name} must be lower-case words joined by hyphens, not {value!r}"
        )


def _check_factory(instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not isinstance(value, str) or not _FACTORY.fullmatch(value):
        raise ValueError(
            f'{attribute.name} must be a string "package.module:attribute", not {value!r}'
        )


_text = attrs.validators.instance_of(str)
_optional_text = attrs.validators.optional(_text)


@attrs.frozen(kw_only=True)
class ComponentSpec:
    """What every component says of itself. Use one of the four kinds below.

    Attributes:
        name: How it is asked for, as in `--guider NAME`; lower-case words joined by hyphens.
        summary: One line for `ppap plugins list`.
        factory: "package.module:attribute", a callable that makes the component from its options.
        options: "package.module:attribute" of an attrs class whose fields are the options, or None
            for no options.
        licence: SPDX identifier of the component's own code; None where it is not stated.
    """

    name: str = attrs.field(validator=_check_name)
    summary: str = attrs.field(validator=_text)
    factory: str = attrs.field(validator=_check_factory)
    options: str | None = attrs.field(
        default=None, validator=attrs.validators.optional(_check_factory)
    )
    licence: str | None = attrs.field(default=None, validator=_optional_text)


@attrs.frozen(kw_only=True)
class BackendSpec(ComponentSpec):
    """A diffusion model: its factory gives a `components.DiffusionBackend`.

    The factory is called as `factory(options, checkpoint)` with a `checkpoints.Checkpoint`.
    """


@attrs.frozen(kw_only=True)
class GuiderSpec(ComponentSpec):
    """A network that can guide: its factory gives a `components.GuidanceModel`.

    The factory is called as `factory(options, checkpoint)`; the checkpoint is None where the
    guider can do without (`needs_checkpoint` False).

    Attributes:
        task: What it answers, such as "classification", "depth", "segmentation".
        default_loss: The name of the task loss used unless another is asked for.
        noise_aware: Whether it was trained on noised images and wants to be told the level. Such a
            guider needs no experts, and `ppap adapt` declines it.
        needs_checkpoint: Whether it can only be made from a checkpoint.
    """

    task: str = attrs.field(validator=_text)
    default_loss: str = attrs.field(validator=_check_name)
    noise_aware: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))
    needs_checkpoint: bool = attrs.field(default=True, validator=attrs.validators.instance_of(bool))


@attrs.frozen(kw_only=True)
class TaskLossSpec(ComponentSpec):
    """A distance between a prediction and a target: its factory gives a `components.TaskLoss` from
    `factory(options)`.

    Attributes:
        task: The task whose predictions it compares.
    """

    task: str = attrs.field(validator=_text)


@attrs.frozen(kw_only=True)
class AdapterSpec(ComponentSpec):
    """A way to fine-tune few parameters: its factory gives a `components.ExpertAdapter` from
    `factory(options)`.
    """


@attrs.frozen(kw_only=True)
class AssetFile:
    """A file as a record of data: where it is, how to know it is the right one, and what it may be
    used for. Use one of the two kinds below.

    Attributes:
        name: How it is asked for, as in `--checkpoint NAME` or `--experts NAME`.
        summary: One line.
        uri: `https://...`, `hf://owner/name/file`, or `package://package/path/in/package`.
        sha256: Of the file, 64 hexadecimal digits; None where no trustworthy one is published.
        size: Of the file, in bytes; None where unknown.
        licence: Of the weights.
    """

    name: str = attrs.field(validator=_check_name)
    summary: str = attrs.field(validator=_text)
    uri: str = attrs.field(validator=attrs.validators.matches_re(r"(https|hf|package)://.+"))
    sha256: str | None = attrs.field(
        validator=attrs.validators.optional(attrs.validators.matches_re(r"[0-9a-f]{64}"))
    )
    size: int | None = attrs.field(
        validator=attrs.validators.optional(attrs.validators.instance_of(int))
    )
    licence: str = attrs.field(validator=_text)


@attrs.frozen(kw_only=True)
class Card(AssetFile):
    """A checkpoint.

    Attributes:
        component: The name of the backend or guider that it is for.
        kind: Which of the two that is.
        image_size: Height and width in pixels of the images that it draws or reads.
        parameters: Of the network; from four bytes each, its size is told where none is published.
        prefix: Stands before the names of the file's tensors in the component, such as "base.": a
            component of several networks, of which the file holds one.
        architecture: What the component's factory needs to build the network, where the file does
            not say it itself.
        default: Whether it is taken when nothing else is asked for. A card of the component's own
            distribution goes before one of another.
        joined: Where it is of no use alone, the names of cards with which it is, joined by "+",
            such as "glide-base+glide-upsample"; empty where it stands alone.
        refusal: Why nothing can be done with it but to fetch it, in a few words; empty where
            something can.
    """

    component: str = attrs.field(validator=_check_name)
    kind: Literal["backend", "guider"] = attrs.field(
        validator=attrs.validators.in_(("backend", "guider"))
    )
    image_size: int = attrs.field(validator=attrs.validators.instance_of(int))
    parameters: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.instance_of(int))
    )
    prefix: str = attrs.field(default="", validator=_text)
    architecture: Mapping[str, Any] = attrs.field(factory=dict)
    default: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))
    joined: str = attrs.field(default="", validator=_text)
    refusal: str = attrs.field(default="", validator=_text)


@attrs.frozen(kw_only=True)
class ExpertBundle(AssetFile):
    """Experts of a guider, trained on images of a backend; the file says for which weights.

    Attributes:
        guider: The guider's name.
        backend: The backend's name.
    """

    guider: str = attrs.field(validator=_check_name)
    backend: str = attrs.field(validator=_check_name)

    @property
    def component(self) -> str:
        """The guider's name."""
        return self.guider


@attrs.frozen(kw_only=True)
class DefaultTarget:
    """What a guider aims at with one checkpoint when the user names no target.

    Attributes:
        guider: The guider's name.
        checkpoint: The name of the guider's checkpoint that can be aimed there.
        text: What the user would have typed after `--target`; `package://package/path` for a file
            in a package.
    """

    guider: str = attrs.field(validator=_check_name)
    checkpoint: str = attrs.field(validator=_check_name)
    text: str = attrs.field(validator=_text)


Asset: TypeAlias = Card | ExpertBundle | DefaultTarget
