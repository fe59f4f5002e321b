"""What tests of several folders share."""

from __future__ import annotations

import os

import pytest

from stillroom.pipeline import LocalRunner, RayRunner, Runner


@pytest.fixture(params=["local", "ray"])
def runner(request: pytest.FixtureRequest) -> Runner:
    """Every runner in turn; the file's own `ray_runner` is the Ray of all its tests."""
    if request.param == "local":
        return LocalRunner()
    shared: RayRunner = request.getfixturevalue("ray_runner")
    return shared


@pytest.fixture(autouse=True, scope="session")
def a_ledger_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests run is not written into the ledger of whoever runs them."""
    os.environ["STILLROOM_STATE"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncs are called but wait for nothing: what they guard against, a machine that loses power, no
    test can cause, and most of the time of teaching a few rows is waiting for them."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
