"""What is derived row by row: ensembles, calibrated logits, agreement, clusters, coordinates, means.

Each gives signals of the cache, which a Reader and a student's recipe read by name as a teacher's.
A new or edited row is computed alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.deriving.derivation import RowWise
from stillroom.stages.deriving.table import as_matrix
from stillroom.storage.derived import Derived
from stillroom.storage.encodings.clusters import nearest
from stillroom.storage.errors import SignalError
from stillroom.storage.ragged import Ragged
from stillroom.storage.signal import Values

Float64s = NDArray[np.float64]
MEANS = ("logits", "probabilities", "log-probabilities")


def _wide(values: Values, what: str) -> Float64s:
    as_matrix(values, what)  # which refuses what has no rows of one shape
    return np.asarray(values, np.float64)


def _log_softmax(logits: Float64s) -> Float64s:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _ensemble(
    *, logits: Sequence[Values], mean: str, weights: tuple[float, ...], output: str
) -> dict[str, Values]:
    each = [_wide(values, "logits") for values in logits]
    if len({values.shape for values in each}) > 1:
        shapes = ", ".join(str(values.shape[1:]) for values in each)
        raise SignalError(f"an ensemble needs logits of one shape, found {shapes}")
    if mean != "logits":
        each = [_log_softmax(values) for values in each]
    if mean == "probabilities":
        top = np.max(each, axis=0)
        total = sum(w * np.exp(v - top) for w, v in zip(weights, each, strict=True))
        found = top + np.log(total)
    else:
        found = sum(w * v for w, v in zip(weights, each, strict=True))
    return {output: np.asarray(found, np.float32)}


def ensemble(
    logits: Sequence[str],
    *,
    mean: str = "probabilities",
    weights: Sequence[float] | None = None,
    encoding: str = "raw",
    name: str = "ensemble",
) -> RowWise:
    """The weighted mean of several teachers' logits, as a signal of that name: float32, their shape.

    `mean` of "logits"; of "probabilities" (stored as the logarithm of the mean, so softmax gives it
    back); or of "log-probabilities" (the normalised geometric mean after a softmax). Weights are
    scaled to sum to 1.
    """
    if mean not in MEANS:
        raise ValueError(f"mean {mean!r}: expected one of {', '.join(MEANS)}")
    given = np.ones(len(logits)) if weights is None else np.asarray(weights, np.float64)
    if len(logits) < 2 or len(given) != len(logits) or not (given > 0).all():
        raise ValueError(
            f"an ensemble needs at least two signals and a positive weight for each; found "
            f"{len(logits)} and {given.tolist()}"
        )
    shares = tuple((given / given.sum()).tolist())
    function = partial(_ensemble, mean=mean, weights=shares, output=name)
    encodings = {name: encoding}
    return RowWise(name, function, {"logits": tuple(logits)}, (name,), encodings=encodings)


def _calibrated(
    *, logits: Values, temperature: Mapping[str, NDArray[Any]], output: str
) -> dict[str, Values]:
    scaled = _wide(logits, "logits") / float(temperature["temperature"])
    return {output: scaled.astype(np.float32)}


def calibrated(
    logits: str, temperature: Derived, *, encoding: str = "raw", name: str = "calibrated"
) -> RowWise:
    """Logits divided by a derived temperature, as a signal of that name: float32."""
    function = partial(_calibrated, output=name)
    given = {"temperature": temperature}
    return RowWise(
        name, function, {"logits": logits}, (name,), encodings={name: encoding}, given=given
    )


def _agreement(
    *, logits: Sequence[Values], name: str, label: NDArray[Any] | None = None
) -> dict[str, Values]:
    choices = np.stack([as_matrix(v, "logits").argmax(axis=1) for v in logits], axis=1)
    found: dict[str, Values] = {f"{name}": (choices == choices[:, :1]).all(axis=1)}
    if label is not None:
        found[f"{name}_right"] = choices == np.asarray(label)[:, None]
    return found


def agreement(logits: Sequence[str], *, label: str | None = None, name: str = "agree") -> RowWise:
    """Whether all teachers choose one class: a bool signal of that name; with a label column also
    `<name>_right` (teachers,) bool, which of them are right. Equal logits: the lower class."""
    outputs = (name,) if label is None else (name, f"{name}_right")
    columns = {} if label is None else {"label": label}
    function = partial(_agreement, name=name)
    return RowWise(name, function, {"logits": tuple(logits)}, outputs, columns)


def _assigned(
    *, features: Values, centroids: Mapping[str, NDArray[Any]], name: str
) -> dict[str, Values]:
    labels, distances = nearest(
        as_matrix(features, "features").astype(np.float64), centroids["centroids"]
    )
    return {name: labels.astype(np.int32), f"{name}_distance": distances.astype(np.float32)}


def assigned(features: str, centroids: Derived, *, name: str = "cluster") -> RowWise:
    """The nearest of derived centroids: a signal of that name, int32, and `<name>_distance`, the
    squared distance, float32. Of equally near ones the lower number."""
    outputs = (name, f"{name}_distance")
    function = partial(_assigned, name=name)
    return RowWise(name, function, {"features": features}, outputs, given={"centroids": centroids})


def _projected(
    *, features: Values, basis: Mapping[str, NDArray[Any]], output: str
) -> dict[str, Values]:
    values = as_matrix(features, "features") - basis["mean"]
    return {output: (values @ basis["components"].T).astype(np.float32)}


def projected(features: str, basis: Derived, *, encoding: str = "raw", name: str = "pc") -> RowWise:
    """Coordinates along derived principal components, as a signal of that name: float32 (k,)."""
    function, encodings = partial(_projected, output=name), {name: encoding}
    given = {"basis": basis}
    return RowWise(
        name, function, {"features": features}, (name,), encodings=encodings, given=given
    )


def _pooled(*, features: Values, output: str) -> dict[str, Values]:
    if not isinstance(features, Ragged):
        raise SignalError("pooled() takes a ragged signal; this one has rows of one shape")
    if (features.lengths == 0).any():
        raise SignalError(
            f"{int((features.lengths == 0).sum()):,} rows of a batch have no elements, so no mean"
        )
    sums = np.add.reduceat(features.values.astype(np.float64), features.offsets[:-1], axis=0)
    lengths = features.lengths.reshape(-1, *[1] * (sums.ndim - 1))
    return {output: (sums / lengths).astype(np.float32)}


def pooled(features: str, *, encoding: str = "raw", name: str = "pooled") -> RowWise:
    """The mean of each row's elements of a ragged signal, as a signal of that name: float32."""
    function, encodings = partial(_pooled, output=name), {name: encoding}
    return RowWise(name, function, {"features": features}, (name,), encodings=encodings)
