"""Leases: one holder at a time, on any host, and none for longer than it lives."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stillroom.storage.errors import BusyError, StoreFullError
from stillroom.storage.lease import active_leases, held
from stillroom.storage.process import is_dead, this_process
from stillroom.storage.testing import SmallCache, on_disk

DIGEST = "0" * 64


def changed(path: Path, **fields: Any) -> None:
    """Rewrite a lease's record, as another process would."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_lease_of_another_host_is_respected_until_its_time_is_over(tmp_path: Path) -> None:
    path = tmp_path / "leases" / "a.json"
    with held(path, "old work"):
        pass
    elsewhere = {"machine": "another boot", "host": "far", "released": False}
    changed(path, **elsewhere, until=time.time() + 1.5)
    busy = pytest.raises(BusyError, match=r"old work by process \d+ on far since .* ends in [12] s")
    with busy, held(path, "new work"):
        pass
    assert [str(holder)[:8] for _, holder in active_leases(path.parent)] == ["old work"]
    started = time.monotonic()
    with held(path, "new work", wait=30):
        assert 0.5 < time.monotonic() - started < 10
        (name, holder) = active_leases(path.parent)[0]
        assert (name, holder.record["what"]) == ("a", "new work")
    assert active_leases(path.parent) == []


def test_who_lost_its_lease_makes_nothing_visible(tmp_path: Path) -> None:
    path = tmp_path / "leases" / "a.json"
    with held(path, "mine") as lease:
        lease.require()
        changed(path, token="another", machine="another boot", host="far", what="theirs")
        for _ in range(2):
            with pytest.raises(BusyError, match=r"lost to theirs by process \d+ on far"):
                lease.require()
    assert json.loads(path.read_text())["token"] == "another"


def test_a_holder_that_lives_renews_its_lease(tmp_path: Path) -> None:
    path = tmp_path / "leases" / "a.json"
    with held(path, "long work", ttl=0.4) as lease:
        before = json.loads(path.read_text())["until"]
        time.sleep(1.2)
        lease.require()
        assert json.loads(path.read_text())["until"] > before + 0.8


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"until": "soon"}', b"\xff"])
def test_a_garbled_lease_is_held_by_nobody(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "leases" / "a.json"
    path.parent.mkdir()
    path.write_bytes(content)
    assert active_leases(path.parent) == []
    with held(path, "work"):
        assert len(active_leases(path.parent)) == 1


def test_a_lease_that_could_not_be_given_back_does_not_lock_its_own_process_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise StoreFullError("full")

    path = tmp_path / "leases" / "a.json"
    with monkeypatch.context() as patch, held(path, "work"):
        patch.setattr("stillroom.storage.lease.write_atomic", full)
    assert "released" not in json.loads(path.read_text())
    with held(path, "again"):
        pass


COUNT = """
import sys
from pathlib import Path
from stillroom.storage.lease import held
folder = Path(sys.argv[1])
for _ in range(10):
    with held(folder / "leases" / "a.json", "counting", wait=120):
        number = int((folder / "number").read_text())
        (folder / "number").write_text(str(number + 1))
"""


def test_many_processes_take_turns(tmp_path: Path) -> None:
    (tmp_path / "number").write_text("0")
    command = [sys.executable, "-c", COUNT, str(tmp_path)]
    running = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    assert (tmp_path / "number").read_text() == "40"


def test_different_teachers_write_together_and_care_excludes_both(small: SmallCache) -> None:
    cache = small.cache
    with cache.writing(DIGEST), cache.writing("1" * 64):
        both = pytest.raises(BusyError, match=r"teaching 000000000000 .*; teaching 111111111111 ")
        with both, cache.maintaining("pruning"):
            pass
        with pytest.raises(BusyError, match="teaching 000000000000"), cache.writing(DIGEST):
            pass
    with cache.maintaining("pruning"):
        for _ in range(2):
            with pytest.raises(BusyError, match=r"pruning by process"), cache.writing(DIGEST):
                pass
        with pytest.raises(BusyError, match=r"pruning by process"), cache.maintaining("compacting"):
            pass
    with cache.writing(DIGEST):
        pass
    assert active_leases(on_disk(cache.path) / "leases") == []


def test_a_process_is_dead_only_when_that_is_certain() -> None:
    me = this_process()
    assert not is_dead(me)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    started = {**me, "pid": ended.pid, "started": "1"}
    ended.wait()
    assert is_dead(started)
    assert is_dead({**me, "started": "1"})  # another process had this number before
    assert not is_dead({**started, "machine": "another boot"})
    for pid in (None, "7", True, 0, -1, 2**40):
        assert not is_dead({**me, "pid": pid})
