"""One benchmark in this process: `python -m benchmarks.one NAME WORK OUT [--quick]`."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

if __name__ == "__main__":
    name, work, out, *rest = sys.argv[1:]
    section = importlib.import_module(f"benchmarks.{name}").measure(Path(work), "--quick" in rest)
    Path(out).write_text(json.dumps(section.to_json()))
