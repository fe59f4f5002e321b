"""Names of parametrized tests that are the same in every process, as distributed runs need them."""

from __future__ import annotations

import re


def without_addresses(value: object) -> str:
    """What a value prints, without the addresses in it."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
