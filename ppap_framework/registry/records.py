from __future__ import annotations

import re
import traceback
from typing import Literal, TypeAlias, TypeVar

import attrs

from ppap_framework.plugin import Asset, Card, ComponentSpec, DefaultTarget, ExpertBundle

Status = Literal["ok", "disabled", "missing-dependency", "incompatible", "broken"]

_MACHINERY = ("ppap_framework.registry", "importlib", "_frozen_importlib", "pluggy")
"""The modules between discovery and a plugin in a traceback."""

_DISTRIBUTION_OF = {"PIL": "pillow", "cv2": "opencv-python", "yaml": "pyyaml"}
_DISTRIBUTION_OF |= {"skimage": "scikit-image", "sklearn": "scikit-learn"}
"""Distributions whose modules have another name."""


@attrs.frozen(kw_only=True)
class PluginRecord:
    """One entry point of the group `ppap`, and the result of loading it.

    Attributes:
        distribution: Normal form (PEP 503) of its distribution's name.
        version: The distribution's version, if its metadata states one.
        entry_point: The entry point's name.
        module: Its reference: "package.module" or "package.module:object".
        status: Only plugins that are "ok" supply anything.
        reason: One line on why it is not ok; `hint` says what to type about it, if anything.
        error: The exception that it raised, if any.
    """

    distribution: str
    version: str | None
    entry_point: str
    module: str
    status: Status = "ok"
    reason: str = ""
    hint: str = ""
    error: BaseException | None = attrs.field(default=None, eq=False, repr=False)
    specs: tuple[ComponentSpec, ...] = ()
    assets: tuple[Asset, ...] = ()

    @property
    def name(self) -> str:
        """The unique name: "distribution:entry-point"."""
        return f"{self.distribution}:{self.entry_point}"

    @property
    def failed(self) -> bool:
        return self.status not in ("ok", "disabled")

    @property
    def traceback(self) -> str:
        """The traceback of `error`, from the plugin's first frame on; may be empty."""
        if self.error is None:
            return ""
        frames = self.error.__traceback__
        while frames and frames.tb_frame.f_globals.get("__name__", "").startswith(_MACHINERY):
            frames = frames.tb_next
        return "".join(traceback.format_exception(type(self.error), self.error, frames))


Item = TypeVar("Item", bound=ComponentSpec | Asset)
Offers: TypeAlias = list[tuple[PluginRecord, Item]]
"""Records, each with the plugin that supplies it."""


def normal(distribution: str) -> str:
    """The normal form of a distribution's name (PEP 503): lower case, hyphens."""
    return re.sub(r"[-_.\s]+", "-", distribution).lower()


def split(name: str) -> tuple[str | None, str]:
    """The distribution, if any, and the name in "distribution:name"."""
    distribution, _, bare = name.rpartition(":")
    return (normal(distribution) if distribution else None), bare


def label(item: ComponentSpec | Asset) -> str:
    """What a record describes, such as "guider 'depth'"; unique within one plugin."""
    match item:
        case ComponentSpec():
            return f"{item.kind} {item.name!r}"
        case Card():
            return f"checkpoint {item.name!r} of {item.kind} {item.component!r}"
        case ExpertBundle():
            return f"experts {item.name!r}"
        case DefaultTarget():
            return f"default target of guider {item.guider!r} with checkpoint {item.checkpoint!r}"


def missing_dependency(error: BaseException, importing: str) -> tuple[str, str] | None:
    """A reason and a hint if importing `importing` failed for a module of another distribution."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    top, _, rest = error.name.partition(".")
    own = importing.partition(":")[0].partition(".")[0].strip()
    if top in (own, "ppap_framework"):
        return None
    # If only a submodule is missing, the package is installed, in another release.
    command = f"pip install {'--upgrade ' if rest else ''}{_DISTRIBUTION_OF.get(top, top)}"
    return f"needs the module {error.name}, which is not installed", command
