"""What happens around nightly.py: rows arrive, teachers are trained anew, somebody edits the settings.

    python examples/nightly_world.py begin home          # 4,000 rows, two teachers, settings
    python examples/nightly_world.py rows home 40        # 40 rows more
    python examples/nightly_world.py retrain home wide 7 # other weights, from seed 7
    python examples/nightly_world.py set home temperature 5

Rows are made: points of three classes that two circles divide.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from nightly import BUILDS, TEACHERS, WIDTH

FIRST_ROWS = 4000
BATCH, STEPS = 64, 50


def begin(home: Path, rows: int = FIRST_ROWS) -> None:
    """The first rows, the teachers' first weights, and the settings."""
    for folder in ("rows", "teachers"):
        (home / folder).mkdir(parents=True)
    arrive(home, rows)
    for seed, name in enumerate(TEACHERS):
        retrain(home, name, seed)
    (home / "nightly.yaml").write_text(f"data: {home.absolute()}\ntemperature: 2.0\n")


def arrive(home: Path, count: int) -> list[int]:
    """Rows more, in a file of their own; their keys."""
    files = sorted((home / "rows").glob("*.parquet"))
    first = sum(pq.read_metadata(file).num_rows for file in files)
    x, label = points(count, seed=first)
    keys = np.arange(first, first + count)
    flat = pa.array(x.ravel())
    columns = [pa.array(keys), pa.FixedSizeListArray.from_arrays(flat, WIDTH), pa.array(label)]
    written = pa.table(columns, ["key", "x", "label"])
    pq.write_table(written, home / "rows" / f"{len(files):04d}.parquet")
    return [int(key) for key in keys]


def points(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 (count, WIDTH) and int64 (count,): which ring of its first two columns a point is in."""
    x = np.random.default_rng(seed).standard_normal((count, WIDTH)).astype("float32")
    radius = np.hypot(x[:, 0], x[:, 1])
    return x, np.digitize(radius, [0.8, 1.6]).astype("int64")


def retrain(home: Path, name: str, seed: int) -> None:
    """Train a teacher on points like those, and put its weights where the workflow looks."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    module = BUILDS[name]()
    x, label = (torch.from_numpy(part) for part in points(BATCH * STEPS, seed=10_000 + seed))
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3)
    for rows, truth in zip(x.split(BATCH), label.split(BATCH), strict=True):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(module(rows), truth).backward()
        optimiser.step()
    new = home / "teachers" / f"{name}.new"
    save_file(module.state_dict(), new)
    new.replace(home / "teachers" / f"{name}.safetensors")  # at once: a run may be reading


def change(home: Path, name: str, value: str) -> None:
    """Give a setting another value."""
    place = home / "nightly.yaml"
    lines = place.read_text().splitlines()
    kept = [line for line in lines if not line.startswith(f"{name}:")]
    place.write_text("\n".join([*kept, f"{name}: {value}"]) + "\n")


def main(what: str, home: str, *said: str) -> None:
    """What the command line says."""
    if what == "begin":
        begin(Path(home))
    elif what == "rows":
        arrive(Path(home), int(said[0]))
    elif what == "retrain":
        retrain(Path(home), said[0], int(said[1]))
    elif what == "set":
        change(Path(home), said[0], said[1])
    else:
        sys.exit(str(__doc__))


if __name__ == "__main__":
    main(*sys.argv[1:])
