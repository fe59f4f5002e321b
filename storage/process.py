"""This process, named so that another one can prove it dead."""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path
from typing import Any


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""  # no /proc: the names below are then less precise


def _started(pid: int | str) -> str:
    """When a process started, in the kernel's ticks; empty where that cannot be known."""
    # The name in parentheses may hold anything, also spaces and parentheses.
    return (_read(f"/proc/{pid}/stat").rpartition(") ")[2].split() or [""] * 20)[19:20][0]


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


@functools.lru_cache(maxsize=2)
def _named(pid: int) -> dict[str, Any]:
    machine = _read("/proc/sys/kernel/random/boot_id") or socket.gethostname()
    return {
        "host": socket.gethostname(),
        "machine": f"{machine}{_namespace()}",
        "pid": pid,
        "started": _started(pid),
    }


def this_process() -> dict[str, Any]:
    """Host (for people), machine (its boot, and the namespace of its numbers), pid and start."""
    return dict(_named(os.getpid()))


def is_dead(process: dict[str, Any]) -> bool:
    """Whether that process has certainly ended; False where this machine cannot know."""
    if process.get("machine") != this_process()["machine"]:
        return False
    pid = process.get("pid")
    if not isinstance(pid, int) or isinstance(pid, bool) or not 0 < pid < 2**31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    state = _read(f"/proc/{pid}/stat").rpartition(") ")[2][:1]
    # A zombie has ended and waits for its parent; another start is another process of that number.
    return state == "Z" or bool(_started(pid) and _started(pid) != process.get("started"))
