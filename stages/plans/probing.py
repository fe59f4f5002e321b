"""A timed probe: load the teacher once, let it answer some of the rows to compute, and weigh that.

The rows go through the real worker into a draft in a temporary folder, so that what is timed and
weighed is what teaching will do: reading, the teacher, its checks, encoding, writing.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.data.rows import Batch, Rows
from stillroom.stages.mapper import Mapper
from stillroom.stages.plans.estimating import total
from stillroom.stages.plans.evidence import PROBE, Evidence
from stillroom.stages.teachers.teacher import Answer, Teacher
from stillroom.stages.worker.book_work import BookWork, LoadedOnce, passing_books, spread
from stillroom.stages.worker.shard_work import ShardTask, ShardWork
from stillroom.storage.books import book_place
from stillroom.storage.draft import Draft
from stillroom.storage.errors import RowsError
from stillroom.storage.files import size_of
from stillroom.storage.folder import Ask, Hashes
from stillroom.storage.place import Place
from stillroom.storage.weighing import weigh

Int64s = NDArray[np.int64]
_BLOCKS, _BATCHES = 3, 3
"""Timed at least: fewer tell no spread."""
_BLOCKS_WANTED = 6
"""Into how many blocks `seconds` is cut, so that their spread is known well enough."""
_PRECISION = 0.04
"""Goes on until the bytes are known within this, half the width of their interval."""


@dataclass(frozen=True)
class TimedBatch:
    """One batch that the teacher answered."""

    rows: int
    reading: float
    """Seconds in which its rows were read from the data set."""
    teacher: float
    """Seconds inside the teacher."""


@dataclass(frozen=True)
class Block:
    """Some batches, stored together as one shard."""

    batches: tuple[TimedBatch, ...]
    storing: float
    """Seconds of checking, encoding and writing them."""
    receipt: Mapping[str, Any]
    """Of the shard: the sizes of its files."""

    @property
    def rows(self) -> int:
        """How many rows it holds."""
        return sum(batch.rows for batch in self.batches)

    @property
    def reading(self) -> float:
        """Seconds in which they were read."""
        return sum(batch.reading for batch in self.batches)


@dataclass(frozen=True)
class Probe:
    """What a teacher did with some of the rows that it is to answer."""

    teacher: str
    rows: int
    """Rows to compute, of which the probe took some."""
    load_seconds: float
    """Building it and loading its weights."""
    warm_up: Block
    """The first batch: weighed but not timed, as it pays for what later ones find done."""
    blocks: tuple[Block, ...]
    shard_seconds: float = 0.0
    """Storing a shard of a single row, so what a shard costs before its rows; the median of some."""
    books: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """By signal the digest and the bytes of the book that its encoding needs."""

    @property
    def seen(self) -> int:
        """Rows that were answered, those that were answered twice counted twice."""
        return self.warm_up.rows + sum(block.rows for block in self.blocks)

    def evidence(self) -> Evidence:
        """As a plan needs it."""
        batches = [batch for block in self.blocks for batch in block.batches]
        return Evidence(
            f"{PROBE} of {self.seen:,} rows",
            weigh([self.warm_up.receipt, *(block.receipt for block in self.blocks)]),
            self.blocks[-1].receipt,
            [(batch.rows, batch.teacher) for batch in batches],
            [(b.rows, b.reading + max(b.storing - self.shard_seconds, 0.0)) for b in self.blocks],
            self.load_seconds,
            self.shard_seconds,
            among=True,
            books=self.books,
        )


def probe(
    rows: Rows,
    teacher: Teacher,
    places: Int64s,
    asked: Mapping[str, Ask],
    *,
    runner: Mapper | None = None,
    batch_size: int = 256,
    shard_rows: int = 4096,
    seconds: float = 1.0,
    limit: float = 10.0,
) -> Probe:
    """Load the teacher once, in a worker of the runner or here, and let it answer some of `places`.

    `places` are those of the rows to compute, rising. Whole batches of neighbours are answered, as
    teaching will do, evenly spread over them. After a batch to warm up, batches are timed until there
    are three, `seconds` have passed, and the bytes of rows that differ in length are
    known within 4%; or until all rows, or `limit` seconds, are spent. Nothing of the cache is touched.

    Raises what the teacher raises, SignalError for answers that cannot be stored, RowsError when
    there are no rows to probe.
    """
    if not len(places):
        raise RowsError("there are no rows to compute, so there is nothing to probe")
    work = _ProbeWork(teacher, rows, dict(asked), batch_size, shard_rows, seconds, limit)
    given = np.ascontiguousarray(places)
    if runner is None:
        return work()(given)
    (found,) = runner.map(work, [given])
    return found


@dataclass(frozen=True)
class _ProbeWork:
    """Builds the worker; small enough to be sent to one."""

    teacher: Teacher
    rows: Rows
    asked: Mapping[str, Ask]
    batch_size: int
    shard_rows: int
    seconds: float
    limit: float

    def __call__(self) -> _Prober:
        return _Prober(self)


@dataclass
class _Clock:
    """The batches of the block that is in work."""

    reading: list[float] = field(default_factory=list)
    answers: list[tuple[int, float]] = field(default_factory=list)

    def batches(self) -> tuple[TimedBatch, ...]:
        pairs = zip(self.answers, self.reading, strict=True)
        return tuple(TimedBatch(rows, reading, inside) for (rows, inside), reading in pairs)


@dataclass(frozen=True)
class _Loaded:
    """A teacher that is loaded already, and timed."""

    inner: Teacher
    answer: Answer
    clock: _Clock

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def inputs(self) -> Sequence[str]:
        return self.inner.inputs

    def asks(self) -> Mapping[str, Ask]:
        return self.inner.asks()

    def identity(self) -> dict[str, Any]:
        return {}

    def load(self) -> Answer:
        def timed(batch: Batch) -> Mapping[str, Any]:
            started = time.perf_counter()
            try:
                answered = self.answer(batch)
            except Exception:
                self.clock.reading.pop()  # one that did not fit into memory is read again in halves
                raise
            rows = len(next(iter(batch.values())))
            self.clock.answers.append((rows, time.perf_counter() - started))
            return answered

        return timed


@dataclass(frozen=True)
class _TimedRows:
    """A data set whose reading is timed."""

    inner: Rows
    clock: _Clock

    @property
    def keys(self) -> pa.Array:
        return self.inner.keys

    @property
    def columns(self) -> tuple[str, ...]:
        return self.inner.columns

    def __len__(self) -> int:
        return len(self.inner)

    def read(self, places: Int64s, columns: Sequence[str]) -> Batch:
        started = time.perf_counter()
        batch = self.inner.read(places, columns)
        self.clock.reading.append(time.perf_counter() - started)
        return batch

    def hashes(self, columns: Sequence[str]) -> Hashes:
        return self.inner.hashes(columns)

    def fingerprint(self, columns: Sequence[str]) -> str:
        return self.inner.fingerprint(columns)


class _Prober:
    """A loaded teacher that answers blocks of batches."""

    def __init__(self, work: _ProbeWork) -> None:
        self._work = work
        started = time.perf_counter()
        self._answer = work.teacher.load()
        self._load_seconds = time.perf_counter() - started

    def __call__(self, places: Int64s) -> Probe:
        work = self._work
        starts = range(0, len(places), work.batch_size)
        pieces = [places[start : start + work.batch_size] for start in starts]
        order = spread(len(pieces), len(pieces)).tolist()
        with tempfile.TemporaryDirectory(prefix="stillroom-probe-") as folder:
            loaded = LoadedOnce(work.teacher, self._answer)
            books = BookWork(loaded, work.rows, Path(folder), work.batch_size)
            self._asked = passing_books(books, work.asked, pieces[order[0]])
            stored = {
                name: (ask.book, size_of(book_place(Path(folder), ask.book)) or 0)
                for name, ask in self._asked.items()
                if ask.book
            }
            started = time.perf_counter()
            warm = self._block(Path(folder), [pieces[order[0]]])
            batch_seconds = max(time.perf_counter() - started, 1e-6)
            most = max(min(work.shard_rows // work.batch_size, len(pieces) // _BLOCKS), 1)
            size = min(max(round(work.seconds / _BLOCKS_WANTED / batch_seconds), 1), most)
            blocks: list[Block] = []
            taken = 1
            while not self._enough(blocks, taken >= len(pieces), len(places), started):
                # All of a small data set are taken, and then some of them again.
                chosen = [order[(taken + i) % len(pieces)] for i in range(size)]
                taken += size
                # A last batch that is shorter than the others has to stand last.
                blocks.append(self._block(Path(folder), [pieces[i] for i in sorted(chosen)]))
            single = [self._block(Path(folder), [pieces[i][:1]]) for i in order[:_BLOCKS]]
        return Probe(
            *(work.teacher.name, len(places), self._load_seconds, warm, tuple(blocks)),
            shard_seconds=statistics.median(block.storing for block in single),
            books=stored,
        )

    def _enough(self, blocks: list[Block], all_taken: bool, rows: int, started: float) -> bool:
        batches = [batch for block in blocks for batch in block.batches]
        if len(blocks) < _BLOCKS or len(batches) < _BATCHES:
            return False
        if all_taken or time.perf_counter() - started > self._work.limit:
            return True
        spent = sum(b.reading + b.teacher for b in batches) + sum(b.storing for b in blocks)
        if spent < self._work.seconds:
            return False
        weights = weigh([block.receipt for block in blocks])
        uneven = (total(w.shards, rows, among=True) for w in weights.values() if not w.fixed)
        return all((size.half or 0.0) <= _PRECISION * size.value for size in uneven)

    def _block(self, folder: Place, pieces: Sequence[Int64s]) -> Block:
        work, clock = self._work, _Clock()
        places = np.concatenate(pieces)
        draft = Draft.create(
            folder / "segments",
            1,
            teacher=work.teacher.name,
            identity={},
            asked=self._asked,
            keys=work.rows.keys.take(pa.array(places)),
            hashes=np.zeros(len(places), "V16"),
            shard_rows=len(places),
        )
        teacher = _Loaded(work.teacher, self._answer, clock)
        worker = ShardWork(teacher, _TimedRows(work.rows, clock), draft.path, work.batch_size)()
        (shard,) = draft.shards()
        done = worker(ShardTask(shard, places))
        receipt = draft.receipt(0)
        assert receipt is not None
        batches = clock.batches()
        storing = done.seconds - sum(b.reading + b.teacher for b in batches)
        shutil.rmtree(Path(str(draft.path)))
        return Block(batches, max(storing, 0.0), receipt)
