"""What is refused before anything is harmed: a quota, a folder of another workflow, a changed zone."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from stillroom.storage import Cache
from stillroom.storage.files import free_bytes, limited, taken_bytes
from stillroom.workflows.schedules.adding import trigger_of
from stillroom.workflows.schedules.serving import Scheduler
from stillroom.workflows.schedules.state import State
from tests.workflows.conftest import Inside
from tests.workflows.schedules.builders import quick
from tests.workflows.test_pruning import FLOW

OTHER = FLOW.replace("image * 2", "image * 3").replace("rows: int = 4", "rows: int = 5")


def stamps(folder: Path) -> dict[Path, int]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: path.stat().st_mtime_ns for path in files if "leases" not in path.parts}


def test_what_a_quota_does_not_hold_is_refused_before_a_row_is_computed(inside: Inside) -> None:
    Path("flow.py").write_text(FLOW)
    run = ("run", "flow.py", "--workers", "0")
    assert inside(*run, "--rows", "100", "--limit", "1GB").code == 0
    before, size = stamps(Path("out/flow")), taken_bytes(Path("out/flow"))
    much = ("--rows", "50000", "--limit", f"{size + 100_000}")
    planned = inside("plan", "flow.py", *much)
    assert planned.code == 1
    assert "cannot run: no room in" in planned.out
    done = inside(*run, *much)
    assert done.code == 1
    assert "no room in" in done.err
    assert "are free" in done.err
    assert stamps(Path("out/flow")) == before
    assert inside("plan", "flow.py", "--rows", "50000").code == 0
    wrong = inside(*run, "--limit", "plenty")
    assert (wrong.code, "expected a size such as 500MB" in wrong.err) == (2, True)


def test_a_limit_ends_with_its_block_and_counts_what_the_disk_takes(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "file").write_bytes(b"x" * 5000)
    whole = free_bytes(tmp_path / "c")
    with limited(tmp_path / "c", 20_000):
        assert free_bytes(tmp_path / "c" / "not" / "there") == 20_000 - 8192
        assert free_bytes(tmp_path) > 20_000
    with limited(tmp_path / "c", 100), limited(tmp_path / "d", None):
        assert free_bytes(tmp_path / "c") == 0
    assert free_bytes(tmp_path / "c") > whole // 2


def test_two_workflows_do_not_undo_each_other_in_one_folder(inside: Inside) -> None:
    """Same names, other meanings: the second is refused by run and plan, until it has its own folder or
    the first is gone. One that means the same may share it."""
    flows = {name: Path(name, "flow.py") for name in ("mine", "theirs", "same")}
    for name, path in flows.items():
        path.parent.mkdir()
        path.write_text(OTHER if name == "theirs" else FLOW)
    run = ("--workers", "0", "--json")
    assert inside("run", str(flows["mine"]), *run).code == 0
    before = stamps(Path("out/flow"))
    refused = inside("run", str(flows["theirs"]), *run)
    assert refused.code == 2
    for said in ("step 'teach' of out/flow belongs to another workflow", "mine/flow.py", "--out"):
        assert said in refused.err
    assert "setting rows: 4 became 5" in refused.err
    planned = inside("plan", str(flows["theirs"]))
    assert (planned.code, "cannot run: step 'teach'" in planned.out) == (1, True)
    assert stamps(Path("out/flow")) == before
    same = json.loads(inside("run", str(flows["same"]), *run).out)
    assert same["computed"] == []
    assert inside("run", str(flows["theirs"]), *run, "--out", "out/theirs").code == 0
    flows["mine"].rename("mine/renamed.py")
    assert inside("run", str(flows["theirs"]), *run).code == 0
    assert Cache("out/flow/c").snapshots() == [1, 2]


def test_two_workflows_do_not_mean_two_teachers_by_one_name_in_one_cache(
    inside: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that both write to: the second is refused before a row is computed. The first may change
    its teacher, and one that means the same teacher may teach it further rows."""
    monkeypatch.setenv("STILLROOM_STATE", "state")
    shared = FLOW.replace('run.folder / "c"', f'"{tmp_path}/shared"')
    shared = shared.replace('prune_step("prune", "c", keep_last=keep, needs=(taught,))', "taught")
    run = ("--workers", "0", "--json")
    Path("mine.py").write_text(shared)
    Path("same.py").write_text(shared.replace("rows: int = 4", "rows: int = 6"))
    Path("other.py").write_text(shared.replace("image * 2", "image * 3"))
    assert inside("run", "mine.py", *run).code == 0
    assert inside("run", "same.py", *run).code == 0
    before = stamps(tmp_path / "shared")
    refused = inside("run", "other.py", *run)
    assert refused.code == 2
    assert f"teacher 'double' in {tmp_path}/shared is another one to the workflow" in refused.err
    assert "same.py, which taught there last; nothing was computed" in refused.err
    assert stamps(tmp_path / "shared") == before
    Path("same.py").write_text(shared.replace("image * 2", "image * 4"))
    assert inside("run", "same.py", *run).code == 0
    assert len(Cache(tmp_path / "shared").snapshots()) == 3
    again = inside("run", "other.py", *run)
    assert again.code == 2
    Path(again.err.rpartition("remove ")[2].strip()).unlink()
    assert inside("run", "other.py", *run).code == 0


def test_a_machine_that_moves_and_a_zone_that_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schedule keeps the zone that it was added with; with another one, what was due is not due
    again, and what comes next is by the new clock."""
    state = State(tmp_path / "state")

    def at(text: str) -> float:
        return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()

    def add(zone: str, when: str) -> None:
        monkeypatch.setenv("TZ", zone)
        trigger = trigger_of({"--cron": "0 2 * * *"}, None, "5m")
        schedule = quick(tmp_path, "nightly", trigger, added=at(when))
        state.add(schedule, replace=True)

    def fired(when: str) -> list[str]:
        found = Scheduler(state, say=lambda text: None).fire_due(at(when))
        for schedule, tick, _ in state.open_ticks():
            state.close_tick(schedule, tick)
        return found

    add("Europe/Berlin", "2026-12-01T00:00")
    monkeypatch.setenv("TZ", "America/New_York")  # the machine moves; 02:00 in Berlin is 01:00 UTC
    assert fired("2026-12-01T00:59") == []
    assert fired("2026-12-01T01:00") == ["nightly"]
    assert fired("2026-12-01T07:00") == []
    add("America/New_York", "2026-12-01T07:30")  # after its 02:00, which is 07:00 UTC
    assert fired("2026-12-02T01:00") == []
    assert fired("2026-12-02T07:00") == ["nightly"]
    with state.connected(write=False) as connection:
        ticks = [row[0] for row in connection.execute("SELECT tick FROM ticks ORDER BY due")]
    assert ticks == ["2026-12-01T01:00:00Z", "2026-12-02T07:00:00Z"]
