"""Fixed-shape signals in Zarr: the conformance suite, and what only Zarr promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stillroom.storage.errors import SignalError
from stillroom.storage.ragged import Ragged
from stillroom.storage.shards import ShardFormat
from stillroom.storage.signal import Signal, Values
from stillroom.storage.testing import ShardTests
from stillroom.storage.zarr_shards import ZarrShards


class ZarrTests(ShardTests):
    def format(self) -> ShardFormat:
        return ZarrShards()

    def values(self, rows: int, seed: int) -> Values:
        return np.random.default_rng(seed).standard_normal((rows, 5)).astype("f4")

    def test_a_file_is_padded_rows_and_four_bytes(self, tmp_path: Path) -> None:
        signal = self.signal()
        for shard in self.write(tmp_path, 11, 1):
            expected = signal.row_bytes * self.shard_rows + 4 * len(signal.parts)
            assert sum(file.bytes for file in shard) == expected

    def test_the_last_shard_is_filled_up_with_zeros(self, tmp_path: Path) -> None:
        *_, last = self.write(tmp_path, 11, 1)
        for file, part in zip(last, self.signal().parts, strict=True):
            body = (tmp_path / file.path).read_bytes()[:-4]
            assert body[3 * part.row_bytes :] == bytes(part.row_bytes)

    def test_rows_of_lengths_are_refused(self, tmp_path: Path) -> None:
        for wrong in (Ragged.of([np.zeros(3)]), ["text"]):
            with pytest.raises(SignalError, match="said"):
                self.format().write(tmp_path, self.signal(), 0, 4, wrong)


class TestFloat32(ZarrTests):
    pass


class TestFloat16(ZarrTests):
    encoding = "float16"


class TestBfloat16(ZarrTests):
    encoding = "bfloat16"


class TestInt8(ZarrTests):
    encoding = "int8"


class TestDraws(ZarrTests):
    encoding = "sampled(4)"


class TestTopK(ZarrTests):
    encoding = "topk(2)"


class TestTopKOfEveryToken(ZarrTests):
    encoding = "topk(3)"

    def values(self, rows: int, seed: int) -> Values:
        return np.random.default_rng(seed).standard_normal((rows, 2, 300)).astype("f4")


class TestScalars(ZarrTests):
    def values(self, rows: int, seed: int) -> Values:
        return np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, rows)


class TestBooleans(ZarrTests):
    def values(self, rows: int, seed: int) -> Values:
        return np.random.default_rng(seed).random((rows, 3, 2)) < 0.5


class TestRecords(ZarrTests):
    def values(self, rows: int, seed: int) -> Values:
        random = np.random.default_rng(seed)
        record = np.zeros(rows, [("box", "f4", (4,)), ("label", "u1"), ("sure", "?")])
        record["box"] = random.random((rows, 4))
        record["label"] = random.integers(0, 255, rows)
        record["sure"] = random.random(rows) < 0.5
        return record


class TestBigEndian(ZarrTests):
    def values(self, rows: int, seed: int) -> Values:
        return np.random.default_rng(seed).standard_normal((rows, 5)).astype(">f8")

    def decoded(self, values: Values) -> Values:
        assert isinstance(values, np.ndarray)
        return values.astype("<f8")


def test_rows_may_be_a_strided_view(tmp_path: Path) -> None:
    wide = np.arange(80, dtype="f4").reshape(8, 10)
    for name, view in {"a": wide[::2, ::3], "b": wide.T[:4]}.items():
        signal = Signal.of("s", view)
        (strided,) = ZarrShards().write(tmp_path / name, signal, 0, 4, view)
        (packed,) = ZarrShards().write(tmp_path / f"{name}2", signal, 0, 4, view.copy())
        assert strided == packed
