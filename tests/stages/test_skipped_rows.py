"""Broken records in files of columns: an error that names them, or rows that leave and are listed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray import cloudpickle

from stillroom.stages import ArrayRows, FunctionTeacher, ParquetRows, ViewedTeacher
from stillroom.stages.events import RowsSkipped
from stillroom.stages.views.boxes import Flip
from stillroom.stages.views.plan import ViewPlan
from stillroom.stages.views.rows import ViewedRows
from stillroom.storage.errors import RowsError
from tests.stages.builders import Heard, taught
from tests.stages.test_parquet_rows import TEACHER, flipped, written
from tests.stages.view_builders import looker, photos


def read(rows: ParquetRows, column: str) -> Any:
    found: Any = rows.read(np.arange(len(rows)), [column])[column]
    return found if isinstance(found, list) else found.tolist()


def test_rows_with_a_missing_value_leave_by_their_keys(tmp_path: Path) -> None:
    path = written(
        tmp_path / "r.parquet", [*range(9), None, *range(10, 20)], word=["a", None] + ["b"] * 18
    )
    with pytest.raises(RowsError, match=r"'number' of .*row group 1 has 1 missing values"):
        ParquetRows(path, key="id").hashes(["number"])
    rows = ParquetRows(path, key="id", broken="skip")
    said = {"k1": "column 'word' has no value", "k9": "column 'number' has no value"}
    assert rows.skipped == said
    left = [i for i in range(20) if i not in (1, 9)]
    assert (rows.keys.to_pylist(), read(rows, "number")) == ([f"k{i}" for i in left], left)
    words = ["a" if i == 0 else "b" for i in left]
    plain = ArrayRows(rows.keys, number=np.array(left), word=words)
    np.testing.assert_array_equal(rows.hashes(["number", "word"]), plain.hashes(["number", "word"]))
    again: ParquetRows = cloudpickle.loads(cloudpickle.dumps(rows))  # type: ignore[no-untyped-call]
    assert (read(again, "number"), again.skipped) == (left, said)
    assert again.fingerprint(["number"]) == rows.fingerprint(["number"])


def test_rows_of_a_damaged_piece_leave_together(tmp_path: Path) -> None:
    path = written(tmp_path / "r.parquet")
    flipped(path)
    rows = ParquetRows(path, key="id", broken="skip")
    assert [*rows.skipped] == [f"k{i}" for i in range(8, 16)]
    assert "row group 1 cannot be read" in rows.skipped["k8"]
    assert read(rows, "number") == [*range(8), *range(16, 20)]


def test_a_piece_without_readable_keys_is_named_by_its_place(tmp_path: Path) -> None:
    path = written(tmp_path / "r.parquet")
    with pq.ParquetFile(path) as file:
        chunk = file.metadata.row_group(1).column(0)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 12] = b"\xff" * 12
    path.write_bytes(content)
    with pytest.raises(RowsError, match=r"'id' of .*row group 1 cannot be read"):
        ParquetRows(path, key="id")
    rows = ParquetRows(path, key="id", broken="skip")
    assert [*rows.skipped] == [f"{path}, row group 1 (8 rows)"]
    assert read(rows, "number") == [*range(8), *range(16, 20)]
    keyless = written(tmp_path / "keyless.parquet", range(3), id=["a", None, "c"])
    rows = ParquetRows(keyless, key="id", broken="skip")
    assert rows.skipped == {f"{keyless}, row group 0, row 1": "column 'id' has no value"}


def test_lines_of_a_csv_are_named_by_their_number(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("id,x,word\na,1,one\nb,2\nc,3,three,more\nd,4,four\n")
    with pytest.raises(RowsError, match=r"r\.csv cannot be read as csv.*Expected 3 columns, got 2"):
        ParquetRows(path, key="id")
    rows = ParquetRows(path, key="id", broken="skip")
    assert rows.skipped == {
        f"{path}, line 3": "2 fields where 3 are expected: 'b,2'",
        f"{path}, line 4": "4 fields where 3 are expected: 'c,3,three,more'",
    }
    assert (rows.keys.to_pylist(), read(rows, "x")) == (["a", "d"], [1, 4])
    again: ParquetRows = cloudpickle.loads(cloudpickle.dumps(rows))  # type: ignore[no-untyped-call]
    assert read(again, "word") == ["one", "four"]


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    written(tmp_path / "a.parquet", range(3))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 cut off")
    (tmp_path / "c.csv").write_bytes(b"id,number\nx,\xff\xfe\n")
    rows = ParquetRows(tmp_path, key="id", broken="skip")
    assert [*rows.skipped] == [str(tmp_path / "b.parquet"), "x"]
    assert rows.skipped["x"] == "column 'number' is large_binary, most rows have <i8()"
    assert read(rows, "number") == [0, 1, 2]
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "c.csv").unlink()
    with pytest.raises(RowsError, match=r"no file can be read: .*b\.parquet cannot be read"):
        ParquetRows(tmp_path, key="id", broken="skip")
    with pytest.raises(ValueError, match="broken='skp'; did you mean 'skip'"):
        ParquetRows(tmp_path, key="id", broken="skp")  # type: ignore[arg-type]


def test_a_repaired_row_is_taught_alone_and_skipped_ones_are_heard_of(tmp_path: Path) -> None:
    def run(number: list[Any]) -> tuple[int, int, list[Any]]:
        heard = Heard()
        path = written(tmp_path / "r.parquet", number)
        rows = ParquetRows(path, key="id", broken="skip")
        snapshot = taught(tmp_path / "c", rows, TEACHER, listen=heard)
        said = [[*e.reasons] for e in heard.events if isinstance(e, RowsSkipped)]
        return snapshot.rows, heard.taught, said

    assert run([*range(5), None, 6, 7]) == (7, 7, [["k5"]])
    assert run([*range(5), 5, 6, None]) == (7, 1, [["k7"]])
    assert run([*range(8)]) == (8, 0, [])  # k7 was answered before it broke


def test_views_of_rows_say_what_the_rows_left_out(tmp_path: Path) -> None:
    image = [row.tolist() for row in photos(4)]
    kind = pa.list_(pa.list_(pa.list_(pa.float32())))
    table = pa.table({"id": [0, 1, 2, 3], "image": pa.array([*image[:3], None], kind)})
    pq.write_table(table, tmp_path / "r.parquet")
    rows = ParquetRows(tmp_path / "r.parquet", key="id", broken="skip")
    plan = ViewPlan((Flip(),))
    heard = Heard()
    shown = ViewedRows(rows, plan, views=1)
    assert shown.skipped == rows.skipped
    taught(tmp_path / "c", shown, ViewedTeacher(looker(), plan), listen=heard)
    assert [e.rows for e in heard.events if isinstance(e, RowsSkipped)] == [1]


def test_arrow_with_missing_values_and_a_teacher_of_texts(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2, 3], "text": ["a", None, "c"]})
    with pa.ipc.new_file(str(tmp_path / "r.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    rows = ParquetRows(tmp_path / "r.arrow", key="id", broken="skip")
    assert rows.skipped == {2: "column 'text' has no value"}

    def lengths(text: list[str]) -> dict[str, Any]:
        return {"length": np.array([[len(t)] for t in text], "f4")}

    teacher = FunctionTeacher("t", lengths, ("text",), ("length",))
    assert taught(tmp_path / "c", rows, teacher).rows == 2
