"""From what is typed to a place."""

from __future__ import annotations

import re

from ppap_framework.errors import UsageError
from ppap_plugin_hub.hub import HubPlace
from ppap_plugin_hub.places import Place
from ppap_plugin_hub.storage import SCHEME, FilePlace

_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w.-]+)?")


def place_of(text: str, kind: str = "model", *, private: bool = False) -> Place:
    """The place of a repository's name, OWNER/NAME[@REVISION], of a URL, or of a path that begins
    with a dot, a slash or ~. A repository is of the `kind`, unless its URL says otherwise:
    hf://[datasets/]OWNER/NAME[@REVISION][/FOLDER].
    """
    scheme = SCHEME.match(text)
    if _REPOSITORY.fullmatch(text) or (scheme and scheme[1].lower() == "hf"):
        made = _hub_place(text if scheme else f"hf://{text}", kind)
        made.private = private
        return made
    if private:
        fault = f"--private is for repositories of the Hub, and {text!r} is none"
        raise UsageError(fault, hint="leave it out")
    if scheme or text.startswith((".", "/", "~")):
        return FilePlace(text)
    hint = "a repository is OWNER/NAME; a path begins with a dot, a slash or ~"
    raise UsageError(f"{text!r} is no repository of the Hub and no URL", hint=hint)


def _hub_place(url: str, kind: str) -> HubPlace:
    parts = url.partition("://")[2].strip("/").split("/")
    if parts[0] in ("datasets", "models", "spaces"):
        kind = parts.pop(0).removesuffix("s")
    if len(parts) < 2 or kind == "space":
        hint = "it is hf://OWNER/NAME or hf://datasets/OWNER/NAME"
        raise UsageError(f"{url!r} names no repository of models or data", hint=hint)
    name, _, revision = parts[1].partition("@")
    return HubPlace(f"{parts[0]}/{name}", revision or None, "/".join(parts[2:]), kind)
