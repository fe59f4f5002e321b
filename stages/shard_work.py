"""One worker's part of teaching: build the teacher once, then answer and store shard after shard."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.rows import Rows, column_shapes
from stillroom.stages.teachers.teacher import Teacher
from stillroom.storage.books import read_book
from stillroom.storage.draft import Draft
from stillroom.storage.encodings.head import Head
from stillroom.storage.errors import IdentityError, SignalError, listed, nearest
from stillroom.storage.files import write_json
from stillroom.storage.folder import Shard
from stillroom.storage.identity import canonical, differences, without_code
from stillroom.storage.pairs import spelled
from stillroom.storage.place import Place
from stillroom.storage.ragged import Ragged
from stillroom.storage.signal import Signal, Values

_MEASURED_ROWS = 256
"""Rows of each shard on which the encoding's error is measured."""


@dataclass(frozen=True)
class ShardTask:
    """A shard to compute, and the places of its rows in the data set."""

    shard: Shard
    places: NDArray[np.int64]

    def __str__(self) -> str:
        """For messages."""
        return f"shard {self.shard.index} (slots {self.shard.start} to {self.shard.stop})"


@dataclass(frozen=True)
class ShardDone:
    """What a worker says about a finished shard."""

    shard: int
    rows: int
    bytes: int
    seconds: float
    """Everything: reading, answering, encoding, writing."""
    teacher_seconds: float
    """Inside the teacher alone."""


@dataclass(frozen=True)
class ShardWork:
    """Builds a worker; small enough to be sent to one."""

    teacher: Teacher
    rows: Rows
    draft: Place
    batch_size: int
    cache: Place | None = None
    """Whose books are read; None: the cache that the draft lies in."""

    def __call__(self) -> ShardWorker:
        """Load the teacher in this process."""
        return ShardWorker(self)


class ShardWorker:
    """A loaded teacher that turns shards of rows into stored shards."""

    def __init__(self, work: ShardWork) -> None:
        """Load the teacher and open the draft."""
        self._work = work
        self._draft = Draft(work.draft)
        cache, asked = work.cache or work.draft.parent.parent, self._draft.asked.items()
        self._books = {n: read_book(cache, ask.book) for n, ask in asked if ask.book}
        self._answer = work.teacher.load()
        _require_identity(work.teacher, self._draft)

    def __call__(self, task: ShardTask) -> ShardDone:
        """Compute and store one shard; a shard that already has its receipt is left alone."""
        started = time.perf_counter()
        shard, teacher_seconds = task.shard, 0.0
        if self._draft.receipt(shard.index) is not None:
            return ShardDone(shard.index, 0, 0, 0.0, 0.0)
        pieces: dict[str, list[Values]] = {name: [] for name in self._draft.asked}
        for start in range(0, len(task.places), self._work.batch_size):
            places = task.places[start : start + self._work.batch_size]
            batch = self._work.rows.read(places, self._work.teacher.inputs)
            before = time.perf_counter()
            answered = self._answer(batch)
            teacher_seconds += time.perf_counter() - before
            given = self._work.teacher, self._work.rows, places, column_shapes(batch)
            for name, values in checked(answered, self._draft.asked, *given).items():
                pieces[name].append(values)
        joined = {name: self._joined(name, values) for name, values in pieces.items()}
        receipt = self._draft.write(shard, joined, self._errors(joined), self._books)
        stored = {f["path"]: f["bytes"] for s in receipt["signals"].values() for f in s["files"]}
        seconds = time.perf_counter() - started
        done = ShardDone(
            shard.index, len(task.places), sum(stored.values()), seconds, teacher_seconds
        )
        cost = {"rows": done.rows, "seconds": seconds, "teacher_seconds": teacher_seconds}
        cost["batch_size"] = self._work.batch_size  # with it, repair gives the same bytes
        write_json(self._draft.path / "made" / f"{shard.index:05d}.json", cost)
        return done

    def _joined(self, name: str, pieces: list[Values]) -> Values:
        """One shard's values from those of its batches; SignalError when batches disagree."""
        signals = [Signal.of(name, values) for values in pieces]
        for signal in signals[1:]:
            if change := signals[0].differs(signal):
                raise SignalError(
                    f"teacher {self._work.teacher.name!r}, signal {name!r}: {change} from one batch to "
                    "the next. Every row needs one shape and dtype; return a list of arrays where rows "
                    "differ in length"
                )
        if all(isinstance(values, np.ndarray) for values in pieces):
            return np.concatenate([v for v in pieces if isinstance(v, np.ndarray)])
        if all(isinstance(values, list) for values in pieces):
            return [text for values in pieces if isinstance(values, list) for text in values]
        return Ragged.of([row for values in pieces if isinstance(values, Ragged) for row in values])

    def _errors(self, joined: Mapping[str, Values]) -> dict[str, dict[str, float]]:
        """What each encoding loses, measured on the first rows of the shard."""
        measured = {}
        for name, values in joined.items():
            encoding, book = self._draft.asked[name].encoding, self._books.get(name)
            signal = Signal.of(name, values, encoding, book=book)
            if isinstance(values, list) or signal.encoding == "raw":
                continue
            some = (values.values if isinstance(values, Ragged) else values)[:_MEASURED_ROWS]
            try:
                if isinstance(signal.coding, Head):
                    measured[name] = signal.coding.loss(some)
                    continue
                coded = signal.coding.encode(some)
            except SignalError as error:
                who = f"teacher {self._work.teacher.name!r}, signal {name!r}"
                raise SignalError(f"{who}: {error}") from error
            decoded = signal.coding.decode(coded, signal.inner_shape)
            measured[name] = signal.coding.error(some, decoded)
        return measured


def _require_identity(teacher: Teacher, draft: Draft) -> None:
    """IdentityError when what was loaded here is not what was planned.

    Files may have changed since, or be others on this machine; so may the packages. After loading, so
    that no change before it is missed.
    """
    now = json.loads(canonical(teacher.identity()))
    if changed := differences(without_code(draft.identity), without_code(now)):
        raise IdentityError(
            f"teacher {teacher.name!r}, as worker {os.getpid()} on {socket.gethostname()} loaded it, is "
            f"not the one that was planned: {listed(changed, 3)}. Nothing of it was stored under the "
            "other's name. Give every worker the same files and packages, leave them alone while a "
            "teacher runs, and run again"
        )


def checked(
    answered: Mapping[str, Any],
    names: Iterable[str],
    teacher: Teacher,
    rows: Rows,
    places: NDArray[np.int64],
    given: str,
) -> dict[str, Values]:
    """These signals of one batch, as a teacher answered; SignalError when one cannot be stored."""
    who = f"teacher {teacher.name!r}"
    if not isinstance(answered, Mapping):
        raise SignalError(f"{who} returned a {type(answered).__name__}; expected {{signal: rows}}")
    found: dict[str, Values] = {}
    for name in names:
        if name not in answered:
            raise SignalError(f"{who} gave no signal {name!r}; {nearest(name, answered)}")
        values = as_values(answered[name])
        if len(values) != len(places):
            raise SignalError(
                f"{who}, signal {name!r}: {len(values):,} rows came back for {len(places):,} rows "
                f"({given}); every row needs exactly one answer"
            )
        _require_finite(f"{who}, signal {name!r}", values, rows, places)
        found[name] = values
    return found


def _require_finite(what: str, values: Values, rows: Rows, places: NDArray[np.int64]) -> None:
    if isinstance(values, list):
        return
    array = values.values if isinstance(values, Ragged) else values
    finite = _finite(array)
    if finite.all():
        return
    wrong = np.flatnonzero(~finite)
    if isinstance(values, Ragged):
        wrong = np.unique(np.searchsorted(values.offsets, wrong, side="right") - 1)
    keys = spelled(rows.keys.take(places[wrong]))
    raise SignalError(
        f"{what}: NaN or infinity for {len(keys):,} of {len(places):,} rows of a "
        f"batch: {listed(map(repr, keys))}. Nothing of this shard was stored; mend the rows or the "
        "teacher's precision and run again"
    )


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
