"""A rerun with nothing, or almost nothing, to do."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.measuring import Line, Section, Table, Way, interleaved
from benchmarks.rerun_once import WIDTH

CASES = {
    "same": "nothing changed",
    "moved": "rows in another order, plan only",
    "edited": "1% of the rows edited, plan only",
}
GOAL = 2.0


def measure(work: Path, quick: bool) -> Section:
    """Integer keys and text keys."""
    from safetensors.torch import save_file

    from benchmarks.rerun_once import small

    rows, rounds = (50_000, 2) if quick else (1_000_000, 5)
    section = Section(
        "Rerun",
        f"{rows:,} rows of float32[{WIDTH}] and their keys, taught once to a small module; then fresh "
        "processes that import stillroom, make the data set (`ArrayRows`), and call `teach` (or "
        "`plan_teach`). Torch is never imported by them (checked). Making the keys and loading the "
        "column are not counted: they are the user's own data set.",
    )
    np.save(work / "value.npy", np.random.default_rng(0).random((rows, WIDTH), np.float32))
    save_file(small().state_dict(), work / "small.safetensors")
    parts = []
    for keys in ("integer", "text"):
        first = _Process(work, keys, "first")
        taught = interleaved({"first": first}, 1, warm=False)["first"]
        cases = {case: _Process(work, keys, case) for case in CASES}
        ways: dict[str, Way] = dict(cases)
        times = interleaved(ways, rounds)
        for case, words in CASES.items():
            goal = GOAL if case == "same" else None
            what = f"{words}, {keys} keys"
            against = "teaching it the first time (once)"
            section.lines.append(Line(what, against, times[case], taught, seconds=goal))
            parts.append((what, *cases[case].parts()))
    columns = (*_PARTS.values(), "whole process, data included")
    section.notes.append(
        "Nothing changed: the fingerprint of all keys and columns is compared with the snapshot's. "
        "Else every row is hashed and every key looked up. Importing pyarrow's bridge to pandas, "
        "where pandas is installed, is in `ArrayRows`."
    )
    section.tables.append(Table(("of which", *columns), tuple(parts)))
    return section


_PARTS = {"import": "import", "rows": "`ArrayRows`", "teach": "`teach` or `plan_teach`"}


class _Process:
    """A way that starts a process and takes the seconds that it prints."""

    def __init__(self, folder: Path, keys: str, case: str) -> None:
        name = "benchmarks.rerun_once"
        self._command = [sys.executable, "-m", name, str(folder), keys, case]
        self._runs: list[dict[str, float]] = []

    def __call__(self) -> float:
        started = time.perf_counter()
        ended = subprocess.run(self._command, stdout=subprocess.PIPE, check=True)
        whole = time.perf_counter() - started
        seconds: dict[str, float] = json.loads(ended.stdout)
        self._runs.append({**seconds, "whole": whole})
        return sum(seconds[part] for part in _PARTS)

    def parts(self) -> list[str]:
        """The median of each part."""
        return [
            f"{statistics.median(run[part] for run in self._runs):.2f} s"
            for part in (*_PARTS, "whole")
        ]
