"""Fixtures of the stages' tests: one Ray for each file that needs it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from stillroom.pipeline import RayRunner
from tests.stages import builders
from tests.stages.damaged import EDITED, FIRST, OTHER, data


@pytest.fixture(scope="module")
def ray_runner() -> Iterator[RayRunner]:
    """Three workers of a Ray that is up as long as the file's tests run."""
    from ray import cloudpickle

    # pytest's importlib mode puts no test folder on sys.path, so workers cannot import them.
    cloudpickle.register_pickle_by_value(builders)  # type: ignore[no-untyped-call]
    with RayRunner(workers=3) as runner:
        yield runner
    cloudpickle.unregister_pickle_by_value(builders)  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def one_teachers_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One teacher, one segment of shards of 5 rows, one snapshot."""
    path = tmp_path_factory.mktemp("repair") / "c"
    builders.taught(path, data(), FIRST, shard_rows=5)
    return path


@pytest.fixture(scope="module")
def two_teachers_cache(one_teachers_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Then three rows were edited, and another teacher answered; three snapshots."""
    path = tmp_path_factory.mktemp("repair") / "c"
    shutil.copytree(one_teachers_cache, path)
    builders.taught(path, EDITED, FIRST, shard_rows=5)
    builders.taught(path, EDITED, OTHER, shard_rows=5)
    return path


@pytest.fixture
def one_teacher(one_teachers_cache: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(one_teachers_cache, tmp_path / "c"))


@pytest.fixture
def two_teachers(two_teachers_cache: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(two_teachers_cache, tmp_path / "c"))
