"""Bench: where a proof runs. It teaches, trains and notes what it measured."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages import recipes
from stillroom.stages.data.rows import Rows, find_rows
from stillroom.stages.evaluating import Evaluation, classification
from stillroom.stages.fit import Fit
from stillroom.stages.mapper import Mapper
from stillroom.stages.recipe import Recipe
from stillroom.stages.student import Record, Student
from stillroom.stages.teachers.teacher import Teacher
from stillroom.stages.teaching import teach
from stillroom.stages.training import train
from stillroom.storage.cache import Cache
from stillroom.storage.keys import as_keys
from stillroom.storage.reader import Reader
from stillroom.storage.snapshot import Snapshot

if TYPE_CHECKING:
    from torch import nn

TEST = Evaluation("test", classification)


@dataclass
class Bench:
    """One seed of a proof."""

    seed: int
    folder: Path
    """Its own, empty at the start."""
    runner: Mapper
    smoke: bool = False
    """Whether to be small: everything runs, nothing is shown."""
    noted: dict[str, dict[str, float]] = field(default_factory=dict)
    """Metrics by arm."""

    def size(self, full: int, smoke: int) -> int:
        """Rows, epochs, rounds: the first for the proof, the second for a smoke test."""
        return smoke if self.smoke else full

    def note(self, arm: str, **metrics: float) -> None:
        """Keep what was measured of an arm."""
        self.noted.setdefault(arm, {}).update({n: float(v) for n, v in metrics.items()})

    def split(self, rows: Rows, **sizes: int) -> dict[str, list[str]]:
        """Disjoint splits of so many rows, drawn by the seed; a size of 0 takes the rest."""
        keys = rows.keys.to_pylist()
        left = [keys[i] for i in np.random.default_rng(self.seed).permutation(len(keys))]
        found, fixed = {}, sum(sizes.values())
        for name, size in sizes.items():
            size = size or len(keys) - fixed
            found[name], left = left[:size], left[size:]
        return found

    def trained(
        self,
        name: str,
        build: Callable[[], nn.Module],
        rows: Rows,
        keys: Sequence[str],
        *,
        inputs: Sequence[str],
        fit: Fit | None = None,
        recipe: Recipe | None = None,
        snapshot: Snapshot | None = None,
        evaluation: Evaluation = TEST,
        test: Sequence[str] = (),
        **student: Any,
    ) -> Path:
        """The weights of a network that learned from the labels of these rows: a teacher's.

        On rows of `test` it is measured and noted under its name. `student` are further fields of a
        Student, for a recipe that asks for more than labels.
        """
        learner = Student(
            name,
            build,
            recipe or recipes.find("labels"),
            inputs=tuple(inputs),
            fit=fit or Fit(epochs=self.size(30, 1)),
            seed=self.seed,
            **student,
        )
        (record,) = train(
            [learner],
            rows,
            snapshot,
            splits={"train": keys, "test": test or list(keys)[:2]},
            evaluation=evaluation,
            folder=self.folder / "teachers",
            runner=self.runner,
        )
        if test:
            self._note(name, record)
        return record.weights

    def teach(self, rows: Rows, *teachers: Teacher, cache: str = "cache") -> Snapshot:
        """Every teacher's answers for all rows; the snapshot that serves them."""
        place = Cache.at(self.folder / f"{cache}.cache")
        for teacher in teachers:
            snapshot = teach(place, rows, teacher, runner=self.runner)
        return snapshot

    def note_teacher(
        self, rows: Rows, snapshot: Snapshot, keys: Sequence[str], signal: str = "logits"
    ) -> None:
        """Keep how many of these rows a cached teacher names right, as the arm `teacher`."""
        said = np.asarray(Reader(snapshot, [signal]).gather(keys)[signal])
        label = rows.read(find_rows(rows, as_keys(keys)), ["label"])["label"]
        self.note("teacher", accuracy=float((said.argmax(-1) == np.asarray(label)).mean()))

    def train(
        self,
        arms: Mapping[str, Student],
        rows: Rows,
        snapshot: Snapshot | None,
        *,
        splits: Mapping[str, Sequence[str]],
        evaluation: Evaluation = TEST,
        tables: Mapping[str, NDArray[Any]] | None = None,
        note: bool = True,
    ) -> dict[str, Record]:
        """Train each arm's student with the bench's seed and note its metrics.

        Meanwhile the weights of all teachers are away: a student that needed one would fail.
        """
        students = [
            replace(student, name=re.sub(r"[^A-Za-z0-9]+", "-", arm).strip("-"), seed=self.seed)
            for arm, student in arms.items()
        ]
        with self._no_teachers():
            records = train(
                students,
                rows,
                snapshot,
                splits=splits,
                evaluation=evaluation,
                folder=self.folder / "students",
                runner=self.runner,
                tables=tables or {},
            )
        for arm, record in zip(arms, records, strict=True):
            if note:
                self._note(arm, record)
        return dict(zip(arms, records, strict=True))

    def _note(self, arm: str, record: Record) -> None:
        self.note(arm, **{n: v for n, v in record.metrics.items() if isinstance(v, int | float)})

    @contextmanager
    def _no_teachers(self) -> Iterator[None]:
        here, away = self.folder / "teachers", self.folder / "teachers-away"
        if not here.exists():
            yield
            return
        here.rename(away)
        try:
            yield
        finally:
            away.rename(here)

    def close(self) -> None:
        """Remove everything that the proof stored."""
        shutil.rmtree(self.folder, ignore_errors=True)
