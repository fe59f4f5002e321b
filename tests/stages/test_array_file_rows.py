"""NumPy's files and Zarr arrays as columns: cut, compressed, damaged, changed, of other lengths."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from ray import cloudpickle

from stillroom.stages import ArrayRows, FunctionTeacher, NumpyRows, ZarrRows
from stillroom.storage.errors import RowsError
from tests.stages.builders import taught

quick = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
KEYS = [f"k{i}" for i in range(20)]
X = np.random.default_rng(0).standard_normal((20, 3, 2)).astype("f4")
DTYPES = st.sampled_from(["<f4", ">i2", "u1", "bool", "<f2", "<i8", ">f8"])
SHAPES = arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=6)


def saved(path: Path, array: Any) -> Path:
    np.save(path, array, allow_pickle=False)
    return path


@quick
@given(arrays.arrays(DTYPES, SHAPES), st.booleans())
def test_any_array_is_the_same_rows_in_both_kinds_of_file(
    tmp_path: Path, array: Any, fortran: bool
) -> None:
    keys = list(range(len(array)))
    stored = np.asfortranarray(array) if fortran else array
    saved(tmp_path / "x.npy", stored)
    np.savez(tmp_path / "x.npz", x=stored)
    expected = ArrayRows(keys, x=array)
    at = np.arange(len(array))[::-1]
    for rows in (
        NumpyRows({"x": tmp_path / "x.npy"}, keys=keys),
        NumpyRows(tmp_path / "x.npz", keys=keys),
    ):
        np.testing.assert_array_equal(rows.hashes(["x"]), expected.hashes(["x"]))
        assert rows.fingerprint(["x"]) == expected.fingerprint(["x"])
        found: Any = rows.read(at, ["x"])["x"]
        assert found.dtype == array.dtype
        assert found.tobytes() == np.ascontiguousarray(array[at]).tobytes()


def test_keys_may_be_one_of_the_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", id=np.array(KEYS), x=X, number=np.arange(20))
    rows = NumpyRows(tmp_path / "a.npz", keys="id")
    assert rows.keys.to_pylist() == KEYS
    assert rows.read(np.array([3]), ["id"]) == {"id": ["k3"]}
    assert NumpyRows(tmp_path / "a.npz", keys="number").keys.to_pylist() == [*range(20)]
    with pytest.raises(RowsError, match="no column 'ids' for keys; did you mean 'id'"):
        NumpyRows(tmp_path / "a.npz", keys="ids")
    with pytest.raises(RowsError, match="row keys must all be integers"):
        NumpyRows({"x": saved(tmp_path / "x.npy", np.arange(3) / 2)}, keys="x")


def test_files_are_mapped_and_sent_as_paths(tmp_path: Path) -> None:
    wide = np.zeros((20, 100_000), "f4")
    rows = NumpyRows({"x": saved(tmp_path / "x.npy", wide)}, keys=KEYS)
    sent = cloudpickle.dumps(rows)  # type: ignore[no-untyped-call]
    assert len(sent) < 10_000
    assert isinstance(rows._rows._columns["x"].base, np.memmap)
    again: NumpyRows = cloudpickle.loads(sent)
    assert again.fingerprint(["x"]) == rows.fingerprint(["x"])


def test_npy_files_that_are_not_what_they_say_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.npy", X)
    whole = path.read_bytes()
    for content, said in [
        (whole[:-4], r"says float32 of shape \(20, 3, 2\), 480 bytes, and holds 476"),
        (whole + b"more", r"480 bytes, and holds 484"),
        (whole.replace(b"(20, 3, 2)", b"(-2, 3, 2)"), r"it says shape \(-2, 3, 2\)"),
        (whole.replace(b"(20, 3, 2), }    ", b"(20000000000000,)}"), "and holds 481"),
        (whole.replace(b"'<f4'", b"'|O8'"), "it holds object; .* would have to be unpickled"),
        (b"\x93NUMPY\x09\x00" + whole[8:], "it is no .npy|version"),
        (b"", "it is no .npy"),
    ]:
        path.write_bytes(content)
        with pytest.raises(RowsError, match=rf"x\.npy (cannot be read: )?.*({said})"):
            NumpyRows({"x": path}, keys=KEYS)
    with pytest.raises(RowsError, match="'x' has 20 rows, there are 19 keys"):
        NumpyRows({"x": saved(path, X)}, keys=KEYS[1:])
    with pytest.raises(RowsError, match="1 keys stand for more than one row: k0"):
        NumpyRows({"x": path}, keys=["k0", *KEYS[:-1]])
    with pytest.raises(RowsError, match="is one number"):
        NumpyRows({"x": saved(tmp_path / "one.npy", np.array(1.0))}, keys=[])
    with pytest.raises(FileNotFoundError, match=r"no array at .*none\.npy"):
        NumpyRows({"x": tmp_path / "none.npy"}, keys=KEYS)
    with pytest.raises(FileNotFoundError, match=r"no arrays at .*none\.npz"):
        NumpyRows(tmp_path / "none.npz", keys=KEYS)
    np.savez_compressed(tmp_path / "c.npz", x=X)
    with pytest.raises(RowsError, match=r"x\.npy in .*c\.npz is compressed"):
        NumpyRows(tmp_path / "c.npz", keys=KEYS)
    with pytest.raises(RowsError, match=r"x\.npy is no \.npz"):
        NumpyRows(path, keys=KEYS)
    np.savez(tmp_path / "o.npz", x=np.array([{}], object))
    with pytest.raises(RowsError, match="would have to be unpickled"):
        NumpyRows(tmp_path / "o.npz", keys=[0])


def test_a_mapped_file_that_changed_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.npy", X)
    stamp = NumpyRows({"x": path}, keys=KEYS, trust="mtime").fingerprint(["x"])
    rows = NumpyRows({"x": path}, keys=KEYS)
    os.utime(path, ns=(3, 3))
    for use in (lambda: rows.read(np.array([1]), ["x"]), lambda: rows.hashes(["x"])):
        with pytest.raises(RowsError, match=r"x\.npy changed since these rows were opened"):
            use()
    assert NumpyRows({"x": path}, keys=KEYS, trust="mtime").fingerprint(["x"]) != stamp
    path.unlink()
    with pytest.raises(RowsError, match="changed since"):
        rows.fingerprint(["x"])


@pytest.fixture
def group(tmp_path: Path) -> Any:
    """x with checksums in chunks of six rows, y in shards, words as texts."""
    made: Any = zarr.open_group(tmp_path / "z", mode="w")
    checked = zarr.codecs.Crc32cCodec()
    made.create_array("x", data=X, chunks=(6, 2, 2), compressors=[checked])
    made.create_array("y", data=np.arange(20), chunks=(2,), shards=(8,))
    return made


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_of_both_formats_is_the_same_rows(tmp_path: Path, version: Any) -> None:
    made = zarr.open_group(tmp_path / "z", mode="w", zarr_format=version)
    made.create_array("x", data=X, chunks=(7, 1, 2))
    made.create_array("y", data=np.arange(20, dtype=">i4"), chunks=(3,))
    expected = ArrayRows(KEYS, x=X, y=np.arange(20, dtype=">i4"))
    for where in (tmp_path / "z", made, {"x": made["x"], "y": tmp_path / "z" / "y"}):
        rows = ZarrRows(where, keys=KEYS)
        found: Any = rows.read(np.array([19, 0]), ["x"])["x"]
        np.testing.assert_array_equal(found, X[[19, 0]])
        np.testing.assert_array_equal(rows.hashes(["x"]), expected.hashes(["x"]))
        stored = rows.read(np.arange(20), ["y"])["y"]
        plain = ArrayRows(KEYS, y=stored)
        np.testing.assert_array_equal(rows.hashes(["y"]), plain.hashes(["y"]))


def test_texts_in_zarr_may_be_keys_and_columns(tmp_path: Path) -> None:
    made = zarr.open_group(tmp_path / "z", mode="w", zarr_format=2)
    made.create_array("id", data=np.array([f"é{i}" for i in range(20)]), chunks=(6,))
    made.create_array("x", data=X, chunks=(20, 3, 2))
    rows = ZarrRows(tmp_path / "z", keys="id")
    assert rows.keys.to_pylist() == [f"é{i}" for i in range(20)]
    expected = ArrayRows(KEYS, id=[f"é{i}" for i in range(20)])
    np.testing.assert_array_equal(rows.hashes(["id"]), expected.hashes(["id"]))
    assert ZarrRows(tmp_path / "z", keys="id", columns=["x"]).columns == ("x",)


def test_zarr_that_is_not_rows_is_named(tmp_path: Path, group: Any) -> None:
    path = tmp_path / "z"
    with pytest.raises(RowsError, match=r"'x' has shape \(20, 3, 2\), there are 19 keys"):
        ZarrRows(path, keys=KEYS[1:])
    group.create_array("scale", data=np.arange(3))
    with pytest.raises(RowsError, match=r"'scale' has shape \(3,\), .*name with columns="):
        ZarrRows(path, keys=KEYS)
    assert len(ZarrRows(path, keys=KEYS, columns=["x", "y"])) == 20
    with pytest.raises(RowsError, match="no array 'xs'; did you mean 'x'"):
        ZarrRows(path, keys=KEYS, columns=["xs"])
    with pytest.raises(RowsError, match="is one array; give it a name"):
        ZarrRows(path / "x", keys=KEYS)
    with pytest.raises(FileNotFoundError, match="no Zarr array or group at"):
        ZarrRows(tmp_path / "none", keys=KEYS)
    (tmp_path / "plain").mkdir()
    with pytest.raises(FileNotFoundError, match="no Zarr array or group at"):
        ZarrRows(tmp_path / "plain", keys=KEYS)
    with pytest.raises(RowsError, match="1 keys stand for more than one row"):
        ZarrRows(path, keys=["k0", *KEYS[:-1]], columns=["x"])
    group.create_array("c", data=np.zeros(20, "c8"))
    with pytest.raises(RowsError, match="'c' is complex64 with 1 axes; expected numbers"):
        ZarrRows(path, keys=KEYS, columns=["c"]).hashes(["c"])


def halved(x: Any) -> dict[str, Any]:
    return {"logits": x.reshape(len(x), -1) / 2}


def test_rows_of_a_damaged_chunk_stop_or_are_skipped(tmp_path: Path, group: Any) -> None:
    path = tmp_path / "z"
    whole = ArrayRows(KEYS, x=X, y=np.arange(20)).hashes(["x", "y"])
    chunk = path / "x" / "c" / "1" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[5] ^= 1
    chunk.write_bytes(content)
    rows = ZarrRows(path, keys=KEYS, memory_bytes=1)
    rows.read(np.array([0, 19]), ["y"])
    with pytest.raises(RowsError, match=r"column 'x', rows 8 to 16 of .* cannot be read \("):
        rows.read(np.array([8]), ["x"])
    rows = ZarrRows(path, keys=KEYS, broken="skip")
    # A piece is as long as the longest shard, and the damaged chunk reaches into two.
    assert rows.keys.to_pylist() == KEYS[16:]
    assert [*rows.skipped] == KEYS[:16]
    np.testing.assert_array_equal(rows.hashes(["x", "y"]), whole[16:])
    sent: ZarrRows = cloudpickle.loads(cloudpickle.dumps(rows))  # type: ignore[no-untyped-call]
    found: Any = sent.read(np.array([3]), ["y"])["y"]
    assert found.tolist() == [19]
    with pytest.raises(IndexError):
        rows.read(np.array([4]), ["y"])
    teacher = FunctionTeacher("t", halved, ("x",), ("logits",))
    assert taught(tmp_path / "c", rows, teacher).rows == 4
