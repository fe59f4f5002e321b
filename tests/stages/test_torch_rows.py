"""torch data sets: map-style ones as they are, iterable ones and Ray Data's written down once."""

from __future__ import annotations

import importlib
import itertools
import json
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray import cloudpickle
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from stillroom.stages import ArrayRows, TorchRows, from_ray_dataset
from stillroom.stages.data.spool import Spooled
from stillroom.storage.errors import RowsError
from tests.stages.containers import COLUMNS, contents, in_memory, items, without

KEYS = [f"r{i}" for i in range(40)]


class Pairs(Dataset[Any]):
    """Tuples of an image as a tensor, a number and a text; some of them broken."""

    def __init__(self, rows: int = 20, broken: tuple[int, ...] = (), noisy: str = "") -> None:
        self.rows, self.broken, self.noisy, self.reads = rows, broken, noisy, 0

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, place: int) -> Any:
        self.reads += 1
        if place in self.broken:
            raise OSError(f"no file {place}.jpg")
        image = torch.arange(6.0).reshape(2, 3) + place
        if self.noisy == "flip" and torch.rand(()) < 0.5:
            image = image.flip(1)
        return image, place % 3, f"row {place}"


NAMES = ("image", "label", "text")
EXPECTED = ArrayRows(
    range(20),
    image=np.arange(6, dtype="f4").reshape(2, 3) + np.arange(20, dtype="f4")[:, None, None],
    label=np.arange(20) % 3,
    text=[f"row {i}" for i in range(20)],
)


@pytest.mark.parametrize("how", [{}, {"threads": 4}, {"workers": 2}])
def test_tuples_are_rows_as_arrays_in_memory_are(how: dict[str, Any]) -> None:
    rows = TorchRows(Pairs(200), keys=range(200), columns=NAMES, **how)
    hashes = rows.hashes(NAMES)[:20]
    np.testing.assert_array_equal(hashes, EXPECTED.hashes(NAMES))
    at = np.array([7, 0, 7])
    for name in NAMES:
        assert str(rows.read(at, [name])) == str(EXPECTED.read(at, [name]))


def test_parts_are_left_out_and_keys_may_be_a_function() -> None:
    rows = TorchRows(Pairs(), keys=lambda n: f"k{n}", columns=("image", None, "text"))
    assert (rows.columns, rows.keys[3].as_py()) == (("image", "text"), "k3")
    one = TorchRows([torch.tensor([1.0]), torch.tensor([2.0])], keys=[1, 2], columns=["x"])
    assert one.read(np.array([1]), ["x"])["x"].tolist() == [[2.0]]  # type: ignore[union-attr]
    tensors = TensorDataset(torch.zeros(3, 2), torch.arange(3))
    assert TorchRows(tensors, keys=[1, 2, 3], columns=("x", "y")).hashes(["x", "y"]).shape == (3,)


def test_every_item_is_read_once_for_all_hashes() -> None:
    dataset = Pairs(500)
    rows = TorchRows(dataset, keys=range(500), columns=NAMES)
    dataset.reads = 0
    rows.hashes(NAMES)
    rows.hashes(NAMES[::-1])
    assert dataset.reads == 500


def test_a_given_fingerprint_is_trusted() -> None:
    dataset = Pairs(50)
    rows = TorchRows(dataset, keys=range(50), columns=NAMES, fingerprint="v1")
    dataset.reads = 0
    first = rows.fingerprint(["image"])
    assert dataset.reads == 0
    other = TorchRows(dataset, keys=range(50), columns=NAMES, fingerprint="v2")
    moved = TorchRows(dataset, keys=range(1, 51), columns=NAMES, fingerprint="v1")
    prints = {r.fingerprint(["image"]) for r in (other, moved)} | {
        rows.fingerprint(["text"]),
        first,
    }
    assert len(prints) == 4


def test_random_transforms_are_refused_with_the_way_out() -> None:
    torch.manual_seed(0)
    with pytest.raises(RowsError, match=r"'image' of row .* differs .* ViewPlan \(ViewedRows\)"):
        TorchRows(Pairs(noisy="flip"), keys=range(20), columns=NAMES)


class Endless(IterableDataset[Any]):
    """Rows that come again and again."""

    def __iter__(self) -> Iterator[Any]:
        for i in itertools.cycle(range(3000)):
            yield {"id": i, "x": torch.tensor([i])}


class Unlisted(Dataset[Any]):
    def __getitem__(self, place: int) -> Any:
        return place


@pytest.mark.parametrize(
    ("given", "how", "message"),
    [
        (Endless(), {"keys": [1]}, "a Endless gives its items one after another; .*from_iterable"),
        (iter([1]), {"keys": [1]}, "a list_iterator gives its items one after another"),
        (Unlisted(), {"keys": [1]}, "a Unlisted has no length"),
        (Pairs(), {"keys": range(19)}, "has 20 items, there are 19 keys"),
        (Pairs(), {"keys": [0, *range(19)]}, "1 keys stand for more than one row: 0"),
        (Pairs(), {"keys": [0.5 * i for i in range(20)]}, "row keys must all be integers"),
        (Pairs(), {"keys": None}, "a data set needs stable keys"),
        (Pairs(), {"keys": range(20)}, "item 0: it is a tuple of 3 parts, which have no names"),
    ],
    ids=range(8),
)
def test_what_cannot_be_rows_is_named(given: Any, how: Any, message: str) -> None:
    with pytest.raises(RowsError, match=message):
        TorchRows(given, **how)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((torch.zeros(2, 3), 1), r"it has 2 parts, columns= names 3"),
        (
            (torch.zeros(3, 2), 1, "a"),
            r"'image' is <f4\(2, 3\) in item 0 and <f4\(3, 2\) in item 1",
        ),
        ((torch.zeros(2, 3, dtype=torch.bfloat16), 1, "a"), "column 'image' is no array"),
        (({"box": 1}, 1, "a"), "column 'image' is a dict; expected numbers"),
        (([[1], [1, 2]], 1, "a"), "column 'image' is no array"),
        (({"box": 1}), "it has no entry 'image', 'label', 'text'; it has 'box'"),
    ],
    ids=range(6),
)
def test_an_item_unlike_the_others_stops_or_is_skipped(item: Any, message: str) -> None:
    good = (torch.zeros(2, 3), 1, "a")
    given = [good, item, good]
    with pytest.raises(RowsError, match=message):
        TorchRows(given, keys=["a", "b", "c"], columns=NAMES).read(np.arange(3), NAMES)
    rows = TorchRows(given, keys=["a", "b", "c"], columns=NAMES, broken="skip")
    assert rows.keys.to_pylist() == ["a", "c"]
    assert [*rows.skipped] == ["b"]
    assert len(rows.hashes(NAMES)) == 2


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_items_that_cannot_be_read_are_named_from_any_process(workers: int) -> None:
    dataset, keys = Pairs(200, broken=(70, 150)), [f"k{i}" for i in range(200)]
    rows = TorchRows(dataset, keys=keys, columns=NAMES, workers=workers)
    for use in (lambda: rows.hashes(NAMES), lambda: rows.read(np.array([70]), NAMES)):
        with pytest.raises(
            RowsError, match=r"^row 'k70' \(item 70\): .* OSError: no file 70\.jpg\. Rep"
        ):
            use()
    kept = TorchRows(dataset, keys=keys, columns=NAMES, workers=workers, broken="skip")
    why = {f"k{i}": f"reading it raised OSError: no file {i}.jpg" for i in (70, 150)}
    assert (len(kept), kept.skipped) == (198, why)
    np.testing.assert_array_equal(kept.hashes(NAMES)[:20], EXPECTED.hashes(NAMES))


def test_broken_items_are_remembered_under_a_fingerprint(tmp_path: Path) -> None:
    dataset = Pairs(30, broken=(4,))

    def reads(fingerprint: str | None) -> int:
        dataset.reads = 0
        how: Any = {"broken": "skip", "remember": tmp_path / "b.json", "fingerprint": fingerprint}
        rows = TorchRows(dataset, keys=range(30), columns=NAMES, **how)
        assert [*rows.skipped] == [4]
        return dataset.reads

    first, second, other = reads("v1"), reads("v1"), reads("v2")
    assert first == other == second + 30
    with pytest.raises(ValueError, match="give fingerprint="):
        reads(None)


def test_an_iterable_is_written_once_and_read_in_any_order(tmp_path: Path) -> None:
    given = [{**row, "id": key} for key, row in zip(KEYS, items(contents(40), 40), strict=True)]
    heard: list[Spooled] = []
    rows = TorchRows.from_iterable(iter(given), tmp_path, key="id", said=heard.append)
    expected = in_memory(KEYS, contents(40))
    np.testing.assert_array_equal(rows.hashes(COLUMNS), expected.hashes(COLUMNS))
    again = TorchRows.from_iterable(iter([]), tmp_path, key="id", said=heard.append)
    assert again.fingerprint(COLUMNS) == rows.fingerprint(COLUMNS)
    assert [(s.rows, s.reused) for s in heard] == [(40, False), (40, True)]
    assert str(heard[0]) == f"{tmp_path}/rows now holds 40 rows in {heard[0].bytes:,} bytes"
    said = json.loads((tmp_path / "rows" / "spooled.json").read_text())
    assert (said["rows"], said["key"], [*said["files"]]) == (40, "id", ["rows-00000.arrow"])


def test_what_was_spooled_is_not_taken_for_another_version(tmp_path: Path) -> None:
    def spooled(values: list[int], **how: Any) -> Any:
        given = ({"k": i, "x": v} for i, v in enumerate(values))
        rows = TorchRows.from_iterable(given, tmp_path, key="k", **how)
        return rows.read(np.arange(len(rows)), ["x"])["x"].tolist()  # type: ignore[union-attr]

    assert spooled([1, 2], version="a") == [1, 2]
    assert spooled([3], version="a") == [1, 2]
    with pytest.raises(
        RowsError, match=r"spooled as version 'a' with key 'k', .* 'b' .*again=True"
    ):
        spooled([3], version="b")
    assert spooled([3], version="b", again=True) == [3]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows"]


def test_a_spool_that_fails_leaves_nothing_or_what_was_there(tmp_path: Path) -> None:
    def cut(rows: int) -> Iterator[Any]:
        for i in range(rows):
            yield {"k": i, "x": np.zeros(3)}
        raise ConnectionError("the stream broke")

    with pytest.raises(ConnectionError):
        TorchRows.from_iterable(cut(5000), tmp_path / "a", key="k")
    assert [*(tmp_path / "a").iterdir()] == []
    TorchRows.from_iterable([{"k": 0, "x": 1}], tmp_path / "a", key="k")
    with pytest.raises(ConnectionError):
        TorchRows.from_iterable(cut(5), tmp_path / "a", key="k", again=True)
    rows = TorchRows.from_iterable([], tmp_path / "a", key="k")
    assert rows.keys.to_pylist() == [0]
    with pytest.raises(RowsError, match="gave 0 items, none of which is a row"):
        TorchRows.from_iterable([], tmp_path / "b", key="k")


@pytest.mark.parametrize(
    ("given", "how", "message"),
    [
        (
            Endless(),
            {"key": "id"},
            r"key \d+ stands for item \d+ and for item 3,0\d+; .* repeats itself",
        ),
        (
            itertools.count(),
            {"key": str, "columns": ["x"], "limit": 2000},
            "more than 2,000 rows: does",
        ),
        ([{"x": 1}], {"key": "id"}, "item 0: it has no column 'id' for its key"),
        (
            [{"id": 1.5, "x": 1}],
            {"key": "id"},
            r"item 0: its key is array\(1.5\); a key is a text or",
        ),
        ([{"id": True, "x": 1}], {"key": "id"}, r"item 0: its key is array\(True\)"),
        ([{"id": 1, "x": 1}, {"id": "a", "x": 1}], {"key": "id"}, "keys are int and str"),
        (
            [{"id": 1, "x": 1}, {"id": 1, "x": 1}],
            {"key": "id"},
            "key 1 stands for item 0 and for item 1",
        ),
        (
            [{"id": 1, "x": 1}, {"id": 2, "x": 1.0}],
            {"key": "id"},
            r"row 2 \(item 1\): column 'x' is <f8",
        ),
        (
            [{"id": 1, "x": 1}, {"id": 2}],
            {"key": "id"},
            r"row 2 .*: column 'x' is missing, and <i8",
        ),
        ([{"id": 1, "x": np.zeros((2, 0))}], {"key": "id"}, "no axis of length 0"),
        ([{"key": 1, "x": 2}], {"key": lambda item: 1}, "has a column 'key', which is the name"),
        ([(1, 2)], {"key": "id"}, "item 0: it is a tuple of 2 parts, which have no names"),
        (Pairs(), {"key": "id"}, "item 0: it is a tuple of 3 parts"),
        (3, {"key": "id"}, "a int cannot be iterated"),
    ],
    ids=range(14),
)
def test_an_iterable_that_cannot_be_rows_is_named(
    tmp_path: Path, given: Any, how: Any, message: str
) -> None:
    with pytest.raises(RowsError, match=message):
        TorchRows.from_iterable(given, tmp_path, **how)
    assert [*tmp_path.iterdir()] == []


def test_rows_of_another_shape_are_skipped_and_stay_listed(tmp_path: Path) -> None:
    given = [(f"k{i}", np.zeros(3 if i != 4 else 2)) for i in range(9)]
    how: Any = {"key": "id", "columns": ("id", "x"), "broken": "skip"}
    for source in (given, []):
        rows = TorchRows.from_iterable(source, tmp_path, **how)
        assert len(rows) == 8
        assert rows.skipped == {
            "k4": "column 'x' is <f8(2,), and <f8(3,) in the first row; every row needs one dtype and shape"
        }


KILLED = """
import os, signal, sys
from stillroom.stages import TorchRows

def rows():
    for i in range(5000):
        if i == 4000:
            os.kill(os.getpid(), signal.SIGKILL)
        yield {"k": i, "x": i}

TorchRows.from_iterable(rows(), sys.argv[1], key="k")
"""


@pytest.mark.slow
def test_a_killed_spool_is_begun_anew_and_its_files_go(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".tmp-")
    rows = TorchRows.from_iterable(({"k": i, "x": i} for i in range(5000)), tmp_path, key="k")
    assert (len(rows), [p.name for p in tmp_path.iterdir()]) == (5000, ["rows"])


@pytest.mark.slow
def test_spooling_holds_one_batch_in_memory(tmp_path: Path) -> None:
    tracemalloc.start()
    given = ({"k": f"row {i}", "x": np.full(1024, i, "f4")} for i in range(30_000))
    rows = TorchRows.from_iterable(given, tmp_path, key="k")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(rows) == 30_000  # 123 MB
    assert peak < 40_000_000


def test_loaders_and_map_style_data_sets_can_be_written_too(tmp_path: Path) -> None:
    loader: Any = DataLoader(Pairs(), batch_size=None, num_workers=0)
    for number, given in enumerate((loader, Pairs())):
        rows = TorchRows.from_iterable(
            given, tmp_path / str(number), key=lambda item: item[2], columns=NAMES
        )
        assert rows.keys[19].as_py() == "row 19"
        np.testing.assert_array_equal(rows.hashes(NAMES), EXPECTED.hashes(NAMES))


def test_only_ray_data_sets_are_taken_for_such(tmp_path: Path) -> None:
    with pytest.raises(RowsError, match=r"a list is no ray\.data\.Dataset"):
        from_ray_dataset([], tmp_path, key="id")


@pytest.fixture
def ray_data() -> Iterator[Any]:
    """Ray Data on a Ray of its own: it would join any other that runs here."""
    pytest.importorskip("pandas")  # of the extra ray[data]
    ray = importlib.import_module("ray")
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield importlib.import_module("ray.data")
    ray.shutdown()


@pytest.mark.slow
def test_ray_data_is_written_by_its_workers_and_read_in_any_order(
    tmp_path: Path, ray_data: Any
) -> None:
    columns = without(contents(40), "jpeg")  # as NumPy has bytes, they would end at a zero
    given = [{**row, "id": key} for key, row in zip(KEYS, items(columns, 40), strict=True)]
    dataset = ray_data.from_items(given).random_shuffle(seed=1).repartition(3)
    heard: list[Spooled] = []
    rows = from_ray_dataset(dataset, tmp_path / "s", key="id", said=heard.append)
    assert rows.keys.to_pylist() == sorted(KEYS)
    expected = in_memory(KEYS, columns).hashes([*columns])
    order = [KEYS.index(key) for key in sorted(KEYS)]
    np.testing.assert_array_equal(rows.hashes([*columns]), expected[order])
    again = from_ray_dataset(dataset, tmp_path / "s", key="id", said=heard.append)
    assert again.fingerprint([*columns]) == rows.fingerprint([*columns])
    assert [(s.rows, s.reused) for s in heard] == [(40, False), (40, True)]
    with pytest.raises(RowsError, match="no column 'ids' for keys; did you mean 'id'"):
        from_ray_dataset(dataset, tmp_path / "t", key="ids")
    twice = ray_data.from_items([{"id": 1, "x": 2}, {"id": 1, "x": 3}])
    with pytest.raises(RowsError, match="keys stand for more than one row: 1"):
        from_ray_dataset(twice, tmp_path / "t", key="id", sort=False)
    assert not [*(tmp_path / "t").glob("*")]


def test_a_data_set_is_sent_as_it_is() -> None:
    rows = TorchRows(TensorDataset(torch.eye(4)), keys=range(4), columns=["x"])
    rows.hashes(["x"])
    again: TorchRows = cloudpickle.loads(cloudpickle.dumps(rows))  # type: ignore[no-untyped-call]
    np.testing.assert_array_equal(again.hashes(["x"]), rows.hashes(["x"]))
