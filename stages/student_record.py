"""What a trained student leaves: its weights, what is kept beside them, and then its record."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from stillroom.stages.fitting import Fitting
from stillroom.stages.student_run import StudentRun
from stillroom.stages.student_work import StudentTask
from stillroom.storage.files import nan_as_none, write_atomic, write_json


def store_student(task: StudentTask, run: StudentRun, more: Mapping[str, Any]) -> dict[str, Any]:
    """Write the files of a student that was trained to its end; its record, which is written last.

    `more` is what the worker knows: snapshot, rows, seconds, machine.
    """
    student, fitting = task.student, run.fitting
    _store(task.folder, fitting, run)
    record = {
        "student": student.name,
        "seed": student.seed,
        **({"order": student.order} if student.order is not None else {}),
        "digest": task.digest,
        "identity": dict(task.identity),
        "recipe": student.recipe.name,
        "terms": [repr(term) for term in student.recipe.terms],
        "reads": list(student.reads),
        "split": student.split,
        **({"beside": dict(student.beside)} if student.recipe.streams else {}),
        **({"answer": fitting.settings} if student.recipe.answer is not None else {}),
        **({"state": _plain(fitting.learning.state)} if fitting.learning.state else {}),
        "fit": asdict(student.fit),
        "parameters": sum(p.numel() for p in fitting.module.parameters()),
        "metrics": run.metrics,
        "curve": run.curve,
        "epochs": run.epochs,
        **({"best_epoch": run.best["epoch"]} if run.best else {}),
        **({"resumed_after_epoch": run.resumed} if run.resumed else {}),
        "fit_seconds": run.fit_seconds,
        "peak_memory_bytes": _peak_memory(),
        **more,
    }
    # A metric may be no number (the F1 of a class that no row has): that costs no training.
    said: dict[str, Any] = nan_as_none(record)
    write_json(task.folder / "record.json", said)
    run.finish()
    return said


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """What the recipe's controller ended with: the next round of a student can begin there."""
    return {name: value.tolist() for name, value in state.items()}


def _peak_memory() -> int:
    """Of this process so far, and of its GPU where it has one."""
    on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + on_gpu


def _store(folder: Path, fitting: Fitting, run: StudentRun) -> None:
    """The student's weights, those of its last epoch where others are kept, their moving average, and
    the heads that inference needs."""
    from safetensors.torch import save

    learning = fitting.learning
    kept = [head.name for head in fitting.student.recipe.heads if head.kept]
    heads = {
        f"{name}.{key}": tensor
        for name in kept
        for key, tensor in learning.heads[name].state_dict().items()
    }
    files = {
        "heads": heads,
        "average": learning.average,
        "last": run.last,
        "weights": fitting.module.state_dict(),
    }
    for name, state in files.items():
        if state or name == "weights":
            cpu = {n: t.detach().cpu().clone().contiguous() for n, t in state.items()}
            write_atomic(folder / f"{name}.safetensors", [save(cpu)])
