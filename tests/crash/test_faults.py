"""Whatever file operation fails, what was stored stays, the error is said, and the next run ends well."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stillroom.storage import Cache
from stillroom.storage.errors import StillroomError
from tests.crash import life
from tests.crash.faults import FAULTS, Fault, failing

IN_SUITE = 2
"""Operations tried for each step and kind of fault in the suite; the slow target tries all."""


def before(folder: Path, until: str) -> Path:
    """A cache as it is when a step begins."""
    cache = folder / "before"
    for name, step in life.STEPS.items():
        if name == "repair" and cache.exists():
            life.damage(cache)
        if name == until:
            return cache
        step(cache)
    raise AssertionError(until)


def try_every(folder: Path, name: str, chosen: Callable[[list[int]], list[int]]) -> int:
    """Fail a step at the chosen operations in each way; the number of faults that struck."""
    cache, step, injected = before(folder, name), life.STEPS[name], 0
    quiet, broken = folder / "quiet", folder / "broken"
    if cache.exists():
        shutil.copytree(cache, quiet)
    with failing(Fault(quiet)) as counted:
        step(quiet)
    expected, messages = life.content_of(quiet), list[str]()
    for kind in FAULTS:
        for at in chosen(counted.possible(kind)):
            shutil.rmtree(broken, ignore_errors=True)
            if cache.exists():
                shutil.copytree(cache, broken)
            fault = Fault(broken, kind, at)
            try:
                with failing(fault):
                    step(broken)
            except (StillroomError, OSError) as error:
                messages.append(str(error))
            assert fault.struck
            injected += 1
            where = f"{name}: {kind} at operation {at} ({fault.struck})"
            if name != "repair":
                life.check_readable(broken)
            step(broken)
            assert life.content_of(broken) == expected, where
            assert not list(broken.rglob(".tmp-*")), where
    assert Cache(broken).snapshots()
    assert all(messages)
    return injected


@pytest.mark.parametrize("name", life.STEPS)
def test_a_fault_at_some_file_operations_harms_nothing(tmp_path: Path, name: str) -> None:
    drawn = random.Random(name)
    injected = try_every(tmp_path, name, lambda all_: drawn.sample(all_, min(len(all_), IN_SUITE)))
    assert injected >= len(FAULTS)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("name", life.STEPS)
def test_a_fault_at_every_file_operation_harms_nothing(
    tmp_path: Path, name: str, record_property: Callable[[str, object], None]
) -> None:
    injected = try_every(tmp_path, name, list)
    record_property("faults", injected)
    print(f"{name}: {injected:,} faults")
    assert injected > 100
