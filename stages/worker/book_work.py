"""Books for signals whose encoding needs one: found in earlier segments, else made by one worker.

A head's weight is asked of the loaded teacher; centroids are fitted to some of the rows that are to
be taught. That is done once, before the first shard, so that all rows are stored by one book.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.rows import Rows
from stillroom.stages.events import BooksMade, Listen
from stillroom.stages.teachers.teacher import Answer, Teacher
from stillroom.stages.worker.answers import checked
from stillroom.stages.worker.asking import Asking
from stillroom.storage.books import write_book
from stillroom.storage.encodings.encoding import encoding, needs_book
from stillroom.storage.encodings.head import Head
from stillroom.storage.encodings.part import Array
from stillroom.storage.encodings.product import FITTED_VECTORS, Product
from stillroom.storage.errors import SignalError
from stillroom.storage.folder import Ask
from stillroom.storage.place import Place
from stillroom.storage.segment import Segment
from stillroom.storage.signal import Signal, Values

if TYPE_CHECKING:
    from stillroom.stages.mapper import Mapper

Int64s = NDArray[np.int64]
_ROWS = 1024
"""Rows among which the vectors are spread at least, where one row has many of them."""


@dataclass(frozen=True)
class BookTask:
    """Signals that need a book, and the places of the rows that are to be taught."""

    asked: Mapping[str, Ask]
    places: Int64s

    def __str__(self) -> str:
        """For messages."""
        return f"books of {', '.join(self.asked)}"


@dataclass(frozen=True)
class BookDone:
    """What a worker made."""

    books: Mapping[str, str]
    """The book's digest by signal."""
    rows: int
    """Rows that the teacher answered for it; they are answered again when their shard is stored."""
    seconds: float


@dataclass(frozen=True)
class BookWork:
    """Builds a worker; small enough to be sent to one."""

    teacher: Teacher
    rows: Rows
    cache: Place
    batch_size: int

    def __call__(self) -> BookWorker:
        """Load the teacher in this process."""
        return BookWorker(self)


class BookWorker:
    """A loaded teacher from which books are made."""

    def __init__(self, work: BookWork) -> None:
        """Load the teacher."""
        self._work = work
        self._asking = Asking.of(work.teacher, work.rows, work.batch_size)

    def __call__(self, task: BookTask) -> BookDone:
        """Make and store a book for each signal; the same ones whenever it is tried again."""
        started = time.perf_counter()
        arrays: dict[str, Mapping[str, Array]] = {}
        fitted: dict[str, Product] = {}
        for name, ask in task.asked.items():
            coding = encoding(ask.encoding)
            if isinstance(coding, Product):
                fitted[name] = coding
            elif isinstance(coding, Head):
                arrays[name] = self._constants(name, coding)
        vectors, rows = self._vectors(task, fitted) if fitted else ({}, 0)
        for name, coding in fitted.items():
            try:
                arrays[name] = coding.fitted(vectors[name])
            except SignalError as error:
                raise SignalError(f"{self._who}, signal {name!r}: {error}") from error
        books = {name: write_book(self._work.cache, arrays[name]) for name in task.asked}
        return BookDone(books, rows, time.perf_counter() - started)

    @property
    def _who(self) -> str:
        return f"teacher {self._work.teacher.name!r}"

    def _constants(self, name: str, coding: Head) -> dict[str, Array]:
        """The head's weight and bias, as the loaded teacher gives them."""
        who = f"{self._who}, signal {name!r}"
        constants = getattr(self._asking.answer, "constants", None)
        if constants is None:
            raise SignalError(
                f"{who}: head({coding.module}) needs the head's weight, which this teacher does not "
                "give. Use a ModuleTeacher, or give what its load() returns a method "
                "constants(name) -> {'weight': (V, d) array, 'bias': (V,) array}"
            )
        found = {k: np.asarray(v) for k, v in constants(coding.module).items() if v is not None}
        weight, bias = found.get("weight"), found.get("bias")
        if weight is None or weight.ndim != 2 or set(found) - {"weight", "bias"}:
            raise SignalError(f"{who}: the teacher gave {sorted(found)}, not a weight of two axes")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise SignalError(f"{who}: bias {bias.shape} does not fit weight {weight.shape}")
        return found

    def _vectors(
        self, task: BookTask, codings: Mapping[str, Product]
    ) -> tuple[dict[str, Array], int]:
        """Vectors of each signal from rows that are evenly spread, and how many rows it took.

        Which they are is a function of the rows alone, not of the size of a batch, which is halved where
        memory runs out.
        """
        places, work = task.places, self._work
        order = spread(len(places), FITTED_VECTORS)
        of_one_row = -(-FITTED_VECTORS // min(len(places), _ROWS))
        found: dict[str, list[Array]] = {name: [] for name in codings}
        counts, fitted = dict.fromkeys(codings, 0), {name: task.asked[name] for name in codings}
        shapes: dict[str, Signal] = {}
        taken = 0
        for asked in self._asking.each(places[order]):
            taken += len(asked.places)
            given = work.teacher, work.rows, asked.places, asked.shapes
            for name, values in checked(asked.answered, fitted, *given).items():
                signal = Signal.of(name, values, task.asked[name].encoding)
                if change := shapes.setdefault(name, signal).differs(signal):
                    raise SignalError(
                        f"{self._who}, signal {name!r}: {change} from one batch to the next. Every row "
                        "needs one shape and dtype"
                    )
                for vectors in _by_row(values, of_one_row):
                    found[name].append(vectors)
                    counts[name] += len(vectors)
            if min(counts.values()) >= FITTED_VECTORS:
                break
        joined = {name: np.concatenate(each)[:FITTED_VECTORS] for name, each in found.items()}
        return joined, taken


def _by_row(values: Values, most: int) -> list[Array]:
    """At most `most` evenly spread vectors of each row: (count, d) arrays."""
    rows = []
    for row in values:
        assert not isinstance(row, str)  # a text is stored raw, and has no book
        vectors = np.asarray(row).reshape(-1, row.shape[-1])
        count = min(len(vectors), most)
        rows.append(vectors[np.arange(count) * len(vectors) // max(count, 1)])
    return rows


def spread(count: int, most: int) -> Int64s:
    """At most `most` of the numbers below `count`, in an order of which every beginning is spread
    evenly: their bits in reverse count up (van der Corput 1935).

    >>> spread(6, 5).tolist()
    [0, 4, 2, 1, 5]
    """
    bits = (count - 1).bit_length()
    # At least half of the numbers of so many bits are below `count`, wherever one looks.
    rising = np.arange(min(2**bits, 4 * most + 64), dtype=np.int64)
    turned = np.zeros_like(rising)
    for bit in range(bits):
        turned |= (rising >> bit & 1) << (bits - 1 - bit)
    return turned[turned < count][:most]


def with_books(
    asked: Mapping[str, Ask],
    places: Int64s,
    digest: str,
    segments: Sequence[Segment],
    work: BookWork,
    runner: Mapper,
    listen: Listen,
) -> dict[str, Ask]:
    """What is asked, each signal with the book that its rows are stored by.

    The one that it names already, that of an earlier segment of the teacher with that identity's
    digest, else one that is made and stored now, by one worker of the runner, from the rows at these
    places.
    """
    complete, lacking = dict(asked), {}
    for name, ask in asked.items():
        if ask.book or not needs_book(ask.encoding):
            continue
        if known := _known(segments, digest, name, ask):
            complete[name] = replace(ask, book=known)
        else:
            lacking[name] = ask
    if not lacking:
        return complete
    for done in runner.map(work, [BookTask(lacking, places)]):
        complete |= {name: replace(lacking[name], book=book) for name, book in done.books.items()}
        listen(BooksMade(work.teacher.name, tuple(lacking), done.rows, done.seconds))
    return complete


def passing_books(work: BookWork, asked: Mapping[str, Ask], places: Int64s) -> dict[str, Ask]:
    """What is asked, with books of these rows that are made here; for a probe, which keeps none."""
    lacking = {name: ask for name, ask in asked.items() if needs_book(ask.encoding)}
    if not lacking:
        return dict(asked)
    made = work()(BookTask(lacking, places)).books
    return {**asked, **{name: replace(ask, book=made[name]) for name, ask in lacking.items()}}


def _known(segments: Sequence[Segment], digest: str, name: str, ask: Ask) -> str:
    """The book of that signal in the newest segment that has one; empty where none has."""
    for segment in reversed(segments):
        signal = segment.signals.get(name)
        if segment.digest != digest or signal is None:
            continue
        if ask.fits(signal):
            return signal.book
    return ""


class LoadedOnce:
    """A teacher that is loaded once a process, however often it is asked to; sent to another process
    it is a teacher that was not loaded yet."""

    def __init__(self, inner: Teacher, answer: Answer | None = None) -> None:
        """Nothing is loaded yet, but for what is given."""
        self._inner, self._answer = inner, answer
        self._identity: dict[str, Any] | None = None
        self.name: str = inner.name
        self.inputs: Sequence[str] = inner.inputs

    def asks(self) -> Mapping[str, Ask]:
        """The signals it gives."""
        return self._inner.asks()

    def identity(self) -> dict[str, Any]:
        """What decides its numbers; of what is loaded, its files are read once more and not again."""
        if self._answer is None:
            return self._inner.identity()
        if self._identity is None:
            self._identity = self._inner.identity()
        return self._identity

    def load(self) -> Answer:
        """What was loaded first."""
        if self._answer is None:
            self._answer = self._inner.load()
        return self._answer

    def __reduce__(self) -> tuple[Any, ...]:
        """The teacher alone travels."""
        return LoadedOnce, (self._inner,)
