"""packed(topk(k)), packed(topk(k),n), packed(sampled(k)): the same rows in far fewer bytes.

All positions of a row become one string of bytes: class numbers exactly, in rising order, as
`packed_ids` codes them; log-sum-exps as float16; counts of draws exactly. Probabilities of topk are
rounded: (level + 1/2)**2 / n**2 with level = floor(n * sqrt(p)), and a tail in the same way with
n = 256. Even steps of sqrt(p) are what the Kullback-Leibler divergence calls for, which is
2 * sum((sqrt(p) - sqrt(q))**2) to second order: each class costs about 1 / (6 n**2) nats, whatever
its probability, and up to 1 / (4 n**2) where that is next to nothing.

Each row is read by itself, with tables that are part of this format and not of the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from stillroom.storage.encodings import packed_ids
from stillroom.storage.encodings.logits import class_dtype
from stillroom.storage.encodings.packed_bits import Bytes, Groups, Int64s, Scanner, Writer
from stillroom.storage.encodings.part import Array, Part
from stillroom.storage.encodings.sampled import Sampled
from stillroom.storage.encodings.topk import TopK
from stillroom.storage.errors import CorruptShardError, SignalError
from stillroom.storage.ragged import Ragged

LEVELS = 28
"""Of sqrt(p) where none are named: 50 classes of 150,000 then cost 0.01 nats and 75 bytes."""
MOST_LEVELS = 4096
_TAILS = 256
_AT_ONCE = 2**16
"""Kept classes (packing) or bytes (reading) that are worked on at once: what a processor's cache holds
is read three times as fast. Rows are never cut."""
_ORDERS = 8
_LONGEST = 17
"""Bits in unary before a level or a count; more belong to no number of this format."""


@dataclass(frozen=True)
class Numbers:
    """The positions of many rows as whole numbers."""

    rows: Int64s
    """(rows,) positions of each."""
    kept: Int64s
    """(positions,) classes of each."""
    classes: Int64s
    """Of all positions, each position's rising."""
    values: Int64s
    """Of each class: its level (topk), or its count less one (sampled)."""
    sums: Array
    """(positions,) float16 log-sum-exps."""
    tails: Int64s
    """(positions,) levels of the tail (topk); empty (sampled)."""


@dataclass(frozen=True)
class Packed:
    """A row, or all elements of a row, as one string of bytes."""

    inner: TopK | Sampled
    levels: int = LEVELS
    """Steps of sqrt(p) from 0 to 1 (topk)."""

    def check(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """What the inner encoding takes; 2 to 4,096 levels."""
        self.inner.check(name, shape, dtype)
        if not 2 <= self.levels <= MOST_LEVELS:
            raise SignalError(
                f"signal {name!r}: packed with {self.levels} levels; 2 to {MOST_LEVELS:,} are possible"
            )

    def parts(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Part, ...]:
        """Bytes: how many of them a row takes differs from row to row."""
        return (Part("", (), "uint8"),)

    def encode(self, values: Array) -> dict[str, Array]:
        """The parts of (n, *shape) values as they are after packing and unpacking."""
        return self._parts(self._numbers(values, np.ones(len(values), np.int64)), values.shape[1:])

    def decode(self, parts: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
        """Dense float32 logits (n, *shape) from unpacked parts."""
        return self.inner.decode(parts, shape)

    def error(self, values: Array, decoded: Array) -> dict[str, float]:
        """As the inner encoding."""
        return self.inner.error(values, decoded)

    def pack(self, values: Array, lengths: Int64s) -> Ragged:
        """Rows of `lengths` elements each, (elements, *shape) in all, as uint8 rows of bytes.

        SignalError where logits are no distribution, or their log-sum-exp is beyond float16.
        """
        packed, start, elements = [], 0, np.concatenate([[0], np.cumsum(lengths)])
        most = max(_AT_ONCE // (prod(values.shape[1:-1]) * self.inner.k), 1)
        while start < len(lengths):
            stop = int(np.searchsorted(elements, elements[start] + most, side="right")) - 1
            stop = max(stop, start + 1)
            some = values[elements[start] : elements[stop]]
            packed.append(self._packed(self._numbers(some, lengths[start:stop])))
            start = stop
        return _concatenated(packed)

    def unpack(self, blobs: Ragged, shape: tuple[int, ...]) -> tuple[dict[str, Array], Int64s]:
        """The inner encoding's parts of all rows' elements, and (rows,) how many each row has.

        Parts are as `encode` gives them: `indices` rise, and topk's `values` are float32.
        CorruptShardError for bytes that no row becomes.
        """
        pieces = [self._unpacked(some, shape) for some in _pieces(blobs)]
        lengths = np.concatenate([n.rows for n in pieces]) // prod(shape[:-1])
        parts = [self._parts(numbers, shape) for numbers in pieces]
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}, lengths

    def _numbers(self, values: Array, lengths: Int64s) -> Numbers:
        flat = values.reshape(-1, values.shape[-1])
        rows = lengths * prod(values.shape[1:-1])
        none = np.zeros(0, np.int64)
        if isinstance(self.inner, Sampled):
            drawn = self.inner.encode(flat)
            counts = drawn["counts"].astype(np.int64)
            used, sums = counts > 0, _rounded_sums(drawn["logsumexp"])
            classes = drawn["indices"][used].astype(np.int64)
            return Numbers(rows, used.sum(-1), classes, counts[used] - 1, sums, none)
        found = self.inner.largest(flat)
        rising = np.argsort(found.order, axis=-1)
        classes = np.take_along_axis(found.order, rising, -1).reshape(-1)
        levels = _levels(np.exp(np.take_along_axis(found.values, rising, -1)), self.levels)
        kept = np.full(len(flat), self.inner.k, np.int64)
        tails = _levels(found.tail, _TAILS)
        return Numbers(rows, kept, classes, levels.reshape(-1), _rounded_sums(found.total), tails)

    def _packed(self, numbers: Numbers) -> Ragged:
        """Fields in the order in which they can be read; a row without a position has no byte."""
        held = np.flatnonzero(numbers.rows)
        places, positions = Groups(numbers.rows[held]), Groups(numbers.kept)
        each = Groups(places.sums(numbers.kept))
        codes = packed_ids.chosen(numbers.classes, positions, each)
        orders = _order(numbers.values, each, self._orders)
        split = packed_ids.split(numbers.classes, positions, each, codes)
        quotients, rests, widths = _golomb(numbers.values, orders[each.row])
        writer = Writer(len(held))
        writer.unary(each, split.quotients)
        writer.unary(each, quotients)
        writer.plain(each, rests, widths)
        writer.plain(each, split.rests, split.shifts)
        writer.plain(each, split.low, split.widths)
        writer.plain(places, numbers.sums.view(np.uint16).astype(np.int64), _all(16, places))
        counts, settings = each.counts, [codes]
        if isinstance(self.inner, TopK):
            writer.plain(places, numbers.tails, _all(8, places))
            counts, settings = places.counts, [codes, orders.astype(np.uint8)]
        found = writer.rows(_heads(counts, settings))
        lengths = np.zeros(len(numbers.rows), np.int64)
        lengths[held] = found.lengths
        return Ragged(found.values, Groups(lengths).ends)

    def _unpacked(self, blobs: Ragged, shape: tuple[int, ...]) -> Numbers:
        held = np.flatnonzero(blobs.lengths)
        content = np.ascontiguousarray(blobs.values, np.uint8)
        starts, ends = blobs.offsets[:-1][held], blobs.offsets[1:][held]
        sampled = isinstance(self.inner, Sampled)
        counts, (codes, orders), starts = _read_heads(content, starts, ends, 1 if sampled else 2)
        # Every class takes two bits at least: what a row claims is bounded before it is believed.
        classes_each = 1 if sampled else self.inner.k
        if (counts > 4 * (ends - starts) // classes_each).any() or (orders >= _ORDERS).any():
            raise CorruptShardError("a packed row claims more than it can hold")
        each = Groups(counts * classes_each)
        scanner = Scanner(content, starts, ends)
        quotients, widths = scanner.unary(each), scanner.unary(each)
        if (widths > _LONGEST).any():
            raise CorruptShardError("a packed row holds a level or a count that cannot be")
        order = orders[each.row].astype(np.int64)
        rests = scanner.plain(each, widths + order)
        values = rests + (np.int64(1) << (widths + order)) - (np.int64(1) << order)
        places, positions = self._positions(values, each)
        rests = scanner.plain(each, packed_ids.shifts(codes, each))
        bucket, octave = packed_ids.buckets(quotients, rests, positions, each, codes)
        low = scanner.plain(each, octave)
        classes = packed_ids.joined(bucket, octave, low, positions, each, codes)
        sums = scanner.plain(places, _all(16, places)).astype(np.uint16).view(np.float16)
        tails = np.zeros(0, np.int64) if sampled else scanner.plain(places, _all(8, places))
        scanner.finish()
        wrong = not sampled and bool((values >= self.levels).any())
        if wrong or not np.isfinite(sums).all() or (classes >= shape[-1]).any():
            raise CorruptShardError(
                f"a packed row holds a level, a log-sum-exp or a class of {shape[-1]} that cannot be"
            )
        rows = np.zeros(len(blobs), np.int64)
        rows[held] = places.counts
        if (rows % prod(shape[:-1])).any():
            raise CorruptShardError(f"a packed row's positions are no elements of shape {shape}")
        return Numbers(rows, positions.counts, classes, values, sums, tails)

    def _positions(self, values: Int64s, each: Groups) -> tuple[Groups, Groups]:
        """Positions of rows, and classes of positions: k of them, or until k draws are counted."""
        k = self.inner.k
        if isinstance(self.inner, TopK):
            places = Groups(each.counts // k)
            return places, Groups(np.full(int(places.ends[-1]), k, np.int64))
        drawn = each.running(values + 1)
        last = drawn % k == 0
        places = Groups(each.sums(last.astype(np.int64)))
        if (each.sums(values + 1) != places.counts * k).any():
            raise CorruptShardError(f"the counts of a packed row are not those of {k} draws")
        return places, Groups(np.diff(np.flatnonzero(last) + 1, prepend=0))

    @property
    def _orders(self) -> Sequence[int]:
        """Counts are mostly one; how levels are spread hangs on k and on the teacher."""
        return (0,) if isinstance(self.inner, Sampled) else range(_ORDERS)

    def _parts(self, numbers: Numbers, shape: tuple[int, ...]) -> dict[str, Array]:
        k, count = self.inner.k, len(numbers.kept)
        outer = (-1, *shape[:-1]) if count else (0, *shape[:-1])
        classes = numbers.classes.astype(class_dtype(shape[-1]))
        sums = numbers.sums.astype(np.float32).reshape(outer)
        if isinstance(self.inner, Sampled):
            groups = Groups(numbers.kept)
            indices = np.zeros((count, k), classes.dtype)
            counts = np.zeros((count, k), np.min_scalar_type(k))
            indices[groups.row, groups.within] = classes
            counts[groups.row, groups.within] = numbers.values + 1
            drawn = {"indices": indices, "counts": counts}
            return {**{n: a.reshape(*outer, k) for n, a in drawn.items()}, "logsumexp": sums}
        tail = _middles(numbers.tails, _TAILS) * (k < shape[-1])
        share = _middles(numbers.values.reshape(count, k), self.levels)
        share *= ((1 - tail) / share.sum(-1))[:, None]
        return {
            "indices": classes.reshape(*outer, k),
            "values": np.log(share).astype(np.float32).reshape(*outer, k),
            "logsumexp": sums,
            "tail": tail.astype(np.float32).reshape(outer),
        }


def _levels(share: Array, levels: int) -> Int64s:
    return np.asarray(np.minimum(np.sqrt(share) * levels, levels - 1).astype(np.int64))


def _middles(level: Int64s, levels: int) -> Array:
    return np.asarray(((level + 0.5) / levels) ** 2)


def _rounded_sums(total: Array) -> Array:
    with np.errstate(over="ignore"):
        sums = total.astype(np.float16)
    if not np.isfinite(sums).all():
        raise SignalError(
            f"a log-sum-exp of {np.abs(total).max():g} is beyond float16, in which packed rows keep it; "
            "shift the logits, or store them unpacked"
        )
    return sums


def _all(width: int, groups: Groups) -> Int64s:
    return np.full(int(groups.ends[-1]), width, np.int64)


def _golomb(values: Int64s, order: int | Int64s) -> tuple[Int64s, Int64s, Int64s]:
    """Exponential Golomb code of an order: x = value + 2**order has q + order + 1 bits; q, rest, width."""
    x = values + (np.int64(1) << order)
    width = np.frexp(x.astype(np.float64))[1].astype(np.int64) - 1
    return width - order, x - (np.int64(1) << width), width


def _order(values: Int64s, each: Groups, orders: Sequence[int]) -> Int64s:
    """(rows,) the order in which each row's numbers take the fewest bits."""
    sizes = []
    for order in orders:
        quotients, _, widths = _golomb(values, order)
        sizes.append(each.sums(quotients + 1 + widths))
    return np.asarray(np.array(orders, np.int64)[np.argmin(sizes, axis=0)])


def _heads(counts: Int64s, settings: Sequence[Bytes]) -> Ragged:
    """For each row its count (seven bits a byte, lowest first, 128 added to all but the last), then
    one byte for each setting."""
    size = np.maximum(-(-np.frexp(counts.astype(np.float64))[1].astype(np.int64) // 7), 1)
    groups = Groups(size + len(settings))
    content = np.zeros(int(groups.ends[-1]), np.uint8)
    for byte in range(int(size.max(initial=0))):
        some = size > byte
        more = np.where(size[some] > byte + 1, 128, 0)
        content[groups.ends[:-1][some] + byte] = (counts[some] >> (7 * byte) & 127) + more
    for i, setting in enumerate(settings):
        content[groups.ends[:-1] + size + i] = setting
    return Ragged(content, groups.ends)


def _read_heads(
    content: Bytes, at: Int64s, ends: Int64s, settings: int
) -> tuple[Int64s, tuple[Bytes, Bytes], Int64s]:
    """Counts, two settings (zeros for one that is not there), and where the heads end."""
    counts, going = np.zeros(len(at), np.int64), np.ones(len(at), bool)
    for byte in range(5):
        if (at + going > ends).any():
            raise CorruptShardError("a packed row ends in its head")
        found = content[at[going]].astype(np.int64)
        counts[going] |= (found & 127) << (7 * byte)
        at = at + going
        going[going] = found >= 128
    if going.any() or (counts == 0).any() or (at + settings >= ends).any():
        raise CorruptShardError("a packed row's head is damaged")
    read = [content[at + i] if i < settings else np.zeros(len(at), np.uint8) for i in range(2)]
    return counts, (read[0], read[1]), at + settings


def _pieces(blobs: Ragged) -> Iterator[Ragged]:
    """Rows in pieces of bounded size; one piece without a row where there are none."""
    start = 0
    while start < len(blobs) or start == 0:
        stop = int(np.searchsorted(blobs.offsets, blobs.offsets[start] + _AT_ONCE, "right")) - 1
        stop = min(max(stop, start + 1), len(blobs))
        offsets = blobs.offsets[start : stop + 1]
        yield Ragged(blobs.values[offsets[0] : offsets[-1]], offsets - offsets[0])
        start = max(stop, 1)


def _concatenated(rows: Sequence[Ragged]) -> Ragged:
    lengths = np.concatenate([np.zeros(0, np.int64), *(r.lengths for r in rows)])
    values = np.concatenate([np.zeros(0, np.uint8), *(r.values for r in rows)])
    return Ragged(values, Groups(lengths).ends)
