"""SIGKILL at random moments of teach, seal, snapshot, repair, compact and prune: nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def lives(folder: Path, kills: int, seed: int, workers: int = 0) -> dict[str, object]:
    """What the harness reports; it ends with an error when a promise was broken."""
    arguments = [str(folder), str(kills), str(seed), *([str(workers)] if workers else [])]
    command = [sys.executable, "-m", "tests.crash.kills", *arguments]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-4000:]
    print(ran.stdout)
    found: dict[str, object] = json.loads(ran.stdout)
    return found


def test_killed_writers_are_resumed_to_the_same_bytes(tmp_path: Path) -> None:
    assert lives(tmp_path, kills=20, seed=1)["kills"] == 20


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_three_hundred_kills(tmp_path: Path) -> None:
    assert lives(tmp_path / "a", kills=300, seed=2)["kills"] == 300


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_kills_with_ray_and_its_workers(tmp_path: Path) -> None:
    assert lives(tmp_path / "a", kills=12, seed=3, workers=2)["kills"] == 12
