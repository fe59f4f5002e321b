"""A teacher that is shown views, and stores with its answers what it was shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.stages.data.rows import Batch, Rows
from stillroom.stages.teachers.teacher import Answer, Teacher
from stillroom.stages.views.plan import ViewPlan
from stillroom.stages.views.rows import SIGNALS, ViewedRows
from stillroom.storage.errors import RowsError, SignalError
from stillroom.storage.folder import Ask
from stillroom.storage.signal import Values


@dataclass(frozen=True)
class ViewedTeacher:
    """A teacher that is shown views, and stores with its signals what it was shown.

    Signals beside its own: `view`, a record of the view's parameters; `seen`, the hash of the tensor;
    and, where rows are mixed, `partner`, the key of the other row.
    """

    teacher: Teacher
    plan: ViewPlan

    def __post_init__(self) -> None:
        """Refuse a teacher that would not see the views."""
        if self.plan.column not in self.teacher.inputs:
            raise RowsError(
                f"teacher {self.teacher.name!r} reads {', '.join(self.teacher.inputs)}, not the column "
                f"{self.plan.column!r} that the view plan transforms"
            )

    @property
    def name(self) -> str:
        """That of the teacher."""
        return self.teacher.name

    @property
    def inputs(self) -> Sequence[str]:
        """Those of the teacher, and what is stored of a view."""
        return (*self.teacher.inputs, *self._more.values())

    @property
    def _more(self) -> dict[str, str]:
        return {n: c for n, c in SIGNALS.items() if n != "partner" or self.plan.mixes}

    def asks(self) -> Mapping[str, Ask]:
        """The teacher's signals and those of the view, all in one segment."""
        asked = dict(self.teacher.asks())
        if taken := sorted(asked.keys() & SIGNALS):
            raise SignalError(
                f"teacher {self.name!r} gives a signal {taken[0]!r}, which is what views store under "
                "that name; rename it"
            )
        return asked | {name: Ask("raw", column) for name, column in self._more.items()}

    def identity(self) -> dict[str, Any]:
        """That of the teacher, and `views`: plan, code of the transforms, versions of libraries."""
        return {**self.teacher.identity(), "views": self.plan.identity()}

    def load(self) -> Answer:
        """Load the teacher."""
        return _Viewed(self.teacher.load(), tuple(self.teacher.inputs), self._more)


class _Viewed:
    """A loaded teacher that repeats what it was shown."""

    def __init__(self, answer: Answer, inputs: Sequence[str], more: Mapping[str, str]) -> None:
        self._answer, self._inputs, self._more = answer, inputs, more
        # What a loaded teacher can tell beside its answers, where this one can.
        if (suspects := getattr(answer, "suspects", None)) is not None:
            self.suspects = lambda batch: suspects(self._own(batch))
        if (constants := getattr(answer, "constants", None)) is not None:
            self.constants = constants

    def __call__(self, batch: Batch) -> Mapping[str, Values]:
        said: dict[str, Any] = dict(self._answer(self._own(batch)))
        return {**said, **{name: batch[column] for name, column in self._more.items()}}

    def _own(self, batch: Batch) -> Batch:
        return {name: batch[name] for name in self._inputs}


def require_views(rows: Rows, identity: Mapping[str, Any], teacher: str) -> None:
    """RowsError when a data set of views is shown to a teacher that is not told of them."""
    if isinstance(rows, ViewedRows) and identity.get("views") != rows.plan.identity():
        raise RowsError(
            f"the data set holds views, but teacher {teacher!r} knows of none, or of those of another "
            "plan: a changed plan would go unnoticed. Wrap it: ViewedTeacher(teacher, rows.plan)"
        )
