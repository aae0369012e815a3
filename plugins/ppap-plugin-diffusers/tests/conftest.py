"""The toy plugin, whose guiders read images of any size."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from toy_distribution import install, plugged


@pytest.fixture
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The toy plugin and this one, and no other."""
    with plugged(install(tmp_path_factory.mktemp("toy") / "site"), "ppap-plugin-diffusers"):
        yield
