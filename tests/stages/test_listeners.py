"""Listeners: events become exact numbers, lines that Arrow reads, and scalars that TensorBoard reads."""

from __future__ import annotations

import itertools
import json
import struct
import sys
from pathlib import Path
from typing import Any

import google_crc32c
import pyarrow.json
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.stages import events as said
from stillroom.stages.events import RowsSkipped, RowsTaught, StudentTrained, TeachStarted
from stillroom.stages.listeners.all_of import all_of
from stillroom.stages.listeners.json_lines import JsonLines, plain
from stillroom.stages.listeners.tally import Tally
from stillroom.stages.listeners.tensor_board import TensorBoard
from tests.stages.builders import Heard, data, network, taught


class Died:
    """What a runner says of a dead worker."""


def test_two_teachers_that_work_at_the_same_time_have_their_own_numbers() -> None:
    tally = Tally((Died,))
    tally.take(TeachStarted("cnn", 80, 20, "new"), 100.0)
    tally.take(TeachStarted("vit", 60, 0, "new"), 101.0)
    assert tally.paces["vit"].busy is None
    assert tally.paces["vit"].seconds_left is None
    tally.take(RowsTaught("cnn", 10, 1000, 3.0, worker="a"), 104.0)
    tally.take(RowsTaught("vit", 30, 600, 1.0, worker="c", halved=2), 106.0)
    tally.take(RowsTaught("cnn", 10, 1000, 4.0, worker="b"), 105.0)
    tally.take(Died(), 105.5)
    tally.take(RowsSkipped(2, {"a": "truncated", "b": "truncated"}), 106.0)
    cnn, vit = tally.paces["cnn"], tally.paces["vit"]
    assert (cnn.stored, cnn.rows_per_second, cnn.bytes_per_second) == (40, 4.0, 400.0)
    assert (cnn.busy, cnn.seconds_left) == (0.7, 15.0)  # 7 s of two workers' 5 s; 60 rows left
    assert (vit.rows_per_second, vit.busy, vit.seconds_left, vit.halved) == (6.0, 0.2, 5.0, 2)
    assert (tally.retries, tally.skipped) == (1, 2)
    assert [pace.teacher for pace in tally.unfinished] == ["cnn", "vit"]
    tally.take(said.TeachFinished("cnn", 80, 1, 5.0), 107.0)
    assert [pace.teacher for pace in tally.unfinished] == ["vit"]


@given(
    st.lists(
        st.tuples(st.integers(1, 99), st.integers(0, 9999), st.sampled_from("abc")), max_size=9
    )
)
def test_sums_do_not_depend_on_the_order_of_shards(shards: list[tuple[int, int, str]]) -> None:
    rows = sum(n for n, _, _ in shards)
    paces = []
    for order in (shards, shards[::-1]):
        tally = Tally()
        tally.take(TeachStarted("t", rows + 1, 0, ""), 0.0)
        for at, (n, size, worker) in enumerate(order, 1):
            tally.take(RowsTaught("t", n, size, 0.5, worker=worker), float(at))
        paces.append(tally.paces["t"])
    assert paces[0] == paces[1]
    assert paces[0].done == rows
    assert paces[0].rows_per_second == (rows / len(shards) if shards else 0)


def test_a_teachers_real_run_adds_up(tmp_path: Path) -> None:
    tally, clock = Tally(), itertools.count()
    taught(tmp_path / "c", data(), network(), listen=lambda event: tally.take(event, next(clock)))
    pace = tally.paces["net"]
    assert (pace.done, pace.stored, pace.rows, pace.seconds_left) == (60, 60, 60, 0.0)
    assert pace.bytes == sum(
        p.stat().st_size for p in tmp_path.glob("c/segments/*/signals/*/c/*/*")
    )
    assert len(pace.workers) == 1
    assert pace.teacher_seconds > 0
    assert tally.unfinished == []


def every_event() -> list[Any]:
    return [
        RowsSkipped(1, {"x": "truncated"}),
        RowsSkipped(0, {}),
        TeachStarted("cnn", 5, 0, 'because "quoted"\nand broken'),
        said.BooksMade("cnn", ("a", "é"), 3, 0.0),
        RowsTaught("cnn", 5, 100, 1e-9, worker="h:1"),
        StudentTrained("kd", 0, 1.5, {"accuracy": 0.5, "ece": float("nan")}),
        StudentTrained("kd", 1, float("inf"), {"accuracy": 1.0}),
    ]


def test_every_event_is_a_line_that_arrow_reads(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "new" / "log.jsonl", clock=itertools.count(10).__next__)
    for number, event in enumerate(every_event(), 1):
        lines(event)
        # Flushed: who follows the file sees each event at once, whole.
        assert len((tmp_path / "new" / "log.jsonl").read_text().split("\n")) == number + 1
    lines.close()
    table = pyarrow.json.read_json(tmp_path / "new" / "log.jsonl")
    assert table["at"].to_pylist() == list(range(10, 17))
    assert table["event"].to_pylist() == [type(event).__name__ for event in every_event()]
    assert table["why"].to_pylist()[2] == 'because "quoted"\nand broken'
    assert table["metrics.accuracy"].to_pylist()[-2:] == [0.5, 1.0]
    assert table["metrics.ece"].to_pylist()[-2:] == [None, None]
    assert table["seconds"].to_pylist()[-1] is None
    assert json.loads(table["signals"].to_pylist()[3]) == ["a", "é"]
    assert json.loads(table["reasons"].to_pylist()[0]) == {"x": "truncated"}


def test_a_second_run_appends_and_a_torn_line_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    first = JsonLines(path)
    first(every_event()[0])
    first.close()
    with open(path, "a") as file:
        file.write('{"at": 1, "event": "Rows')  # as a killed process leaves it
    second = JsonLines(path)
    second(every_event()[2])
    second.close()
    assert pyarrow.json.read_json(path)["event"].to_pylist() == ["RowsSkipped", "TeachStarted"]


def test_events_are_plain_and_none_loses_a_field() -> None:
    for event in every_event():
        found = plain(event)
        assert found["event"] == type(event).__name__
        assert all(
            any(name == f or name.startswith(f"{f}.") for name in found)
            for f in event.__dataclass_fields__
            if getattr(event, f) != {}
        )


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would show: (step, value) by tag, of records whose checksums are right."""
    from tensorboardX.proto.event_pb2 import Event

    def masked(content: bytes) -> int:
        crc = int(google_crc32c.value(content))
        return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF

    (path,) = folder.glob("events.out.tfevents.*")
    content, at, found = path.read_bytes(), 0, dict[str, list[tuple[int, float]]]()
    while at < len(content):
        length, of_length = struct.unpack_from("<QI", content, at)
        record = content[at + 12 : at + 12 + length]
        assert of_length == masked(content[at : at + 8])
        assert struct.unpack_from("<I", content, at + 12 + length)[0] == masked(record)
        event = Event.FromString(record)
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
        at += 16 + length
    return found


def test_tensorboard_shows_paces_over_rows_and_metrics_over_seeds(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path / "tb", retried=(Died,), clock=itertools.count(0, 2).__next__)
    for event in (
        TeachStarted("cnn", 100, 10, "new"),
        RowsTaught("cnn", 20, 100, 1.0, worker="a"),
        Died(),
        RowsTaught("cnn", 40, 500, 2.0, worker="a"),
        StudentTrained("kd", 0, 1.5, {"accuracy": 0.5}),
        StudentTrained("kd", 1, 1.5, {"accuracy": 0.75}),
    ):
        board(event)
    found = scalars(tmp_path / "tb")  # each event is there before the file is closed
    board.close()
    assert found["teach/cnn/rows_per_second"] == [(30, 10.0), (70, 10.0)]
    assert found["teach/cnn/bytes_per_second"] == [(30, 50.0), (70, 100.0)]
    assert found["teach/cnn/busy"] == [(30, 0.5), (70, 0.5)]
    assert found["teach/cnn/seconds_left"] == [(30, 8.0), (70, 4.0)]
    assert found["run/retries"] == [(30, 0.0), (70, 1.0)]
    assert found["train/kd/accuracy"] == [(0, 0.5), (1, 0.75)]


def test_without_its_package_tensorboard_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorboardX", "tensorboardX.event_file_writer"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'stillroom\[tensorboard\]'"):
        TensorBoard(tmp_path)


def test_of_several_listeners_all_hear_also_when_one_raises() -> None:
    def bad(event: object) -> None:
        raise OSError("disk full")

    first, last = Heard(), Heard()
    event = every_event()[2]
    with pytest.raises(OSError, match="disk full"):
        all_of(first, bad, last)(event)
    assert (first.events, last.events) == ([event], [event])
    with pytest.raises(ExceptionGroup, match="2 of 3 listeners failed"):
        all_of(bad, first, bad)(event)
