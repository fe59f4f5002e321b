"""Kills a cache's writers at random moments, resumes them, and compares with a life without kills.

python kills.py FOLDER KILLS SEED [RAY_WORKERS] prints one JSON object; exit code 1 when a promise was
broken. Writers run in a session of their own and are killed with everything they started.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from stillroom.storage.care.verifying import verify
from tests.crash import life

MARK = "STILLROOM_TEST_KILL"


def start(work: Callable[[], object], mark: str = "") -> int:
    """Run it in a forked process of its own session; its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        os.environ[MARK] = mark
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def kill_all(child: int, mark: str) -> None:
    """SIGKILL to the process's group, and to everything that carries its mark, until none is left."""
    while True:
        found = [child] if child else []
        for entry in Path("/proc").glob("[0-9]*/environ") if mark else ():
            try:
                if f"{MARK}={mark}".encode() in entry.read_bytes().split(b"\0"):
                    found.append(int(entry.parent.name))
            except (OSError, ValueError):
                continue
        for number in found:
            try:
                os.killpg(number, signal.SIGKILL) if number == child else os.kill(number, 9)
            except (ProcessLookupError, PermissionError):
                continue
        if not [n for n in found if n != child]:
            return
        child = 0
        time.sleep(0.02)


class Lives:
    """A killed life beside a quiet one."""

    def __init__(self, folder: Path, kills: int, seed: int, workers: int) -> None:
        self.cache, self.quiet = folder / "killed", folder / "quiet"
        self.log, self.logged = folder / "asked", 0
        self.random = random.Random(seed)
        self.kills, self.workers = kills, workers
        self.killed: Counter[str] = Counter()
        self.reader = 0
        os.environ[life.LOG] = str(self.log)

    def run(self) -> dict[str, object]:
        """Kill until there were enough kills; several lives, if one is too short."""
        lives = 0
        while self.killed.total() < self.kills:
            for cache in (self.cache, self.quiet):
                os.system(f"rm -rf '{cache}'")
            lives += 1
            self.one_life()
        return {"kills": self.killed.total(), "by step": dict(self.killed), "lives": lives}

    def one_life(self) -> None:
        """Every step, killed some times and then left to finish."""
        self.reader = start(self.read_for_ever)
        for name, step in life.STEPS.items():
            if name == "repair":
                self.stop_reader()
                life.damage(self.quiet)
                life.damage(self.cache)
            began = time.monotonic()
            asked = self.asked_by(lambda step=step: step(self.quiet))  # type: ignore[misc]
            seconds = time.monotonic() - began
            self.kill_step(name, step, seconds, asked)
            same = life.content_of(self.cache) == life.content_of(self.quiet)
            assert same, f"after {name!r}: {self.differences()}"
            if name == "repair":
                self.reader = start(self.read_for_ever)
        assert verify(self.cache).problems == ()
        self.stop_reader()

    def kill_step(
        self, name: str, step: Callable[[Path], object], seconds: float, asked: int
    ) -> None:
        """Start the step and kill it at a random moment, until it gets to its end."""
        before, kills = self.lines(), 0
        ray = bool(self.workers) and name == "teach"
        # With Ray most of the time is its start; a kill there says little.
        span = 8.0 if ray else 1.2 * seconds
        while True:
            self.logged += 1
            mark = f"{os.getpid()}-{self.logged}" if ray else ""
            work = life._taught(0, life.FIRST, self.workers) if ray else step
            child = start(partial(work, self.cache), mark)
            patient = self.killed.total() < self.kills and kills < 12
            if patient:
                time.sleep(self.random.uniform(0.8 * span if ray else 0, span))
                kill_all(child, mark)
            _, status = os.waitpid(child, 0)
            self.check_reader()
            if os.waitstatus_to_exitcode(status) == 0:
                break
            assert patient, f"{name} failed of itself"
            kills += 1
            self.killed[name] += 1
        again = self.lines() - before - asked
        limit = kills * max(self.workers if ray else 1, 1) * life.SHARD_ROWS * (2 if ray else 1)
        assert again <= limit, f"{name}: {again} rows computed again after {kills} kills"

    def asked_by(self, work: Callable[[], object]) -> int:
        before = self.lines()
        child = start(work)
        _, status = os.waitpid(child, 0)
        assert status == 0
        return self.lines() - before

    def lines(self) -> int:
        return self.log.read_bytes().count(b"\n") if self.log.exists() else 0

    def read_for_ever(self) -> None:
        os.environ.pop(life.LOG, None)
        while True:
            life.check_readable(self.cache)

    def check_reader(self) -> None:
        if self.reader:
            done, _ = os.waitpid(self.reader, os.WNOHANG)
            assert done == 0, "a reader saw something half written"

    def stop_reader(self) -> None:
        self.check_reader()
        os.kill(self.reader, signal.SIGKILL)
        os.waitpid(self.reader, 0)
        self.reader = 0

    def differences(self) -> list[str]:
        mine, theirs = life.content_of(self.cache), life.content_of(self.quiet)
        return sorted(n for n in {*mine, *theirs} if mine.get(n) != theirs.get(n))


if __name__ == "__main__":
    folder, kills, seed, *workers = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    lives = Lives(Path(folder), int(kills), int(seed), int(workers[0]) if workers else 0)
    try:
        print(json.dumps(lives.run()))
    finally:
        if lives.reader:
            os.kill(lives.reader, signal.SIGKILL)
