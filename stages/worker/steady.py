"""Whether a teacher can be cached at all: asked again, and beside other rows, it must say the same.

A module whose dropout is on, a batch norm that takes its figures from the batch, a function that draws
random numbers: each gives answers that look like any others, and a cache of them would be wrong for
ever. So the first batch of a run is compared with a second and a third look at a few of its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.worker.asking import Asked, Asking
from stillroom.stages.worker.live import SLACK, Array, difference, fields, live, magnitude
from stillroom.storage.errors import StillroomError, UnsteadyError, listed
from stillroom.storage.pairs import spelled

FEW = 8
"""Rows that are asked for again: three times at most, so 24 rows, once for a run."""
SINGLE = (2.0**-12, 2.0**-9)
"""What answers may differ by, as a share of the signal's range: when the same batch is asked again,
and when the row lies in another batch. Sums in another order, and TensorFloat-32, stay below."""
HALF = (2.0**-7, 2.0**-5)
"""The same of answers that were computed with the 8 bits of bfloat16 or the 11 of float16."""
Rows = dict[str, list[Any]]
Read = Callable[[Asked], Mapping[str, Any]]


@dataclass(frozen=True)
class Gap:
    """How far two answers to a row are apart, and how far they may be."""

    found: float
    allowed: float

    @property
    def excess(self) -> float:
        """Above 0: more than may be."""
        return self.found - self.allowed


def require_steady(
    asking: Asking,
    read: Read,
    places: NDArray[np.int64],
    first: Mapping[str, Any],
    band: float | None = None,
) -> int:
    """Ask for some rows of a run's first batch again; the number of rows that were asked for.

    `first` is what was answered for all rows at `places`, as `read` gives it. Up to 8 of them are asked
    for twice in one small batch, and once in reverse in two smaller ones. Numbers may differ by the
    `band`'s share of the signal's range (None: by what is usual for their precision) and by what sums
    in another order add; of whole numbers and texts that share may differ at all.

    Raises UnsteadyError, which says whether the teacher is random or depends on the rest of the batch.
    """
    few = np.unique(np.linspace(0, len(places) - 1, min(FEW, len(places))).round().astype(int))
    beside = _picked(first, few)
    some = places[few]
    whole = len(few) == len(places)
    try:
        once = beside if whole else live(asking, some, [len(some)], read=read)
        again = live(asking, some, [len(some)], read=read)
        other = live(asking, some, _pieces(len(some)), reverse=True, read=read)
    except StillroomError:
        raise
    except Exception:
        # One that takes batches of a single size: exported with it, or compiled for it.
        few, some, whole = np.arange(len(places)), places, True
        once = beside = _picked(first, few)
        again = live(asking, some, [len(some)], read=read)
        other = live(asking, some, [len(some)], reverse=True, read=read)
    keys = spelled(asking.rows.keys.take(some))
    for name in first:
        share = _shares(asking.teacher, once[name], band)
        same = _gaps(once[name], again[name], share[0])
        _require(asking, name, keys, same, some, _RANDOM.format(len(some)))
        moved = _worse(
            _gaps(once[name], other[name], share[1]), _gaps(once[name], beside[name], share[1])
        )
        _require(asking, name, keys, moved, some, _BESIDE)
    return (2 if whole else 3) * len(some)


_RANDOM = "asked twice for the same {} rows in one batch, it says something else"
_BESIDE = "what it says of a row depends on the other rows of its batch, or on their order"


def _pieces(count: int) -> list[int]:
    """Two uneven batches, without one of a single row where that can be: some layers refuse it."""
    return [count] if count < 2 else [max(count // 3, min(2, count // 2)), count]


def _picked(values: Mapping[str, Any], at: NDArray[np.int64]) -> Rows:
    return {name: [rows[int(i)] for i in at] for name, rows in values.items()}


def _shares(teacher: Any, rows: list[Any], band: float | None) -> tuple[float, float]:
    if band is not None:
        return band, band
    narrow = _precision(teacher) in ("float16", "bfloat16") or _are_half(rows)
    return HALF if narrow else SINGLE


def _precision(teacher: Any) -> str:
    """That of a module teacher, also inside another."""
    while teacher is not None:
        if found := getattr(teacher, "precision", ""):
            return str(found)
        teacher = getattr(teacher, "teacher", None) or getattr(teacher, "_inner", None)
    return ""


def _are_half(rows: list[Any]) -> bool:
    """Whether every number is one that bfloat16, or float16, can hold."""
    floats = [
        field.astype(np.float32).ravel()
        for row in rows
        if not isinstance(row, str)
        for field in fields(np.asarray(row))
        if field.dtype.kind == "f"
    ]
    if not floats:
        return False
    values = np.concatenate(floats)
    with np.errstate(over="ignore"):
        as_half = values.astype(np.float16).astype(np.float32)
    return not (values.view(np.uint32) & 0xFFFF).any() or bool((as_half == values).all())


def _gaps(one: list[Any], other: list[Any], share: float) -> list[Gap]:
    """Of each row: the field that is furthest beyond what it may be."""
    if one and isinstance(one[0], str):
        return [Gap(float(a != b), min(share, 0.5)) for a, b in zip(one, other, strict=True)]
    left, right = [list(map(np.asarray, rows)) for rows in (one, other)]
    ranges = _ranges(left)
    return [_gap(a, b, ranges, share) for a, b in zip(left, right, strict=True)]


def _ranges(rows: list[Array]) -> list[float]:
    """By field: from the smallest to the largest finite number of all rows."""
    found = []
    for column in zip(*[list(fields(row)) for row in rows], strict=True):
        if column[0].dtype.kind not in "fiub":
            found.append(0.0)  # what cannot be stored, which is said when it is to be
            continue
        values = np.concatenate([field.ravel() for field in column]).astype(np.float64)
        values = values[np.isfinite(values)]
        found.append(float(np.ptp(values)) if values.size else 0.0)
    return found


def _gap(one: Array, other: Array, ranges: list[float], share: float) -> Gap:
    if one.shape != other.shape or one.dtype != other.dtype:
        return Gap(float("inf"), 0.0)
    gaps = []
    for a, b, spread in zip(fields(one), fields(other), ranges, strict=True):
        if a.dtype.kind == "f":
            gaps.append(Gap(difference(a, b), share * spread + SLACK * magnitude(a)))
        else:
            gaps.append(Gap(float((a != b).mean()) if a.size else 0.0, share))
    return max(gaps, key=lambda gap: gap.excess)


def _worse(one: list[Gap], other: list[Gap]) -> list[Gap]:
    return [max(pair, key=lambda gap: gap.excess) for pair in zip(one, other, strict=True)]


def _require(
    asking: Asking,
    signal: str,
    keys: list[Any],
    gaps: list[Gap],
    places: NDArray[np.int64],
    what: str,
) -> None:
    wrong = [i for i, gap in enumerate(gaps) if gap.excess > 0]
    if not wrong:
        return
    worst = max(wrong, key=lambda i: gaps[i].excess)
    gap = gaps[worst]
    size = f"by {gap.found:.3g}, {gap.allowed:.3g} may be" if np.isfinite(gap.found) else "in shape"
    raise UnsteadyError(
        f"teacher {asking.teacher.name!r}, signal {signal!r}: {what}. "
        f"{len(wrong)} of {len(gaps)} rows differ ({listed([repr(keys[i]) for i in wrong], 3)}), "
        f"{keys[worst]!r} {size}. {_suspected(asking, places)} Nothing of it was stored. "
        "Where answers may be that uncertain, say so: teach(..., band=0.1) allows a tenth of the "
        "signal's range, band=float('inf') asks nothing twice"
    )


def _suspected(asking: Asking, places: NDArray[np.int64]) -> str:
    """What is known to do this inside the teacher, in words."""
    suspects = getattr(asking.answer, "suspects", None)
    found = None if suspects is None else suspects(asking.batch(places))
    if found is None:
        return (
            "Look for random numbers (derive their seed from the row), for a model in training mode, and "
            "for figures over the whole batch."
        )
    if not found:
        return "No layer of it is in training mode: look into its own code and its `prepare`."
    return f"Found in it: {listed(found, 4)}."
