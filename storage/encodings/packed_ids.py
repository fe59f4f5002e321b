"""Rising class numbers as short codes: where frequent tokens have low numbers, and where they do not.

A byte-pair vocabulary is numbered roughly by frequency, and by Zipf's law the chance that a position
keeps class i falls as 1 / i. In the logarithm of i such classes lie evenly, so classes are put into
buckets that double in size with every octave, 2**s of them in each: with x = i + 2**s, which has
e + s + 1 bits, bucket e * 2**s + (x >> e) - 2**s holds the 2**e classes that share x >> e. Stored
are the differences of buckets by Golomb's code with a power of two (Rice 1979), which suits numbers
of a geometric distribution: difference >> r in unary, and the r bits below; then the e bits of x below
its bucket. Where numbers say nothing of frequency, differences of the classes themselves (less
one) are shorter. Which, and s and r, is said by one byte for each row; whoever packs tries all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stillroom.storage.encodings.packed_bits import Bytes, Groups, Int64s
from stillroom.storage.errors import CorruptShardError

_EVEN = 0x80
"""The byte is _EVEN + r for differences of classes, 8 * s + r for those of buckets."""
_SHIFTS = 32
_OCTAVE = 8
"""Values that s may have, and r with it."""
_LARGEST = 2**33
"""No bucket, and no difference of classes below 2**32, comes near."""


@dataclass(frozen=True)
class Split:
    """Class numbers as they are stored, field by field; each (n,) int64."""

    quotients: Int64s
    rests: Int64s
    shifts: Int64s
    """Bits of the rests."""
    low: Int64s
    widths: Int64s
    """Bits of low."""


def _previous(values: Int64s, first: Int64s, before: int) -> Int64s:
    """The value before each, `before` at the first of each position."""
    shifted = np.empty_like(values)
    shifted[1:] = values[:-1]
    shifted[first] = before
    return shifted


def _bits(values: Int64s) -> Int64s:
    """How many bits each number above 0 has."""
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


def _buckets(classes: Int64s, finer: int | Int64s) -> tuple[Int64s, Int64s]:
    """Of each class its bucket, and the bits of the bucket's size."""
    x = classes + (np.int64(1) << finer)
    octave = _bits(x) - 1 - finer
    return (octave << finer) + (x >> octave) - (np.int64(1) << finer), octave


def chosen(classes: Int64s, positions: Groups, rows: Groups) -> Bytes:
    """(rows,) uint8: for each row the code in which its classes take the fewest bits.

    `positions` groups the classes by position, `rows` groups them by row.
    """
    first = positions.ends[:-1]
    sizes, names = [], []

    def offer(differences: Int64s, plain: Int64s | int, shift: int, name: int) -> None:
        sizes.append(rows.sums((differences >> shift) + plain) + rows.counts * (shift + 1))
        names.append(name)

    gaps = classes - _previous(classes, first, -1) - 1
    for shift in range(_SHIFTS):
        offer(gaps, 0, shift, _EVEN + shift)
    for finer in range(_OCTAVE):
        bucket, octave = _buckets(classes, finer)
        differences = bucket - _previous(bucket, first, 0)
        for shift in range(_OCTAVE):
            offer(differences, octave, shift, _OCTAVE * finer + shift)
    return np.asarray(np.array(names, np.uint8)[np.argmin(sizes, axis=0)])


def _settings(codes: Bytes, rows: Groups) -> tuple[Int64s, Int64s, Int64s]:
    """Of each class whether its row's code is the even one (1 or 0), s and r."""
    even = (codes >= _EVEN).astype(np.int64)
    wrong = np.where(even, codes >= _EVEN + _SHIFTS, codes >= _OCTAVE * _OCTAVE)
    if wrong.any():
        raise CorruptShardError(f"a packed row names code {codes[wrong][0]}, which is none")
    finer = np.where(even, 0, codes // _OCTAVE).astype(np.int64)
    shift = np.where(even, codes - even * _EVEN, codes % _OCTAVE).astype(np.int64)
    return even[rows.row], finer[rows.row], shift[rows.row]


def split(classes: Int64s, positions: Groups, rows: Groups, codes: Bytes) -> Split:
    """Classes in the codes of their rows."""
    even, finer, shift = _settings(codes, rows)
    bucket, octave = _buckets(classes, finer)
    bucket, octave = np.where(even, classes, bucket), np.where(even, 0, octave)
    first = positions.ends[:-1]
    before = _previous(bucket, first, 0)
    before[first] -= even[first]
    differences = bucket - before - even
    low = (classes + (np.int64(1) << finer)) & ((np.int64(1) << octave) - 1)
    rests = differences & ((np.int64(1) << shift) - 1)
    return Split(differences >> shift, rests, shift, low, octave)


def shifts(codes: Bytes, rows: Groups) -> Int64s:
    """Bits of every rest."""
    return _settings(codes, rows)[2]


def buckets(
    quotients: Int64s, rests: Int64s, positions: Groups, rows: Groups, codes: Bytes
) -> tuple[Int64s, Int64s]:
    """Of each stored class its bucket and the bits of its size; CorruptShardError for none."""
    even, finer, shift = _settings(codes, rows)
    if (quotients > _LARGEST >> shift).any():
        raise CorruptShardError("a packed row holds a class number of more than 32 bits")
    differences = (quotients << shift) + rests + even
    bucket = positions.running(differences) - even
    if (bucket > _LARGEST).any():
        raise CorruptShardError("a packed row holds a class number of more than 32 bits")
    octave = np.where(even, 0, bucket >> finer)
    if (octave > _SHIFTS).any():
        raise CorruptShardError("a packed row holds a class number of more than 32 bits")
    return bucket, octave


def joined(
    bucket: Int64s, octave: Int64s, low: Int64s, positions: Groups, rows: Groups, codes: Bytes
) -> Int64s:
    """The classes; CorruptShardError where they do not rise."""
    even, finer, _ = _settings(codes, rows)
    whole = np.int64(1) << finer
    classes = ((whole + (bucket & (whole - 1))) << octave) + low - whole
    classes = np.where(even, bucket, classes)
    if (classes <= _previous(classes, positions.ends[:-1], -1)).any():
        raise CorruptShardError("the class numbers of a packed row do not rise")
    return np.asarray(classes)
