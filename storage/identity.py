"""Digests: one spelling of a JSON value, and the hash of that spelling."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

_DIGEST = re.compile(r"[0-9a-f]{32,64}")


def canonical(value: Any) -> str:
    """The one spelling of a JSON value: sorted keys, no spaces, no NaN.

    Tuples count as lists. TypeError for anything that JSON cannot hold, because its identity would
    depend on the process that printed it.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest(value: Any) -> str:
    """SHA-256 of the canonical spelling, as 64 hexadecimal digits.

    >>> digest({"b": 1, "a": [2]}) == digest({"a": (2,), "b": 1})
    True
    """
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Each field in which two identities differ, as a person would say it.

    >>> differences({"weights": {"a": 1}, "x": 2}, {"weights": {"a": 9}, "x": 2})
    ['weights.a: 1 became 9']
    >>> differences({"names": ["a", "b"]}, {"names": ["b", "c"]})
    ['names: "a" gone; "c" new']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        found: list[str] = []
        for key in sorted({*old, *new}):
            place = f"{where}.{key}" if where else str(key)
            if key not in new:
                found.append(f"{place}: gone")
            elif key not in old:
                found.append(f"{place}: new")
            else:
                found += differences(old[key], new[key], place)
        return found
    if canonical(old) == canonical(new):
        return []
    if isinstance(old, list) and isinstance(new, list):
        gone = [_short(item) for item in old if item not in new]
        more = [_short(item) for item in new if item not in old]
        words = [f"{', '.join(gone)} gone"] * bool(gone) + [f"{', '.join(more)} new"] * bool(more)
        return [f"{where}: {'; '.join(words) or 'another order'}"]
    if _DIGEST.fullmatch(f"{old}") and _DIGEST.fullmatch(f"{new}"):
        return [f"{where} changed"]  # the digits of a digest say nothing to anybody
    return [f"{where}: {_short(old)} became {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
