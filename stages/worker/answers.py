"""What a teacher answered for one batch, as it can be stored: named, counted, finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.rows import Rows
from stillroom.stages.teachers.teacher import Teacher
from stillroom.storage.encodings.encoding import encoding
from stillroom.storage.encodings.packed import Packed
from stillroom.storage.encodings.sampled import Sampled
from stillroom.storage.encodings.topk import TopK
from stillroom.storage.errors import SignalError, listed, nearest
from stillroom.storage.folder import Ask
from stillroom.storage.pairs import spelled
from stillroom.storage.ragged import Ragged
from stillroom.storage.signal import Values


def checked(
    answered: Mapping[str, Any],
    asked: Mapping[str, Ask],
    teacher: Teacher,
    rows: Rows,
    places: NDArray[np.int64],
    given: str,
) -> dict[str, Values]:
    """The signals that are asked for of one batch, as a teacher answered.

    SignalError when one cannot be stored: NaN and infinities cannot, but for -inf in logits whose
    encoding keeps none of the classes that have it (topk, sampled, and these packed).
    """
    who = f"teacher {teacher.name!r}"
    if not isinstance(answered, Mapping):
        raise SignalError(f"{who} returned a {type(answered).__name__}; expected {{signal: rows}}")
    found: dict[str, Values] = {}
    for name, ask in asked.items():
        if name not in answered:
            raise SignalError(f"{who} gave no signal {name!r}; {nearest(name, answered)}")
        values = as_values(answered[name])
        if len(values) != len(places):
            raise SignalError(
                f"{who}, signal {name!r}: {len(values):,} rows came back for {len(places):,} rows "
                f"({given}); every row needs exactly one answer"
            )
        _require_finite(f"{who}, signal {name!r}", values, ask.encoding, rows, places)
        found[name] = values
    return found


def _require_finite(
    what: str, values: Values, named: str, rows: Rows, places: NDArray[np.int64]
) -> None:
    if isinstance(values, list):
        return
    array = values.values if isinstance(values, Ragged) else values
    finite = _finite(array)
    if finite.all():
        return
    kept = _kept(named) if array.dtype.names is None else 0
    sound, few = _masked(array, kept) if kept else (finite, np.zeros(len(array), bool))
    if not sound.all():
        found, mend = "NaN or infinity", "mend the rows or the teacher's precision and run again"
        if not kept and array.dtype.names is None and _masked(array, 1)[0].all():
            found = "infinity below zero"
            mend = (
                "classes without probability (-inf) can be stored as topk(k) or sampled(k), which keep "
                f"none of them, and not as {named}"
            )
    elif few.any():
        sound, found = ~few, f"fewer than {kept:,} classes above -inf"
        mend = f"{named} keeps {kept:,}; take a smaller k, or sampled(k), which keeps what it draws"
    else:
        return
    wrong = np.flatnonzero(~sound)
    if isinstance(values, Ragged):
        wrong = np.unique(np.searchsorted(values.offsets, wrong, side="right") - 1)
    keys = spelled(rows.keys.take(places[wrong]))
    raise SignalError(
        f"{what}: {found} for {len(keys):,} of {len(places):,} rows of a batch: "
        f"{listed(map(repr, keys))}. Nothing of this shard was stored; {mend}"
    )


def _kept(named: str) -> int:
    """How many classes of each row of logits an encoding keeps at least; 0 where it keeps all."""
    coding = encoding(named)
    inner = coding.inner if isinstance(coding, Packed) else coding
    return inner.k if isinstance(inner, TopK) else int(isinstance(inner, Sampled))


def _masked(logits: NDArray[Any], kept: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(n,) rows that hold neither NaN nor infinity above zero, and those of them in which fewer than
    `kept` classes are finite."""
    finite, rest = np.isfinite(logits), tuple(range(1, logits.ndim))
    sound = (finite | np.isneginf(logits)).all(axis=rest)
    few = finite.sum(axis=-1) < kept if logits.ndim > 1 else ~finite
    return sound, few.any(axis=rest[:-1])


def _finite(array: NDArray[Any]) -> NDArray[np.bool_]:
    """(n,) bool: rows without NaN or infinity, in any field of a record."""
    finite = np.ones(len(array), bool)
    fields = [array] if array.dtype.names is None else [array[n] for n in array.dtype.names]
    for field in fields:
        if field.dtype.kind == "f":
            finite &= np.isfinite(field).all(axis=tuple(range(1, field.ndim)))
    return finite


def as_values(given: Any) -> Values:
    """Arrays and tensors as numpy, lists of arrays as Ragged, lists of texts as they are."""
    if isinstance(given, Ragged | np.ndarray):
        return given
    if hasattr(given, "detach"):
        if str(given.dtype) == "torch.bfloat16":
            given = given.float()  # numpy has no bfloat16; float32 holds it exactly
        array: NDArray[Any] = given.detach().cpu().numpy()
        return array
    if isinstance(given, list) and all(isinstance(item, str) for item in given):
        return given
    if isinstance(given, list | tuple):
        try:
            return Ragged.of(
                [np.asarray(as_values(i) if hasattr(i, "detach") else i) for i in given]
            )
        except (TypeError, ValueError) as error:
            raise SignalError(
                f"a signal came back as a list whose items cannot lie in one array ({error}); every item "
                "is an array that may differ from the others in its first axis only"
            ) from error
    raise SignalError(
        f"a signal came back as {type(given).__name__}; expected an array with one row per row, a "
        "list of arrays (rows of different lengths), or a list of texts"
    )
