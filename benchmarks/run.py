"""Run the benchmarks and write results.md.

    python benchmarks/run.py                    everything, about half an hour on two cores
    python benchmarks/run.py gather epoch       only these; the page then holds only these
    python benchmarks/run.py --quick            small sizes and few rounds: only to see that it runs

Each benchmark has a process of its own, and its files lie in benchmarks/.work until it ends.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # this folder's modules are imported as benchmarks.NAME

from benchmarks.machine import machine  # noqa: E402
from benchmarks.measuring import Section  # noqa: E402
from benchmarks.page import page  # noqa: E402

NAMES = (
    "gather",
    "teaching",
    "epoch",
    "loading",
    "online",
    "rerun",
    "encodings",
    "care",
    "planning",
    "deriving",
    "packing",
    "scaling",
    "students",
    "flat",
    "workflows",
)
WORK = ROOT / "benchmarks" / ".work"


def main() -> int:
    """Run what was asked for; 1 when a benchmark failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes: only to see that it runs"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results.md")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    about, started, failed = machine(), time.perf_counter(), []
    sections = []
    for name in asked.names or NAMES:
        print(f"{name} ...", flush=True)
        section = _run(name, asked.quick)
        if section is None:
            failed.append(name)
        else:
            sections.append(section)
    minutes = (time.perf_counter() - started) / 60
    settings = f"{'quick sizes, ' if asked.quick else ''}{minutes:.1f} minutes in all"
    text = page(sections, about, settings)
    asked.out.write_text(text)
    print(text)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _run(name: str, quick: bool) -> Section | None:
    work = WORK / f"{name}-{os.getpid()}"
    work.mkdir(parents=True)
    out = work / "section.json"
    command = [sys.executable, "-m", "benchmarks.one", name, str(work), str(out)]
    try:
        ended = subprocess.run(
            command + ["--quick"] * quick,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
        )
        if ended.returncode:
            return None
        return Section.from_json(json.loads(out.read_text()))
    finally:
        shutil.rmtree(work, ignore_errors=True)
        with suppress(OSError):  # another run may have its files there
            WORK.rmdir()


if __name__ == "__main__":
    sys.exit(main())
