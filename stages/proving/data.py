"""Data for proofs: what installed packages carry, read without importing them."""

from __future__ import annotations

import gzip
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np

from stillroom.stages.data.rows import ArrayRows
from stillroom.storage.errors import StillroomError


class MissingDataError(StillroomError, FileNotFoundError):
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
