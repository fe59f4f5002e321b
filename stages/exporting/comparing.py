"""Whether a written form gives what the student gives: the same rows through both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillroom.stages.exporting.described import ExportError
from stillroom.stages.exporting.whole import Whole

Arrays = Mapping[str, NDArray[Any]]
Form = Callable[[list[Any]], Arrays]
"""Columns in order -> outputs by name."""


def answers(whole: Whole, columns: Sequence[Any]) -> dict[str, NDArray[Any]]:
    """What the student answers, as arrays on the CPU."""
    with torch.inference_mode():
        return {name: as_array(tensor) for name, tensor in whole(*columns).items()}


def as_array(tensor: Tensor) -> NDArray[Any]:
    """A tensor as numpy has it; bfloat16, which numpy lacks, widened to float32."""
    cpu = tensor.detach().cpu()
    array: NDArray[Any] = (cpu.float() if cpu.dtype == torch.bfloat16 else cpu).numpy()
    return array


def require_answers(found: Arrays, again: Arrays, keys: Sequence[Any], who: str, rows: int) -> None:
    """What `who` answers must be an array of rows without NaN, and the same when it is asked again."""
    for name, array in found.items():
        if array.ndim == 0 or len(array) != rows:
            raise ExportError(
                f"{who}: output {name!r} is of shape {array.shape} for {rows} rows; expected "
                f"({rows}, ...): export outputs that have a row for each row"
            )
        wrong = np.isnan(array) if array.dtype.kind == "f" else np.zeros(array.shape, bool)
        if wrong.any():
            row = int(np.argwhere(wrong)[0][0])
            raise ExportError(
                f"{who} answers NaN in {name!r} for row {keys[row]!r}; look at this row, or train again"
            )
        if not np.array_equal(array, again[name]):
            raise ExportError(
                f"{who} answers {name!r} otherwise when it is asked again for the same rows: something "
                "random runs in evaluation mode, and no written form could be compared with it"
            )


def compare(
    reference: Arrays, found: Arrays, keys: Sequence[Any], tolerance: float, what: str
) -> float:
    """The largest difference, in units of each output's largest value or of 1, whichever is larger.

    ExportError names it, the output and the row where it is above the tolerance, and an output that is
    missing, of another shape or another dtype.
    """
    largest = 0.0
    for name, wanted in reference.items():
        if name not in found:
            raise ExportError(f"{what} gives no {name!r}; it gives {', '.join(found) or 'nothing'}")
        got = found[name]
        if got.shape != wanted.shape or got.dtype != wanted.dtype:
            raise ExportError(
                f"{what} gives {name!r} as {got.dtype} of shape {got.shape}; the student gives "
                f"{wanted.dtype} of shape {wanted.shape}"
            )
        difference = _differences(wanted, got)
        place = tuple(map(int, np.unravel_index(int(difference.argmax()), difference.shape)))
        worst = float(difference[place])
        if not worst <= tolerance:
            raise ExportError(
                f"{what} differs from the student by {worst:.3g} in {name!r} of row {keys[place[0]]!r} "
                f"({got[place]} for {wanted[place]}); at most {tolerance:g} was expected"
            )
        largest = max(largest, worst)
    return largest


def _differences(wanted: NDArray[Any], got: NDArray[Any]) -> NDArray[np.float64]:
    """Of each value; infinite where only one of two is NaN, or infinite."""
    one, other = wanted.astype(np.float64), got.astype(np.float64)
    finite = np.abs(one[np.isfinite(one)])
    size = max(1.0, float(finite.max())) if finite.size else 1.0
    with np.errstate(invalid="ignore"):
        apart = np.abs(one - other) / size
    return np.where(one == other, 0.0, np.where(np.isnan(apart), np.inf, apart))
