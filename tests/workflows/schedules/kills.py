"""Kills a scheduler again and again, often with its runs, and counts ticks that were lost or doubled.

python -m tests.workflows.schedules.kills FOLDER KILLS SEED prints one JSON object; exit code 1 when a
tick was lost or doubled, or when two runs were in one folder at the same time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from stillroom.workflows.schedules.ledger import DONE, INTERRUPTED, RUNNING, runs
from stillroom.workflows.schedules.schedule import Trigger
from stillroom.workflows.schedules.serving import instant, serving
from stillroom.workflows.schedules.state import State
from tests.workflows.schedules.builders import quick, quick_flow, scheduler_process, until

FLOW = """
import fcntl
import time
from stillroom.pipeline import Step

def work(run, inputs):
    run.folder.mkdir(parents=True, exist_ok=True)
    with open(run.folder / "alone", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            (run.folder / "overlap").touch()
        time.sleep(1)
    return {"at": time.time()}

def always(run, inputs):
    return "it always runs"

def workflow():
    return [Step("work", work, preview=always)]
"""
EACH_S, ONE_S = 2.0, 3.0


def kill_runs(state: State) -> None:
    """SIGKILL to everything that the scheduler of this state started, until nothing is left."""
    mark = f"STILLROOM_STATE={state.folder}".encode()
    while True:
        found = []
        for entry in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in entry.read_bytes().split(b"\0"):
                    found.append(int(entry.parent.name))
            except (OSError, ValueError):
                continue
        for number in found:
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if not found:
            return
        time.sleep(0.02)


def main(folder: Path, kills: int, seed: int) -> int:
    """Kill, go on, count."""
    chance, begun = random.Random(seed), time.time()
    state = State(folder / "state")
    state.folder.mkdir(parents=True)
    quick_flow(folder, FLOW)
    each = quick(folder, "each", Trigger("every", seconds=EACH_S), catch_up=True)
    state.add(each)
    state.add(quick(folder, "one", Trigger("every", seconds=ONE_S)))
    state.add(quick(folder, "next", Trigger("after", after="each")))
    killed: Counter[str] = Counter()
    for _ in range(kills):
        process = scheduler_process(state)
        # While it starts, at any time, or in the middle of a run, however slow this machine is.
        moment = chance.random()
        if moment > 0.2:
            until(lambda: serving(state))
        if moment > 0.5:
            until(lambda: [run for run in runs(state, last=3) if run.state == RUNNING])
            time.sleep(chance.uniform(0.0, 2.0))
        else:
            time.sleep(chance.uniform(0.1, 5.0))
        assert process.poll() is None, (state.folder / "scheduler.log").read_text()[-3000:]
        process.kill()
        process.wait()
        killed["scheduler"] += 1
        if chance.random() < 0.5:
            kill_runs(state)
            killed["with its runs"] += 1
    for name in state.schedules():
        state.pause(name, True, time.time())
    process = scheduler_process(state)
    try:
        end = time.monotonic() + 300
        while state.open_ticks():
            assert time.monotonic() < end, state.open_ticks()
            time.sleep(0.2)
    finally:
        process.terminate()
        process.wait(120)
    found = verdict(state, each.added)
    found |= {"kills": dict(killed), "seconds": round(time.time() - begun)}
    overlaps = sorted(map(str, folder.glob("out/*/overlap")))
    print(json.dumps({**found, "overlaps": overlaps}, indent=2))
    return int(bool(found["lost"] or found["doubled"] or overlaps))


def verdict(state: State, anchor: float) -> dict[str, object]:
    """What became of every tick."""
    every = runs(state, last=None)
    done = Counter((run.schedule, run.tick) for run in every if run.state == DONE)
    with state.connected(write=False) as connection:
        ticks = [tuple(r) for r in connection.execute("SELECT schedule, tick, due FROM ticks")]
    last = max((tick[2] for tick in ticks if tick[0] == "each"), default=anchor)
    expected = [anchor + EACH_S * (index + 1) for index in range(round((last - anchor) / EACH_S))]
    fired = {tick[1] for tick in ticks if tick[0] == "each"}
    lost = [instant(at) for at in expected if instant(at) not in fired]
    lost += [f"{name}@{tick}" for name, tick, _ in ticks if not done[name, tick]]
    states = Counter(run.state for run in every)
    assert states[DONE] + states[INTERRUPTED] == len(every), states
    return {
        "ticks": len(ticks),
        "runs": dict(states),
        "lost": lost,
        "doubled": [f"{name}@{tick}" for (name, tick), count in done.items() if count > 1],
    }


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
    except subprocess.TimeoutExpired as error:
        sys.exit(f"the scheduler did not end: {error}")
