"""Fixtures of the storage tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from stillroom.storage.testing import SmallCache
from tests.storage.caches import content, full_cache, restored, root
from tests.storage.damage import Victim


@pytest.fixture
def small(tmp_path: Path) -> SmallCache:
    """An empty cache in a folder of its own."""
    return SmallCache(tmp_path / "cache")


@pytest.fixture(scope="session")
def everything_in_it(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache as `full_cache` makes it, to be copied."""
    return root(full_cache(tmp_path_factory.mktemp("full") / "c"))


@pytest.fixture(scope="module")
def sound_victim(everything_in_it: Path, tmp_path_factory: pytest.TempPathFactory) -> Victim:
    """A copy of it that many tests damage, one after the other."""
    path = Path(shutil.copytree(everything_in_it, tmp_path_factory.mktemp("verify") / "c"))
    return Victim(path, content(path))


@pytest.fixture
def victim(sound_victim: Victim) -> Iterator[Victim]:
    """The sound cache, which is put right again after the test."""
    with restored(sound_victim.path, sound_victim.before):
        yield sound_victim
