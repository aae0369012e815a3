"""What the kit's tests share with those of the core."""

from __future__ import annotations

import commands
import pytest
from commands import Run


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Run:
    """Types `ppap ...` in this process."""
    return commands.typed(capsys)
