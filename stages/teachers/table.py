"""Ratings as a teacher: twenty people, or other services, whose answers lie in a table.

The ratings of a row become a column of the data set, so that the hash of the row's content covers
them: who edits one rating teaches one row again. What is left for the teacher is to sum them up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.data.row_hashes import hash_rows, hash_whole
from stillroom.stages.data.rows import Batch, Int64s, Rows
from stillroom.stages.teachers.ratings import Ratings
from stillroom.stages.teachers.teacher import Answer
from stillroom.storage.errors import RowsError, SignalError, listed, nearest
from stillroom.storage.folder import Ask, Hashes
from stillroom.storage.signal import Values

COLUMN = "ratings"
"""The column of the data set that holds a row's ratings."""
_OF_LABELS = ("votes", "counts", "majority")
_OF_NUMBERS = ("mean", "variance")
_OF_BOTH = ("raters", "ratings")


@dataclass(frozen=True)
class TableTeacher:
    """People, or other services, whose answers are given as a table.

    Teach it over `teacher.rows(rows, ratings)`. Its signals, of which `signals` names those wanted:

    | signal | of a row | |
    |---|---|---|
    | `votes` | (classes,) float32 | share of each label, smoothed; sums to 1 |
    | `counts` | (classes,) int32 | how often each label was given |
    | `majority` | () int64 | the label most often given, of equal ones the first of `labels` |
    | `mean`, `variance` | () float32 | of the numbers; variance around that mean, divided by their count |
    | `raters` | () int32 | how many rated the row |
    | `ratings` | ragged, int32 or float32 | labels (by place) or numbers, in the order of raters' names |

    Without `labels` ratings are numbers, and there are no votes; labels that are numbers have both.
    """

    name: str
    """Names the teacher's segments."""
    labels: Sequence[str] | Sequence[int] = ()
    """The classes in their order; empty where ratings are numbers."""
    signals: Sequence[str] = ("votes",)
    """What is stored."""
    smoothing: float = 0.0
    """Votes that every class has before anybody was asked (Laplace: 1)."""
    encodings: Mapping[str, str] = field(default_factory=dict)
    """Encoding by signal; raw where none is named."""

    def __post_init__(self) -> None:
        """Refuse signals that such ratings do not have."""
        known = list(_OF_BOTH)
        known += [*_OF_LABELS] if self.labels else []
        known += [*_OF_NUMBERS] if all(not isinstance(label, str) for label in self.labels) else []
        for name in (*self.signals, *self.encodings):
            if name not in known:
                raise SignalError(
                    f"teacher {self.name!r} gives no {name!r}; {nearest(name, known)}"
                )
        if len(set(map(str, self.labels))) != len(self.labels):
            raise ValueError(f"teacher {self.name!r}: a label is named twice in {self.labels!r}")
        if not 0 <= self.smoothing < float("inf"):
            raise ValueError(f"teacher {self.name!r}: smoothing must be 0 or more")

    @property
    def inputs(self) -> Sequence[str]:
        """The ratings alone."""
        return (COLUMN,)

    def asks(self) -> Mapping[str, Ask]:
        """The signals that were chosen."""
        return {name: Ask(self.encodings.get(name, "raw"), "") for name in self.signals}

    def identity(self) -> dict[str, Any]:
        """Labels and smoothing. What was said is content of the rows, not of the teacher."""
        return {
            "kind": "table",
            "labels": list(self.labels),
            "smoothing": self.smoothing,
            "libraries": {"numpy": np.__version__},
        }

    def rows(self, rows: Rows, ratings: Ratings) -> RatedRows:
        """The same rows with their ratings as one more column.

        Everything is checked here, before anything is taught. RowsError names rows without a rating,
        a rater who is there twice for one row, and labels (or numbers) that are none.
        """
        order, borders = ratings.of(rows.keys)
        if ratings.raters is None:
            if sorted(map(str, self.labels)) != sorted(ratings.classes):
                raise RowsError(
                    f"the ratings are summed up over {', '.join(ratings.classes)}; teacher "
                    f"{self.name!r} has the labels {', '.join(map(str, self.labels)) or 'none'}"
                )
            at = [ratings.classes.index(str(label)) for label in self.labels]
            every = np.asarray(ratings.said)[:, at][order]
            return RatedRows(rows, [_spelled({"weights": weights.tolist()}) for weights in every])
        said = self._checked(ratings, order)
        who = ratings.raters.take(pa.array(order)).to_pylist()
        pairs = list(zip(who, said, strict=True))
        cuts = borders.tolist()
        each = pairwise(cuts)
        return RatedRows(rows, [_spelled({"said": pairs[a:b]}) for a, b in each])

    def _checked(self, ratings: Ratings, order: Int64s) -> list[Any]:
        """What was said, in that order: labels as the teacher spells them, or numbers."""
        chosen = pa.array(order)
        given = ratings.said.take(chosen).to_pylist()
        known = {str(label): label for label in self.labels}
        said = [known.get(_label(g)) if known else _number(g) for g in given]
        if wrong := [i for i, value in enumerate(said) if value is None]:
            places = pa.array(order[wrong[:5]])
            assert ratings.raters is not None
            found = zip(
                ratings.keys.take(places).to_pylist(),
                ratings.raters.take(places).to_pylist(),
                [given[i] for i in wrong[:5]],
                strict=True,
            )
            expected = f"the labels {listed(known, 20)}" if known else "finite numbers"
            raise RowsError(
                f"{len(wrong):,} ratings are none of {expected}; (row, rater, said): "
                f"{listed(found)}{' and more' if len(wrong) > 5 else ''}"
            )
        return said

    def load(self) -> Answer:
        """Nothing is loaded: ratings are summed up row by row."""
        return self._answer

    def _answer(self, batch: Batch) -> dict[str, Values]:
        each = [self._summed(json.loads(str(text))) for text in batch[COLUMN]]
        found: dict[str, Any] = {}
        for name in self.signals:
            values = [row[name] for row in each]
            found[name] = values if name == "ratings" else np.stack(values)
        return found

    def _summed(self, row: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Every signal of one row, those that it has not left out."""
        classes = len(self.labels)
        if "weights" in row:
            if self.signals and (lacking := {*_OF_BOTH, *_OF_NUMBERS} & set(self.signals)):
                raise SignalError(
                    f"teacher {self.name!r}: {', '.join(sorted(lacking))} cannot be told from ratings "
                    "that are summed up"
                )
            weights = np.array(row["weights"], np.float64)
            return self._of_weights(weights)
        said = [value for _, value in row["said"]]
        found: dict[str, NDArray[Any]] = {"raters": np.array(len(said), np.int32)}
        if classes:
            place = {label: i for i, label in enumerate(self.labels)}
            places = np.array([place[label] for label in said], np.int32)
            found |= self._of_weights(np.bincount(places, minlength=classes).astype(np.float64))
            found["ratings"] = places
        if not any(isinstance(value, str) for value in said):
            numbers = np.array(said, np.float64)
            found["mean"] = np.array(numbers.mean(), np.float32)
            found["variance"] = np.array(numbers.var(), np.float32)
            found.setdefault("ratings", numbers.astype(np.float32))
        return found

    def _of_weights(self, weights: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
        whole = weights.astype(np.int32)
        if "counts" in self.signals and (whole != weights).any():
            raise SignalError(
                f"teacher {self.name!r}: weights of {weights.tolist()} are no counts; ask for votes alone"
            )
        smooth = weights + self.smoothing
        return {
            "votes": (smooth / smooth.sum()).astype(np.float32),
            "counts": whole,
            "majority": np.array(weights.argmax(), np.int64),
        }


class RatedRows:
    """A data set with each row's ratings as a column of texts, `ratings`; made by `TableTeacher.rows`."""

    def __init__(self, rows: Rows, texts: Sequence[str]) -> None:
        """RowsError where the data set has a column of that name already."""
        if COLUMN in rows.columns:
            raise RowsError(f"the data set has a column {COLUMN!r} already; rename it")
        self.rows, self._texts = rows, pa.array(texts, pa.large_string())

    @property
    def keys(self) -> pa.Array:
        """Those of the data set."""
        return self.rows.keys

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of the data set, and the ratings."""
        return (*self.rows.columns, COLUMN)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.rows)

    def read(self, places: Int64s, columns: Sequence[str]) -> Batch:
        """The rows at these places, in that order."""
        own = [name for name in columns if name != COLUMN]
        batch = self.rows.read(places, own) if own else {}
        if COLUMN in columns:
            batch[COLUMN] = self._texts.take(pa.array(places)).to_pylist()
        return batch

    def hashes(self, columns: Sequence[str]) -> Hashes:
        """Of each row's content; with ratings and other columns, of the hashes of both."""
        own = [name for name in columns if name != COLUMN]
        if COLUMN not in columns:
            return self.rows.hashes(own)
        mine = hash_rows({COLUMN: self._texts})
        if not own:
            return mine
        both = {"rows": self.rows.hashes(own), COLUMN: mine}
        return hash_rows({n: h.view(np.uint8).reshape(-1, 16) for n, h in both.items()})

    def fingerprint(self, columns: Sequence[str]) -> str:
        """Of all keys and of these columns."""
        own = [name for name in columns if name != COLUMN]
        if COLUMN not in columns:
            return self.rows.fingerprint(own)
        mine = hash_whole([("", self.keys), (COLUMN, self._texts)])
        return f"{self.rows.fingerprint(own)}+{mine}" if own else mine


def _spelled(ratings: Mapping[str, Any]) -> str:
    """One spelling, so that a row's hash changes when a rating does and not otherwise."""
    return json.dumps(ratings, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _label(given: Any) -> str:
    """3.0 is the label 3: a column with an empty cell is read as floating point."""
    whole = isinstance(given, float) and given.is_integer()
    return str(int(given)) if whole else str(given)


def _number(given: Any) -> float | None:
    try:
        number = float(given)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None
