"""Ragged and text signals in Arrow: the conformance suite, and what only Arrow promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from stillroom.storage.arrow_shards import ArrowShards
from stillroom.storage.errors import CorruptShardError, SignalError
from stillroom.storage.ragged import Ragged
from stillroom.storage.shards import Run, ShardFormat, StoredFile
from stillroom.storage.signal import Signal, Values
from stillroom.storage.testing import ShardTests


class ArrowTests(ShardTests):
    """Rows of 0 to 4 elements."""

    def format(self) -> ShardFormat:
        return ArrowShards()

    def values(self, rows: int, seed: int) -> Values:
        random = np.random.default_rng(seed)
        return Ragged.of([self.elements(int(n), random) for n in random.integers(0, 5, rows)])

    def elements(self, count: int, random: np.random.Generator) -> NDArray[Any]:
        return random.standard_normal((count, 5)).astype("f4")

    def test_a_file_is_one_uncompressed_batch(self, tmp_path: Path) -> None:
        for shard in self.write(tmp_path, 11, 1):
            (file,) = shard
            with pa.ipc.open_file(str(tmp_path / file.path)) as reader:
                assert reader.num_record_batches == 1
                assert reader.get_batch(0).schema.names == list(file.arrays)

    def test_values_of_another_kind_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SignalError, match="said"):
            self.format().write(tmp_path, self.signal(), 0, 4, np.zeros((4, 5), "f4"))
        assert not list(tmp_path.iterdir())


class TestRaggedFloats(ArrowTests):
    pass


class TestRaggedScalars(ArrowTests):
    encoding = "float16"

    def elements(self, count: int, random: np.random.Generator) -> NDArray[Any]:
        return random.standard_normal(count)


class TestRaggedBfloat16(ArrowTests):
    encoding = "bfloat16"


class TestRaggedBooleans(ArrowTests):
    def elements(self, count: int, random: np.random.Generator) -> NDArray[Any]:
        return random.random((count, 3)) < 0.5


class TestRaggedTopK(ArrowTests):
    """Tokens with a distribution each."""

    encoding = "topk(3)"

    def elements(self, count: int, random: np.random.Generator) -> NDArray[Any]:
        return random.standard_normal((count, 300)).astype("f4")


class TestRaggedMatrices(ArrowTests):
    def elements(self, count: int, random: np.random.Generator) -> NDArray[Any]:
        return random.integers(0, 100, (count, 2, 3, 2), "i2")


class TestRaggedRecords(ArrowTests):
    """Detections: a box, a label and a score each."""

    def elements(self, count: int, random: np.random.Generator) -> NDArray[Any]:
        found = np.zeros(count, [("box", "f4", (4,)), ("label", "u2"), ("score", "f2")])
        found["box"] = random.random((count, 4))
        found["label"] = random.integers(0, 1000, count)
        found["score"] = random.random(count)
        return found


class TestRaggedBigEndian(ArrowTests):
    def elements(self, count: int, random: np.random.Generator) -> NDArray[Any]:
        return random.standard_normal((count, 2)).astype(">f4")

    def decoded(self, values: Values) -> Values:
        assert isinstance(values, Ragged)
        return Ragged(values.values.astype("<f4"), values.offsets)


class TestNothingButEmptyRows(ArrowTests):
    def values(self, rows: int, seed: int) -> Values:
        return Ragged(np.zeros((0, 5), "f4"), np.zeros(rows + 1, np.int64))


class TestText(ArrowTests):
    def values(self, rows: int, seed: int) -> Values:
        texts = ["", "plain", "Grüße", "日本語のテキスト", "\0 null", "🍶" * 50, "", "line\nbreak"]
        return [texts[(i * 5 + seed) % 8] + ("" if i % 3 else str(i)) for i in range(rows)]


class TestNothingButEmptyTexts(ArrowTests):
    def values(self, rows: int, seed: int) -> Values:
        return [""] * rows


def test_text_must_be_text(tmp_path: Path) -> None:
    signal = Signal.of("words", ["a"])
    for wrong in (["a", None], ["a", 3], ["a", "\ud800"], ["a", b"\xff"]):
        with pytest.raises(SignalError, match="words"):
            ArrowShards().write(tmp_path, signal, 0, 2, wrong)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def _one_row(tmp_path: Path, said: Values, **layout: int) -> None:
    """Write one shard, change what its receipt says of it, and read the first row."""
    signal = Signal.of("s", said)
    (file,) = ArrowShards().write(tmp_path, signal, 0, len(said), said)
    changed = file.to_json()
    changed["layout"]["columns"]["s"] |= layout
    run = Run(0, len(said), tmp_path, 0, {"s": StoredFile.from_json(changed)})
    ArrowShards().open(signal, [run], check=True).read(np.arange(len(said)))


@pytest.mark.parametrize("values", [Ragged.of([np.arange(4.0), np.arange(2.0)]), ["four", "two"]])
def test_a_receipt_that_points_outside_its_file_is_caught(tmp_path: Path, values: Values) -> None:
    _one_row(tmp_path, values)
    size = next((tmp_path / "records/s").iterdir()).stat().st_size
    wrong: list[dict[str, int]] = [
        {"offsets": size - 24 + 1},  # three offsets no longer fit
        {"offsets": size - 16},
        {"offsets": -8},
        {"offsets": 2**62},
        {"values": size},
        {"values": -1},
        {"values": 2**63},
        {"elements": size + 1},
        {"elements": -1},
        {"elements": 1},
        {"elements": 2**62},
        {"offsets": size - 24},  # bytes of the footer, taken for offsets
    ]
    for layout in wrong:
        with pytest.raises(CorruptShardError):
            _one_row(tmp_path, values, **layout)


def test_a_shard_is_checked_once_however_many_parts_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = Ragged.of([np.eye(3, 9), np.eye(1, 9)])
    signal = Signal.of("s", values, "topk(2)")
    (file,) = ArrowShards().write(tmp_path, signal, 0, 2, values)
    run = Run(0, 2, tmp_path, 0, dict.fromkeys(file.arrays, file))
    rows = ArrowShards().open(signal, [run], check=True)
    checked = []
    monkeypatch.setattr(StoredFile, "check", lambda self, content, where: checked.append(self))
    rows.read(np.array([0, 1]))
    rows.read(np.array([1]))
    assert checked == [file]


class TestRaggedInt8(ArrowTests):
    encoding = "int8"


class TestRaggedDraws(ArrowTests):
    encoding = "sampled(6)"

    def elements(self, count: int, random: np.random.Generator) -> NDArray[Any]:
        return random.standard_normal((count, 300)).astype("f4")


class TestPackedTokens(ArrowTests):
    """Rows of tokens, each row a string of bytes."""

    encoding = "packed(topk(3))"

    def elements(self, count: int, random: np.random.Generator) -> NDArray[Any]:
        return random.standard_normal((count, 300)).astype("f4")

    def test_other_libraries_see_one_string_of_bytes_for_each_row(self, tmp_path: Path) -> None:
        (file,) = self.write(tmp_path, 3, 1)[0]
        with pa.ipc.open_file(str(tmp_path / file.path)) as reader:
            column = reader.get_batch(0).column("said")
        assert column.type == pa.large_binary()
        values = self.values(3, 1)
        assert isinstance(values, Ragged)
        assert [len(row) > 0 for row in column.to_pylist()] == [len(row) > 0 for row in values]


class TestPackedDraws(TestPackedTokens):
    encoding = "packed(sampled(6))"


class TestPackedPairs(TestPackedTokens):
    """Elements that are several positions each."""

    def elements(self, count: int, random: np.random.Generator) -> NDArray[Any]:
        return random.standard_normal((count, 2, 300)).astype("f4")


class TestPackedRowsOfOneShape(ArrowTests):
    """Fixed shapes lie in Arrow too when they are packed, and come back as an array."""

    encoding = "packed(topk(3),100)"

    def values(self, rows: int, seed: int) -> Values:
        return np.random.default_rng(seed).standard_normal((rows, 4, 300)).astype("f4")

    def test_values_of_another_kind_are_refused(self, tmp_path: Path) -> None:
        for wrong in (Ragged.of([np.zeros((4, 300), "f4")] * 4), ["a"] * 4):
            with pytest.raises(SignalError, match="'said' has rows of one shape"):
                self.format().write(tmp_path, self.signal(), 0, 4, wrong)
        assert not list(tmp_path.iterdir())


class TestPackedEmptyRows(ArrowTests):
    encoding = "packed(topk(3))"

    def values(self, rows: int, seed: int) -> Values:
        return Ragged(np.zeros((0, 5), "f4"), np.zeros(rows + 1, np.int64))


class TestPackedRowsOfOnePosition(TestPackedRowsOfOneShape):
    encoding = "packed(sampled(9))"

    def values(self, rows: int, seed: int) -> Values:
        return np.random.default_rng(seed).standard_normal((rows, 300)).astype("f4")


@pytest.mark.parametrize("name", ["packed(topk(2))", "packed(sampled(4))"])
def test_a_packed_file_of_another_shape_is_caught_and_parts_are_copied_as_they_lie(
    tmp_path: Path, name: str
) -> None:
    values = np.random.default_rng(0).standard_normal((4, 3, 9)).astype("f4")
    signal = Signal.of("s", values, name)
    (file,) = ArrowShards().write(tmp_path, signal, 0, 4, values)
    run = Run(0, 4, tmp_path, 0, {"s": file})
    parts = ArrowShards().open(signal, [run], check=True).read(np.arange(4), decode=False)
    assert ArrowShards().write_parts(tmp_path / "copy", signal, 0, 4, parts) == [file]
    assert (tmp_path / "copy" / file.path).read_bytes() == (tmp_path / file.path).read_bytes()
    for shape in ((2, 9), (9,), (6, 9)):
        other = Signal("s", shape, "float32", name)
        with pytest.raises(CorruptShardError, match="shape"):
            ArrowShards().open(other, [run], check=True).read(np.arange(4))
    again = Signal("s", (None, 9), "float32", name)
    found = ArrowShards().open(again, [run], check=True).read(np.arange(4))
    assert found.lengths.tolist() == [3] * 4
