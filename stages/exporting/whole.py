"""The whole student: module, kept heads, tables and answer as one module that inference calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.stages.exporting.described import ExportError
from stillroom.stages.parts import Answer, Head
from stillroom.stages.student import Student
from stillroom.stages.teachers.layers import LayerTaps
from stillroom.stages.teachers.places import Spot
from stillroom.storage.errors import nearest


@dataclass(frozen=True)
class Asked:
    """What must run for some of a student's outputs."""

    outputs: tuple[str, ...]
    """Names behind `student.`, as evaluation finds them."""
    layers: Mapping[str, str]
    """Places in the module by name."""
    heads: tuple[Head, ...]
    tables: tuple[str, ...]
    columns: tuple[str, ...]
    """Columns of the data set in the order in which the whole is given them: the student's inputs, then
    what kept heads and the answer read besides."""
    answer: Answer | None


def asked_of(student: Student, outputs: Sequence[str] = ()) -> Asked:
    """What these outputs need; if none are named, the recipe's answer, or else what the module returns.

    ExportError for an output that the student does not give, and for one that is computed from what
    only training has.
    """
    recipe, answer = student.recipe, student.recipe.answer
    known = dict.fromkeys((*student.layers, *([answer.name] if answer else [])))
    if not outputs:
        returned = [n for n, place in student.layers.items() if not _inner(place)]
        outputs = [answer.name] if answer else returned or list(student.layers)
    for name in outputs:
        if name not in known:
            raise ExportError(f"student {student.name!r} gives no {name!r}; {nearest(name, known)}")
    answered = answer if answer is not None and answer.name in outputs else None
    names = [f"student.{n}" for n in outputs if answered is None or n != answered.name]
    names += answered.inputs if answered else ()
    heads = tuple(h for h in recipe.heads if h.kept and f"head.{h.name}" in names)
    names += [name for head in heads for name in head.inputs]
    found: dict[str, list[str]] = {"student": [], "head": [], "table": [], "row": []}
    kept = {head.name for head in heads}
    for name in dict.fromkeys(names):
        origin, _, rest = name.partition(".")
        if origin not in found or "@" in rest or (origin == "head" and rest not in kept):
            raise ExportError(
                f"student {student.name!r}: its answer reads {name!r}, which inference does not have: of "
                "heads it has those with kept=True, and nothing of teachers and batches"
            )
        found[origin].append(rest)
    return Asked(
        tuple(outputs),
        {name: student.layers[name] for name in found["student"]},
        heads,
        tuple(found["table"]),
        tuple(dict.fromkeys((*student.inputs, *found["row"]))),
        answered,
    )


def _inner(place: str) -> bool:
    """Whether a place lies inside the module."""
    spot = Spot.of(place)
    return bool(spot.layer or spot.part or spot.last)


class Whole(nn.Module):
    """Columns in order -> {output: tensor}, in evaluation mode."""

    def __init__(
        self,
        module: nn.Module,
        heads: Mapping[str, nn.Module],
        tables: Mapping[str, Tensor],
        *,
        student: str,
        inputs: Sequence[str],
        columns: Sequence[str],
        layers: Mapping[str, str],
        given: Mapping[str, Sequence[str]],
        outputs: Sequence[str],
        answer: Callable[..., Tensor] | None = None,
        answered: tuple[str, Sequence[str], Mapping[str, Any]] = ("", (), {}),
    ) -> None:
        """`given` names what each head is applied to; `answered` the answer's name, what it is given and
        its settings."""
        super().__init__()
        self.module, self.heads = module, nn.ModuleDict(heads)
        self._tables = tuple(tables)
        for name, table in tables.items():
            self.register_buffer(f"table_{name}", table)
        self._inputs, self._columns, self._given = tuple(inputs), tuple(columns), dict(given)
        self._answer, self._answered = answer, answered
        self.outputs = tuple(outputs)
        self._taps = LayerTaps(module, layers, f"student {student!r}")
        self.eval()

    def everything(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """`student.NAME`, `head.NAME` and `table.NAME` of a batch of columns, as evaluation has them."""
        found = {f"row.{name}": column for name, column in columns.items()}
        found |= {f"table.{n}": getattr(self, f"table_{n}") for n in self._tables}
        run = self._taps.run(tuple(columns[name] for name in self._inputs), {})
        found |= {f"student.{name}": tensor for name, tensor in run.items()}
        for name, names in self._given.items():
            found[f"head.{name}"] = self.heads[name](*(found[n] for n in names))
        if self._answer is not None:
            name, names, settings = self._answered
            found[f"student.{name}"] = self._answer(*(found[n] for n in names), **settings)
        return found

    def forward(self, *given: Any) -> dict[str, Tensor]:
        """The outputs by name; what is given are the columns, in their order."""
        columns = dict(zip(self._columns, given, strict=True))
        found = self.everything(columns)
        return {name: found[f"student.{name}"] for name in self.outputs}


def assembled(
    student: Student,
    asked: Asked,
    module: nn.Module,
    heads: Mapping[str, nn.Module],
    tables: Mapping[str, Tensor],
    settings: Mapping[str, Any],
) -> Whole:
    """The whole of a student's parts; `settings` are those of its answer."""
    answer = asked.answer
    return Whole(
        module,
        heads,
        tables,
        student=student.name,
        inputs=student.inputs,
        columns=asked.columns,
        layers=asked.layers,
        given={head.name: head.inputs for head in asked.heads},
        outputs=asked.outputs,
        answer=None if answer is None else answer.function,
        answered=("", (), {}) if answer is None else (answer.name, answer.inputs, dict(settings)),
    )


def load_into(module: nn.Module, state: Mapping[str, Tensor], what: str, build: str) -> nn.Module:
    """Weights into a module that `build` made; ExportError names what does not fit."""
    try:
        module.load_state_dict(dict(state))
    except (RuntimeError, NotImplementedError) as error:
        words = " ".join(str(error).split())
        raise ExportError(
            f"{what} are of another architecture than {build} makes: {words}. Export with the "
            "definition that the student was trained with"
        ) from error
    return module


def require_finite(state: Mapping[str, Tensor], what: str) -> None:
    """ExportError names the first tensor that holds NaN or infinity."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and (wrong := int((~torch.isfinite(tensor)).sum())):
            raise ExportError(
                f"{what} hold {wrong:,} values in {name!r} that are no finite numbers; a training that "
                "went wrong is not exported: lower its learning rate and train it again"
            )
