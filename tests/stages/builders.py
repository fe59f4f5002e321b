"""Small data sets, teachers and students that the tests of the stages share.

Ray's workers get what is here by value (see `conftest.py`), as they cannot import test files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stillroom.pipeline import LocalRunner
from stillroom.stages import (
    ArrayRows,
    Evaluation,
    Fit,
    FunctionTeacher,
    ModuleTeacher,
    Record,
    Student,
    Teacher,
    classification,
    recipes,
    teach,
    train,
)
from stillroom.stages.data.rows import Batch, Rows
from stillroom.stages.events import Event, RowsTaught
from stillroom.stages.teachers.teacher import Answer
from stillroom.storage import Cache, Reader, Snapshot
from stillroom.storage.folder import Ask
from stillroom.storage.place import Place

CLASSES, FEATURES = 4, 8
Item = TypeVar("Item")
Result = TypeVar("Result")


def images(rows: int, seed: int = 0) -> NDArray[np.float32]:
    """(rows, 8) float32, the same for the same seed."""
    return np.random.default_rng(seed).standard_normal((rows, FEATURES)).astype(np.float32)


def data(rows: int = 60, *, edited: Sequence[int] = (), **columns: Any) -> ArrayRows:
    """Rows r0, r1, ... with `image` and a `label` that a linear map of the image decides."""
    image = images(rows)
    image[list(edited)] += 1
    label = (image @ np.random.default_rng(9).standard_normal((FEATURES, CLASSES))).argmax(1)
    given = {"image": image, "label": label, **columns}
    return ArrayRows([f"r{i}" for i in range(rows)], **given)


def chosen(rows: ArrayRows, places: Sequence[int]) -> ArrayRows:
    """These rows, in this order, with the keys they have."""
    at = np.array(places)
    keys = [rows.keys[i].as_py() for i in places]
    return ArrayRows(keys, **rows.read(at, rows.columns))


def net(width: int = 16) -> Any:
    """A teacher's network with fixed weights."""
    import torch
    from torch import nn

    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, CLASSES))


def network(name: str = "net", **changes: Any) -> ModuleTeacher:
    """`net` as a teacher of `logits` and the hidden `feature`."""
    given: dict[str, Any] = {"layers": {"logits": "", "feature": "1"}, **changes}
    return ModuleTeacher(name, given.pop("module", partial(net, 16)), **given)


def doubled(image: NDArray[np.float32]) -> dict[str, Any]:
    """The answer of the plainest teacher: bit for bit the same in any batch."""
    return {"logits": image[:, :CLASSES] * 2, "feature": image + 1}


def plain(
    name: str = "plain", signals: Sequence[str] = ("logits",), **more: Any
) -> FunctionTeacher:
    """`doubled` as a teacher."""
    return FunctionTeacher(name, more.pop("answer", doubled), ("image",), signals, **more)


def said(number: Any, text: list[str]) -> dict[str, Any]:
    """Every kind of signal."""
    record = np.zeros(len(number), [("box", "f4", (4,)), ("class", "i2")])
    record["box"] = number[:, None] + np.arange(4)
    record["class"] = number % 5
    logits = np.sin(np.outer(number + 1, np.arange(1, 9))).astype("f4")
    return {
        "tokens": [np.arange(n % 4, dtype="i4") for n in number],
        "scores": [np.full((n % 3, 2), n, "f4") for n in number],
        "record": record,
        "caption": [f"{word} is {n}" for word, n in zip(text, number, strict=True)],
        "wide": logits,
        "few": logits,
        "flag": number % 2 == 0,
    }


def every_kind() -> tuple[ArrayRows, FunctionTeacher]:
    text = [f"word {i} é" for i in range(23)]
    rows = ArrayRows(range(23), number=np.arange(23), text=text)
    encodings = {"wide": "bfloat16", "few": "topk(3)", "scores": "float16"}
    signals = ("tokens", "scores", "record", "caption", "wide", "few", "flag")
    return rows, FunctionTeacher("kinds", said, ("number", "text"), signals, encodings)


@dataclass(frozen=True)
class Watched:
    """A teacher that writes into a file which images it was shown: their first numbers."""

    inner: Teacher
    log: Path
    forbidden: bool = False
    """Fail when it is loaded."""

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def inputs(self) -> Sequence[str]:
        return self.inner.inputs

    def asks(self) -> Mapping[str, Ask]:
        return self.inner.asks()

    def identity(self) -> dict[str, Any]:
        return self.inner.identity()

    def load(self) -> Answer:
        if self.forbidden:
            raise AssertionError("the teacher was loaded")
        answer, log = self.inner.load(), self.log

        def watched(batch: Batch) -> Mapping[str, Any]:
            with open(log, "a") as file:
                file.writelines(f"{float(row[0]):.9g}\n" for row in batch["image"])
            return answer(batch)

        return watched

    def shown(self, rows: Rows) -> list[str]:
        """The keys of the rows that it was shown since the last call, sorted."""
        if not self.log.exists():
            return []
        image = rows.read(np.arange(len(rows)), ["image"])["image"]
        key = {f"{float(v[0]):.9g}": rows.keys[i].as_py() for i, v in enumerate(image)}
        found = sorted(key[line] for line in self.log.read_text().splitlines())
        self.log.unlink()
        return found


@dataclass
class Shuffled:
    """A runner that takes the items in another order."""

    seed: int

    def map(
        self, build: Callable[[], Callable[[Item], Result]], items: Iterable[Item]
    ) -> Iterator[Result]:
        every = list(items)
        order = np.random.default_rng(self.seed).permutation(len(every))
        return LocalRunner().map(build, [every[i] for i in order])


@dataclass
class Heard:
    """A listener that keeps what it hears."""

    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def taught(self) -> int:
        """Rows that were computed."""
        return sum(e.rows for e in self.events if isinstance(e, RowsTaught))


SPLITS = {"train": [f"r{i}" for i in range(40)], "test": [f"r{i}" for i in range(40, 60)]}


def pupil(width: int = 6, *, normed: bool = False) -> Any:
    """A student's network, its weights drawn from torch's own random numbers."""
    from torch import nn

    norm = nn.BatchNorm1d(width) if normed else nn.Identity()
    return nn.Sequential(nn.Linear(FEATURES, width), norm, nn.ReLU(), nn.Linear(width, CLASSES))


def student(name: str = "kd", method: str = "kd", **changes: Any) -> Student:
    """A student of three epochs; `feature` is its hidden layer."""
    fit = Fit(epochs=3, batch_size=8, learning_rate=0.02)
    given: dict[str, Any] = {"layers": {"logits": "", "feature": "2"}, "fit": fit, **changes}
    recipe = given.pop("recipe", None) or recipes.find(method)
    return Student(name, given.pop("build", pupil), recipe, **given)


def trained(
    folder: Path, students: Sequence[Student], snapshot: Snapshot | None, **how: Any
) -> list[Record]:
    """Train in this process on the rows of `data`, evaluated on those held out."""
    given: dict[str, Any] = {
        "rows": data(),
        "splits": SPLITS,
        "evaluation": Evaluation("test", classification),
        "runner": LocalRunner(),
        **how,
    }
    return train(students, given.pop("rows"), snapshot, folder=folder, **given)


def taught(
    folder: str | Place, rows: Rows | None = None, teacher: Teacher | None = None, **how: Any
) -> Snapshot:
    """Teach into the cache at `folder` in this process, in small shards."""
    given: dict[str, Any] = {"runner": LocalRunner(), "batch_size": 4, "shard_rows": 10, **how}
    if isinstance(teacher, Watched):
        # What it is shown is counted; rows that are looked at twice are not what those tests count.
        given.setdefault("band", float("inf"))
    rows = data() if rows is None else rows
    return teach(Cache.at(folder), rows, teacher or plain(), **given)


def answers(snapshot: Snapshot, rows: Rows, name: str = "logits") -> Any:
    """What the cache says about every row, in the order of the data set."""
    return Reader(snapshot, [name]).gather(rows.keys)[name]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file that is a function of teacher and rows alone, by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {"made", "leases"} & set(path.parts)
    }


def stamps(folder: Path) -> dict[str, int]:
    """When each file and folder was last changed, in nanoseconds."""
    return {str(path): path.stat().st_mtime_ns for path in [folder, *sorted(folder.rglob("*"))]}
