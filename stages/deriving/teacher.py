"""A row-wise derivation as a teacher, so that its answers are stored, resumed and cared for as any."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stillroom.stages.data.rows import Batch
from stillroom.stages.deriving.derivation import RowWise
from stillroom.stages.deriving.signal_rows import KEYS, full_name
from stillroom.stages.deriving.table import Table
from stillroom.stages.teachers.teacher import Answer
from stillroom.storage.code import code_identity
from stillroom.storage.contents import Contents
from stillroom.storage.errors import StaleError
from stillroom.storage.folder import Ask
from stillroom.storage.signal import Values
from stillroom.storage.snapshot import Snapshot


@dataclass(frozen=True)
class DerivedTeacher:
    """Answers from cached signals: `teach` over `SignalRows` runs it."""

    derivation: RowWise
    snapshot: Snapshot = field(repr=False)
    """Whose signals it reads."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Each process reads the snapshot itself."""
        return _reopened, (self.derivation, self.snapshot.cache, self.snapshot.number)

    @property
    def name(self) -> str:
        """Of the derivation."""
        return self.derivation.name

    @property
    def inputs(self) -> Sequence[str]:
        """Signals by their full names, then columns of the data set."""
        signals = [full_name(self.snapshot, name) for name in self.derivation.names]
        more = (KEYS,) if self.derivation.whole else ()
        return tuple(dict.fromkeys((*signals, *self.derivation.columns.values(), *more)))

    def asks(self) -> Mapping[str, Ask]:
        """Every output by name."""
        encodings = self.derivation.encodings
        return {name: Ask(encodings.get(name, "raw"), "") for name in self.derivation.outputs}

    def identity(self) -> dict[str, Any]:
        """The function's code and settings, what it reads and who gave that, what it is given; where it
        reads the whole cache, the content of all rows."""
        made = self.derivation
        reads = {role: self._read(given) for role, given in made.signals.items()}
        found: dict[str, Any] = {
            "kind": "derived",
            "code": code_identity(made.function),
            "reads": reads,
            "columns": dict(made.columns),
            "libraries": {"numpy": np.__version__},
        }
        if made.given:
            found["given"] = {role: _arrays(d.arrays) for role, d in made.given.items()}
        if made.whole:
            contents = Contents(self.snapshot)
            found["whole"] = {
                "rows": contents.rows(),
                "content": {n: contents.signal(n)["rows"] for n in made.names},
            }
        return found

    def _read(self, given: str | Sequence[str]) -> list[dict[str, Any]]:
        found = []
        for name in [given] if isinstance(given, str) else given:
            index, signal = self.snapshot.find(name)
            full = f"{self.snapshot.sources[index].teacher}/{signal.name}"
            digest = self.snapshot.sources[index].digest
            found.append({"name": full, "teacher": digest, "signal": signal.to_json()})
        return found

    def require_current(self) -> None:
        """StaleError when it is given results that were derived from something else."""
        for role, given in self.derivation.given.items():
            if given.stale:
                raise StaleError(
                    f"{self.name!r} is given {role} from {given.name!r}, which is stale: "
                    f"{'; '.join(given.stale[:3])}. Run derive() again first"
                )

    def load(self) -> Answer:
        """The function over batches of signals."""
        made = self.derivation
        given: dict[str, Any] = {role: dict(d.arrays) for role, d in made.given.items()}
        if made.whole:
            one = {r: n for r, n in made.signals.items() if isinstance(n, str)}
            names = {role: full_name(self.snapshot, name) for role, name in one.items()}
            given["table"] = Table(self.snapshot, np.arange(self.snapshot.rows), names, {})
        signals = {
            role: full_name(self.snapshot, name)
            if isinstance(name, str)
            else [full_name(self.snapshot, n) for n in name]
            for role, name in made.signals.items()
        }

        def answer(batch: Batch) -> Mapping[str, Values]:
            known: dict[str, Any] = dict(batch)
            read = {
                role: known[name] if isinstance(name, str) else [known[n] for n in name]
                for role, name in signals.items()
            }
            read |= {role: known[column] for role, column in made.columns.items()}
            if made.whole:
                read["keys"] = known[KEYS]
            return made.function(**read, **given)

        return answer


def _arrays(arrays: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of each array: what decides an answer, whoever computed it."""
    found = {}
    for name, array in arrays.items():
        told = f"{array.dtype.str}{array.shape}".encode()
        found[name] = hashlib.sha256(told + np.ascontiguousarray(array).tobytes()).hexdigest()
    return found


def _reopened(derivation: RowWise, cache: Any, number: int) -> DerivedTeacher:
    return DerivedTeacher(derivation, Snapshot(cache, number))
