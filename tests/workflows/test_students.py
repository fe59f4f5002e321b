"""`stillroom students`: records listed, compared and judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from stillroom.stages import Fit
from stillroom.storage import Cache
from stillroom.workflows import students as known
from stillroom.workflows.cli import app
from stillroom.workflows.students import NoStudentsError
from tests.stages.builders import network, student, taught, trained


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two students of two seeds, and a third of one."""
    folder = tmp_path_factory.mktemp("run")
    snapshot = taught(folder / "cache", teacher=network())
    two = [student(n, m, seed=s) for n, m in (("soft", "kd"), ("hard", "labels")) for s in (0, 1)]
    long = student("long", fit=Fit(epochs=6, batch_size=8, learning_rate=0.02))
    trained(folder / "students", [*two, long], snapshot)
    (folder / "students" / "other").mkdir()
    (folder / "students" / "other" / "record.json").write_text('{"not": "ours"}')
    return folder


def asked(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["students", *map(str, arguments)])


def test_students_are_listed_with_intervals_over_seeds(run: Path) -> None:
    found = json.loads(asked(run, "--json").stdout)["students"]
    assert [(s["student"], s["seeds"]) for s in found] == [
        ("hard", [0, 1]), ("long", [0]), ("soft", [0, 1])]  # fmt: skip
    nll = found[2]["metrics"]["nll"]
    assert nll["low"] < nll["mean"] < nll["high"]
    assert found[1]["metrics"]["nll"]["low"] == found[1]["metrics"]["nll"]["high"]
    listed = asked(run).stdout
    assert "soft" in listed
    assert "±" in listed


def test_a_table_in_a_pipe_is_as_wide_as_it_must_be(run: Path) -> None:
    said = asked(run).stdout
    assert "parameters" in said
    assert "\N{HORIZONTAL ELLIPSIS}" not in said


def test_the_best_weights_are_a_path_to_use(run: Path) -> None:
    records = known.records_below(run)
    for metric, choose in (("accuracy", max), ("-nll", min)):
        place = Path(asked(run, "--best", metric).stdout.strip())
        assert place.is_file()
        (mine,) = [r for r in records if r.weights == place]
        name = metric.removeprefix("-")
        assert mine.metrics[name] == choose(r.metrics[name] for r in records)
    with pytest.raises(NoStudentsError, match="no student has a metric 'acuracy'; did you mean"):
        known.best(records, "acuracy")


def test_two_students_are_compared_seed_by_seed(run: Path) -> None:
    said = asked(run, "--compare", "soft", "hard").stdout
    assert "recipe: kd and labels" in said
    assert "over 2 seeds" in said
    assert "fit.epochs: 3 and 6" in asked(run, "--compare", "soft", "long").stdout
    with pytest.raises(NoStudentsError, match="no student 'sotf'; did you mean 'soft'"):
        known.named(known.records_below(run), "sotf")


def test_the_ledger_is_of_what_was_measured(run: Path) -> None:
    records = known.records_below(run)
    costs = known.ledger(records, Cache(run / "cache"))
    assert costs["teacher_rows"] == 60
    assert costs["rows_read"] == 40 * (3 + 3 + 6)
    assert costs["online_teacher_seconds"] == pytest.approx(costs["teacher_seconds"] / 60 * 480)
    assert costs["student_seconds"] == sum(r.content["seconds"] for r in records)
    each = costs["online_teacher_seconds"] / 3
    assert (costs["students"] - 1) * each <= costs["teaching_seconds"] < costs["students"] * each
    assert "N*: the cache is cheaper from" in asked(run, "--cache", run / "cache").stdout


def test_a_record_says_what_it_took(run: Path) -> None:
    (long,) = json.loads(asked(run, "--show", "long").stdout)
    assert long["rows_per_second"] == pytest.approx(40 * 6 / long["fit_seconds"])
    assert long["peak_memory_bytes"] > 2**20
    assert long["epochs"] == 6


def test_a_folder_without_students_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoStudentsError, match="no trained student below"):
        known.records_below(tmp_path)
