"""Recipe: how a student learns from signals, as frozen data over pure functions.

Names say where a tensor comes from:

- `student.NAME`: an output or inner layer of the student; `student.NAME@PASS` of another forward pass;
- `teacher.SIGNAL`: a row of the cache, `teacher.SIGNAL.FIELD` of a record or of an encoding's parts;
- `row.COLUMN`: the data set; `head.NAME`: a part that is trained beside the student;
- `table.NAME`: an array about no row (class vectors, edges), the same in every batch;
- `batch.STREAM`: which rows came from that stream of rows, `batch.main` from the student's own split;
  `batch.index` their places in it, `batch.progress` the share of training that is done;
- `state.NAME`: what a controller keeps from step to step.

What a recipe reads of the cache follows from its terms, before any student or teacher exists.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stillroom.stages.parts import Answer, Controller, Head, bound
from stillroom.stages.term import Term
from stillroom.storage.code import code_identity

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.stages.learning import Learning

ORIGINS = ("student", "teacher", "row", "head", "table", "batch", "state")
MAIN, INDEX, PROGRESS = "main", "index", "progress"


@dataclass(frozen=True)
class Recipe:
    """A method with its settings."""

    name: str
    """Slug of the method."""
    terms: tuple[Term, ...]
    heads: tuple[Head, ...] = ()
    paper: str = ""
    """Such as `arXiv:1503.02531`."""
    family: str = ""
    """What it learns from: logits, features, relations, sequence, detection, graph, ..."""
    passes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Further forward passes of the student by name, each with the tensors it is given:
    `{"adversarial": ("teacher.adversarial",)}` makes `student.logits@adversarial`."""
    controller: Controller | None = None
    """Keeps `state.NAME` from step to step, outside the gradient."""
    step: Callable[[Learning], Tensor] | None = None
    """`step(learning) -> loss` in place of "one loss, one step": a module-level function or a partial
    of one, for bilevel, closed-form and other updates."""
    takes: tuple[str, ...] = ()
    """Names that the step reads beside those of the terms."""
    answer: Answer | None = None
    """What the student answers at inference, where that is more than its output."""
    shapes: Mapping[str, str] = field(default_factory=dict)
    """What each name is, as in `stages.shapes`: {"teacher.logits": "float n classes"}."""

    def __post_init__(self) -> None:
        """Refuse names of unknown origin, and heads, passes and states that are not given."""
        object.__setattr__(self, "step", bound(self.step))
        if not self.terms and self.step is None:
            raise ValueError(f"recipe {self.name!r} has no terms; there is nothing to learn")
        heads = {f"head.{head.name}" for head in self.heads}
        for name in self.names:
            origin, _, rest = name.partition(".")
            if origin not in ORIGINS or not rest:
                raise ValueError(
                    f"recipe {self.name!r}: {name!r} should be one of "
                    + ", ".join(f"{o}.NAME" for o in ORIGINS)
                )
            if origin == "head" and name not in heads:
                raise ValueError(f"recipe {self.name!r} uses {name!r} but has no such head")
            run = rest.partition("@")[2]
            if origin == "student" and run not in ("", *self.passes):
                raise ValueError(
                    f"recipe {self.name!r} uses {name!r} but has no pass {run!r}; say what the student "
                    f"is given in it: passes={{{run!r}: ('row.COLUMN',)}}"
                )
            if origin == "state" and self.controller is None:
                raise ValueError(f"recipe {self.name!r} uses {name!r} but has no controller")

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """Every name that terms, heads, passes, step and answer take."""
        found = {*self.takes, *(n for term in self.terms for n in term.names)}
        found |= {
            n for head in self.heads for n in (*head.inputs, *([head.like] * bool(head.like)))
        }
        found |= {n for given in self.passes.values() for n in given}
        if self.answer is not None:
            found |= {*self.answer.inputs}
        return frozenset(found)

    def _of(self, origin: str) -> tuple[str, ...]:
        return tuple(sorted(n.partition(".")[2] for n in self.names if n.startswith(f"{origin}.")))

    @property
    def reads(self) -> tuple[str, ...]:
        """The cached signals that it needs. `teacher.boxes.score` is a field of the record `boxes`,
        `teacher.boxes.length` (n,) how many there are in each row, where rows differ."""
        return tuple(sorted({name.partition(".")[0] for name in self._of("teacher")}))

    @property
    def parts(self) -> tuple[str, ...]:
        """The signals that it reads by their encoding's parts (`teacher.logits.indices`): classes and
        values as they are stored, where dense rows would be too large."""
        split = (name.partition(".")[::2] for name in self._of("teacher"))
        return tuple(sorted({signal for signal, part in split if part in _PARTS}))

    @property
    def columns(self) -> tuple[str, ...]:
        """The data set's columns that its terms need (the student's own inputs not counted)."""
        return self._of("row")

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs and layers that it needs of a student."""
        return tuple(sorted({name.partition("@")[0] for name in self._of("student")}))

    @property
    def tables(self) -> tuple[str, ...]:
        """The arrays about no row that it needs."""
        return self._of("table")

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams of rows that it needs beside the student's own split."""
        return tuple(n for n in self._of("batch") if n not in (MAIN, INDEX, PROGRESS))

    def identity(self) -> dict[str, Any]:
        """Terms, weights, settings and the code of their functions, as plain JSON."""
        extra: dict[str, Any] = {
            "passes": {name: list(given) for name, given in self.passes.items()},
            "controller": None if self.controller is None else self.controller.identity(),
            "step": None if self.step is None else [code_identity(self.step), list(self.takes)],
            "answer": None if self.answer is None else self.answer.identity(),
        }
        return {
            "terms": [term.identity() for term in self.terms],
            "heads": [head.identity() for head in self.heads],
            # Only what is there: recipes without them keep the identity that they always had.
            **{name: given for name, given in extra.items() if given},
        }


_PARTS = ("indices", "values", "logsumexp", "tail", "counts")
"""What sparse encodings of logits store for a row."""
