"""What a scheduler costs while nothing is due, and what listing its schedules costs.

python -m tests.workflows.schedules.thousand FOLDER SCHEDULES SECONDS prints one JSON object.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from pathlib import Path

from stillroom.pipeline.stopping import Stop
from stillroom.workflows.schedules.ledger import coming
from stillroom.workflows.schedules.schedule import cron_trigger
from stillroom.workflows.schedules.serving import Scheduler
from stillroom.workflows.schedules.state import State
from tests.workflows.schedules.builders import quick, quick_flow


def main(folder: Path, count: int, seconds: float) -> dict[str, float]:
    """List, serve; the numbers."""
    quick_flow(folder)
    state, found = State(folder / "state"), {"schedules": float(count)}
    state.add(quick(folder, "s0000", cron_trigger("0 2 * * *", "UTC")))
    rows = []
    for number in range(1, count):
        line = f"{number % 60} {number // 60 % 24} * * *"
        # Due the day after tomorrow at the earliest: what it costs to wait is wanted here.
        added = float(int(time.time())) + 86_400
        one = quick(folder, f"s{number:04}", cron_trigger(line, "Europe/Berlin"), added=added)
        rows.append((one.name, json.dumps(one.to_json()), added))
    with state.connected() as connection:  # at once, since each `add` waits for the disk
        connection.executemany(
            "INSERT INTO schedules (name, spec, watermark) VALUES (?, ?, ?)", rows
        )
    begun = time.perf_counter()
    assert len(coming(state, time.time())) == count
    found["list_s"] = time.perf_counter() - begun
    stop = Stop()
    scheduler = Scheduler(state, say=lambda text: None)
    serving = threading.Thread(target=scheduler.serve, args=(stop,))
    begun = time.perf_counter()
    serving.start()
    time.sleep(max(seconds / 4, 5.0))  # it starts, and reads all of them
    cpu, wall = time.process_time(), time.perf_counter()
    time.sleep(seconds)
    found["cpu_share_waiting"] = (time.process_time() - cpu) / (time.perf_counter() - wall)
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(round(seconds)):  # as when a run writes into the ledger every second
        state.write("UPDATE schedules SET problem = '' WHERE name = 's0000'", ())
        time.sleep(1)
    found["cpu_share_while_a_run_writes"] = (time.process_time() - cpu) / (
        time.perf_counter() - wall
    )
    found["memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    stop.ask()
    serving.join()
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])), indent=2))
    sys.stdout.flush()
    os._exit(0)
