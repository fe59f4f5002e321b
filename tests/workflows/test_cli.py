"""The command line: what it prints, for people and for machines, and its exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillroom.storage.place import place_of
from tests.stages.builders import data, taught
from tests.storage.s3_server import s3_server

Command = Callable[..., subprocess.CompletedProcess[str]]
Done = tuple[Path, dict[str, Any]]
SMALL = ("--epochs", "1", "--teacher-epochs", "1", "--seeds", "2")

FLOW = """
from stillroom.pipeline import Step

def double(run, inputs, *, number):
    return {"doubled": 2 * number}

def workflow(*, number: int = 3, names: tuple[str, ...] = (), loud: bool = False):
    return [Step("double", double, {"number": number})]
"""


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    path = tmp_path / "flow.py"
    path.write_text(FLOW)
    return path


def test_a_second_run_says_that_nothing_is_to_do(digits_run: Done, command: Command) -> None:
    done = command("run", "digits", *SMALL, "--out", str(digits_run[0]))
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout
    assert "cnn4-kd" in done.stdout
    assert "report.html" in done.stdout


def test_a_plan_says_what_would_run_and_why_and_changes_nothing(
    digits_run: Done, command: Command
) -> None:
    folder = digits_run[0]
    before = sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*"))
    done = command("plan", "digits", *SMALL, "--extra", "cnn6-kd", "--out", str(folder), "--json")
    steps = {step["step"]: step for step in json.loads(done.stdout)}
    assert not steps["teacher"]["runs"]
    assert not steps["teach"]["runs"]
    assert steps["students"]["why"] == "2 trainings without a record: cnn6-kd"
    assert sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*")) == before


def test_a_plan_before_the_first_run_writes_nothing(command: Command, tmp_path: Path) -> None:
    done = command("plan", "digits", "--out", str(tmp_path / "none"))
    assert done.returncode == 0, done.stderr
    assert "it never ran here" in done.stdout
    assert not (tmp_path / "none").exists()


def test_a_cache_is_shown_for_people_and_for_machines(digits_run: Done, command: Command) -> None:
    path = str(digits_run[0] / "digits.cache")
    shown = command("cache", "show", path)
    assert "5,000 rows" in shown.stdout
    assert "float16" in shown.stdout
    described = json.loads(command("cache", "show", path, "--json").stdout)
    assert described["snapshots"][0]["rows"] == 5000
    assert set(described["segments"][0]["signals"]) == {"logits", "feature"}
    assert described["segments"][0]["identity"]["weights"]


def test_a_flipped_byte_is_found_by_verify_and_refused_by_training(
    digits_run: Done, command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(digits_run[0], folder)
    path = folder / "digits.cache"
    assert command("cache", "verify", str(path)).returncode == 0
    chunk = next(path.glob("segments/*/signals/logits/c/2/0"))
    content = bytearray(chunk.read_bytes())
    content[1000] ^= 1
    chunk.write_bytes(content)
    found = command("cache", "verify", str(path))
    assert found.returncode == 3
    assert "signals/logits/c/2/0" in found.stdout
    refused = command(
        "run", "digits", *SMALL, "--extra", "mlp8-kd", "--out", str(folder), "--workers", "0"
    )
    assert refused.returncode == 1
    assert "checksum" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_what_is_no_cache_is_named(command: Command, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        done = command("cache", "show", str(path))
        assert done.returncode == 1
        assert str(path) in done.stderr
        assert "Traceback" not in done.stderr


def test_recipes_are_listed_and_shown(command: Command) -> None:
    listed = command("recipes").stdout
    assert "kd " in listed
    assert "Hinton" in listed
    shown = command("recipes", "show", "kd").stdout
    assert "arXiv:1503.02531" in shown
    assert "temperature" in shown
    described = json.loads(command("recipes", "show", "kd", "--json").stdout)
    assert described["reads"] == ["logits"]
    wrong = command("recipes", "show", "kdd")
    assert wrong.returncode == 1
    assert "did you mean 'kd'" in wrong.stderr


def test_a_users_own_workflow_runs_with_its_settings_as_flags(
    flow: Path, command: Command, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    done = command("run", str(flow), "--number", "21", "--out", out, "--json")
    assert json.loads(done.stdout)["results"] == {"double": {"doubled": 42}}
    again = command("run", str(flow), "--number", "21", "--out", out)
    assert "nothing to do" in again.stdout
    changed = command("run", str(flow), "--number=5", "--out", out)
    assert "setting number: 21 became 5" in changed.stdout


def test_every_wrong_setting_is_named_at_once(flow: Path, command: Command) -> None:
    done = command("run", str(flow), "--numbr", "2", "--number", "many", "--nmaes", "x")
    assert done.returncode == 2
    assert "--numbr: unknown; did you mean '--number'" in done.stderr
    assert "--nmaes: unknown; did you mean '--names'" in done.stderr
    assert "--number: Input should be a valid integer" in done.stderr


def test_an_unknown_workflow_is_named(command: Command, tmp_path: Path) -> None:
    done = command("run", "digit")
    assert done.returncode == 2
    assert "did you mean 'digits'" in done.stderr
    empty = tmp_path / "empty.py"
    empty.write_text("")
    done = command("run", str(empty))
    assert done.returncode == 2
    assert "no function `workflow`" in done.stderr


def test_a_workflow_that_fails_to_import_shows_its_traceback(
    command: Command, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import not_there_at_all\n")
    done = command("run", str(broken))
    assert done.returncode == 2
    assert "not_there_at_all" in done.stderr


def test_a_cache_in_an_object_store_is_shown_and_cared_for_by_its_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    with s3_server() as port:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "STILLROOM_MIRROR": str(tmp_path / "mirror"),
        }.items():
            monkeypatch.setenv(name, value)
        url = "s3://caches/command.cache"
        taught(place_of(url))
        taught(place_of(url), data(edited=[3]))
        assert "1 teacher, 2 segments, 2 snapshots" in command("cache", "show", url).stdout
        joined = command("cache", "compact", url)
        assert "joined 2 segments" in joined.stdout, joined.stderr
        pruned = json.loads(command("cache", "prune", url, "--keep-last", "1", "--json").stdout)
        assert (pruned["snapshots"], len(pruned["segments"])) == ([1, 2], 2)
        verified = command("cache", "verify", url)
        assert (verified.returncode, verified.stderr) == (0, "")
        assert "every stored byte is as it was written" in verified.stdout
        nowhere = command("cache", "verify", "s3://caches/nothing")
        assert (nowhere.returncode, "s3://caches/nothing is not a cache" in nowhere.stderr) == (
            1,
            True,
        )
