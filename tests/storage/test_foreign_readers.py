"""Other libraries open a cache without us, and see the same values."""

from __future__ import annotations

import io
from typing import Any

import dask.array as da
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import xarray as xr
import zarr

from stillroom.storage.ragged import Ragged
from stillroom.storage.reader import Reader
from stillroom.storage.segment import Segment
from stillroom.storage.testing import SmallCache, on_disk

KEYS = list(range(10))
ENCODINGS = {"half": "float16", "brain": "bfloat16", "top": "topk(2)", "tokens": "topk(2)"}
_random = np.random.default_rng(0)
VALUES: dict[str, Any] = {
    "plain": _random.standard_normal((10, 3, 2)).astype("f4"),
    "half": _random.standard_normal((10, 5)).astype("f4"),
    "brain": _random.standard_normal((10, 5)).astype("f4"),
    "top": _random.standard_normal((10, 7)).astype("f4"),
    "label": _random.integers(0, 9, 10),
    "sure": _random.random(10) < 0.5,
    "boxes": Ragged.of([_random.random((i % 3, 4)).astype("f4") for i in range(10)]),
    "tokens": Ragged.of([_random.standard_normal((i % 4, 7)) for i in range(10)]),
    "words": ["", "é", *(f"word {i}" for i in range(8))],
}


@pytest.fixture
def segment(small: SmallCache) -> Segment:
    return small.teach(KEYS, VALUES, encodings=ENCODINGS)


@pytest.fixture
def parts(small: SmallCache, segment: Segment) -> dict[str, Any]:
    """Every stored array by the name that other libraries know it by."""
    stored = Reader(small.commit(KEYS, [segment])).stored(np.arange(10))
    return {
        f"{name}.{part}" if part else name: array
        for name, each in stored.items()
        for part, array in each.items()
    }


def _is_array(name: str) -> bool:
    return name.partition(".")[0] not in ("boxes", "tokens", "words")


def test_zarr_sees_every_fixed_signal(segment: Segment, parts: dict[str, Any]) -> None:
    group = zarr.open_group(segment.path / "signals", mode="r")
    arrays = {name: array for name, array in group.arrays() if isinstance(array, zarr.Array)}
    assert set(arrays) == {name for name in parts if _is_array(name)}
    for name, array in arrays.items():
        np.testing.assert_array_equal(array[:], parts[name], strict=True)
        assert array.chunks[0] == segment.shard_rows
    said: Any = arrays["half"].attrs["stillroom"]
    assert said == {"signal": "half", **segment.signals["half"].to_json()}


def test_an_array_opens_without_its_group(segment: Segment) -> None:
    array = zarr.open_array(segment.path / "signals/plain", mode="r")
    np.testing.assert_array_equal(array[[9, 0]], VALUES["plain"][[9, 0]])


def test_xarray_opens_a_segment_without_a_warning(segment: Segment, parts: dict[str, Any]) -> None:
    # Warnings are errors in these tests.
    with xr.open_zarr(segment.path / "signals") as dataset:
        assert set(dataset.data_vars) == {name for name in parts if _is_array(name)}
        for name, variable in dataset.data_vars.items():
            assert variable.dims[0] == "row"
            np.testing.assert_array_equal(variable.values, parts[str(name)])
    consolidated = zarr.open_consolidated(segment.path / "signals", mode="r")
    assert "half" in consolidated


def test_dask_sees_one_chunk_for_each_shard(segment: Segment, parts: dict[str, Any]) -> None:
    from_zarr: Any = da.from_zarr
    array = from_zarr(str(segment.path / "signals/half"))
    assert array.chunks[0] == (4, 4, 2)
    np.testing.assert_array_equal(array.compute(scheduler="synchronous"), parts["half"])


def test_arrow_sees_every_ragged_signal(segment: Segment) -> None:
    boxes, words = _table(segment, "boxes"), _table(segment, "words")
    assert boxes.schema.field("boxes").type == pa.large_list(pa.list_(pa.float32(), 4))
    for mine, row in zip(VALUES["boxes"], boxes["boxes"].to_pylist(), strict=True):
        np.testing.assert_array_equal(np.array(row, "f4").reshape(-1, 4), mine)
    assert words["words"].to_pylist() == VALUES["words"]
    tokens = _table(segment, "tokens")
    assert set(tokens.column_names) == {
        f"tokens.{p}" for p in ("indices", "values", "logsumexp", "tail")
    }
    assert [len(row) for row in tokens["tokens.tail"]] == VALUES["tokens"].lengths.tolist()


def _table(segment: Segment, name: str) -> Any:
    files = sorted((on_disk(segment.path) / "records" / name).iterdir())
    return pa.concat_tables(pa.ipc.open_file(str(path)).read_all() for path in files)


def test_polars_sees_every_ragged_signal(segment: Segment) -> None:
    for name in ("boxes", "words"):
        files = sorted((on_disk(segment.path) / "records" / name).iterdir())
        frame = pl.concat([pl.read_ipc(io.BytesIO(path.read_bytes())) for path in files])
        assert frame.columns == [name]
        for mine, row in zip(VALUES[name], frame[name].to_list(), strict=True):
            if name == "words":
                assert row == mine
            else:
                np.testing.assert_array_equal(np.array(row, "f4").reshape(-1, 4), mine)


def test_a_lost_chunk_reads_as_nan_elsewhere(segment: Segment) -> None:
    for name, chunk in {"plain": "c/1/0/0", "half": "c/1/0"}.items():
        (on_disk(segment.path) / "signals" / name / chunk).unlink()
        found = np.asarray(zarr.open_array(segment.path / "signals" / name, mode="r")[:])
        assert np.isnan(found[4:8]).all()
        assert np.isfinite(found[:4]).all()
        assert np.isfinite(found[8:]).all()


def test_shards_that_were_never_finished_read_as_nan_elsewhere(small: SmallCache) -> None:
    segment = small.teach(KEYS, {"x": VALUES["half"]}, finish=[1])
    found = np.asarray(zarr.open_array(segment.path / "signals/x", mode="r")[:])
    np.testing.assert_array_equal(found[4:8], VALUES["half"][4:8])
    assert np.isnan(np.delete(found, slice(4, 8), axis=0)).all()


def test_zarr_notices_a_flipped_bit_too(segment: Segment) -> None:
    path = on_disk(segment.path) / "signals/half/c/2/0"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    array = zarr.open_array(segment.path / "signals/half", mode="r")
    np.testing.assert_array_equal(array[:8], VALUES["half"][:8].astype("f2"))
    with pytest.raises(ValueError, match="checksum"):
        array[8:]


def test_rows_and_runs_are_plain_arrow(segment: Segment, parts: dict[str, Any]) -> None:
    rows = pl.read_ipc(io.BytesIO((segment.path / "rows.arrow").read_bytes()))
    assert rows["key"].to_list() == KEYS
    (stored,) = on_disk(segment.path.parent.parent / "snapshots").glob("*.arrow")
    runs = pl.read_ipc(io.BytesIO(stored.read_bytes()))
    assert runs.select("start", "rows", "slot").rows() == [(0, 10, 0)]
