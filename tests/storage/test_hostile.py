"""A damaged or made-up cache gives our errors only, and never makes us look outside its folder."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stillroom.storage.cache import Cache
from stillroom.storage.errors import StillroomError
from stillroom.storage.ragged import Ragged
from stillroom.storage.reader import Reader
from stillroom.storage.snapshot import Snapshot
from stillroom.storage.testing import SmallCache, on_disk

EXAMPLES = int(os.environ.get("STILLROOM_HOSTILE_EXAMPLES", "150"))
many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == 150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ODD: list[Any] = [
    *(None, True, -1, 0, 1, 2, 3, 7, 2**31, 2**53, 2**63 - 1, 2**63, 2**70, 0.5, -0.0, 1e308),
    *(float("inf"), float("nan"), "", "x", "raw", "float16", "string", "topk(2)", "topk(0)"),
    *("int8", "sampled(4)", "packed(topk(2))", "packed(sampled(4))"),
    *("../../../outside/secret", "/etc/passwd", "..", ".", "a/../../../../outside/secret"),
    *("\0", "é" * 300, "signals/x/c/0/0", "0001-", "00000000", "x" * 5000),
    *(
        [],
        {},
        [None],
        [[]],
        [-1],
        [2**70],
        [0],
        [1, 2],
        {"x": {}},
        {"": ""},
        [["a", "float32", []]],
    ),
]


@dataclass
class Victim:
    """A sound cache, and how to put it right again."""

    path: Path
    content: dict[Path, bytes]
    opened: set[str] = field(default_factory=set)

    def restore(self) -> None:
        for path, content in self.content.items():
            if path.read_bytes() != content:
                path.write_bytes(content)


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "outside").mkdir()
    (folder / "outside/secret").write_text("{}")
    small = SmallCache(folder / "cache")
    keys = [f"k{i}" for i in range(6)]
    values: dict[str, Any] = {
        "x": np.arange(12, dtype="f4").reshape(6, 2),
        "top": np.arange(30, dtype="f4").reshape(6, 5),
        "rag": Ragged.of([np.full((i % 3, 2), i, "f4") for i in range(6)]),
        "tok": Ragged.of([np.full((i % 3, 5), i, "f4") for i in range(6)]),
        "text": [f"é{i}" for i in range(6)],
        "whole": np.arange(60, dtype="f4").reshape(6, 2, 5),
        "said": Ragged.of([np.full((i % 3, 5), i, "f4") for i in range(6)]),
        "byte": np.arange(12, dtype="f4").reshape(6, 2),
    }
    encodings = {"top": "topk(2)", "tok": "topk(2)", "rag": "float16", "byte": "int8"}
    encodings |= {"whole": "packed(topk(2))", "said": "packed(sampled(4))"}
    small.commit(keys, [small.teach(keys, values, encodings=encodings, shard_rows=3)])
    draft = small.draft(keys, encodings, shard_rows=3, weights=2)
    first = {name: values[name][:3] for name in ("top", "whole", "byte")}
    ragged = {n: Ragged.of(list(values[n])[:3]) for n in ("tok", "rag", "said")}
    draft.write(draft.shards()[0], {**first, **ragged}, {"top": {"kl": 0.5}})
    sound = {p: p.read_bytes() for p in on_disk(small.cache.path).rglob("*") if p.is_file()}
    found = Victim(on_disk(small.cache.path), sound)
    watching = [True]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event in ("open", "os.listdir", "os.scandir"):
            found.opened.add(os.fspath(arguments[0]) if _is_path(arguments[0]) else "")

    sys.addaudithook(watch)
    yield found
    watching.clear()


def _is_path(value: object) -> bool:
    return isinstance(value, str | os.PathLike)


def explore(victim: Victim) -> list[StillroomError]:
    """Do everything that only reads; the errors that came up."""
    errors: list[StillroomError] = []

    def attempt(action: Callable[[], object]) -> None:
        try:
            action()
        except StillroomError as error:
            errors.append(error)

    def read(check: bool) -> None:
        snapshot = Cache(victim.path).snapshot()
        for name in snapshot.signals:
            attempt(partial(_read, snapshot, name, check))
        attempt(lambda: snapshot.positions(["k3", "k0"]))

    victim.opened.clear()
    attempt(lambda: repr(Cache(victim.path)))
    attempt(lambda: [s.problems() for s in Cache(victim.path).segments()])
    attempt(lambda: [d.receipt(s.index) for d in Cache(victim.path).drafts() for s in d.shards()])
    attempt(lambda: [(d.keys, d.hashes) for d in Cache(victim.path).drafts()])
    attempt(lambda: read(True))
    attempt(lambda: read(False))
    outside = [p for p in victim.opened if "secret" in p or p == "/etc/passwd"]
    assert not outside
    assert all(str(error) for error in errors)
    return errors


def _read(snapshot: Snapshot, name: str, check: bool) -> None:
    reader = Reader(snapshot, [name], check=check)
    rows = np.arange(min(len(snapshot), 100))
    reader.take(rows)
    reader.stored(rows)
    reader.parts(rows)


def reseal(cache: Path) -> None:
    """Make every checksum right again, as somebody who made the cache up would."""
    for segment in (cache / "segments").iterdir():
        for path in sorted((segment / "receipts").iterdir()):
            _mend(path, partial(_mend_files, segment))
        if (segment / "segment.json").exists():
            _mend(segment / "segment.json", partial(_mend_seal, segment))
    for path in (cache / "snapshots").glob("*.json"):
        runs = next(iter(path.parent.glob(f"{path.stem}-*.arrow")))
        _mend(path, partial(_mend_runs, _crc(runs.read_bytes())))


def _mend(path: Path, change: Callable[[Any], object]) -> None:
    try:
        value = json.loads(path.read_bytes())
        before = json.dumps(value)
        change(value)
        if json.dumps(value) != before:
            path.write_text(json.dumps(value))
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError):
        pass  # damaged beyond mending, which is a case of its own


def _mend_runs(checksum: str, snapshot: Any) -> None:
    snapshot["crc32c"] = checksum


def _mend_files(segment: Path, receipt: Any) -> None:
    for signal in receipt["signals"].values():
        for file in signal["files"]:
            content = _own(segment, file["path"]).read_bytes()
            body = content[: len(content) - file["trailer"]]
            file.update(bytes=len(content), crc32c=_crc(body))
            if len(body) < len(content):
                sealed = body + google_crc32c.value(body).to_bytes(4, "little")
                if sealed != content:
                    (segment / file["path"]).write_bytes(sealed)


def _own(segment: Path, path: str) -> Path:
    """The file, when it is one of the cache: mending must not write elsewhere."""
    found = (segment / path).resolve()
    if not found.is_relative_to(segment.resolve()):
        raise ValueError(path)
    return found


def _mend_seal(segment: Path, seal: Any) -> None:
    for name in seal["files"]:
        seal["files"][name] = _crc((segment / name).read_bytes())


def _crc(content: bytes) -> str:
    return f"{google_crc32c.value(content):08x}"


def test_the_sound_cache_gives_no_error_before_and_after_sealing_anew(victim: Victim) -> None:
    assert explore(victim) == []
    reseal(victim.path)
    assert explore(victim) == []
    victim.restore()


@many
@given(st.data())
def test_changed_bytes_give_only_our_errors(victim: Victim, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(victim.content)), "file")
    content = bytearray(victim.content[path])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1), "at")
        kind = data.draw(st.sampled_from(["flip", "set", "cut", "insert"]))
        if kind == "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "set":
            content[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == "cut":
            del content[at : at + data.draw(st.integers(1, 64))]
        else:
            content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        if not content:
            break
    mended = data.draw(st.booleans(), "reseal")
    try:
        path.write_bytes(content)
        if mended:
            reseal(victim.path)
        explore(victim)
    finally:
        victim.restore()


def _places(value: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, inner in items:
        found.append((*where, key))
        if isinstance(inner, dict | list):
            found += _places(inner, (*where, key))
    return found


def _edit(value: Any, place: tuple[Any, ...], how: str, odd: Any) -> None:
    """Put something else in one place of a JSON value."""
    for key in place[:-1]:
        value = value[key]
    last = place[-1]
    if how == "drop":
        del value[last]
    elif how == "replace":
        value[last] = odd
    elif isinstance(value, list):
        value.append(odd)
    else:
        value[str(odd)[:300]] = value[last]


@many
@given(st.data())
def test_edited_json_gives_only_our_errors(victim: Victim, data: st.DataObject) -> None:
    documents = [
        p for p in sorted(victim.content) if p.suffix == ".json" and "signals" not in p.parts
    ]
    path = data.draw(st.sampled_from(documents), "file")
    value = json.loads(victim.content[path])
    for _ in range(data.draw(st.integers(1, 2))):
        if not (places := _places(value)):
            break
        place = data.draw(st.sampled_from(places), "place")
        how = data.draw(st.sampled_from(["replace", "replace", "drop", "add"]), "how")
        _edit(value, place, how, copy.deepcopy(data.draw(st.sampled_from(ODD), "odd")))
    mended = data.draw(st.booleans(), "reseal")
    try:
        path.write_text(json.dumps(value))
        if mended:
            reseal(victim.path)
        explore(victim)
    finally:
        victim.restore()


@pytest.mark.parametrize("path", ["../../../outside/secret", "/etc/passwd", "a/../b", "", "."])
def test_a_receipt_cannot_name_a_file_outside(victim: Victim, path: str) -> None:
    for receipt in sorted(victim.path.glob("segments/*/receipts/*.json")):
        value = json.loads(victim.content[receipt])
        for signal in value["signals"].values():
            signal["files"][0]["path"] = path
        receipt.write_text(json.dumps(value))
    try:
        reseal(victim.path)
        assert explore(victim)
    finally:
        victim.restore()
