"""A week of examples/nightly.py: what every night costs is what changed, and the ledger says so."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from stillroom.storage import Cache
from stillroom.workflows.schedules.ledger import Run, runs
from stillroom.workflows.schedules.serving import instant
from stillroom.workflows.schedules.state import State
from tests.workflows.conftest import Inside
from tests.workflows.schedules.builders import until
from tests.workflows.schedules.kills import kill_runs

EXAMPLES = Path(__file__).parents[2] / "examples"
FLOW = str(EXAMPLES / "nightly.py")
FIRST, NEW, MANY = 4000, 40, 6000
EVERY_STEP = ["teach-wide", "teach-deep", "students", "table"]
ALL_STUDENTS = ["of-wide", "of-deep", "labels"]
WATCH = """
import os, sys

def watch(event, arguments):
    if event == "import" and arguments[0] == "torch":
        with open(os.environ["TORCH_WAS_IMPORTED"], "a") as file:
            file.write("once\\n")

sys.addaudithook(watch)
"""
"""What Python imports at its start; it notes every process that imports torch."""


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module nightly_world of the example: rows arrive, teachers are retrained."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("nightly_world")


@dataclass
class Life:
    """A folder in which weeks go by: its scheduler's clock is a file."""

    folder: Path
    nights: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """The hook that watches for torch, and a clock that says now."""
        (self.folder / "watch").mkdir()
        (self.folder / "watch" / "sitecustomize.py").write_text(WATCH)
        (self.folder / "torch").touch()
        self.say_time(datetime.now(UTC).timestamp())

    @property
    def state(self) -> State:
        return State(self.folder / "state")

    @property
    def place(self) -> Path:
        return self.folder / "out" / "nightly" / "nightly.cache"

    @property
    def cache(self) -> Cache:
        return Cache(self.place)

    def environment(self) -> dict[str, str]:
        mine = {
            "STILLROOM_STATE": str(self.state.folder),
            "PYTHONPATH": str(self.folder / "watch"),
            "TORCH_WAS_IMPORTED": str(self.folder / "torch"),
            "OMP_NUM_THREADS": "1",
        }
        return {**os.environ, **mine}

    def command(self, *arguments: str) -> subprocess.Popen[str]:
        """The installed command line, in that folder."""
        return subprocess.Popen(
            [str(Path(sys.executable).with_name("stillroom")), *arguments],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def said(self, *arguments: str) -> str:
        """What a command prints that succeeds."""
        process = self.command(*arguments)
        text, _ = process.communicate(timeout=120)
        assert process.returncode == 0, text
        return text

    def schedule(self, name: str, cron: str, *settings: str) -> list[float]:
        """Add a schedule of the flow; its next seven instants."""
        given = ["--config", "home/nightly.yaml", "--workers", "0", "--epochs", "1"]
        given += ["--events", "events.jsonl", *settings]
        self.said("schedule", "add", name, FLOW, *given, "--cron", cron, "--timezone", "UTC")
        found = json.loads(self.said("schedule", "next", name, "--count", "7", "--json"))
        return list(found["next"])

    def say_time(self, now: float) -> None:
        new = self.folder / "clock.new"
        new.write_text(datetime.fromtimestamp(now, UTC).isoformat())
        new.replace(self.folder / "clock")

    @contextmanager
    def serving(self) -> Iterator[subprocess.Popen[str]]:
        """`stillroom serve`; unless it was killed it is told to end, and ends as asked."""
        process = self.command("serve", "--clock", "clock")
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                text, _ = process.communicate(timeout=120)
                assert process.returncode == 0, text
            else:
                process.communicate()

    def begun(self, name: str, tick: float) -> list[Run]:
        """The attempts of a tick, the first first."""
        every = runs(self.state, schedule=name, last=None)[::-1]
        return [run for run in every if run.tick == instant(tick)]

    def night(self, tick: float, name: str = "nightly") -> Run:
        """Let it become that time; the run of it once that has ended."""
        self.say_time(tick + 30)

        def ended() -> list[Run]:
            open_now = {(one[0], one[1]) for one in self.state.open_ticks()}
            found = self.begun(name, tick)
            return found if found and (name, instant(tick)) not in open_now else []

        last: Run = until(ended, 120)[-1]
        assert last.state == "done", last.error
        return last

    def events(self) -> list[dict[str, Any]]:
        """What all runs so far said."""
        text = (self.folder / "events.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def torch_was_imported(self) -> int:
        """How many processes have imported it so far."""
        return len((self.folder / "torch").read_text().splitlines())

    def segments(self) -> dict[str, int]:
        """Rows by segment."""
        return {segment.path.name: segment.rows for segment in self.cache.segments()}

    def files(self) -> dict[Path, tuple[int, int]]:
        """Every file of the cache's segments, as the disk has it."""
        found = [p for p in (self.place / "segments").rglob("*") if p.is_file()]
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def computed(run: Run) -> list[str]:
    return [step.step for step in run.steps if step.fresh is False]


def why(run: Run, step: str) -> str:
    return next(one.why for one in run.steps if one.step == step)


def of_kind(events: list[dict[str, Any]], kind: str, name: str) -> list[Any]:
    return [event[name] for event in events if event["event"] == kind]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_week(tmp_path: Path, world: Any) -> None:
    life, home = Life(tmp_path), tmp_path / "home"
    world.begin(home, FIRST)
    nights = life.schedule("nightly", "0 2 * * *")
    with life.serving() as scheduler:
        first_three_days(life, world, nights)
        killed = night_of_the_kill(life, world, nights[3], scheduler)
    with life.serving():
        again = life.night(nights[3])
        must_go_on(life, again, killed)
        days_of_changes(life, world, nights)
        last = life.night(nights[6])
        assert computed(last) == []
        when = datetime.fromtimestamp(nights[6], UTC)
        (weekly, *_) = life.schedule("weekly", f"0 4 {when.day} {when.month} *", "--keep", "1")
        assert weekly - nights[6] == 7200
        tidied = life.night(weekly, "weekly")
    must_be_pruned(life, tidied)
    must_report_the_week(life, killed)


def first_three_days(life: Life, world: Any, nights: list[float]) -> None:
    run = life.night(nights[0])
    assert computed(run) == EVERY_STEP
    assert run.rows_taught == 2 * FIRST
    assert sorted(life.segments().values()) == [FIRST, FIRST]
    assert of_kind(life.events(), "StudentTrained", "name") == ALL_STUDENTS
    assert life.torch_was_imported() == 1
    before, keys = life.files(), world.arrive(life.folder / "home", NEW)
    run = life.night(nights[1])
    assert run.rows_taught == 2 * NEW == 0.01 * 2 * FIRST
    assert why(run, "teach-deep").startswith("result of teach-wide")
    assert f"{NEW} rows" in why(run, "teach-wide")
    fresh = [s for s in life.cache.segments() if s.rows == NEW]
    assert [sorted(s.keys.to_pylist()) for s in fresh] == [keys, keys]
    assert before.items() <= life.files().items()
    count = life.torch_was_imported()
    assert count == 2
    before = life.files()
    run = life.night(nights[2])
    assert (computed(run), run.rows_taught) == ([], 0)
    assert life.torch_was_imported() == count  # so no teacher was loaded, nor anything of it
    assert life.files() == before


@dataclass(frozen=True)
class Killed:
    """What a kill in the middle of teaching left."""

    run: Run
    rows: int
    """Rows of the shards that were finished."""
    shards: int
    files: dict[Path, tuple[int, int]]
    """Of the finished shards."""
    events: int


def night_of_the_kill(
    life: Life, world: Any, night: float, scheduler: subprocess.Popen[str]
) -> Killed:
    """SIGKILL to the scheduler and all that it started, after some shards."""
    world.arrive(life.folder / "home", MANY)
    life.say_time(night + 30)

    def draft() -> Any:
        found = life.cache.drafts()
        return found[0] if found and len(found[0].receipts()) >= 3 else None

    until(draft)
    scheduler.kill()
    kill_runs(life.state)
    left = draft()
    receipts = left.receipts()
    shards = [shard for shard in left.shards() if shard.index in receipts]
    rows = sum(shard.stop - shard.start for shard in shards)
    assert 0 < rows < MANY
    named = {f"{shard.index:05d}.json" for shard in shards}
    chunks = {path.parent.name: path for path in left.path.rglob("c/*/0")}
    assert len(chunks.keys() - {str(shard.index) for shard in shards}) <= 1  # begun, not finished
    kept = {chunks[str(shard.index)] for shard in shards}
    kept |= {path for path in (left.path / "receipts").iterdir() if path.name in named}

    def seen() -> list[Run]:  # once the system has cleared the dead process away
        return [run for run in life.begun("nightly", night) if run.state == "interrupted"]

    (run,) = until(seen)
    assert run.rows_taught <= rows
    files = {path: each for path, each in life.files().items() if path in kept}
    assert len(files) == 2 * len(shards)
    return Killed(run, rows, len(shards), files, len(life.events()))


def must_go_on(life: Life, run: Run, killed: Killed) -> None:
    """Finished shards are kept, the others computed once, and the tick was run once to its end."""
    tries = life.begun("nightly", instant_of(run))
    assert [(one.attempt, one.state) for one in tries] == [(1, "interrupted"), (2, "done")]
    assert run.rows_taught == 2 * MANY - killed.rows
    assert f"{killed.rows:,} rows kept of a run that was cut off" in why(run, "teach-wide")
    assert killed.files.items() <= life.files().items()
    counts: dict[str, int] = defaultdict(int)
    for event in life.events()[killed.events :]:
        if event["event"] == "RowsTaught":
            counts[event["teacher"]] += 1
    shards = -(-MANY // 256)
    assert counts == {"wide": shards - killed.shards, "deep": shards}


def instant_of(run: Run) -> float:
    assert run.tick is not None
    return datetime.fromisoformat(run.tick).timestamp()


def days_of_changes(life: Life, world: Any, nights: list[float]) -> None:
    home, total = life.folder / "home", FIRST + NEW + MANY
    said = len(life.events())
    world.retrain(home, "wide", 9)
    before = life.files()
    run = life.night(nights[4])
    assert run.rows_taught == total
    assert set(of_kind(life.events()[said:], "RowsTaught", "teacher")) == {"wide"}
    assert "the teacher changed (weights" in why(run, "teach-wide")
    assert of_kind(life.events()[said:], "StudentTrained", "name") == ["of-wide"]
    assert before.items() <= life.files().items()
    said, before = len(life.events()), life.files()
    world.change(home, "temperature", "5.0")
    run = life.night(nights[5])
    assert (computed(run), run.rows_taught) == (["students", "table"], 0)
    assert "setting temperature: 2.0 became 5.0" in why(run, "students")
    assert of_kind(life.events()[said:], "TeachStarted", "teacher") == []
    assert of_kind(life.events()[said:], "StudentTrained", "name") == ["of-wide"]
    assert life.files() == before


def must_be_pruned(life: Life, run: Run) -> None:
    """One snapshot stays, and what the retired teacher said is gone; nothing else is."""
    assert computed(run) == ["prune"]
    assert why(run, "prune").startswith("it never ran here; 6 snapshots, 3 segments, ")
    assert why(run, "prune").endswith(" go; kept: the newest")
    assert life.cache.snapshots() == [7]
    rows = sorted((name.split("-")[1], count) for name, count in life.segments().items())
    total = FIRST + NEW + MANY
    assert rows == [("deep", NEW), ("deep", FIRST), ("deep", MANY), ("wide", total)]
    assert "every stored byte is as it was written" in life.said(
        "cache", "verify", "out/nightly/nightly.cache"
    )


def must_report_the_week(life: Life, killed: Killed) -> None:
    """`stillroom runs` against what the tests saw, number by number."""
    total = FIRST + NEW + MANY
    found = json.loads(life.said("runs", "--since", "7d", "--json"))[::-1]
    told = [(run["schedule"], run["state"], run["attempt"]) for run in found]
    done = ("nightly", "done", 1)
    assert told == [
        *(done, done, done),
        *(("nightly", "interrupted", 1), ("nightly", "done", 2)),
        *(done, done, done),
        ("weekly", "done", 1),
    ]
    taught = [run["rows_taught"] for run in found]
    assert taught[:3] == [2 * FIRST, 2 * NEW, 0]
    assert taught[3] == killed.run.rows_taught
    assert taught[4:] == [2 * MANY - killed.rows, total, 0, 0, 0]
    last: dict[str, float] = {}
    spared = 0.0
    for run in found:
        saved = sum(last[step["step"]] for step in run["steps"] if step["fresh"])
        assert run["saved_s"] == (pytest.approx(saved) if run["state"] == "done" else None)
        spared += saved if run["state"] == "done" else 0.0
        for step in run["steps"]:
            if step["fresh"] is False:
                last[step["step"]] = step["seconds"]
    page = life.said("runs", "--since", "7d", "--steps")
    assert f"9 runs: 8 done, 1 interrupted; {sum(taught):,} rows taught" in page
    assert spared > 0
    assert "No module" not in page


def test_three_days_in_one_process_but_for_the_last(
    tmp_path: Path, inside: Inside, world: Any
) -> None:
    """As above without a scheduler: all, one percent, nothing."""
    life, home, given = Life(tmp_path), tmp_path / "home", ("--config", "home/nightly.yaml")
    world.begin(home, 500)
    quick = ("run", FLOW, "--workers", "0", *given, "--epochs", "1", "--json")

    def computed_now() -> tuple[list[str], dict[str, int]]:
        done = inside(*quick)
        assert done.code == 0, done.err
        return json.loads(done.out)["computed"], life.segments()

    steps, segments = computed_now()
    assert (steps, sorted(segments.values())) == (EVERY_STEP, [500, 500])
    keys = world.arrive(home, 5)
    steps, more = computed_now()
    assert (steps, sorted(more.values())) == (EVERY_STEP, [5, 5, 500, 500])
    new = [s.keys.to_pylist() for s in life.cache.segments() if s.path.name not in segments]
    assert new == [keys, keys]
    before = life.files()
    assert json.loads(life.said(*quick))["computed"] == []
    assert life.torch_was_imported() == 0
    assert life.files() == before
