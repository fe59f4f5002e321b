"""Kills nodes, actors, drivers and heads of a real Ray cluster while it teaches, and resumes.

python -m tests.crash.cluster FOLDER KILLS SEED [ROWS] prints one JSON object; exit code 1 when a
promise was broken. The raylets are real processes on this machine, started by Ray's own cluster
utility; every kill is a SIGKILL of processes that this one started, by their number.
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
from typing import Any

from stillroom.storage.care.verifying import verify
from tests.crash.cluster_nodes import Nodes, ended
from tests.crash.cluster_teaching import LOG, PACE, SHARDS, teach_here
from tests.crash.life import content_of

ROOT = Path(__file__).parents[2]
KINDS = ("node", "actor", "driver", "head")
WORKERS = 3
DEADLINE_S = 180
"""No single state may last longer: what takes longer hangs."""


class Disturbed:
    """A cache that is taught on a cluster whose parts die."""

    def __init__(self, folder: Path, kills: int, seed: int, rows: int) -> None:
        self.cache, self.quiet, self.rows = folder / "killed", folder / "quiet", rows
        self.log, self.said = folder / "asked", folder / "said"
        self.random = random.Random(seed)
        kinds = [KINDS[i % len(KINDS)] if i < len(KINDS) else "" for i in range(kills)]
        self.random.shuffle(kinds)
        self.kinds = [kind or self.random.choice(KINDS) for kind in kinds]
        """Each kind in turn, then at random."""
        self.at = sorted(self.random.sample(range(3, SHARDS - 6), kills))
        """After how many finished shards each is killed."""
        self.killed: Counter[str] = Counter()
        self.errors: list[str] = []
        self.seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.nodes = Nodes(WORKERS)
        self.driver: subprocess.Popen[str] | None = None

    def run(self) -> dict[str, object]:
        """Teach, kill, resume, compare."""
        teach_here(self.quiet, self.rows)
        os.environ |= {LOG: str(self.log), PACE: "0.1", "PYTHONPATH": str(ROOT)}
        self.nodes.start()
        self.start_driver()
        for kind, count in zip(self.kinds, self.at, strict=True):
            self.wait_for(count)
            began, before = time.monotonic(), self.finished()
            getattr(self, f"kill_{kind}")()
            self.killed[kind] += 1
            self.wait_for(before + 1)
            self.seconds[kind].append(round(time.monotonic() - began, 1))
        assert self.driver is not None
        code = self.driver.wait(DEADLINE_S)
        assert code == 0, self.said.read_text()[-3000:]
        return self.judged()

    def judged(self) -> dict[str, object]:
        """The cache is the quiet one, and the kills cost no more than what was in work."""
        mine, theirs = content_of(self.cache), content_of(self.quiet)
        differing = sorted(n for n in {*mine, *theirs} if mine.get(n) != theirs.get(n))
        assert not differing, f"differ: {differing[:5]} and {len(differing)} in all"
        assert verify(self.cache).problems == ()
        again = len(self.log.read_text().splitlines()) - SHARDS
        limit = sum(n * (1 if kind == "actor" else 2 * WORKERS) for kind, n in self.killed.items())
        assert 0 <= again <= limit, f"{again} shards computed again, more than {limit}"
        lost = [line for line in self.said.read_text().splitlines() if line.startswith("lost")]
        return {
            "rows": self.rows,
            "shards": SHARDS,
            "kills": dict(self.killed),
            "shards computed again": again,
            "workers that were said to be lost": len(lost),
            "files compared": len(mine),
            "seconds from a kill to the next finished shard": self.seconds,
            "errors of ended drivers": self.errors,
            "load": os.getloadavg()[0],
        }

    # The four deaths

    def kill_node(self) -> None:
        """A machine is gone with all that ran on it; another one joins."""
        self.nodes.kill_node(self.random)
        self.nodes.add()

    def kill_actor(self) -> None:
        """The worker that was heard last."""
        until = time.monotonic() + DEADLINE_S
        while time.monotonic() < until:
            for line in reversed(self.log.read_text().splitlines()[-2 * WORKERS :]):
                if self.nodes.kill_worker(int(line.split()[1])):
                    return
            time.sleep(0.05)
        raise AssertionError("no worker was there to be killed")

    def kill_driver(self) -> None:
        """The next one starts at once, while workers of the dead one may still write."""
        assert self.driver is not None
        self.driver.kill()
        self.driver.wait()
        self.start_driver()

    def kill_head(self) -> None:
        """Ray cannot outlive it: the run ends with an error; a new cluster and a new run go on."""
        before = len(self.said.read_text())
        self.nodes.kill_head()
        assert self.driver is not None
        code = self.driver.wait(DEADLINE_S)
        lines = self.said.read_text()[before:].splitlines()
        if code:  # it may have been done with the shards that were in work
            assert [line for line in lines if "RunnerError" in line], "\n".join(lines)
            self.errors += [line for line in lines if "RunnerError" in line]
        self.nodes.stop()
        self.nodes.start()
        self.start_driver()

    # What goes on meanwhile

    def start_driver(self) -> None:
        command = [sys.executable, "-m", "tests.crash.cluster_teaching", str(self.cache)]
        command += [self.nodes.address, str(self.rows)]
        with open(self.said, "a") as said:
            self.driver = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, text=True)

    def finished(self) -> int:
        return len(list(self.cache.glob("segments/*/receipts/[0-9]*.json")))

    def wait_for(self, count: int) -> None:
        """Until so many shards are finished."""
        until = time.monotonic() + DEADLINE_S
        while self.finished() < min(count, SHARDS):
            assert self.driver is not None
            assert self.driver.poll() in (None, 0), self.said.read_text()[-3000:]
            assert time.monotonic() < until, f"hangs: {self.said.read_text()[-3000:]}"
            time.sleep(0.02)

    def end(self) -> None:
        """Leave nothing behind."""
        if self.driver is not None and self.driver.poll() is None:
            self.driver.kill()
            self.driver.wait()
        self.nodes.stop()


def main(arguments: list[str]) -> dict[str, Any]:
    """Run with the arguments of the command line."""
    folder, kills, seed, *rows = arguments
    Path(folder).mkdir(parents=True, exist_ok=True)
    disturbed = Disturbed(Path(folder), int(kills), int(seed), int(rows[0]) if rows else 100_000)
    # So that an interrupted harness also ends what it started.
    signal.signal(signal.SIGTERM, ended)
    try:
        return disturbed.run()
    finally:
        disturbed.end()


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
