"""Data for proofs: what installed packages carry, read without importing them."""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.stages.data.rows import ArrayRows, find_rows
from stillroom.storage.errors import MissingPackageError
from stillroom.storage.keys import as_keys

Labels = NDArray[np.int64]


class MissingDataError(MissingPackageError):
    """The package that carries the data is not installed."""


def packaged(package: str, place: str, extra: str) -> Path:
    """A file inside an installed package; MissingDataError says which extra installs it."""
    found = importlib.util.find_spec(package)
    for folder in (found.submodule_search_locations or ()) if found else ():
        file = Path(folder) / place
        if file.exists():
            return file
    raise MissingDataError(
        f"{place} comes with {package}, which is not installed: pip install 'stillroom[{extra}]'"
    )


@cache
def small_digits() -> ArrayRows:
    """1,797 handwritten digits: image (1, 8, 8) float32 in [0, 1], label int64, as in scikit-learn.

    Alpaydin and Kaynak 1998, the test part of UCI's "Optical Recognition of Handwritten Digits".
    """
    with gzip.open(packaged("sklearn", "datasets/data/digits.csv.gz", "demo"), "rt") as text:
        table = np.loadtxt(text, delimiter=",")
    image = (table[:, :64].astype(np.float32) / 16).reshape(-1, 1, 8, 8)
    keys = [f"digits-{place:04d}" for place in range(len(table))]
    return ArrayRows(keys, image=image, label=table[:, 64].astype(np.int64))


def few_of_each(rows: ArrayRows, keys: Sequence[str], each: int) -> list[str]:
    """The first `each` of these keys of every label, in their order."""
    batch: dict[str, Any] = dict(rows.read(find_rows(rows, as_keys(keys)), ["label"]))
    label = batch["label"]
    first = [np.flatnonzero(label == one)[:each] for one in np.unique(label)]
    return [keys[place] for place in sorted(np.concatenate(first).tolist())]


def relabelled(
    rows: ArrayRows, keys: Sequence[str], change: Callable[[Labels], Labels]
) -> ArrayRows:
    """The same data set with other labels for the rows of these keys: `change` is given theirs."""
    batch: dict[str, Any] = dict(rows.read(np.arange(len(rows)), rows.columns))
    label, places = batch["label"].copy(), find_rows(rows, as_keys(keys))
    label[places] = change(label[places])
    return ArrayRows(rows.keys, **(batch | {"label": label}))


def flipped(label: Labels, *, share: float, classes: int, seed: int) -> Labels:
    """Labels of which a share, drawn by the seed, is replaced by another class, each as likely."""
    drawn = np.random.default_rng(seed)
    wrong = drawn.permutation(len(label)) < round(share * len(label))
    found: Labels = np.where(
        wrong, (label + drawn.integers(1, classes, len(label))) % classes, label
    )
    return found


def chosen(rows: ArrayRows, keys: Sequence[str]) -> ArrayRows:
    """These rows alone, in this order: what a teacher is asked about, where not about all."""
    return ArrayRows(keys, **rows.read(find_rows(rows, as_keys(keys)), rows.columns))
