"""Which plugins the environment wants.

`PPAP_PLUGINS` (only these) and `PPAP_DISABLE_PLUGINS` are lists with commas of distributions, entry
points, or "distribution:entry-point"; `PPAP_STRICT_PLUGINS=1` makes a plugin that fails raise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from ppap_framework.registry._records import PluginRecord, normal

ONLY = "PPAP_PLUGINS"
DISABLE = "PPAP_DISABLE_PLUGINS"
STRICT = "PPAP_STRICT_PLUGINS"


@attrs.frozen
class Selection:
    """What the three variables say.

    Attributes:
        only: The plugins to load; empty for all.
        disabled: The plugins not to load, `only` or not.
        strict: Whether a plugin that fails raises.
    """

    only: tuple[str, ...] = ()
    disabled: tuple[str, ...] = ()
    strict: bool = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Selection:
        """Read the variables; one that is unset or empty says nothing."""
        strict = environ.get(STRICT, "").strip().lower()
        return cls(
            _split(environ.get(ONLY, "")),
            _split(environ.get(DISABLE, "")),
            strict not in ("", "0", "false", "no", "off"),
        )

    def excluded_by(self, plugin: PluginRecord) -> str | None:
        """The variable that keeps a plugin out, or None."""
        if any(_means(word, plugin) for word in self.disabled):
            return DISABLE
        if self.only and not any(_means(word, plugin) for word in self.only):
            return ONLY
        return None

    def unknown(self, plugins: Iterable[PluginRecord]) -> list[tuple[str, str]]:
        """The words that mean no plugin, each with its variable."""
        plugins = list(plugins)
        return [
            (variable, word)
            for variable, words in ((ONLY, self.only), (DISABLE, self.disabled))
            for word in words
            if not any(_means(word, plugin) for plugin in plugins)
        ]


def _split(words: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(",") if word.strip())


def _means(word: str, plugin: PluginRecord) -> bool:
    distribution, colon, entry_point = word.partition(":")
    if colon:
        return normal(distribution) == plugin.distribution and entry_point == plugin.entry_point
    return normal(word) == plugin.distribution or word == plugin.entry_point
