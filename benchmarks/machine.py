"""What the figures were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from pathlib import Path

_LIBRARIES = ("torch", "numpy", "zarr", "pyarrow", "ray", "datasets", "pylance")


def machine() -> list[str]:
    """Processor, cores, memory, versions, the load when this is called, and the date."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return [
        f"{_processor()}, {cores} cores, {memory:.0f} GiB of memory, {platform.system()}",
        f"Python {platform.python_version()}; "
        + ", ".join(f"{name} {_version(name)}" for name in _LIBRARIES),
        f"load average at the start (1, 5, 15 minutes): {load}",
        f"measured on {time.strftime('%Y-%m-%d')}",
    ]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
