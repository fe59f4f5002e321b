"""Hugging Face data sets: their own fingerprint is trusted, their rows are read where they are mapped."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from ray import cloudpickle

from stillroom.pipeline import RayRunner
from stillroom.stages.data.hf_rows import DatasetRows
from stillroom.stages.data.rows import ArrayRows
from stillroom.storage.errors import RowsError
from tests.stages.builders import Heard, Watched, answers, data, images, plain, taught
from tests.stages.containers import COLUMNS, Dataset, contents, table

KEYS = [f"r{i}" for i in range(40)]
MADE = Dataset(table(KEYS, contents(40)))


def test_the_data_sets_own_fingerprint_is_trusted_and_nothing_is_hashed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = DatasetRows(MADE, key="id")
    monkeypatch.setattr(rows._pieces, "hashes", lambda *_: pytest.fail("rows were hashed"))
    before = rows.fingerprint(["image"])
    assert DatasetRows(Dataset(MADE.table), key="id").fingerprint(["image"]) == before
    other = DatasetRows(replace(MADE, _fingerprint="other"), key="id")
    assert len({before, other.fingerprint(["image"]), rows.fingerprint(["label"])}) == 3


def test_content_is_hashed_where_that_is_asked_for() -> None:
    def fingerprint(given: Dataset) -> str:
        return DatasetRows(given, key="id", trust="content").fingerprint(["label"])

    before = fingerprint(MADE)
    assert fingerprint(replace(MADE, _fingerprint="other")) == before
    label = contents(40)["label"]
    label[3] ^= 1
    assert fingerprint(Dataset(table(KEYS, {**contents(40), "label": label}))) != before
    renamed = ["other", *KEYS[1:]]
    assert fingerprint(Dataset(table(renamed, contents(40)))) != before


def test_another_fingerprint_over_the_same_rows_teaches_nothing(tmp_path: Path) -> None:
    made = Dataset(table(data().keys.to_pylist(), {"image": images(60)}))
    taught(tmp_path / "c", DatasetRows(made, key="id"), plain())
    forbidden = Watched(plain(), tmp_path / "shown", forbidden=True)
    other = DatasetRows(replace(made, _fingerprint="other"), key="id")
    taught(tmp_path / "c", other, forbidden)
    np.testing.assert_array_equal(
        answers(taught(tmp_path / "c", other, forbidden), data()), images(60)[:, :4] * 2
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train": MADE, "test": MADE}, "several splits; name one of train, test"),
        (iter([1]), "a list_iterator has no rows that can be read in any order"),
        (Dataset(table(["a", "b", "a"], contents(3))), "1 keys stand for more than one row: a"),
        (Dataset(table(["a", None], contents(2))), "'id' of batch 0 has 1 missing values"),
        (Dataset(pa.table({"x": [1]})), "no column 'id' for keys; known: x"),
        (Dataset(pa.table({"id": [0.5]})), "key column 'id': row keys must all be integers"),
    ],
    ids=range(6),
)
def test_what_cannot_be_rows_is_named(given: Any, message: str) -> None:
    with pytest.raises(RowsError, match=message):
        DatasetRows(given, key="id")


def test_an_unknown_kind_of_trust_is_named() -> None:
    with pytest.raises(ValueError, match="trust 'statistics'; known: content, fingerprint"):
        DatasetRows(MADE, key="id", trust="statistics")  # type: ignore[arg-type]


@pytest.fixture
def datasets() -> Any:
    """The package, where it is installed."""
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("datasets is not installed")
    return importlib.import_module("datasets")


@pytest.fixture
def dataset(datasets: Any, tmp_path: Path) -> Any:
    """The contents saved and loaded again, mapped in several files."""
    made = datasets.Dataset(table(KEYS, contents(40)))
    made.save_to_disk(tmp_path / "saved", num_shards=3)
    return datasets.load_from_disk(str(tmp_path / "saved"))


Change = Callable[[Any], Any]
CHANGES: dict[str, Change] = {
    "as it is": lambda d: d,
    "selected": lambda d: d.select([5, 1, 39, 2, 2 * 9]),
    "shuffled": lambda d: d.shuffle(seed=1),
    "shuffled twice": lambda d: d.shuffle(seed=1).select(range(30)).shuffle(seed=2),
    "a range": lambda d: d.select(range(7, 20)),
    "filtered": lambda d: d.filter(lambda row: row["flag"]),
    "reversed": lambda d: d.select(range(39, -1, -1)),
    "mapped": lambda d: d.map(lambda row: {"label": row["label"]}),
    "formatted": lambda d: d.with_format("numpy"),
    "without a column": lambda d: d.remove_columns("jpeg"),
    "flattened": lambda d: d.shuffle(seed=3).flatten_indices(),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_rows_are_those_that_the_data_set_itself_gives(dataset: Any, change: str) -> None:
    changed = CHANGES[change](dataset)
    rows = DatasetRows(changed, key="id")
    itself = changed.with_format("arrow")[:]
    keys = itself.column("id").to_pylist()
    assert rows.keys.to_pylist() == keys
    assert len(rows) == len(changed)
    columns = [name for name in COLUMNS if name in changed.column_names]
    plainly = ArrayRows(keys, **{name: itself.column(name) for name in columns})
    np.testing.assert_array_equal(rows.hashes(columns), plainly.hashes(columns))
    order = np.random.default_rng(0).permutation(len(keys))
    for name in columns:
        found, expected = rows.read(order, [name])[name], plainly.read(order, [name])[name]
        assert list(map(str, found)) == list(map(str, expected))
    original = ArrayRows(KEYS, **contents(40))
    places = np.array([KEYS.index(key) for key in keys])
    np.testing.assert_array_equal(rows.hashes(columns), original.hashes(columns)[places])


@pytest.mark.slow
def test_fingerprints_change_with_what_a_data_set_holds(datasets: Any, dataset: Any) -> None:
    def fingerprint(given: Any) -> str:
        return DatasetRows(given, key="id").fingerprint(["label"])

    changes = [CHANGES[name](dataset) for name in ("as it is", "selected", "shuffled", "a range")]
    changes += [dataset.map(lambda row, by=by: {"label": row["label"] + by}) for by in (1, 2)]
    prints = [fingerprint(changed) for changed in changes]
    assert len(set(prints)) == len(prints)
    again = [fingerprint(CHANGES[name](dataset)) for name in ("as it is", "selected", "shuffled")]
    assert again == prints[:3]
    label = contents(40)["label"]
    one = datasets.Dataset.from_dict({"id": KEYS, "label": label})
    label[7] ^= 1
    other = datasets.Dataset.from_dict({"id": KEYS, "label": label})
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.slow
def test_columns_joined_side_by_side_are_one_row(datasets: Any, dataset: Any) -> None:
    more = datasets.Dataset.from_dict({"number": list(range(40))})
    wide = datasets.concatenate_datasets([dataset, more], axis=1)
    long = datasets.concatenate_datasets([wide.select(range(10)), wide.select(range(10, 40))])
    rows = DatasetRows(long, key="id")
    found = rows.read(np.array([39, 0, 12]), ["number", "id"])
    assert found["number"].tolist() == [39, 0, 12]  # type: ignore[union-attr]
    assert found["id"] == ["r39", "r0", "r12"]


@pytest.mark.slow
def test_encoded_images_are_their_bytes_and_arrays_keep_their_shape(datasets: Any) -> None:
    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["a", "b"]),
            "grid": datasets.Array2D((2, 3), "float32"),
            "few": datasets.Sequence(datasets.Value("int32"), length=2),
        }
    )
    grid = np.arange(12, dtype="f4").reshape(2, 2, 3)
    image = [{"bytes": b"\x89PNG one", "path": None}, {"bytes": b"two", "path": "two.png"}]
    given = {
        "id": [4, 5],
        "image": image,
        "label": ["b", "a"],
        "grid": grid,
        "few": [[1, 2], [3, 4]],
    }
    rows = DatasetRows(datasets.Dataset.from_dict(given, features=features), key="id")
    expected = ArrayRows(
        [4, 5],
        image=[b"\x89PNG one", b"two"],
        label=np.array([1, 0]),
        grid=grid,
        few=np.array([[1, 2], [3, 4]], "i4"),
    )
    for name in expected.columns:
        np.testing.assert_array_equal(rows.hashes([name]), expected.hashes([name]))
    assert rows.read(np.array([1]), ["image"]) == {"image": [b"two"]}


@pytest.mark.slow
def test_splits_and_streams_are_told_apart(datasets: Any, dataset: Any) -> None:
    with pytest.raises(RowsError, match="several splits; name one of train"):
        DatasetRows(datasets.DatasetDict({"train": dataset}), key="id")
    with pytest.raises(RowsError, match="a IterableDataset has no rows that can be read in any"):
        DatasetRows(dataset.to_iterable_dataset(), key="id")


@pytest.mark.slow
def test_a_mapped_data_set_is_sent_as_a_path_and_taught_by_workers(
    datasets: Any, tmp_path: Path, ray_runner: RayRunner
) -> None:
    columns = {"image": images(600), "junk": np.zeros((600, 500))}
    keys = data(600).keys.to_pylist()
    datasets.Dataset(table(keys, columns)).save_to_disk(tmp_path / "saved")
    saved = datasets.load_from_disk(str(tmp_path / "saved")).shuffle(seed=1)
    rows = DatasetRows(saved, key="id")
    assert len(cloudpickle.dumps(rows)) < 100_000  # type: ignore[no-untyped-call]
    heard = Heard()
    snapshot = taught(
        tmp_path / "c", rows, plain(), runner=ray_runner, listen=heard, shard_rows=100
    )
    assert heard.taught == 600
    np.testing.assert_array_equal(answers(snapshot, data(600)), images(600)[:, :4] * 2)
    assert taught(tmp_path / "c", data(600), plain(), listen=heard).number == 2
    assert heard.taught == 600
