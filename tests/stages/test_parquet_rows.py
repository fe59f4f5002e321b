"""Rows in files: what each kind of trust sees and misses, and files that are broken or change."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillroom.stages import FunctionTeacher
from stillroom.stages.data.parquet_rows import ParquetRows, Trust
from stillroom.stages.data.rows import ArrayRows
from stillroom.storage.errors import RowsError
from tests.stages.builders import Heard, taught

TRUSTS: tuple[Trust, ...] = ("content", "statistics", "mtime")


def written(path: Path, number: Any = range(20), **more: Any) -> Path:
    """Twenty rows k0, k1, ... with a number each, in row groups of eight."""
    keys = more.pop("id", [f"k{i}" for i in range(len(number))])
    columns = {"id": keys, "number": list(number), **more}
    pq.write_table(pa.table(columns), path, row_group_size=8)
    return path


def fingerprint(path: Path, trust: Trust, columns: tuple[str, ...] = ("number",)) -> str:
    return ParquetRows(path, key="id", trust=trust).fingerprint(columns)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path / "rows.parquet")


@pytest.mark.parametrize("trust", TRUSTS)
def test_an_unchanged_file_has_the_same_fingerprint_wherever_it_lies(
    path: Path, tmp_path: Path, trust: Trust
) -> None:
    before = fingerprint(path, trust)
    (tmp_path / "moved").mkdir()
    moved = shutil.move(path, tmp_path / "moved" / "rows.parquet")
    assert fingerprint(Path(moved), trust) == before


def set_back(path: Path, number: Any) -> None:
    """Write other numbers, and set the time of change back."""
    state = path.stat()
    written(path, number)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


SWAPPED = [0, 2, 1, *range(3, 20)]


@pytest.mark.parametrize(
    ("trust", "number", "seen"),
    [
        ("content", SWAPPED, True),
        ("content", [*range(19), 99], True),
        ("statistics", [*range(19), 99], True),
        ("statistics", SWAPPED, False),  # as documented: the group's ends are what they were
        ("mtime", SWAPPED, False),  # as documented: the size is, and the time was set back
    ],
)
def test_each_kind_of_trust_sees_what_it_says(
    path: Path, trust: Trust, number: Any, seen: bool
) -> None:
    before = fingerprint(path, trust)
    set_back(path, number)
    assert (fingerprint(path, trust) != before) == seen


@pytest.mark.parametrize("trust", TRUSTS)
def test_keys_are_always_compared(path: Path, trust: Trust) -> None:
    before, state = fingerprint(path, trust), path.stat()
    written(path, id=[f"k{i}" for i in SWAPPED])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert fingerprint(path, trust) != before


def test_kinds_of_trust_and_columns_are_told_apart(path: Path) -> None:
    prints = {fingerprint(path, trust) for trust in TRUSTS}
    prints |= {fingerprint(path, trust, ("number", "id")) for trust in TRUSTS}
    assert len(prints) == 6
    with pytest.raises(ValueError, match="trust 'statistic'; did you mean 'statistics'"):
        ParquetRows(path, key="id", trust="statistic")  # type: ignore[arg-type]


def test_statistics_are_refused_where_there_are_none(tmp_path: Path, path: Path) -> None:
    pq.write_table(pq.read_table(path), tmp_path / "bare.parquet", write_statistics=False)
    whole = pq.read_table(path)
    with pa.ipc.new_file(str(tmp_path / "r.arrow"), whole.schema) as writer:
        writer.write_table(whole)
    for name in ("bare.parquet", "r.arrow"):
        with pytest.raises(RowsError, match=f"{name} holds no statistics of id, number; trust"):
            fingerprint(tmp_path / name, "statistics")


@pytest.mark.parametrize("trust", ["statistics", "mtime"])
def test_what_is_trusted_is_not_read(
    path: Path, trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ParquetRows(path, key="id", trust=trust)
    monkeypatch.setattr(rows._pieces, "hashes", lambda *_: pytest.fail("rows were hashed"))
    rows.fingerprint(["number"])


def doubled(number: Any) -> dict[str, Any]:
    return {"logits": np.asarray(number, "f4")[:, None] * 2}


TEACHER = FunctionTeacher("t", doubled, ("number",), ("logits",))


@pytest.mark.parametrize("trust", TRUSTS)
def test_an_edit_teaches_the_edited_rows_alone(tmp_path: Path, path: Path, trust: Trust) -> None:
    taught(tmp_path / "c", ParquetRows(path, key="id", trust=trust), TEACHER)
    heard = Heard()
    again = taught(tmp_path / "c", ParquetRows(path, key="id", trust=trust), TEACHER, listen=heard)
    assert (again.number, heard.taught) == (1, 0)
    written(path, [*range(18), 99, 98])
    taught(tmp_path / "c", ParquetRows(path, key="id", trust=trust), TEACHER, listen=heard)
    assert heard.taught == 2


def use(rows: ParquetRows, how: str) -> Any:
    if how == "read":
        return rows.read(np.array([3]), ["number"])
    return rows.hashes(["number"]) if how == "hashes" else rows.fingerprint(["number"])


@pytest.mark.parametrize("trust", TRUSTS)
@pytest.mark.parametrize("how", ["read", "hashes", "fingerprint"])
def test_a_file_that_changed_since_it_was_opened_is_refused(
    path: Path, trust: Trust, how: str
) -> None:
    rows = ParquetRows(path, key="id", trust=trust)
    for earlier in ("read", "hashes", "fingerprint"):  # also what is kept is no longer true
        use(rows, earlier)
    written(path, [*range(19), 100_000])
    with pytest.raises(RowsError, match=r"rows\.parquet changed since these rows were opened"):
        use(rows, how)
    path.unlink()
    with pytest.raises(RowsError, match=r"rows\.parquet changed since"):
        use(rows, how)


def test_csv_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,x,word\na,1.5,one\nb,2,two\n")
    (tmp_path / "b.csv").write_text("id,x,word\nc,0.25,\n")
    (tmp_path / "_notes.csv").write_text("not,these\n")
    rows = ParquetRows(tmp_path, key="id")
    same = ArrayRows(["a", "b", "c"], x=np.array([1.5, 2, 0.25]), word=["one", "two", ""])
    assert (rows.hashes(["x", "word"]) == same.hashes(["x", "word"])).all()
    assert rows.read(np.array([2, 0]), ["word"]) == {"word": ["", "one"]}


def test_integer_keys_of_any_width_are_one_kind(tmp_path: Path) -> None:
    written(tmp_path / "a.parquet", range(2), id=pa.array([7, 8], pa.uint8()))
    written(tmp_path / "b.parquet", range(2), id=pa.array([-1, 2**40], pa.int64()))
    assert ParquetRows(tmp_path, key="id").keys.to_pylist() == [7, 8, -1, 2**40]


def flipped(path: Path) -> None:
    """Damage the second row group's numbers."""
    with pq.ParquetFile(path) as file:
        start = file.metadata.row_group(1).column(1).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 12] = b"\xff" * 12
    path.write_bytes(content)


def test_a_broken_row_group_is_named(path: Path) -> None:
    flipped(path)
    rows = ParquetRows(path, key="id")
    assert rows.read(np.array([0]), ["number"])["number"] == [0]
    with pytest.raises(RowsError, match=r"'number' of .*rows\.parquet, row group 1 cannot be read"):
        rows.read(np.array([0, 9]), ["number"])
    with pytest.raises(RowsError, match="row group 1 cannot be read"):
        rows.hashes(["number"])


Write = Callable[[Path], object]


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        (
            "r.parquet",
            lambda p: p.write_bytes(b"PAR1 no PAR1"),
            "r.parquet cannot be read as parquet",
        ),
        ("r.parquet", lambda p: p.write_bytes(b""), "r.parquet cannot be read as parquet"),
        ("r.arrow", lambda p: p.write_bytes(b"ARROW1\0\0what"), "r.arrow cannot be read as arrow"),
        ("r.arrow", lambda p: p.write_bytes(b""), "r.arrow cannot be read as arrow"),
        ("r.csv", lambda p: p.write_text("id,x\n1,2\n3\n"), "r.csv cannot be read as csv"),
        ("r.csv", lambda p: p.write_text("id,x,x\n1,2,3\n"), "more than one column x"),
        ("r.txt", lambda p: p.write_text("id\n1\n"), "r.txt is none of parquet, arrow"),
        ("folder", lambda p: p.mkdir(), "holds no parquet, arrow"),
        (
            "r.parquet",
            lambda p: written(p, range(3), id=["a", None, "b"]),
            r"'id' of .*r\.parquet, row group 0 has 1 missing values, the first at 1",
        ),
        (
            "r.parquet",
            lambda p: written(p, range(3), id=["a", "b", "a"]),
            r"'id' of .*r\.parquet: 1 keys stand for more than one row: a",
        ),
        (
            "r.parquet",
            lambda p: written(p, range(2), id=[0.5, 1.5]),
            "key column 'id': row keys must",
        ),
        (
            "r.parquet",
            lambda p: written(p, range(2), id=[[1], [2]]),
            "key column 'id': row keys must",
        ),
        (
            "r.parquet",
            lambda p: written(p, range(2), id=[True, False]),
            "key column 'id': row keys",
        ),
        (
            "r.parquet",
            lambda p: pq.write_table(pa.table({"ident": [1]}), p),
            "has no column 'id' for keys; known: ident",
        ),
    ],
)
def test_what_cannot_be_rows_is_named(
    tmp_path: Path, name: str, write: Write, message: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(RowsError, match=message):
        ParquetRows(tmp_path / name, key="id")


def test_nothing_at_the_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no rows at .*none"):
        ParquetRows(tmp_path / "none", key="id")


def test_files_that_do_not_fit_together_are_named(tmp_path: Path) -> None:
    one = written(tmp_path / "a.parquet", range(2), id=["a", "b"])
    other = written(tmp_path / "b.parquet", [0.5], id=["c"])
    rows = ParquetRows([one, other], key="id")
    # Files are read on threads: which of the two is met first is left open.
    with pytest.raises(RowsError, match=r"'number' is .* in .* and .* in .*") as raised:
        rows.hashes(["number"])
    assert re.search(r"<i8\(\) in \S*a\.parquet", str(raised.value))
    assert re.search(r"<f8\(\) in \S*b\.parquet", str(raised.value))
    written(other, [1], id=[1])
    with pytest.raises(RowsError, match="key column 'id' holds int64 and large_string"):
        ParquetRows([one, other], key="id")
    written(other, [1], more=[1])
    with pytest.raises(RowsError, match=r"b\.parquet and .*a\.parquet differ in columns more"):
        ParquetRows([one, other], key="id")


def test_missing_values_of_a_column_are_named_when_it_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "r.parquet", [1, None, 3], other=[1, 2, 3])
    rows = ParquetRows(path, key="id")
    rows.hashes(["other"])
    with pytest.raises(RowsError, match=r"'number' of .*r\.parquet, row group 0 has 1 missing"):
        taught(tmp_path / "c", rows, TEACHER)


def test_a_file_without_rows_has_no_rows(tmp_path: Path) -> None:
    empty = pa.table({"id": pa.array([], pa.int64()), "x": pa.array([], pa.float32())})
    pq.write_table(empty, tmp_path / "none.parquet")
    rows = ParquetRows(tmp_path / "none.parquet", key="id")
    assert len(rows) == len(rows.hashes(["x"])) == 0
    written(tmp_path / "some.parquet", [0.5], id=[1], x=np.zeros(1, "f4").tolist())
    pq.write_table(
        pa.table({"id": [1], "x": pa.array([2], pa.float32())}), tmp_path / "some.parquet"
    )
    both = ParquetRows(tmp_path, key="id")
    assert both.read(np.array([0]), ["x"])["x"] == [2]
