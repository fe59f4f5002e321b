"""Routing: each row is answered by one of several teachers, which a column of the data set names.

Which expert answers a row, and who that expert is, becomes a column of the data set, so that the hash
of a row's content covers both. All experts together are one teacher with one signal for all rows, and
still a changed expert, or a row that goes to another, teaches only the rows that it concerns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillroom.stages.data.row_hashes import hash_rows
from stillroom.stages.data.rows import Batch, Int64s, Rows, require_columns
from stillroom.stages.teachers.teacher import Answer, Teacher
from stillroom.stages.worker.answers import as_values
from stillroom.storage.encodings.encoding import encoding
from stillroom.storage.encodings.head import Head
from stillroom.storage.errors import IdentityError, RowsError, SignalError, listed, nearest
from stillroom.storage.folder import Ask, Hashes
from stillroom.storage.identity import canonical, digest, without_code
from stillroom.storage.pairs import spelled
from stillroom.storage.ragged import Ragged
from stillroom.storage.signal import Signal, Values

EXPERT = "route.identity"
"""The column that says who answers a row."""
_TOGETHER = 1 << 16
"""Rows whose route is looked up at once."""
Route = str | int


@dataclass(frozen=True)
class RoutedTeacher:
    """One teacher for each row: the one that the row's `column` names.

    Teach it over `teacher.rows(rows)`, and train students over that too. All experts give the same
    signals, each encoded in one way, with one shape and dtype. A worker loads an expert when it first
    meets a row of it: rows in the order of their experts keep workers small.

    >>> RoutedTeacher("experts", "language", {"de": german, "fr": french})  # doctest: +SKIP
    """

    name: str
    """Names the teacher's segments."""
    column: str
    """The data set's column, of texts or of whole numbers, that names the expert."""
    teachers: Mapping[Route, Teacher] = field(default_factory=dict)
    """The expert of each value of the column."""
    version: str = ""
    """Enters the identity: another one where all experts answer in another shape than before."""

    @property
    def inputs(self) -> Sequence[str]:
        """What any expert reads, the column, and who the expert is."""
        own = {name: None for t in self.teachers.values() for name in t.inputs}
        return (*own, *({self.column} - own.keys()), EXPERT)

    @property
    def precision(self) -> str:
        """The lowest of the experts' precisions: how far two of their answers may be apart."""
        known = [str(getattr(teacher, "precision", "")) for teacher in self.teachers.values()]
        return next((name for name in ("bfloat16", "float16") if name in known), "float32")

    def asks(self) -> Mapping[str, Ask]:
        """The signals that all experts give.

        SignalError where one gives others, or encodes one otherwise, and for an encoding by a head:
        every expert has another.
        """
        if not self.teachers:
            raise SignalError(f"teacher {self.name!r} has no experts; give one for each value")
        (first, teacher), *others = self.teachers.items()
        joint = dict(teacher.asks())
        for route, other in others:
            asked = other.asks()
            if asked.keys() != joint.keys():
                raise SignalError(
                    f"teacher {self.name!r}: the expert for {first!r} gives {listed(sorted(joint))}, that "
                    f"for {route!r} {listed(sorted(asked))}; all have to give the same signals"
                )
            for name, ask in asked.items():
                if ask.encoding != joint[name].encoding:
                    raise SignalError(
                        f"teacher {self.name!r}, signal {name!r}: encoded as {joint[name].encoding} by "
                        f"the expert for {first!r}, as {ask.encoding} by that for {route!r}"
                    )
                if ask.source != joint[name].source:
                    joint[name] = Ask(ask.encoding, f"by {self.column}")
        for name, ask in joint.items():
            if isinstance(encoding(ask.encoding), Head):
                raise SignalError(
                    f"teacher {self.name!r}, signal {name!r}: {ask.encoding} needs one head for all rows, "
                    "and every expert has its own; use topk(k), packed(topk(k)) or a float"
                )
        return joint

    def identity(self) -> dict[str, Any]:
        """That there is a route. The experts' own identities are content of the rows."""
        return {"kind": "routed", "column": self.column, "version": self.version}

    def experts(self) -> Mapping[Route, str]:
        """Who each expert is: a digest of everything, and one that leaves out code (see `load`)."""
        joint = self.asks()
        return {
            route: f"{digest([identity, sources])} {digest([without_code(identity), sources])}"
            for route, teacher in self.teachers.items()
            for identity in [json.loads(canonical(teacher.identity()))]
            for sources in [_sources(teacher, joint)]
        }

    def rows(self, rows: Rows) -> RoutedRows:
        """The same rows, each with its expert's identity as one more column.

        Computes the identity of every expert. RowsError names rows whose value no expert has.
        """
        for route, teacher in self.teachers.items():
            require_columns(rows, teacher.inputs, f"the expert for {route!r} ({teacher.name!r})")
        inputs = {route: tuple(teacher.inputs) for route, teacher in self.teachers.items()}
        routed = RoutedRows(rows, self.column, self.experts(), inputs)
        routed.require_routes(self.name)
        return routed

    def load(self) -> Answer:
        """Nothing yet: an expert is loaded with the first row that needs it."""
        return _Experts(self)


def require_routes(rows: Any, teacher: Any) -> None:
    """RowsError when a routed teacher is shown rows that were routed to other experts, or not at all."""
    while teacher is not None and not isinstance(teacher, RoutedTeacher):
        teacher = getattr(teacher, "teacher", None)  # such as one that is shown views
    if teacher is None:
        return
    while rows is not None and not isinstance(rows, RoutedRows):
        rows = getattr(rows, "rows", None)
    if rows is None:
        raise RowsError(
            f"teacher {teacher.name!r} answers by {teacher.column!r}, but the rows do not say who their "
            "experts are: a changed expert would go unnoticed. Teach teacher.rows(rows)"
        )
    if (rows.column, rows.experts) != (teacher.column, teacher.experts()):
        raise RowsError(
            f"the rows were routed to other experts than teacher {teacher.name!r} has now; call "
            "teacher.rows(rows) again"
        )


def _sources(teacher: Teacher, joint: Mapping[str, Ask]) -> dict[str, str]:
    """What of this expert is read, where that is not the same for all."""
    asked = teacher.asks()
    return {n: a.source for n, a in asked.items() if a.source != joint[n].source}


class _Experts:
    """The experts that this worker has met so far."""

    def __init__(self, teacher: RoutedTeacher) -> None:
        self._teacher = teacher
        self._loaded: dict[Route, Answer] = {}
        self._known: dict[str, tuple[Route, Signal]] = {}
        self._joint = teacher.asks()

    def __call__(self, batch: Batch) -> dict[str, Values]:
        routes = _routes(batch[self._teacher.column])
        said: dict[str, list[tuple[Int64s, Values]]] = {name: [] for name in self._joint}
        for route in dict.fromkeys(routes):
            places = np.array([i for i, other in enumerate(routes) if other == route])
            answer = self._expert(route, _taken(batch[EXPERT], places[:1])[0])
            inputs = self._teacher.teachers[route].inputs
            given = answer({name: _taken(batch[name], places) for name in inputs})
            for name in self._joint:
                said[name].append((places, self._checked(route, name, given, len(places))))
        return {name: _merged(len(routes), pieces) for name, pieces in said.items()}

    def suspects(self, batch: Batch) -> list[str] | None:
        """What makes the experts of these rows unsteady, as far as they can tell; None: none can."""
        routes, found = _routes(batch[self._teacher.column]), []
        known = {r: getattr(self._loaded.get(r), "suspects", None) for r in dict.fromkeys(routes)}
        for route, suspects in known.items():
            if suspects is not None:
                places = np.array([i for i, other in enumerate(routes) if other == route])
                inputs = self._teacher.teachers[route].inputs
                given = {name: _taken(batch[name], places) for name in inputs}
                found += [f"{words} (expert for {route!r})" for words in suspects(given)]
        return found if any(known.values()) else None

    def _expert(self, route: Route, planned: str) -> Answer:
        teacher = self._teacher.teachers.get(route)
        if teacher is None:
            raise SignalError(f"teacher {self._teacher.name!r} has no expert for {route!r}")
        if route not in self._loaded:
            answer = teacher.load()
            # After loading, so that no change before it is missed. Code travels with the object.
            now = without_code(json.loads(canonical(teacher.identity())))
            if digest([now, _sources(teacher, self._joint)]) != str(planned).split()[1]:
                raise IdentityError(
                    f"teacher {self._teacher.name!r}: the expert for {route!r}, as it was loaded here, is "
                    "not the one that was planned: its files or packages changed, or are others here. "
                    "Give every worker the same ones and call teacher.rows(rows) again"
                )
            self._loaded[route] = answer
        return self._loaded[route]

    def _checked(self, route: Route, name: str, given: Mapping[str, Any], rows: int) -> Values:
        who = f"teacher {self._teacher.name!r}, signal {name!r}"
        if name not in given:
            raise SignalError(f"{who}: the expert for {route!r} gave none; {nearest(name, given)}")
        values = as_values(given[name])
        if len(values) != rows:
            raise SignalError(
                f"{who}: the expert for {route!r} gave {len(values):,} rows for {rows:,}"
            )
        signal = Signal.of(name, values)
        first, known = self._known.setdefault(name, (route, signal))
        if change := known.differs(signal):
            raise SignalError(
                f"{who}: {change} from the expert for {first!r} to that for {route!r}; all experts have "
                "to answer in one shape and dtype"
            )
        return values


def _taken(column: Any, places: Int64s) -> Any:
    return [column[i] for i in places] if isinstance(column, list) else column[places]


def _routes(column: Any) -> list[Route]:
    """Values as Python's own."""
    return column if isinstance(column, list) else column.tolist()


def _merged(rows: int, pieces: Sequence[tuple[Int64s, Values]]) -> Values:
    """One answer from those of the experts, in the order of the batch."""
    whole = pieces[0][1]
    if len(pieces) == 1:
        return whole
    if isinstance(whole, np.ndarray):
        merged: NDArray[Any] = np.empty((rows, *whole.shape[1:]), whole.dtype)
        for places, values in pieces:
            merged[places] = values
        return merged
    each: list[Any] = [None] * rows
    for places, values in pieces:
        for place, value in zip(places.tolist(), values, strict=True):
            each[place] = value
    return each if isinstance(whole, list) else Ragged.of(each)


class RoutedRows:
    """A data set that says of each row who its expert is; made by `RoutedTeacher.rows`.

    The hash of a row with that column covers its expert's identity and what that expert reads of it:
    a column that only others read does not count.
    """

    def __init__(
        self,
        rows: Rows,
        column: str,
        experts: Mapping[Route, str],
        inputs: Mapping[Route, tuple[str, ...]],
    ) -> None:
        """RowsError when the data set lacks the column, or has been routed already."""
        require_columns(rows, [column], "the route")
        if EXPERT in rows.columns:
            raise RowsError("the data set is routed already; route the rows that it was made of")
        self.rows, self.column, self.experts, self.inputs = (
            rows,
            column,
            dict(experts),
            dict(inputs),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """What it is made of: everything else is made again on the other side."""
        return RoutedRows, (self.rows, self.column, self.experts, self.inputs)

    @property
    def keys(self) -> pa.Array:
        """Those of the data set."""
        return self.rows.keys

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of the data set, and who the expert is."""
        return (*self.rows.columns, EXPERT)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.rows)

    @cached_property
    def _codes(self) -> NDArray[np.int32]:
        """Of each row the place of its expert in `experts`, -1 where there is none."""
        place = {route: i for i, route in enumerate(self.experts)}
        found = np.empty(len(self.rows), np.int32)
        for start in range(0, len(found), _TOGETHER):
            some = np.arange(start, min(start + _TOGETHER, len(found)))
            routes = _routes(self.rows.read(some, [self.column])[self.column])
            found[some] = [place.get(route, -1) for route in routes]
        return found

    def require_routes(self, teacher: str) -> None:
        """RowsError names rows that no expert answers, their values, and those that are known."""
        lost = np.flatnonzero(self._codes < 0)
        if len(lost):
            keys = spelled(self.keys.take(pa.array(lost[:5])))
            values = _routes(self.rows.read(lost[:5], [self.column])[self.column])
            rows = listed(f"{key!r} ({value!r})" for key, value in zip(keys, values, strict=True))
            raise RowsError(
                f"teacher {teacher!r} has no expert for {len(lost):,} of {len(self):,} rows: {rows}"
                f"{' and more' if len(lost) > 5 else ''}. Known values of {self.column!r}: "
                f"{listed(map(repr, self.experts), 20)}"
            )

    def read(self, places: Int64s, columns: Sequence[str]) -> Batch:
        """The rows at these places, in that order."""
        own = [name for name in columns if name != EXPERT]
        asked = own if EXPERT not in columns else list({**dict.fromkeys(own), self.column: None})
        batch = self.rows.read(places, asked) if asked else {}
        if EXPERT in columns:
            batch[EXPERT] = [self.experts[route] for route in _routes(batch[self.column])]
        return {name: batch[name] for name in columns}

    def hashes(self, columns: Sequence[str]) -> Hashes:
        """Of each row's content; with who the expert is, of that and of what the expert reads."""
        own = {name for name in columns if name != EXPERT}
        if EXPERT not in columns:
            return self.rows.hashes(list(columns))
        read: dict[tuple[str, ...], Hashes] = {}
        content = np.zeros((len(self), 16), np.uint8)
        who = np.zeros((len(self), 64), np.uint8)
        for code, (route, expert) in enumerate(self.experts.items()):
            mine = self._codes == code
            names = tuple(sorted(own & {*self.inputs[route], self.column}))
            if mine.any() and names:
                if names not in read:
                    read[names] = self.rows.hashes(names)
                content[mine] = read[names].view(np.uint8).reshape(-1, 16)[mine]
            who[mine] = np.frombuffer(expert.partition(" ")[0].encode(), np.uint8)
        return hash_rows({"content": content, EXPERT: who})

    def fingerprint(self, columns: Sequence[str]) -> str:
        """Of all keys, of these columns, and of the experts that rows have."""
        if EXPERT not in columns:
            return self.rows.fingerprint(columns)
        own = sorted({*columns, self.column} - {EXPERT})
        used = np.bincount(self._codes + 1, minlength=len(self.experts) + 1)[1:] > 0
        who = [[str(r), e] for (r, e), some in zip(self.experts.items(), used, strict=True) if some]
        return digest([self.rows.fingerprint(own), sorted(who)])
