"""Makes the operating system fail at a chosen file operation below a folder."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FAULTS = ("full", "broken", "refused", "torn", "short")
"""ENOSPC, EIO, EACCES, half a write and then ENOSPC, and a write that takes less than it was given."""
_NUMBERS = {
    "full": errno.ENOSPC,
    "broken": errno.EIO,
    "refused": errno.EACCES,
    "torn": errno.ENOSPC,
}
_BY_PATH = ("replace", "rename", "link", "unlink", "mkdir", "rmdir", "open")
_BY_DESCRIPTOR = ("write", "fsync")


@dataclass
class Fault:
    """Strikes at the operation of that number, counted from 0; never when it is negative."""

    folder: Path
    kind: str = "full"
    at: int = -1
    struck: str = ""
    """The operation that failed."""
    seen: list[str] = field(default_factory=list)
    """Every operation so far."""

    def hits(self, name: str) -> bool:
        """Count an operation; whether it is the one that fails."""
        self.seen.append(name)
        if len(self.seen) - 1 != self.at:
            return False
        self.struck = name
        return True

    def possible(self, kind: str) -> list[int]:
        """The numbers of the operations that can fail in that way, of those that were seen."""
        partial = kind in ("torn", "short")
        return [i for i, name in enumerate(self.seen) if name == "write" or not partial]

    def concerns(self, target: Any) -> bool:
        """Whether an operation is on something below the folder."""
        try:
            path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else target
            return os.path.abspath(os.fspath(path)).startswith(str(self.folder))
        except (OSError, TypeError, ValueError):
            return False


@contextmanager
def failing(fault: Fault) -> Iterator[Fault]:
    """Every file operation below the folder goes through the fault."""
    real: dict[tuple[Any, str], Any] = {}

    def patch(module: Any, name: str) -> None:
        kept = real[module, name] = getattr(module, name)

        def call(*given: Any, **more: Any) -> Any:
            # A folder's descriptor and a name relative to it: how shutil.rmtree goes down.
            where = more.get("dir_fd")
            target = given[0] if where is None else where
            if not fault.concerns(target) or not fault.hits(name):
                return kept(*given, **more)
            return _strike(fault.kind, name, kept, given)

        setattr(module, name, call)

    for name in (*_BY_PATH, *_BY_DESCRIPTOR):
        patch(os, name)
    patch(builtins, "open")
    patch(io, "open")
    try:
        yield fault
    finally:
        for (module, name), kept in real.items():
            setattr(module, name, kept)


def _strike(kind: str, name: str, kept: Callable[..., Any], given: tuple[Any, ...]) -> Any:
    if kind == "short" or kind == "torn":
        descriptor, part = given
        written = kept(descriptor, part[: max(len(part) // 2, 1)])
        if kind == "short":
            return written
    raise OSError(_NUMBERS[kind], os.strerror(_NUMBERS[kind]))
