"""Runs an example as a user does, in a process of its own, and once more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from stillroom.storage.files import read_json

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, out: Path, *settings: str) -> str:
    given = ("--out", str(out), "--workers", "0", "--seeds", "1", *settings)
    done = subprocess.run(
        [sys.executable, f"{name}.py", *given],
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def stamps(out: Path) -> dict[Path, int]:
    """When each file was written; who holds the folder is noted by every run."""
    files = (f for f in out.rglob("*") if f.is_file() and f.parent.name != "leases")
    return {file: file.stat().st_mtime_ns for file in files}


def run_twice(name: str, out: Path, *settings: str) -> Any:
    """The lines of the table; the second run must compute nothing and write nothing."""
    assert "teach, students, table in" in run(name, out, *settings).replace("\n", " ")
    files = stamps(out)
    again = run(name, out, *settings)
    assert "nothing to do: everything is fresh, no teacher was loaded" in again
    assert files == stamps(out)
    return read_json(out / "steps" / "table.json")["result"]["lines"]
