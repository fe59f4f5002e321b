"""Replay: the views that a teacher saw, made again from a student's own data set, and checked.

Stored parameters are applied to the student's rows; the hash of each tensor must be the one that was
stored when the teacher saw it. Another bit anywhere (an edited image, a transform or a library that
moved a pixel) is a ViewError, never a student that learns from answers to other images.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.rows import Batch, Rows, find_rows, require_columns
from stillroom.stages.views.numbers import Words, key_words
from stillroom.stages.views.plan import ViewPlan
from stillroom.stages.views.rows import own_columns, view_hashes
from stillroom.storage.errors import RowsError, ViewError, listed
from stillroom.storage.folder import Hashes
from stillroom.storage.identity import differences
from stillroom.storage.keys import KeyList, as_keys
from stillroom.storage.pairs import pair_keys, spelled
from stillroom.storage.reader import Reader
from stillroom.storage.snapshot import Snapshot

Int64s = NDArray[np.int64]
_PARTNER = "partner."
_TOGETHER = 1 << 15


def base_columns(columns: Sequence[str]) -> tuple[str, ...]:
    """The data set's own columns behind names of a batch of views.

    >>> base_columns(["image", "label", "partner.label", "weight", "mask"])
    ('image', 'label')
    """
    names = (c.removeprefix(_PARTNER) for c in columns if c not in ("weight", "mask"))
    return tuple(dict.fromkeys(names))


def viewed_teachers(snapshot: Snapshot, signals: Sequence[str]) -> tuple[str, ...]:
    """The teachers of these signals, or of any, that stored what views they saw; ViewError if none.

    With no signals there must be one such teacher alone.
    """
    known = [s.teacher for s in snapshot.sources if {"view", "seen"} <= set(s.signals)]
    asked = [snapshot.sources[snapshot.find(name)[0]].teacher for name in signals]
    found = tuple(dict.fromkeys(asked or known))
    lacking = [name for name in found if name not in known]
    if lacking or not found:
        raise ViewError(
            f"snapshot {snapshot.number} of {snapshot.cache} holds no views of "
            f"{f'teacher {lacking[0]!r}' if lacking else 'any teacher'}. Teach with "
            "ViewedRows(rows, plan, views=...) and ViewedTeacher(teacher, plan), or train with views=0"
        )
    if not asked and len(found) > 1:
        raise ViewError(
            f"teachers {listed(found)} stored views, and nothing says whose are meant: no signal of "
            "theirs is read. Name one with signals="
        )
    return found


class Replay:
    """Views 1 to `views` of chosen rows, as their teachers saw them."""

    def __init__(
        self,
        rows: Rows,
        snapshot: Snapshot,
        keys: KeyList,
        *,
        views: int,
        signals: Sequence[str] = (),
    ) -> None:
        """Join plain `keys` with the data set and with every view of them in the snapshot.

        `signals` are those that will be read beside: all teachers of theirs must have seen the same
        tensors. Raises UnknownRowError for a view that was never taught, RowsError for a row or a
        partner that the data set lacks, ViewError where the snapshot holds no views.
        """
        if views < 1:
            raise ValueError(f"views: expected at least 1, found {views}")
        self.rows, self.snapshot, self.views = rows, snapshot, views
        self.keys = as_keys(keys)
        self.teachers = viewed_teachers(snapshot, signals)
        first = self.teachers[0]
        described = snapshot.identity(f"{first}/view").get("views")
        self.plan = ViewPlan.from_json(described)
        require_columns(rows, [self.plan.column], "the view plan")
        self.places = find_rows(rows, self.keys)
        names = [f"{first}/view", *(f"{name}/seen" for name in self.teachers)]
        names += [f"{first}/partner"] * self.plan.mixes
        self._reader = Reader(snapshot, names)
        self._each_time = names[: 1 + len(self.teachers)]
        """Partners are looked up once, below."""
        pairs = [pair_keys(self.keys, view) for view in range(1, views + 1)]
        self.positions = np.stack([snapshot.positions(p) for p in pairs])
        """(views, rows) int64: where view v of each key lies in the snapshot, in row v - 1."""
        self._reader.require(self.positions.reshape(-1))
        self.partners = np.tile(self.places, (views, 1))
        """(views, rows) int64: the place of each one's partner, its own where it has none."""
        if self.plan.mixes:
            for view, positions in enumerate(self.positions):
                named = self._reader.take(positions, names[-1:])[names[-1]]
                self.partners[view] = find_rows(rows, as_keys(named), "that views are mixed with ")

    def provides(self, column: str) -> bool:
        """Whether a batch can have this column; `partner.NAME` and `weight` need a mixing plan."""
        if column in ("weight", "mask"):
            return self.plan.mixes if column == "weight" else self.plan.masks is not None
        return column.removeprefix(_PARTNER) in self.rows.columns and (
            self.plan.mixes or not column.startswith(_PARTNER)
        )

    def require(self, columns: Sequence[str]) -> None:
        """RowsError for a column that these views do not give, or that two things are called by."""
        for column in columns:
            if not self.provides(column):
                raise RowsError(f"views of this plan give no column {column!r}")
            if column in ("weight", "mask") and column in self.rows.columns:
                raise RowsError(f"views give a column {column!r}; rename the data set's own")

    def read(self, chosen: Int64s, view: int, columns: Sequence[str]) -> Batch:
        """One view of rows (indices into `keys`): the plan's column transformed and checked.

        Also `partner.NAME` (a column of the partner's row, untransformed), `weight` (n,) float32 (the
        share of the row's own label) and `mask` (n, patches) bool. ViewError names views that are not
        as the teacher saw them.
        """
        plan, column = self.plan, self.plan.column
        places, partners = self.places[chosen], self.partners[view - 1][chosen]
        positions = self.positions[view - 1][chosen]
        stored: dict[str, Any] = dict(self._reader.take(positions, self._each_time))
        drawn = stored[self._reader.names[0]]
        others = [c.removeprefix(_PARTNER) for c in columns if c.startswith(_PARTNER)]
        own = [c for c in base_columns(columns) if c in columns]
        batch = self.rows.read(places, tuple(dict.fromkeys((column, *own))))
        image, other = np.asarray(batch[column]), None
        if plan.mixes:
            partner = self.rows.read(partners, tuple(dict.fromkeys((column, *others))))
            other = np.asarray(partner[column])
            batch |= {f"{_PARTNER}{name}": partner[name] for name in others}
        shape = plan.check(image)
        if drawn.dtype != plan.record(shape):
            raise ViewError(
                f"the stored parameters {drawn.dtype} are not of images of shape {shape}: the student's "
                "images have another size than those that the teacher saw. Read them at that size, or "
                "teach this data set again"
            )
        kept = plan.kept(drawn, shape)
        batch[column] = made = plan.apply(image, drawn, other)
        self._compare(plan.seen(made, kept), stored, chosen, view)
        if kept is not None:
            batch["mask"] = kept
        if "weight" in columns:
            batch["weight"] = plan.weight(drawn, shape)
        return {name: batch[name] for name in columns}

    def _compare(self, made: Hashes, stored: dict[str, Any], chosen: Int64s, view: int) -> None:
        for name in self.teachers:
            seen = np.ascontiguousarray(stored[f"{name}/seen"]).view("V16").reshape(-1)
            if len(wrong := np.flatnonzero(seen != made)):
                raise ViewError(self._said(name, chosen[wrong], view))

    def _said(self, teacher: str, chosen: Int64s, view: int) -> str:
        """What is not as it was, as far as it can be told."""
        names = spelled(pair_keys(self.keys.take(chosen), view))
        return (
            f"{len(names):,} views are not what teacher {teacher!r} saw: {listed(names)} give another "
            f"tensor now ({self._why(teacher, chosen, view)}). Teach this data set again, and train on "
            "the snapshot that teach() returns; or use the images and the versions of then"
        )

    def _why(self, teacher: str, chosen: Int64s, view: int) -> str:
        (source,) = {self.snapshot.find(f"{teacher}/seen")[0]}
        inputs = own_columns(self.snapshot.sources[source].inputs, self.plan)
        if set(inputs) <= set(self.rows.columns):
            known = self.snapshot.hashes(f"{teacher}/seen")[self.positions[view - 1][chosen]]
            if (self.content(self.rows.hashes(inputs), view, chosen) != known).any():
                return "the row or its partner was changed"
        mine = self.snapshot.identity(f"{teacher}/seen").get("views", {})
        if changed := differences(mine, self.plan.identity()):
            return "; ".join(changed)
        return (
            "row, plan, code and library versions are as they were: this machine computes otherwise"
        )

    def content(self, own: Hashes, view: int, chosen: Int64s | None = None) -> Hashes:
        """The content hash of a view of all keys, or of some, as the data set is now.

        `own`: the content hashes of the data set's rows in the teacher's columns. From them and the
        stored parameters alone: no image is transformed.
        """
        if chosen is None:
            chosen = np.arange(len(self.keys))
        words, mixes = self._words, self.plan.mixes
        name, found = self._reader.names[0], np.zeros(len(chosen), "V16")
        for start in range(0, len(chosen), _TOGETHER):
            some = chosen[start : start + _TOGETHER]
            drawn: Any = self._reader.take(self.positions[view - 1][some], [name])[name]
            partners = self.partners[view - 1][some]
            views = np.full(len(some), view, np.int32)
            found[start : start + len(some)] = view_hashes(
                own[self.places[some]],
                *(views, drawn, own[partners], words[partners], mixes),
            )
        return found

    @cached_property
    def _words(self) -> Words:
        return key_words(self.rows.keys)
