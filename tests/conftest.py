"""What tests of several folders share."""

from __future__ import annotations

import pytest

from stillroom.pipeline import LocalRunner, RayRunner, Runner


@pytest.fixture(params=["local", "ray"])
def runner(request: pytest.FixtureRequest) -> Runner:
    """Every runner in turn; the file's own `ray_runner` is the Ray of all its tests."""
    if request.param == "local":
        return LocalRunner()
    shared: RayRunner = request.getfixturevalue("ray_runner")
    return shared
