"""Fixtures of the storage tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillroom.storage.testing import SmallCache


@pytest.fixture
def small(tmp_path: Path) -> SmallCache:
    """An empty cache in a folder of its own."""
    return SmallCache(tmp_path / "cache")
