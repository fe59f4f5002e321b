"""One writer at a time; a full disk, a refused write and a killed writer harm nothing."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stillroom.storage.cache import Cache
from stillroom.storage.errors import BusyError, StoreFullError, StorePermissionError
from stillroom.storage.files import (
    TEMPORARY,
    Buffer,
    finishing,
    temporary_name,
    write_atomic,
    write_json,
)
from stillroom.storage.reader import Reader
from stillroom.storage.removing import remove_leftovers
from stillroom.storage.testing import SmallCache, on_disk

HOLD = """
import sys, time
from stillroom.storage.cache import Cache
with Cache(sys.argv[1]).writing("0" * 64):
    print("held", flush=True)
    time.sleep(60)
"""
NOBODY = 65534


def test_a_second_writer_is_told_who_holds_the_cache_until_it_is_killed(
    small: SmallCache,
) -> None:
    path = on_disk(small.cache.path)
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        for _ in range(2):
            busy = pytest.raises(BusyError, match=f"process {holder.pid} on ")
            with busy as caught, small.cache.writing("0" * 64):
                pass
            assert str(path) in str(caught.value)
        Cache.at(path)  # readers need no lock
        holder.send_signal(signal.SIGKILL)
    with small.cache.writing("0" * 64):
        pass


def test_the_lock_ends_with_its_block_and_is_not_reentrant(small: SmallCache) -> None:
    busy = pytest.raises(BusyError, match=str(os.getpid()))
    with small.cache.writing("0" * 64), busy, Cache(small.cache.path).writing("0" * 64):
        pass
    with pytest.raises(ZeroDivisionError), small.cache.writing("0" * 64):
        _ = 1 / 0
    with small.cache.writing("0" * 64):
        pass


NAME = """
from stillroom.storage.files import temporary_name
print(temporary_name("file"))
"""


def test_leftovers_of_a_killed_writer_are_removed_by_the_next(small: SmallCache) -> None:
    keys, values = ["a"], {"x": np.zeros((1, 2), "f4")}
    snapshot = small.commit(keys, [small.teach(keys, values)])
    path = on_disk(small.cache.path)
    kept = sorted(p for p in path.rglob("*") if p.is_file())
    ended = subprocess.run([sys.executable, "-c", NAME], check=True, capture_output=True, text=True)
    for folder in (
        path,
        path / "segments",
        path / "snapshots",
        on_disk(snapshot.cache / "segments"),
    ):
        (folder / ended.stdout.strip()).write_bytes(b"half")
    name = temporary_name("being written by this process")
    own = path / "snapshots" / name
    own.write_bytes(b"half")
    other = path / "snapshots" / f"{TEMPORARY}from another machine"
    other.write_bytes(b"half")
    building = path / "segments" / "0007-teacher-0123456789ab"
    building.mkdir()
    (building / "rows.arrow").write_bytes(b"a draft without a plan")
    assert small.cache.drafts() == []
    with finishing(name), small.cache.writing("0" * 64):
        assert sorted(path.rglob(f"{TEMPORARY}*")) == sorted([own, other])
    day = time.time() - 25 * 3600
    os.utime(other, (day, day))
    shutil.rmtree(building)
    assert small.cache.drafts() == []
    with small.cache.writing("0" * 64):
        assert not list(path.rglob(f"{TEMPORARY}*"))
    left = sorted(p for p in path.rglob("*") if p.is_file())
    assert [p for p in left if p.parent.name != "leases"] == kept
    assert remove_leftovers(path) == 0


@pytest.mark.parametrize("call", ["write", "replace", "fsync"])
def test_a_full_disk_when_the_lock_is_taken_is_said_so(
    small: SmallCache, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(StoreFullError), small.cache.writing("0" * 64):
            pass
    with small.cache.writing("0" * 64):
        pass


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_names_the_file_and_what_it_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(descriptor: int, part: memoryview) -> int:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "new" / "file"
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreFullError) as caught:
        write_atomic(path, [b"x" * 1234])
    assert f"no room to write {path}: needs 1,234 bytes" in str(caught.value)
    assert not list(path.parent.iterdir())


def test_what_the_kernel_takes_in_pieces_is_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, part: real(fd, part[:3]))
    parts: list[Buffer] = [b"0123456789", b"", np.arange(7, dtype="u1"), bytearray(b"end")]
    assert write_atomic(tmp_path / "file", parts) == 20
    assert (tmp_path / "file").read_bytes() == b"0123456789" + bytes(range(7)) + b"end"


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    write_json(tmp_path / "a.json", {"old": 1})
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "a.json", {"new": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert b"old" in (tmp_path / "a.json").read_bytes()


FILE_LIMIT = """
import resource, sys
import numpy as np
from pathlib import Path
from stillroom.storage.errors import StoreFullError
from stillroom.storage.testing import SmallCache, on_disk
small = SmallCache(Path(sys.argv[1]))
draft = small.draft([1, 2], {"fits": "raw", "large": "raw"}, shard_rows=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
rows = {"fits": np.zeros((1, 2)), "large": np.zeros((1, 4096))}
try:
    draft.write(draft.shards()[0], rows, {})
except StoreFullError as error:
    print(error)
"""


def test_a_file_size_limit_is_a_full_disk(small: SmallCache) -> None:
    command = [sys.executable, "-W", "error", "-c", FILE_LIMIT, str(small.cache.path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "needs 32,772 bytes" in said
    (draft,) = small.cache.drafts()
    assert draft.receipt(0) is None
    written = [p for p in (on_disk(draft.path) / "signals").rglob("*") if p.is_file()]
    assert written == [draft.path / "signals/fits/c/0/0"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    # Lazily: a reader's maps may still be alive.
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_on_a_disk_that_fills_up_what_was_finished_stays(tiny_disk: Path) -> None:
    small = SmallCache(tiny_disk / "cache")
    keys = list(range(12))
    rows = np.arange(12 * 8192, dtype="f4").reshape(12, 8192)
    draft = small.draft(keys, {"x": "raw"}, shard_rows=2)
    for shard in draft.shards():
        said = {"x": rows[shard.start : shard.stop]}
        if shard.index < 3:
            draft.write(shard, said, {})
        else:
            with pytest.raises(StoreFullError, match=r"needs 65,540 bytes, .* free"):
                draft.write(shard, said, {})
    assert not list(tiny_disk.rglob(f"{TEMPORARY}*"))
    finished = [s.index for s in draft.shards() if draft.receipt(s.index)]
    assert finished == [0, 1, 2]
    # What is left is enough to seal what is there.
    reader = Reader(small.commit(keys, [draft.seal()]))
    np.testing.assert_array_equal(reader.gather([5, 0])["x"], rows[[5, 0]])


AS_NOBODY = f"""
import os, sys
import numpy as np
from pathlib import Path
from stillroom.storage.cache import Cache
from stillroom.storage.errors import StorePermissionError
from stillroom.storage.reader import Reader
from stillroom.storage.testing import SmallCache, on_disk
# Only now: the interpreter's own files may be closed to others.
os.setgid({NOBODY}); os.setuid({NOBODY})
cache = Path(sys.argv[1])
def writing():
    with Cache.at(cache).writing("0" * 64):
        pass
def drafting():
    SmallCache(cache).draft([1], {{"x": "raw"}})
for attempt in (writing, drafting, lambda: Cache.at(cache.parent / "new"),
                lambda: Cache.at(cache.parent / "empty"), lambda: Cache.at(cache.parent / "closed/x")):
    try:
        attempt()
    except StorePermissionError as error:
        print(error)
    else:
        print("no error")
print(Reader(Cache.at(cache).snapshot()).gather([1])["x"].tolist())
"""


def test_a_folder_that_may_not_be_written_can_still_be_read(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    small = SmallCache(tmp_path / "cache")
    with small.cache.writing("0" * 64):
        small.commit([1], [small.teach([1], {"x": np.ones((1, 2))})])
    (tmp_path / "empty").mkdir()
    (tmp_path / "closed").mkdir(0o700)
    opened = [p for p in tmp_path.parents if p.stat().st_mode & 0o077 == 0]
    for folder in [tmp_path, *opened]:
        folder.chmod(0o755)
    try:
        command = [sys.executable, "-W", "error", "-c", AS_NOBODY, str(tmp_path / "cache")]
        ran = subprocess.run(command, check=False, capture_output=True, text=True)
    finally:
        for folder in opened:
            folder.chmod(0o700)
    assert ran.returncode == 0, ran.stderr
    *refused, rows = ran.stdout.splitlines()
    for said, name in zip(refused, ("lock", "rows.arrow", "new", "empty", "closed"), strict=True):
        assert "cannot write" in said
        assert name in said
    assert rows == "[[1.0, 1.0]]"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_refused_write_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(*args: object, **more: object) -> None:
        raise OSError(number, os.strerror(number))

    small = SmallCache(tmp_path / "cache")
    monkeypatch.setattr(os, "open", refused)
    denied = pytest.raises(
        StorePermissionError, match=f"write permission on {small.cache.path}/leases"
    )
    with denied, small.cache.writing("0" * 64):
        pass
    monkeypatch.setattr(os, "mkdir", refused)
    for attempt in (
        lambda: Cache.at(tmp_path / "new"),
        lambda: small.draft([1], {"x": "raw"}),
        lambda: write_atomic(tmp_path / "new" / "file", [b"x"]),
    ):
        with pytest.raises(StorePermissionError, match="cannot write"):
            attempt()
