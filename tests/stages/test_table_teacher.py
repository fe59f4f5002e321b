"""People as a teacher: votes, means and raw ratings, and one row taught again for one rating edited."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import csv, parquet

from stillroom.stages import (
    ArrayRows,
    TableTeacher,
    long_ratings,
    summed_ratings,
    wide_ratings,
)
from stillroom.stages.teachers.ratings import Ratings
from stillroom.stages.teachers.table import RatedRows
from stillroom.storage.errors import FormatError, RowsError, SignalError
from stillroom.storage.ragged import Ragged
from tests.stages.builders import Heard, answers, taught

LABELS = ("bad", "fair", "good")
KEYS = ["r0", "r1", "r2"]
SAID = [  # in no order: rows, raters and what they said
    ("r2", "ann", "good"),
    ("r0", "cid", "bad"),
    ("r1", "ann", "fair"),
    ("r0", "ann", "good"),
    ("r9", "ann", "bad"),
    ("r0", "bob", "bad"),
    ("r1", "bob", "good"),
]
EVERY = ("votes", "counts", "majority", "raters", "ratings")


def rows(keys: list[Any] = KEYS) -> ArrayRows:
    return ArrayRows(keys, image=np.arange(len(keys), dtype=np.float32))


def table(said: list[tuple[Any, Any, Any]] = SAID) -> dict[str, list[Any]]:
    key, rater, label = (list(column) for column in zip(*said, strict=True))
    return {"key": key, "rater": rater, "label": label}


def people(**changes: Any) -> TableTeacher:
    return TableTeacher("people", **{"labels": LABELS, "signals": EVERY, **changes})


def everything(teacher: TableTeacher, rated: RatedRows) -> dict[str, Any]:
    batch = rated.read(np.arange(len(rated)), list(teacher.inputs))
    return dict(teacher.load()(batch))


def test_votes_are_those_of_the_people(tmp_path: Path) -> None:
    teacher = people()
    rated = teacher.rows(rows(), long_ratings(table()))
    snapshot = taught(tmp_path / "c", rated, teacher)
    votes = answers(snapshot, rated, "votes")
    assert votes.dtype == np.float32
    expected = np.array([[2 / 3, 0, 1 / 3], [0, 0.5, 0.5], [0, 0, 1]])
    np.testing.assert_allclose(votes, expected, rtol=1e-7)
    assert answers(snapshot, rated, "counts").tolist() == [[2, 0, 1], [0, 1, 1], [0, 0, 1]]
    assert answers(snapshot, rated, "majority").tolist() == [0, 1, 2]  # of equals the first label
    assert answers(snapshot, rated, "raters").tolist() == [3, 2, 1]
    # In the order of names: ann, bob, cid.
    assert [r.tolist() for r in answers(snapshot, rated, "ratings")] == [[2, 0, 0], [1, 2], [2]]


def test_smoothing_gives_every_class_the_same_votes_beforehand() -> None:
    teacher = people(signals=("votes",), smoothing=1.0)
    votes = everything(teacher, teacher.rows(rows(), long_ratings(table())))["votes"]
    np.testing.assert_allclose(votes[0], [3 / 6, 1 / 6, 2 / 6], rtol=1e-7)
    assert people().identity() != people(smoothing=1.0).identity()


def test_numbers_have_a_mean_and_a_variance() -> None:
    scores = {"r0": [1.5, -2.0, 0.25], "r1": [4.0], "r2": [1.0, 1.0]}
    said = [(key, f"p{i}", s) for key, each in scores.items() for i, s in enumerate(each)]
    teacher = TableTeacher("people", signals=("mean", "variance", "raters", "ratings"))
    found = everything(teacher, teacher.rows(rows(), long_ratings(table(said))))
    for place, each in enumerate(scores.values()):
        assert found["mean"][place] == np.float32(np.mean(each))
        assert found["variance"][place] == np.float32(np.var(each))
        assert found["ratings"][place].tolist() == each
    whole = TableTeacher("people", labels=(-1, 0, 4), signals=("mean", "votes", "ratings"))
    said = [("r0", "a", -1), ("r0", "b", 4), ("r1", "a", 0), ("r2", "a", 4)]
    found = everything(whole, whole.rows(rows(), long_ratings(table(said))))
    assert found["mean"].tolist() == [1.5, 0, 4]
    assert found["votes"].tolist() == [[0.5, 0, 0.5], [0, 1, 0], [0, 0, 1]]
    assert found["ratings"][0].tolist() == [0, 2]


def test_an_edited_rating_teaches_its_row_and_no_other(tmp_path: Path) -> None:
    teacher, keys = people(), [f"r{i}" for i in range(40)]
    said: list[tuple[Any, Any, Any]] = [
        (key, f"p{p}", LABELS[(i + p) % 3]) for i, key in enumerate(keys) for p in range(1 + i % 4)
    ]

    def run(now: list[tuple[Any, Any, Any]]) -> tuple[int, Any]:
        heard = Heard()
        rated = teacher.rows(rows(keys), long_ratings(table(now)))
        snapshot = taught(
            tmp_path / "c", rated, teacher, shard_rows=50, batch_size=50, listen=heard
        )
        return heard.taught, answers(snapshot, rated, "counts")

    assert run(said)[0] == 40
    assert run(said[::-1])[0] == 0  # the order of the table is nobody's content
    others = [*said, ("r77", "p0", "bad")]
    assert run(others)[0] == 0
    place = next(i for i, (key, _, _) in enumerate(said) if key == "r7")
    edited = [*said[:place], ("r7", "p0", "bad"), *said[place + 1 :]]
    count, counts = run(edited)
    assert count == 1
    expected = Counter(label for key, _, label in edited if key == "r7")
    assert counts[7].tolist() == [expected[label] for label in LABELS]
    # A new rater, however his name sorts, concerns the rows that he rated: no shape grows with him.
    assert run([*edited, ("r8", "0", "good"), ("r9", "zoe", "good")])[0] == 2
    assert run(said)[0] == 0  # what was said before is stored


@pytest.mark.parametrize("kind", [".parquet", ".csv", ".tsv", ".arrow"])
def test_a_file_says_what_arrays_say(tmp_path: Path, kind: str) -> None:
    keys = ["007", "7", "r,2"]  # a spelling that counts
    said = [(keys[int(k[1:])], r, v) for k, r, v in SAID if k != "r9"]
    given = pa.table(table(said))
    path = tmp_path / f"said{kind}"
    if kind == ".parquet":
        parquet.write_table(given, path)
    elif kind == ".arrow":
        with pa.ipc.new_file(path, given.schema) as file:
            file.write_table(given)
    else:
        csv.write_csv(given, path, csv.WriteOptions(delimiter="\t" if kind == ".tsv" else ","))
    teacher = people()
    one = teacher.rows(rows(keys), long_ratings(table(said)))
    other = teacher.rows(rows(keys), long_ratings(path))
    assert one.fingerprint(["ratings"]) == other.fingerprint(["ratings"])
    np.testing.assert_array_equal(one.hashes(["ratings"]), other.hashes(["ratings"]))


def test_numbered_rows_and_labels_are_found_however_a_file_spells_them(tmp_path: Path) -> None:
    path = tmp_path / "said.csv"
    path.write_text("id,ann,bob,when\n12,1,,x\n3,0,1,\n")
    teacher = TableTeacher("people", labels=(0, 1), signals=("counts", "ratings"))
    ratings = wide_ratings(path, key="id", raters=("ann", "bob"))
    found = everything(teacher, teacher.rows(rows([3, 12]), ratings))
    assert found["counts"].tolist() == [[1, 1], [0, 1]]
    with pytest.raises(RowsError, match="rows' keys are int64, those of the ratings"):
        teacher.rows(rows([3, 12]), long_ratings(table([("three", "a", 1)])))


def test_a_column_for_every_rater_may_have_empty_cells() -> None:
    whole = {"key": KEYS, "bob": [2, None, None], "ann": np.array([1.0, np.nan, 0.0])}
    teacher = TableTeacher("people", labels=(0, 1, 2), signals=("ratings", "raters"))
    with pytest.raises(RowsError, match="1 of 3 rows have no rating: r1"):
        teacher.rows(rows(), wide_ratings(whole))
    chosen = rows(["r2", "r0"])
    found = everything(teacher, teacher.rows(chosen, wide_ratings(whole)))
    assert [r.tolist() for r in found["ratings"]] == [[0], [1, 2]]
    assert found["raters"].tolist() == [1, 2]


def test_what_is_summed_up_already_is_taken_as_it_is() -> None:
    summed = {"key": KEYS, "good": [0.25, 0, 3], "bad": [0.75, 1, 1], "fair": [0.0, 0, 0]}
    ratings = summed_ratings(summed, classes=("good", "bad", "fair"))
    teacher = people(signals=("votes", "majority"))
    found = everything(teacher, teacher.rows(rows(), ratings))
    assert found["votes"].tolist() == [[0.75, 0, 0.25], [1, 0, 0], [0.25, 0, 0.75]]
    assert found["majority"].tolist() == [0, 0, 2]
    counting = people(signals=("counts",))
    with pytest.raises(SignalError, match=r"weights of \[0.75, 0.0, 0.25\] are no counts"):
        everything(counting, counting.rows(rows(), ratings))
    naming = people(signals=("ratings",))
    with pytest.raises(SignalError, match="ratings cannot be told from ratings that are summed up"):
        everything(naming, naming.rows(rows(), ratings))
    with pytest.raises(
        RowsError, match=r"summed up over good, bad, fair; teacher 'p' has .* bad, ok"
    ):
        TableTeacher("p", labels=("bad", "ok")).rows(rows(), ratings)
    for wrong in (-1.0, float("inf"), None):
        with pytest.raises(RowsError, match=r"r1|missing entries, the first at 1"):
            summed_ratings({"key": KEYS, "a": [1, wrong, 1]}, classes=("a",))
    with pytest.raises(RowsError, match="only zeros: r2"):
        summed_ratings({"key": KEYS, "a": [1, 1, 0], "b": [0, 0, 0]}, classes=("a", "b"))
    twice = summed_ratings({"key": ["r0", "r0"], "a": [1, 1]}, classes=("a",))
    with pytest.raises(RowsError, match="more than one row: r0"):
        TableTeacher("p", labels=("a",)).rows(rows(["r0"]), twice)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (SAID[1:], "1 of 3 rows have no rating: r2"),
        ([*SAID, ("r1", "ann", "good")], r"1 ratings are there twice.*\('r1', 'ann'\)"),
        (
            [*SAID, ("r1", "eve", "goood")],
            r"none of the labels bad, fair, good.*\('r1', 'eve', 'goood'\)",
        ),
    ],
)
def test_bad_tables_are_named_before_anything_is_stored(
    tmp_path: Path, said: list[tuple[Any, Any, Any]], message: str
) -> None:
    with pytest.raises(RowsError, match=message):
        taught(tmp_path / "c", people().rows(rows(), long_ratings(table(said))), people())
    assert not (tmp_path / "c" / "segments").exists()


def test_other_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(RowsError, match="no column 'who'; known: key, label, rater"):
        long_ratings(table(), rater="who")
    with pytest.raises(RowsError, match="'label' has 1 missing entries, the first at 1"):
        long_ratings(table([("r0", "a", "bad"), ("r1", "a", None)]))
    with pytest.raises(FileNotFoundError, match="no table of ratings"):
        long_ratings(tmp_path / "none.csv")
    (tmp_path / "said.json").write_text("{}")
    with pytest.raises(FormatError, match=r"expected \.parquet"):
        long_ratings(tmp_path / "said.json")
    with pytest.raises(SignalError, match="gives no 'mean'"):
        people(signals=("mean",))
    with pytest.raises(
        SignalError, match="gives no 'votes'; known: mean, raters, ratings, variance"
    ):
        TableTeacher("p")
    with pytest.raises(RowsError, match="none of finite numbers"):
        TableTeacher("p", signals=("mean",)).rows(rows(), long_ratings(table()))
    with pytest.raises(ValueError, match="label is named twice"):
        people(labels=("a", "b", "a"))
    named = ArrayRows(KEYS, ratings=np.zeros(3))
    with pytest.raises(RowsError, match="has a column 'ratings' already"):
        people().rows(named, long_ratings(table()))


def test_columns_of_the_rows_are_what_they_were(tmp_path: Path) -> None:
    plain, teacher = rows(), people()
    rated = teacher.rows(plain, long_ratings(table()))
    assert rated.columns == ("image", "ratings")
    assert rated.fingerprint(["image"]) == plain.fingerprint(["image"])
    np.testing.assert_array_equal(rated.hashes(["image"]), plain.hashes(["image"]))
    both = rated.hashes(["ratings", "image"])
    np.testing.assert_array_equal(both, rated.hashes(["image", "ratings"]))
    assert set(both.tolist()).isdisjoint(rated.hashes(["ratings"]).tolist())
    batch = rated.read(np.array([2, 0]), ["ratings", "image"])
    assert np.asarray(batch["image"]).tolist() == [2, 0]
    assert batch["ratings"][0] == '{"said":[["ann","good"]]}'


ratings_of_rows = st.dictionaries(
    st.tuples(st.integers(0, 5), st.text(max_size=3)), st.sampled_from(LABELS), min_size=1
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(ratings_of_rows, st.randoms(use_true_random=False))
def test_any_table_in_any_order_is_summed_up_as_by_hand(
    said: dict[tuple[int, str], str], random: Any
) -> None:
    keys = sorted({key for key, _ in said})
    entries: list[tuple[Any, Any, Any]] = [(k, r, v) for (k, r), v in said.items()]
    random.shuffle(entries)
    teacher = people()
    ratings: Ratings = long_ratings(table(entries))
    found = everything(teacher, teacher.rows(rows(keys), ratings))
    for place, key in enumerate(keys):
        mine = sorted((rater, label) for (k, rater), label in said.items() if k == key)
        assert found["ratings"][place].tolist() == [LABELS.index(label) for _, label in mine]
        counts = [sum(label == name for _, label in mine) for name in LABELS]
        assert found["counts"][place].tolist() == counts
        np.testing.assert_allclose(found["votes"][place], np.array(counts) / sum(counts), rtol=1e-6)
    assert isinstance(Ragged.of(found["ratings"]), Ragged)
