"""Gathering over many mapped files gives what plain slicing gives, and never looks outside."""

from __future__ import annotations

import gc
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.storage.errors import CorruptShardError
from stillroom.storage.gather import Extent, Extents
from stillroom.storage.mapped import Mapping

quick = settings(max_examples=120, deadline=None, derandomize=True)


@dataclass(frozen=True)
class Layout:
    """Random files, and extents that do not overlap in position."""

    contents: list[bytes]
    extents: list[Extent]
    row_bytes: int

    def row(self, position: int) -> bytes | None:
        """The plain model: look through all extents and slice."""
        for e in self.extents:
            if e.start <= position < e.start + e.rows:
                at = e.offset + (position - e.start) * self.row_bytes
                return self.contents[e.file][at : at + self.row_bytes]
        return None

    def map(self, folder: Path) -> list[Mapping]:
        """Write the files and map them."""
        for i, content in enumerate(self.contents):
            (folder / str(i)).write_bytes(content)
        return [Mapping(folder / str(i), len(c)) for i, c in enumerate(self.contents)]


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    row_bytes = draw(st.integers(1, 9))
    contents = draw(st.lists(st.binary(min_size=row_bytes, max_size=60), min_size=1, max_size=5))
    extents, position = [], 0
    for _ in range(draw(st.integers(0, 6))):
        file = draw(st.integers(0, len(contents) - 1))
        rows = draw(st.integers(1, len(contents[file]) // row_bytes))
        offset = draw(st.integers(0, len(contents[file]) - rows * row_bytes))
        position += draw(st.integers(0, 3))
        extents.append(Extent(position, rows, file, offset))
        position += rows
    return Layout(contents, draw(st.permutations(extents)), row_bytes)


@quick
@given(layouts(), st.data())
def test_rows_are_those_of_the_files(
    tmp_path_factory: pytest.TempPathFactory, layout: Layout, data: st.DataObject
) -> None:
    files = layout.map(tmp_path_factory.mktemp("files"))
    extents = Extents(layout.extents, files, layout.row_bytes)
    asked = np.array(data.draw(st.lists(st.integers(-3, 80), max_size=30)), np.int64)
    expected = [layout.row(position) for position in asked.tolist()]
    missing = [i for i, row in enumerate(expected) if row is None]
    assert extents.missing(asked).tolist() == missing
    if missing:
        with pytest.raises(IndexError):
            extents.rows(asked, np.dtype("u1"), (layout.row_bytes,))
    held = np.delete(asked, missing)
    found = extents.rows(held, np.dtype("u1"), (layout.row_bytes,))
    assert [bytes(row) for row in found] == [row for row in expected if row is not None]
    assert found.flags.writeable
    assert found.flags.owndata or found.base is not None


@quick
@given(layouts(), st.integers(-20, 80), st.integers(1, 80))
def test_an_extent_that_leaves_its_file_is_refused(
    tmp_path_factory: pytest.TempPathFactory, layout: Layout, offset: int, rows: int
) -> None:
    files = layout.map(tmp_path_factory.mktemp("files"))
    end = offset + rows * layout.row_bytes
    if offset >= 0 and end <= len(layout.contents[0]):
        Extents([Extent(0, rows, 0, offset)], files, layout.row_bytes)
    else:
        with pytest.raises(CorruptShardError, match="index is damaged"):
            Extents([Extent(0, rows, 0, offset)], files, layout.row_bytes)


def _file(path: Path, size: int) -> Mapping:
    path.write_bytes(bytes(range(256)) * (size // 256) + bytes(range(size % 256)))
    return Mapping(path, size)


def test_offsets_outside_the_mapped_files_are_refused(tmp_path: Path) -> None:
    file = _file(tmp_path / "f", 64)
    extents = Extents([Extent(0, 8, 0, 0)], [file], 8)
    assert extents.low == file.address
    first, last = 0, 56
    assert extents.read(np.array([first, last]), 8).tobytes() == bytes([*range(8), *range(56, 64)])
    for outside in (first - 1, last + 1, -(2**62), 2**62):
        with pytest.raises(IndexError, match="outside"):
            extents.read(np.array([first, outside]), 8)
    with pytest.raises(IndexError, match="outside"):
        extents.read(np.array([first]), 65)


@pytest.mark.parametrize(
    "lengths", [[100], [64, 64], [100, 64, 200, 7], [65, 1], [64, 500, 64, 1], [63, 200]]
)
def test_long_extents_are_found_by_block_like_any_others(
    tmp_path: Path, lengths: list[int]
) -> None:
    files = [_file(tmp_path / str(i), n) for i, n in enumerate(lengths)]
    starts = np.cumsum([0, *lengths])
    extents = Extents(
        [Extent(int(s), n, i, 0) for i, (s, n) in enumerate(zip(starts, lengths, strict=False))],
        files,
        1,
    )
    every = np.random.default_rng(0).permutation(int(starts[-1]))
    expected = np.searchsorted(starts, every, side="right") - 1
    assert extents.locate(every).tolist() == expected.tolist()
    held = np.concatenate([np.arange(n) % 256 for n in lengths])
    assert extents.rows(every, np.dtype("u1"), ()).tolist() == held[every].tolist()
    for outside in (-1, int(starts[-1])):
        assert extents.missing(np.array([0, outside])).tolist() == [1]
        with pytest.raises(IndexError):
            extents.locate(np.array([0, outside]))


@pytest.mark.parametrize("rows", [0, -1])
def test_an_extent_without_rows_is_refused(tmp_path: Path, rows: int) -> None:
    with pytest.raises(CorruptShardError):
        Extents([Extent(0, rows, 0, 0)], [_file(tmp_path / "f", 64)], 8)


def test_what_is_read_beyond_a_row_must_be_in_the_file_too(tmp_path: Path) -> None:
    file = _file(tmp_path / "f", 64)
    Extents([Extent(0, 7, 0, 0)], [file], 8, read_bytes=16)
    with pytest.raises(CorruptShardError):
        Extents([Extent(0, 8, 0, 0)], [file], 8, read_bytes=16)


def test_no_extents_hold_no_rows() -> None:
    extents = Extents([], [], 8)
    assert extents.missing(np.array([0, 5])).tolist() == [0, 1]
    assert extents.rows(np.zeros(0, np.int64), np.dtype("f4"), (2,)).shape == (0, 2)
    with pytest.raises(IndexError):
        extents.rows(np.array([0]), np.dtype("f4"), (2,))


def test_a_file_is_touched_once_and_again_after_a_failure(tmp_path: Path) -> None:
    files = [_file(tmp_path / str(i), 64) for i in range(3)]
    touched: list[int] = []

    def touch(file: int) -> None:
        touched.append(file)
        if len(touched) == 1:
            raise CorruptShardError("once")

    extents = Extents([Extent(8 * i, 8, i, 0) for i in range(3)], files, 8, touch)
    with pytest.raises(CorruptShardError):
        extents.locate(np.array([8]))
    for positions in ([8], [9, 8], [0, 1], [8, 0]):
        extents.locate(np.array(positions))
    assert touched == [1, 1, 0]
    extents.locate(np.array([23]))
    extents.locate(np.array([0, 8, 16]))
    assert touched == [1, 1, 0, 2]


def test_arrays_over_a_mapping_outlive_it(tmp_path: Path) -> None:
    content = _file(tmp_path / "f", 64).bytes
    gc.collect()
    (tmp_path / "f").unlink()
    assert content.tolist() == list(range(64))
    with pytest.raises(ValueError, match="read-only"):
        content[0] = 1


def test_more_files_can_be_mapped_than_opened(tmp_path: Path) -> None:
    for i in range(100):
        (tmp_path / str(i)).write_bytes(bytes([i] * 8))
    program = (
        "import resource, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from stillroom.storage.gather import Extent, Extents\n"
        "from stillroom.storage.mapped import Mapping\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
        "files = [Mapping(Path(sys.argv[1], str(i)), 8) for i in range(100)]\n"
        "extents = Extents([Extent(i, 1, i, 0) for i in range(100)], files, 8)\n"
        "rows = extents.rows(np.arange(100), np.dtype('u1'), (8,))\n"
        "assert (rows == np.arange(100)[:, None]).all()\n"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True)
