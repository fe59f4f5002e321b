"""docs/format.md says enough: packed rows read bit by bit, in plain Python, as a stranger would."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from stillroom.storage.encodings.encoding import encoding


class Bits:
    """A string of bytes, read from its lowest bit on."""

    def __init__(self, row: bytes) -> None:
        self._bits = "".join(f"{byte:08b}"[::-1] for byte in row)
        self._at = 0

    def plain(self, width: int) -> int:
        found = self._bits[self._at : self._at + width]
        assert len(found) == width
        self._at += width
        return int(found[::-1], 2) if width else 0

    def unary(self) -> int:
        one = self._bits.index("1", self._at)
        found, self._at = one - self._at, one + 1
        return found

    def count(self) -> int:
        found = shift = 0
        while True:
            byte = self.plain(8)
            found |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return found

    def rest(self) -> str:
        return self._bits[self._at :]


def classes_of(code: int, quotients: list[int], cuts: list[int], bits: Bits) -> list[int]:
    shift = code % 8 if code < 128 else code - 128
    differences = [(q << shift) + bits.plain(shift) for q in quotients]
    if code >= 128:
        found, last = [], -1
        for i, difference in enumerate(differences):
            last = (-1 if i in cuts else last) + difference + 1
            found.append(last)
        return found
    s, buckets, bucket = code // 8, [], 0
    for i, difference in enumerate(differences):
        bucket = (0 if i in cuts else bucket) + difference
        buckets.append(bucket)
    return [(2**s + b % 2**s) * 2 ** (b >> s) + bits.plain(b >> s) - 2**s for b in buckets]


def half(pattern: int) -> float:
    return float(np.array([pattern], "<u2").view("<f2")[0])


def read_topk(row: bytes, k: int, n: int, classes: int) -> list[dict[str, Any]]:
    bits = Bits(row)
    positions, code, g = bits.count(), bits.plain(8), bits.plain(8)
    quotients = [bits.unary() for _ in range(positions * k)]
    widths = [bits.unary() + g for _ in range(positions * k)]
    levels = [bits.plain(w) + 2**w - 2**g for w in widths]
    found = classes_of(code, quotients, list(range(0, positions * k, k)), bits)
    sums = [half(bits.plain(16)) for _ in range(positions)]
    tails = [((bits.plain(8) + 0.5) / 256) ** 2 * (k < classes) for _ in range(positions)]
    assert set(bits.rest()) <= {"0"}
    assert len(bits.rest()) < 8
    rows = []
    for i in range(positions):
        p = [((level + 0.5) / n) ** 2 for level in levels[i * k : i * k + k]]
        values = [math.log(each * (1 - tails[i]) / sum(p)) for each in p]
        parts = (found[i * k : i * k + k], values, sums[i], tails[i])
        rows.append(dict(zip(("indices", "values", "logsumexp", "tail"), parts, strict=True)))
    return rows


def read_sampled(row: bytes, k: int) -> list[dict[str, Any]]:
    bits = Bits(row)
    total, code = bits.count(), bits.plain(8)
    quotients = [bits.unary() for _ in range(total)]
    widths = [bits.unary() for _ in range(total)]
    counts = [bits.plain(w) + 2**w for w in widths]
    cuts, drawn = [0], 0
    for i, count in enumerate(counts):
        drawn += count
        if drawn % k == 0:
            cuts.append(i + 1)
    found = classes_of(code, quotients, cuts, bits)
    sums = [half(bits.plain(16)) for _ in cuts[1:]]
    assert set(bits.rest()) <= {"0"}
    rows = []
    for start, stop, lse in zip(cuts[:-1], cuts[1:], sums, strict=True):
        rows.append({"indices": found[start:stop], "counts": counts[start:stop], "logsumexp": lse})
    return rows


@pytest.mark.parametrize("classes", [7, 300, 40_000])
@pytest.mark.parametrize("spread", [0.2, 3, 12])
def test_a_stranger_reads_packed_rows_from_the_description(classes: int, spread: float) -> None:
    logits = (np.random.default_rng(0).normal(0, spread, (9, classes))).astype("f4")
    logits -= np.log(np.arange(1, classes + 1)) * spread  # some with low numbers in front
    lengths = np.array([4, 0, 1, 4])
    for name, k, n in (("packed(topk(7))", 7, 28), ("packed(topk(2),300)", 2, 300)):
        coding: Any = encoding(name)
        rows = [bytes(row) for row in coding.pack(logits, lengths)]
        assert rows[1] == b""
        found = [p for row in rows if row for p in read_topk(row, k, n, classes)]
        expected = coding.encode(logits)
        assert [p["indices"] for p in found] == expected["indices"].tolist()
        for part in ("values", "logsumexp", "tail"):
            np.testing.assert_allclose([p[part] for p in found], expected[part], rtol=1e-6)
    coding = encoding("packed(sampled(50))")
    rows = [bytes(row) for row in coding.pack(logits, lengths)]
    drawn = [p for row in rows if row for p in read_sampled(row, 50)]
    expected = coding.encode(logits)
    for one, indices, counts in zip(drawn, expected["indices"], expected["counts"], strict=True):
        used = int((counts > 0).sum())
        assert one["indices"] == indices[:used].tolist()
        assert one["counts"] == counts[:used].tolist()
    assert [p["logsumexp"] for p in drawn] == expected["logsumexp"].tolist()
