"""The flags of `run` that say which Ray workers there should be, as settings of a RayRunner."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from stillroom.workflows.flows import SettingsError


def workers_of(text: str | None) -> int | tuple[int, int] | None:
    """`N`, or `LEAST-MOST` of a cluster that grows. SettingsError for anything else.

    >>> workers_of("4"), workers_of("0-8"), workers_of(None)
    (4, (0, 8), None)
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if not found:
        raise SettingsError(
            f"--workers {text}: expected a number, or LEAST-MOST for a cluster that grows, such as 0-8"
        )
    if found[2] is None:
        return int(found[1])
    least, most = int(found[1]), int(found[2])
    if least > most or most < 1:
        raise SettingsError(f"--workers {text}: LEAST is above MOST, or MOST is not positive")
    return least, most


def resources_of(texts: Sequence[str]) -> dict[str, float]:
    """Custom resources of a worker, each as `NAME=AMOUNT`.

    >>> resources_of(["a100=1", "disk=0.5"])
    {'a100': 1.0, 'disk': 0.5}
    """
    found = {}
    for text in texts:
        match = re.fullmatch(r"([^=\s]+)=(\d+(?:\.\d+)?)", text)
        if not match:
            raise SettingsError(f"--resource {text}: expected NAME=AMOUNT, such as a100=1")
        if match[1] in ("CPU", "GPU"):
            raise SettingsError(f"--resource {text}: say --{match[1].lower()}s {match[2]}")
        found[match[1]] = float(match[2])
    return found


def pool_settings(
    resource: Sequence[str], cpus: float | None, gpus: float | None, wait: float | None
) -> dict[str, Any]:
    """What was said, by the names of RayRunner's fields; what was not stays at its default."""
    said = {"num_cpus": cpus, "num_gpus": gpus, "worker_wait_s": wait}
    found = {name: value for name, value in said.items() if value is not None}
    return {**found, "resources": resources_of(resource)} if resource else found
