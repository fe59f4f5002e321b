"""Leases: who writes what, known to every process on every host, and ending with its holder.

A lease is a small JSON file that is changed only from a state that was read (in a folder under a
lock, in an object store by a conditional put). The holder renews it while it lives. Another process
takes it over when it was given back, when the holder is proven dead on this machine, or when it was
not renewed for its time to live; the clocks of the hosts must agree to within half of that.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.storage.errors import BusyError, StillroomError
from stillroom.storage.files import children, read_json, remote, store_errors, write_atomic
from stillroom.storage.place import Place
from stillroom.storage.process import is_dead, this_process

TTL_SECONDS = 60.0
FOLDER = "leases"
_POLL_SECONDS = 0.5
_held_here: set[str] = set()
"""Tokens of the leases that this process holds."""


@dataclass(frozen=True)
class Holder:
    """What a lease file says."""

    record: dict[str, Any]

    @property
    def active(self) -> bool:
        """Whether the holder may still be writing."""
        until = self.record.get("until")
        if self.record.get("released") or not isinstance(until, int | float):
            return False
        if all(self.record.get(name) == value for name, value in this_process().items()):
            # A lease that this process could not give back, as on a full disk, is held no more.
            return str(self.record.get("token")) in _held_here
        return until >= time.time() and not is_dead(self.record)

    def __str__(self) -> str:
        """Who, where, since when."""
        record = self.record
        known = {name: record.get(name, "unknown") for name in ("what", "pid", "host", "since")}
        return "{what} by process {pid} on {host} since {since}".format(**known)


class Lease:
    """A lease that this process holds."""

    def __init__(self, place: Place, record: dict[str, Any], ttl: float) -> None:
        """Made by `held`."""
        self._place, self._record, self._ttl = place, record, ttl
        self._lost: StillroomError | None = None
        self._renewing = threading.Lock()

    @property
    def token(self) -> str:
        """Distinguishes this lease from every other one."""
        return str(self._record["token"])

    def require(self) -> None:
        """BusyError when another process has taken over, as it may from one that slept too long.

        To be called before anything becomes visible.
        """
        self._renew()
        if self._lost is not None:
            raise self._lost

    def _renew(self, **changes: Any) -> None:
        with self._renewing:
            if self._lost is not None:
                return
            renewed = {**self._record, "until": time.time() + self._ttl, **changes}
            if _swap(self._place, self._record, renewed):
                self._record = renewed
                return
            now = _read(self._place)
            self._lost = BusyError(
                f"the lease {self._place} was lost to {Holder(now or {})}: this process did not renew it "
                f"for {self._ttl:g} s. What it finished is kept; run again to go on"
            )

    def keep(self, ended: threading.Event) -> None:
        """Renew until `ended`; a store that does not answer is asked again until the lease is over."""
        while not ended.wait(self._ttl / 4):
            try:
                self._renew()
            except (OSError, StillroomError):
                if time.time() > self._record["until"]:
                    self._lost = BusyError(
                        f"the lease {self._place} ran out while the cache could not be reached; run "
                        "again to go on"
                    )
                    return

    def release(self) -> None:
        """Give it back; one that was lost is left as it is."""
        self._renew(released=True)


@contextmanager
def held(
    place: Place, what: str, *, wait: float = 0.0, ttl: float = TTL_SECONDS
) -> Iterator[Lease]:
    """Hold the lease at that place while the block runs.

    `what` is said to others who want it. They wait up to their own `wait` seconds, then get a
    BusyError that says who holds it, on which host and since when.
    """
    lease = _acquired(place, what, wait, ttl)
    ended = threading.Event()
    renewing = threading.Thread(target=lease.keep, args=(ended,), daemon=True)
    renewing.start()
    try:
        yield lease
    finally:
        ended.set()
        renewing.join()
        # A full disk must not hide what went wrong before; the lease then ends by its time.
        with suppress(OSError, StillroomError):
            lease.release()
        _held_here.discard(lease.token)


def _acquired(place: Place, what: str, wait: float, ttl: float) -> Lease:
    give_up = time.monotonic() + wait
    while True:
        known = _read(place)
        if known is None or not Holder(known).active:
            mine: dict[str, Any] = {
                **this_process(),
                "what": what,
                "since": time.strftime("%F %T %z"),
                "token": secrets.token_hex(8),
                "until": time.time() + ttl,
            }
            token, taken = str(mine["token"]), False
            _held_here.add(token)
            try:
                taken = _swap(place, known, mine)
            finally:
                if not taken:  # also when it was written, but the disk failed just then
                    _held_here.discard(token)
            if taken:
                return Lease(place, mine, ttl)
        elif time.monotonic() >= give_up:
            raise BusyError(
                f"{place.parent.parent} is busy: {Holder(known)}. Wait for it to finish, or pass wait= "
                f"(seconds); if it died on another host, its lease ends {_left(known)}. Readers are "
                "not affected"
            )
        else:
            time.sleep(min(_POLL_SECONDS, max(give_up - time.monotonic(), 0.01)))


def _left(record: dict[str, Any]) -> str:
    # A number that somebody made up may be too large for a float.
    return f"in {max(min(record['until'], 1e12) - time.time(), 0):.0f} s"


def active_leases(folder: Place) -> list[tuple[str, Holder]]:
    """(name, holder) of every lease in the folder that is held now."""
    found = []
    for place in children(folder):
        if place.name.endswith(".json") and (record := _read(place)) is not None:
            found.append((place.name.removesuffix(".json"), Holder(record)))
    return sorted((f for f in found if f[1].active), key=lambda f: f[0])


def _read(place: Place) -> dict[str, Any] | None:
    """The lease's record; None where there is none. One that is garbled is held by nobody."""
    if not place.is_file():
        return None
    try:
        return read_json(place)
    except StillroomError:
        return {} if place.is_file() else None


def _swap(place: Place, old: dict[str, Any] | None, new: dict[str, Any]) -> bool:
    """Change the record from `old` to `new`; False, and nothing is changed, when it is another now."""
    content = json.dumps(new, sort_keys=True).encode()
    if isinstance(place, Path):
        with _locked(place.parent):
            if _read(place) != old:
                return False
            write_atomic(place, [content])
            return True
    if old is None:
        try:
            remote(place).put_new(content)
        except FileExistsError:
            return False
        return True
    try:
        stored, tag = remote(place).read_tagged()
    except FileNotFoundError:
        return False
    try:
        same = json.loads(stored) == old
    except ValueError:
        same = old == {}
    return same and remote(place).put_over(content, tag)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone among all processes that change leases in this folder, for a moment."""
    path = folder / "lock"
    with store_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
