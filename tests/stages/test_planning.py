"""What a plan predicts is what teaching then writes; what does not fit is refused before it is tried."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import namedtuple
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.stages import ArrayRows, FunctionTeacher, Teacher, plan_teach
from stillroom.stages.data.rows import Rows
from stillroom.stages.events import RowsTaught
from stillroom.stages.plans.teach_plan import TeachPlan
from stillroom.storage import Cache
from stillroom.storage.errors import StoreFullError
from tests.stages.builders import (
    Heard,
    Watched,
    answers,
    data,
    images,
    net,
    network,
    plain,
    said,
    stamps,
    taught,
)

ENCODINGS = {"wide": "bfloat16", "few": "topk(3)", "scores": "float16"}
SIGNALS = ("tokens", "scores", "record", "caption", "wide", "few", "flag")
Usage = namedtuple("Usage", "total used free")


def kinds(rows: int, signals: Sequence[str], encodings: Mapping[str, str]) -> tuple[Rows, Teacher]:
    text = [f"word {'é' * (i % 7)}" for i in range(rows)]
    used = {name: encoding for name, encoding in encodings.items() if name in signals}
    return (
        ArrayRows([f"key-{i}" for i in range(rows)], number=np.arange(rows), text=text),
        FunctionTeacher("kinds", said, ("number", "text"), tuple(signals), used),
    )


def written(cache: Path) -> int:
    """Bytes of segments, books and snapshots, without what is no content."""
    files = [p for top in ("segments", "snapshots", "books") for p in (cache / top).rglob("*")]
    return sum(p.stat().st_size for p in files if p.is_file() and "made" not in p.parts)


def predicted(plan: TeachPlan) -> float:
    assert plan.estimate is not None
    assert plan.estimate.bytes is not None
    return plan.estimate.bytes.value


def stop_after(shards: int) -> Any:
    left = [shards]

    def listen(event: object) -> None:
        if isinstance(event, RowsTaught):
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

    return listen


def cut_off(cache: Path, rows: Rows, teacher: Teacher, shards: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        taught(cache, rows, teacher, listen=stop_after(shards))


@settings(max_examples=8, deadline=None)
@given(
    st.integers(1, 80),
    st.lists(st.sampled_from(SIGNALS), min_size=1, max_size=4, unique=True),
    st.sampled_from([16, 50, 1000]),
    st.sampled_from([7, 64]),
    st.sampled_from(["topk(3)", "packed(topk(3))", "int8", "sampled(4)"]),
)
def test_the_bytes_of_a_first_run_are_those_that_it_writes(
    rows: int, signals: list[str], shard_rows: int, batch_size: int, encoding: str
) -> None:
    how: dict[str, Any] = {"shard_rows": shard_rows, "batch_size": batch_size}
    given_rows, teacher = kinds(rows, signals, {**ENCODINGS, "few": encoding})
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "c"
        plan = plan_teach(place, given_rows, teacher, probe=True, **how)
        assert not place.exists()
        taught(place, given_rows, teacher, **how)
        assert predicted(plan) == pytest.approx(written(place), rel=0.05)
        files = [p for p in place.glob("s*/**/*") if p.is_file() and "made" not in p.parts]
        assert plan.estimate is not None
        assert plan.estimate.files == len(files)


def other_net() -> Any:
    import torch

    module = net()
    with torch.no_grad():
        module[0].bias += 1
        module[2].bias += 1
    return module


def headed(**more: Any) -> Teacher:
    layers = {"logits": "2:input", "feature": "1"}
    encodings = {"logits": "head(2)", "feature": "product(2,3)"}
    return network("headed", layers=layers, encodings=encodings, **more)


def test_books_are_counted_where_they_are_new(tmp_path: Path) -> None:
    place = tmp_path / "c"
    plan = plan_teach(place, data(), headed(), probe=True, batch_size=20, shard_rows=10)
    taught(place, data(), headed())
    assert len(list((place / "books").iterdir())) == 2
    before = written(place)
    assert predicted(plan) == pytest.approx(before, rel=0.05)
    plan = plan_teach(place, data(95), headed(), shard_rows=10)
    taught(place, data(95), headed())
    assert predicted(plan) == pytest.approx(written(place) - before, rel=0.05)
    before = written(place)
    changed = headed(module=other_net)
    plan = plan_teach(place, data(), changed, shard_rows=10)
    taught(place, data(), changed)
    assert predicted(plan) == pytest.approx(written(place) - before, rel=0.05)


def test_bytes_of_new_and_edited_rows_come_from_earlier_shards(tmp_path: Path) -> None:
    place = tmp_path / "c"
    taught(place, *kinds(100, SIGNALS, ENCODINGS))
    before = written(place)
    grown, teacher = kinds(180, SIGNALS, ENCODINGS)
    plan = plan_teach(place, grown, Watched(teacher, tmp_path / "x", forbidden=True), shard_rows=10)
    assert (plan.to_compute, plan.rows) == (80, 180)
    assert plan.estimate is not None
    assert plan.estimate.source == "earlier shards"
    assert plan.estimate.seconds is not None
    made = [json.loads(p.read_text()) for p in sorted(place.glob("segments/*/made/0*.json"))]
    loading = statistics.median(m["load_seconds"] for m in made)
    assert plan.estimate.load_seconds == loading < plan.estimate.seconds.value
    taught(place, grown, teacher)
    assert predicted(plan) == pytest.approx(written(place) - before, rel=0.05)


def test_a_snapshot_of_scattered_rows_weighs_more_than_the_rows(tmp_path: Path) -> None:
    place = tmp_path / "c"
    taught(place, data(900), shard_rows=900)
    before = written(place)
    edited = data(900, edited=range(0, 900, 3))
    plan = plan_teach(place, edited, plain(), shard_rows=900)
    taught(place, edited, shard_rows=900)
    assert predicted(plan) == pytest.approx(written(place) - before, rel=0.05)
    assert written(place) - before > 3 * 300 * 16


def test_another_signal_and_a_changed_teacher_are_planned_from_what_is_there(
    tmp_path: Path,
) -> None:
    place = tmp_path / "c"
    taught(place, teacher=plain())
    both = plain(signals=("logits", "feature"))
    plan = plan_teach(place, data(), both)
    assert plan.estimate is not None
    assert (plan.estimate.source, plan.estimate.bytes) == ("unknown", None)
    assert "unknown" in json.dumps(plan.to_json())
    before = written(place)
    plan = plan_teach(place, data(), plain(version="2"), shard_rows=10)
    assert plan.changes
    assert plan.estimate is not None
    assert plan.estimate.source == "shards of the teacher before it changed"
    taught(place, teacher=plain(version="2"))
    assert predicted(plan) == pytest.approx(written(place) - before, rel=0.05)


def test_signals_that_lie_in_different_segments_are_put_together(tmp_path: Path) -> None:
    place = tmp_path / "c"
    taught(place, teacher=plain())
    taught(place, teacher=plain(signals=("logits", "feature")))
    before = written(place)
    both = plain(signals=("logits", "feature"))
    plan = plan_teach(place, data(95), both, shard_rows=10)
    taught(place, data(95), both)
    assert predicted(plan) == pytest.approx(written(place) - before, rel=0.05)


def test_rows_that_a_cut_off_run_finished_are_not_planned_again(tmp_path: Path) -> None:
    place = tmp_path / "c"
    cut_off(place, data(), plain(), 2)
    before, stamped = written(place), stamps(place)
    plan = plan_teach(place, data(), Watched(plain(), tmp_path / "x", forbidden=True))
    assert (plan.to_compute, plan.kept, plan.rows) == (40, 20, 60)
    assert plan.why == "60 rows: this teacher has answered none yet"
    assert plan.estimate is not None
    assert plan.estimate.source == "earlier shards"
    assert stamps(place) == stamped
    heard = Heard()
    taught(place, listen=heard)
    assert heard.taught == 40
    assert predicted(plan) == pytest.approx(written(place) - before, rel=0.05)
    assert plan_teach(place, data(), plain()).to_json()["to_compute"] == 0


def test_a_probe_of_a_cut_off_run_asks_only_for_rows_that_are_left(tmp_path: Path) -> None:
    cut_off(tmp_path / "c", data(), plain(), 2)
    watched = Watched(plain(), tmp_path / "shown")
    plan_teach(tmp_path / "c", data(), watched, probe=True, batch_size=4)
    assert set(watched.shown(data())) <= {f"r{i}" for i in range(20, 60)}


def test_shards_of_another_state_of_the_data_are_counted_as_salvaged(tmp_path: Path) -> None:
    place = tmp_path / "c"
    cut_off(place, data(), plain(), 3)
    changed = data(edited=[5, 59])
    plan = plan_teach(place, changed, plain())
    assert (plan.to_compute, plan.kept) == (31, 29)
    heard = Heard()
    taught(place, changed, listen=heard)
    assert heard.taught == plan.to_compute
    assert plan.why == "31 rows are new, changed or lack logits"


def test_a_run_of_which_only_the_seal_is_missing_computes_nothing(tmp_path: Path) -> None:
    cut_off(tmp_path / "c", data(), plain(), 6)
    plan = plan_teach(tmp_path / "c", data(), plain())
    assert (plan.to_compute, plan.kept, bool(plan.why)) == (0, 60, True)


def test_n_and_the_price_come_with_the_epochs_of_the_students(tmp_path: Path) -> None:
    taught(tmp_path / "c", data(), network())
    how: dict[str, Any] = {"epochs": 20, "rows_per_epoch": 30, "price_per_hour": 3.6}
    plan = plan_teach(tmp_path / "c", data(120), network(), **how, reading_seconds=0.5)
    assert plan.estimate is not None
    found = plan.estimate.break_even
    assert found is not None
    assert plan.estimate.row_seconds is not None
    assert plan.estimate.load_seconds is not None
    inside = 20 * 30 * plan.estimate.row_seconds
    assert found.online_seconds == pytest.approx(plan.estimate.load_seconds + inside)
    assert (found.reading_seconds, found.reading_measured) == (0.5, True)
    assert found.price(1000) == pytest.approx(1)
    again = plan_teach(tmp_path / "c", data(120), network())
    assert again.estimate is not None
    assert again.estimate.break_even is None


def test_a_probe_can_be_used_again_without_the_teacher(tmp_path: Path) -> None:
    from stillroom.stages import probe

    found = probe(data(), plain(), np.arange(60), plain().asks(), batch_size=4)
    forbidden = Watched(plain(), tmp_path / "x", forbidden=True)
    plan = plan_teach(tmp_path / "c", data(), forbidden, probe=found, workers=4, shard_rows=10)
    one = plan_teach(tmp_path / "c", data(), forbidden, probe=found, shard_rows=10)
    assert plan.estimate is not None
    assert one.estimate is not None
    assert plan.estimate.seconds is not None
    assert one.estimate.seconds is not None
    assert plan.estimate.seconds.value < one.estimate.seconds.value
    assert plan.estimate.bytes == one.estimate.bytes


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    usage = Usage(10**12, 10**12 - count, count)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)


def test_what_cannot_fit_is_refused_before_the_teacher_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught(tmp_path / "c")
    before = stamps(tmp_path / "c" / "segments")
    grown = data(300)
    free(monkeypatch, 30_000)
    plan = plan_teach(tmp_path / "c", grown, plain(), shard_rows=10)
    assert plan.estimate is not None
    assert plan.estimate.room is not None
    assert plan.estimate.room.verdict == "does not fit"
    watched = Watched(plain(), tmp_path / "x", forbidden=True)
    with pytest.raises(StoreFullError, match=r"30,000 are free.*make room") as raised:
        taught(tmp_path / "c", grown, watched)
    assert str(tmp_path / "c") in str(raised.value)
    assert stamps(tmp_path / "c" / "segments") == before
    free(monkeypatch, 10**9)
    assert taught(tmp_path / "c", grown).rows == 300


def test_without_earlier_shards_the_first_one_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 30_000)
    heard = Heard()
    with pytest.raises(StoreFullError, match="from what is finished"):
        taught(tmp_path / "c", data(300), listen=heard)
    assert heard.taught == 10
    free(monkeypatch, 10**9)
    heard = Heard()
    taught(tmp_path / "c", data(300), listen=heard)
    assert heard.taught == 290


def test_another_identity_is_no_reason_to_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught(tmp_path / "c", teacher=plain(signals=("logits", "feature"), answer=tall))
    free(monkeypatch, 100_000)
    narrow = plain(signals=("logits", "feature"))
    assert taught(tmp_path / "c", teacher=narrow).rows == 60


def tall(image: Any) -> Mapping[str, Any]:
    return {"logits": image, "feature": np.repeat(image, 100, axis=1)}


def wide(image: Any) -> Mapping[str, Any]:
    return {"wide": np.repeat(image[:, :1], 10_000, axis=1)}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    # Lazily: a reader's maps may still be alive.
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_on_a_small_disk_one_shard_is_written_and_what_fits_is_taught(small_disk: Path) -> None:
    teacher = FunctionTeacher("wide", wide, ("image",), ("wide",))
    heard = Heard()
    with pytest.raises(StoreFullError, match="to stay free"):
        taught(small_disk / "c", data(60), teacher, listen=heard)  # 2.4 MB
    assert heard.taught == 10
    snapshot = taught(small_disk / "c", data(40), teacher)  # 1.6 MB, the first shard is there
    np.testing.assert_array_equal(answers(snapshot, data(40), "wide")[:, 7], images(40)[:, 0])


UNLOADED = """
import sys
from functools import partial
from pathlib import Path
import numpy as np
from stillroom.stages import ArrayRows, ModuleTeacher, plan_teach

def build():
    raise AssertionError("it was built")

rows = ArrayRows(range(50), image=np.zeros((50, 3), np.float32))
teacher = ModuleTeacher("big", build, weights=sys.argv[1])
print(plan_teach(Path(sys.argv[2]), rows, teacher).why)
assert not {"torch", "zarr"} & set(sys.modules)
"""


def test_a_plan_without_a_probe_imports_no_torch(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "a.safetensors")
    command = [sys.executable, "-c", UNLOADED, str(tmp_path / "a.safetensors"), str(tmp_path / "c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "50 rows: this teacher has answered none yet\n", done.stderr
    assert not (tmp_path / "c").exists()


def test_an_unchanged_data_set_needs_no_estimate(tmp_path: Path) -> None:
    taught(tmp_path / "c")
    plan = plan_teach(Cache(tmp_path / "c"), data(), plain(), probe=True, epochs=3)
    assert (plan.to_compute, plan.estimate, plan.why) == (0, None, "")


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"workers": 0}, {"shard_rows": 0}, {"epochs": -1}]
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        plan_teach(tmp_path / "c", data(), plain(), **wrong)  # type: ignore[arg-type]
