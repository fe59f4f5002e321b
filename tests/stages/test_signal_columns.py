"""Cached signals as columns of a data set: teachers that are asked about answers."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stillroom.stages import SignalColumns, with_signals
from stillroom.storage import Snapshot, UnknownRowError, UnknownSignalError
from stillroom.storage.errors import RowsError
from tests.stages.builders import Heard, answers, chosen, data, plain, taught


def tripled(image: NDArray[np.float32]) -> dict[str, Any]:
    return {"logits": image[:, :4] * 3}


def summed(answer: NDArray[np.float32]) -> dict[str, Any]:
    return {"total": answer.sum(axis=1)}


def both(answer: NDArray[np.float32], image: NDArray[np.float32]) -> dict[str, Any]:
    return {"total": answer.sum(axis=1) + image[:, 0]}


def second(**more: Any) -> Any:
    """A teacher that is asked about the first one's answers."""
    return plain("second", ("total",), **{"answer": summed, **more})


def asked(snapshot: Snapshot, rows: Any) -> SignalColumns:
    return with_signals(rows, snapshot, answer="plain/logits")


def reads(teacher: Any, *inputs: str) -> Any:
    return replace(teacher, inputs=inputs)


def images(rows: Any, places: Any = range(60)) -> NDArray[np.float32]:
    return np.asarray(rows.read(np.array(places), ["image"])["image"])


def test_a_teacher_is_asked_about_anothers_answers(tmp_path: Path) -> None:
    rows = data()
    seen = asked(taught(tmp_path / "c", rows), rows)
    assert seen.columns == ("image", "label", "answer")
    assert len(seen) == len(rows)
    made = taught(tmp_path / "c", seen, reads(second(answer=both), "answer", "image"))
    image = images(rows)
    np.testing.assert_array_equal(
        answers(made, rows, "total"), (image[:, :4] * 2).sum(axis=1) + image[:, 0]
    )
    np.testing.assert_array_equal(answers(made, rows), image[:, :4] * 2)  # still served


def test_columns_come_in_any_order_and_alone(tmp_path: Path) -> None:
    rows = data()
    seen = asked(taught(tmp_path / "c", chosen(rows, range(59, -1, -1))), rows)
    places = np.array([7, 3, 3, 59])
    batch = seen.read(places, ["answer", "label"])
    assert list(batch) == ["answer", "label"]
    image = images(rows, places)
    np.testing.assert_array_equal(batch["answer"], image[:, :4] * 2)
    np.testing.assert_array_equal(seen.read(places, ["answer"])["answer"], batch["answer"])


def test_own_columns_have_the_hashes_that_they_have(tmp_path: Path) -> None:
    rows = data()
    seen = asked(taught(tmp_path / "c", rows), rows)
    for columns in (["image"], ["label", "image"], []):
        assert seen.fingerprint(columns) == rows.fingerprint(columns)
    assert (seen.hashes(["image"]) == rows.hashes(["image"])).all()
    assert (seen.hashes(["answer", "image"]) == seen.hashes(["image", "answer"])).all()
    assert len({seen.fingerprint(c) for c in (["answer"], ["image"], ["answer", "image"])}) == 3


def test_nothing_is_computed_again_where_nothing_changed(tmp_path: Path) -> None:
    rows, teacher = data(), reads(second(), "answer")
    seen = asked(taught(tmp_path / "c", rows), rows)
    made = taught(tmp_path / "c", seen, teacher)
    heard = Heard()
    again = taught(tmp_path / "c", asked(made, rows), teacher, listen=heard)
    assert (again.number, heard.taught) == (made.number, 0)
    # The first teacher is fresh as well, asked over rows that have more columns.
    assert taught(tmp_path / "c", asked(made, rows), plain(), listen=heard).number == made.number
    assert heard.taught == 0


def test_only_rows_that_were_answered_anew_are_asked_about_again(tmp_path: Path) -> None:
    rows, teacher = data(), reads(second(), "answer")
    taught(tmp_path / "c", asked(taught(tmp_path / "c", rows), rows), teacher)
    edited, heard = data(edited=[4, 9]), Heard()
    seen = asked(taught(tmp_path / "c", edited), edited)
    made = taught(tmp_path / "c", seen, teacher, listen=heard)
    assert heard.taught == 2
    image = images(edited)
    np.testing.assert_array_equal(answers(made, edited, "total"), (image[:, :4] * 2).sum(axis=1))


def test_another_teacher_of_the_same_rows_makes_all_stale(tmp_path: Path) -> None:
    """What the next round's student says of rows that did not change is another column."""
    rows, teacher = data(), reads(second(), "answer")
    taught(tmp_path / "c", asked(taught(tmp_path / "c", rows), rows), teacher)
    other = taught(tmp_path / "c", rows, plain(answer=tripled))
    heard = Heard()
    made = taught(tmp_path / "c", asked(other, rows), teacher, listen=heard)
    assert heard.taught == 60
    image = images(rows)
    np.testing.assert_array_equal(answers(made, rows, "total"), (image[:, :4] * 3).sum(axis=1))


def test_a_worker_gets_it_as_the_snapshot_that_it_reads(tmp_path: Path) -> None:
    rows = data()
    seen = asked(taught(tmp_path / "c", rows), rows)
    sent = copy.deepcopy(seen)  # as workers get it: by __reduce__
    assert sent.fingerprint(["answer"]) == seen.fingerprint(["answer"])
    np.testing.assert_array_equal(
        sent.read(np.array([5]), ["answer"])["answer"],
        seen.read(np.array([5]), ["answer"])["answer"],
    )


def test_rows_that_changed_since_are_refused(tmp_path: Path) -> None:
    snapshot = taught(tmp_path / "c", data())
    seen = asked(snapshot, data(edited=[4]))
    with pytest.raises(RowsError, match=r"1 rows changed since teacher 'plain' answered .* r4"):
        seen.hashes(["answer"])


def test_what_cannot_be_a_column_is_refused(tmp_path: Path) -> None:
    rows = data()
    snapshot = taught(tmp_path / "c", chosen(rows, range(50)))
    with pytest.raises(UnknownRowError, match="10 of 60 rows"):
        asked(snapshot, rows)
    few = chosen(rows, range(50))
    with pytest.raises(RowsError, match="has columns label already"):
        with_signals(few, snapshot, label="plain/logits")
    with pytest.raises(RowsError, match="no signal is named"):
        with_signals(few, snapshot)
    with pytest.raises(UnknownSignalError, match="did you mean 'logits'"):
        with_signals(few, snapshot, answer="logit")
