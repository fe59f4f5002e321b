"""Fixtures of the stages' tests: one Ray for each file that needs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stillroom.pipeline import RayRunner
from tests.stages import builders


@pytest.fixture(scope="module")
def ray_runner() -> Iterator[RayRunner]:
    """Three workers of a Ray that is up as long as the file's tests run."""
    from ray import cloudpickle

    # pytest's importlib mode puts no test folder on sys.path, so workers cannot import them.
    cloudpickle.register_pickle_by_value(builders)  # type: ignore[no-untyped-call]
    with RayRunner(workers=3) as runner:
        yield runner
    cloudpickle.unregister_pickle_by_value(builders)  # type: ignore[no-untyped-call]
