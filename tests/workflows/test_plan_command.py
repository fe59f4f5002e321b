"""`stillroom plan`: what it says about a teach step, for people and for machines; when it refuses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.stages import plan_teach
from stillroom.stages.plans.estimating import BreakEven, Interval, Room
from stillroom.stages.teachers.module import ModuleTeacher
from stillroom.storage import Cache
from stillroom.workflows.digits import ENCODINGS, SHARD_ROWS
from stillroom.workflows.digits_data import digits_rows
from stillroom.workflows.digits_models import CNN_FEATURE
from stillroom.workflows.plan_words import break_even_line, preview_of
from tests.stages.builders import data, plain, taught

Command = Callable[..., subprocess.CompletedProcess[str]]
Done = tuple[Path, dict[str, Any]]
SMALL = ("--epochs", "1", "--teacher-epochs", "1", "--seeds", "2")


def bytes_of(cache: Path) -> int:
    files = [p for p in cache.glob("s*/**/*") if p.is_file() and "made" not in p.parts]
    return sum(p.stat().st_size for p in files)


@pytest.fixture
def untaught(digits_run: Done, tmp_path: Path) -> Path:
    """A finished run without its cache."""
    left = shutil.ignore_patterns("digits.cache")
    return Path(shutil.copytree(digits_run[0], tmp_path / "out", ignore=left))


def test_a_probe_predicts_the_demo(digits_run: Done, untaught: Path, command: Command) -> None:
    more = ("--probe", "--price-per-hour", "3", "--workers", "2", "--json")
    done = command("plan", "digits", *SMALL, "--out", str(untaught), *more)
    assert done.returncode == 0, done.stderr
    steps = {step["step"]: step for step in json.loads(done.stdout)}
    found = steps["teach"]["details"]["estimate"]
    assert steps["teach"]["details"]["to_compute"] == 5000
    assert found["bytes"]["value"] == pytest.approx(
        bytes_of(digits_run[0] / "digits.cache"), rel=0.05
    )
    seconds = found["seconds"]
    assert 0 < seconds["low"] <= seconds["value"] <= seconds["high"]
    assert found["room"]["verdict"] == "fits"
    even = found["break_even"]
    assert (even["epochs"], even["rows_per_epoch"], even["reading_measured"]) == (1, 4000, False)
    assert even["students"] >= 1
    assert not (untaught / "digits.cache").exists()
    size, seconds, n = steps["teach"]["lines"]
    assert size.startswith("3.5 MB in 20 files, from a probe of")
    assert seconds.endswith(" with 2 workers")
    assert n.startswith("N* = ")
    assert re.search(r" s for 0\.\d+ once against ", n)
    assert steps["students"]["why"] == "after teach"


def test_what_is_not_known_is_said_with_the_way_to_know_it(tmp_path: Path) -> None:
    said = preview_of(plan_teach(tmp_path / "c", data(), plain()), tmp_path / "c")
    assert said.why == "60 rows: this teacher has answered none yet"
    assert said.lines[0].startswith(
        "bytes and seconds unknown: --probe loads the teacher and times it"
    )
    assert (said.details["estimate"]["bytes"], said.refused) == (None, "")


def test_a_changed_teacher_is_named_with_its_rows(digits_run: Done, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    (weights,) = digits_run[0].glob("teacher/*/weights.safetensors")
    state = load_file(weights)
    name = next(name for name in state if name.endswith("weight"))
    state[name] = state[name] + np.float32(1)
    save_file(state, tmp_path / "other.safetensors")
    before = Cache(digits_run[0] / "digits.cache").segments()[0]

    class Changed(ModuleTeacher):
        """The same but for its weights, whatever builds it."""

        def identity(self) -> dict[str, Any]:
            return {**before.identity, "weights": super().identity()["weights"]}

    teacher = Changed(
        before.teacher,
        dict,  # type: ignore[arg-type]
        weights=tmp_path / "other.safetensors",
        layers={"logits": "", "feature": CNN_FEATURE},
        encodings=ENCODINGS,
    )
    place = digits_run[0] / "digits.cache"
    plan = plan_teach(place, digits_rows(), teacher, shard_rows=SHARD_ROWS, epochs=10)
    said = preview_of(plan, place)
    assert name in said.why
    assert said.why.endswith("; 5,000 rows would be taught again")
    assert len(plan.changes) == 1
    assert plan.estimate is not None
    assert plan.estimate.bytes is not None
    assert plan.estimate.bytes.value == pytest.approx(bytes_of(place), rel=0.05)
    assert any("from shards of the teacher before it changed" in line for line in said.lines)


REFUSED = """
from stillroom.pipeline import Preview, Step

def fill(run, inputs):
    return {}

def preview(run, inputs):
    wanted = run.options["workers"]
    return Preview("much to do", (f"{wanted} workers",), {"need": 5}, "no room for 5 bytes")

def workflow():
    return [Step("fill", fill, preview=preview)]
"""


def test_what_cannot_run_is_said_and_is_the_exit_code(tmp_path: Path, command: Command) -> None:
    (tmp_path / "flow.py").write_text(REFUSED)
    asked = ("plan", str(tmp_path / "flow.py"), "--out", str(tmp_path / "out"), "--workers", "3")
    done = command(*asked)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert [line.split(maxsplit=1)[-1] for line in lines] == [
        *("run:   much to do", "workers", "run: no room for 5 bytes"),
    ]
    done = command(*asked, "--json")
    assert done.returncode == 1
    (step,) = json.loads(done.stdout)
    assert (step["refused"], step["details"]) == ("no room for 5 bytes", {"need": 5})


def test_a_full_disk_refuses_and_names_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught(tmp_path / "c")
    usage = (10**12, 10**12, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: type("Usage", (), {"free": usage[2]}))
    said = preview_of(plan_teach(tmp_path / "c", data(200), plain()), tmp_path / "c")
    assert said.refused.startswith(f"no room in {tmp_path / 'c'} for what teacher 'plain'")
    assert "1,000 are free" in said.refused
    assert any("1.0 kB free: does not fit" in line for line in said.lines)


def test_rows_of_a_cut_off_run_are_mentioned(tmp_path: Path) -> None:
    def stop(event: object) -> None:
        if type(event).__name__ == "RowsTaught":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        taught(tmp_path / "c", listen=stop)
    said = preview_of(plan_teach(tmp_path / "c", data(), plain()), tmp_path / "c")
    assert said.lines[0] == "10 rows were finished by a run that was cut off; they are kept"
    assert said.details["to_compute"] == 50


@pytest.mark.parametrize(
    ("once", "online", "said"),
    [
        (12, 240, "N* = 1: cheaper from the first student of 20 epochs on"),
        (12, 6, "N* = 3: cheaper from the third student of 20 epochs on"),
        (21, 1, "N* = 22: cheaper from the 22nd student of 20 epochs on"),
        (11, 1, "N* = 12: cheaper from the 12th student of 20 epochs on"),
        (1, 0, "N*: never cheaper for students of 20 epochs"),
    ],
)
def test_n_in_words(once: float, online: float, said: str) -> None:
    line = break_even_line(BreakEven(once, online, 0.0, False, 20, 4000))
    assert line.startswith(said)
    assert "reading not measured" in line


def test_both_sides_of_n_are_spelled() -> None:
    line = break_even_line(BreakEven(12, 240, 0.5, True, 1, 4000, 1800))
    assert "student of 1 epoch on" in line
    assert "teacher 12.0 s for 6.00 once against 4.0 min for 120.00 inside each" in line
    assert line.endswith("reading 500 ms a run)")


def test_an_estimate_is_plain_json() -> None:
    assert Interval(1, None, None).to_json() == {"value": 1, "low": None, "high": None}
    assert Room(None, 5, 5).to_json()["verdict"] == "unknown"
