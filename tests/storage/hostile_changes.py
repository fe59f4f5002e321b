"""How input n changes a sound cache: bytes, fields of JSON, tables, names; and checksums made right."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from tests.storage.caches import crc
from tests.storage.hostile import Victim

NUMBERS: tuple[Any, ...] = (
    *(-1, 0, 1, 2, 3, 4, 7, 255, 2**31, 2**31 - 1, 2**32, 2**40, 2**53, 2**61, 2**62, 2**63 - 1),
    *(2**63, 2**70, 10**30, -(2**63), 0.5, -0.0, 1e308, float("inf"), float("nan"), True),
)
TEXTS: tuple[Any, ...] = (
    *("", "x", "raw", "float16", "bfloat16", "string", "topk(2)", "topk(0)", "topk(999999999)"),
    *("../../../outside/secret", "/etc/passwd", "..", ".", "a/../../../../outside/secret", "\0"),
    *("é" * 300, "signals/x/c/0/0", "0001-", "../../outside-ed1f2369e4a4", "00000000", "x" * 5000),
    *("1" * 5000, "²²²²-x", "\ud800", "int64", "records/text/00000.arrow", "segment.json"),
)
OTHERS: tuple[Any, ...] = (
    *(None, [], {}, [None], [[]], [-1], [0], [1, 2], [2**31, 2**31], [2**70], {"x": {}}, {"": ""}),
    *([["a", "float32", []]], [["a", "float32", [2**40]]], [None, 2**20]),
)
NAMES = (
    *("0001-x", "²²²²-x", "0009-t-ed1f2369e4a4", "000000001-t-0", "9" * 9 + "-t-x", "x" * 250),
    *("000009.json", "0000001.json", "999999999.json", "²²²²²².json", "000001.json", ".tmp-x"),
    *("000002-0123abcd.arrow", "care.json", "lock", "plan.json", "a\nb", "-rf", "~", "%s", "…"),
    *("teach-x.json", "segment.json", "00000.json", "c", "signals", "ab" * 32 + ".arrow"),
)


def change(victim: Victim, number: int) -> str:
    """Make input `number` of the cache; in words what was done."""
    drawn = random.Random(number)
    files = victim.files
    words = []
    for _ in range(drawn.choice([1, 1, 1, 2, 3])):
        how = drawn.choice(["bytes", "bytes", "json", "json", "json", "table", "name"])
        if how == "name":
            words.append(_named(victim, drawn))
            continue
        chosen = [p for p in files if _suits(p, how)]
        path = drawn.choice(chosen)
        if not path.is_file():
            continue  # a name took its place
        data = path.read_bytes()
        with suppress(Exception):  # an earlier change may have left nothing to change
            data = {"bytes": _bytes, "json": _json, "table": _table}[how](data, drawn)
        victim.write(path, data)
        words.append(f"{how} of {path.relative_to(victim.path)}")
    if drawn.random() < 0.6:
        reseal(victim)
        words.append("sealed anew")
    return ", ".join(words)


def _suits(path: Path, how: str) -> bool:
    table = path.name == "rows.arrow" or (
        path.parent.name == "snapshots" and path.suffix == ".arrow"
    )
    return (
        how == "bytes" or (how == "json" and path.suffix == ".json") or (how == "table" and table)
    )


def _bytes(data: bytes, drawn: random.Random) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(drawn.choice([1, 1, 2, 5])):
        at = drawn.randrange(len(changed) + 1)
        kind = drawn.choice(["flip", "flip", "set", "cut", "insert", "number", "copy", "end"])
        if kind == "flip" and at < len(changed):
            changed[at] ^= 1 << drawn.randrange(8)
        elif kind == "set":
            changed[at : at + 1] = bytes([drawn.choice([0, 1, 0x7F, 0x80, 0xFF])])
        elif kind == "cut":
            del changed[at : at + drawn.randint(1, 64)]
        elif kind == "insert":
            changed[at:at] = drawn.randbytes(drawn.randint(1, 9))
        elif kind == "number":  # lengths and offsets are little endian, mostly of 4 or 8 bytes
            size = drawn.choice([4, 8])
            value = drawn.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, -1])
            changed[at : at + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")
        elif kind == "copy":
            other = drawn.randrange(len(changed) + 1)
            changed[at : at + 16] = changed[other : other + 16]
        elif kind == "end":
            del changed[at:]
        changed = changed or bytearray(b"\0")
    return bytes(changed)


def _odd(drawn: random.Random) -> Any:
    kind = drawn.random()
    if kind < 0.45:
        return drawn.choice(NUMBERS)
    if kind < 0.75:
        return drawn.choice(TEXTS)
    if kind < 0.98:
        return json.loads(json.dumps(drawn.choice(OTHERS)))
    deep: Any = 0
    for _ in range(drawn.choice([50, 99, 101, 300, 700])):
        deep = [deep] if drawn.random() < 0.5 else {"x": deep}
    return deep


def _places(value: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, inner in items:
        found.append((*where, key))
        if isinstance(inner, dict | list) and len(where) < 12:
            found += _places(inner, (*where, key))
    return found


def _json(data: bytes, drawn: random.Random) -> bytes:
    value = json.loads(data)
    for _ in range(drawn.choice([1, 1, 2])):
        place = drawn.choice(_places(value))
        inside = value
        for key in place[:-1]:
            inside = inside[key]
        last, how, odd = place[-1], drawn.choice(["replace"] * 4 + ["drop", "add"]), _odd(drawn)
        if how == "drop":
            del inside[last]
        elif how == "replace":
            inside[last] = odd
        elif isinstance(inside, list):
            inside.append(odd)
        else:
            inside[str(odd)[:300]] = inside[last]
    return json.dumps(value, indent=2, sort_keys=True).encode()


def _table(data: bytes, drawn: random.Random) -> bytes:
    batch = pa.ipc.open_file(pa.py_buffer(data)).get_batch(0)
    rows, schema = batch.to_pylist(), batch.schema
    how = drawn.choice(["value", "value", "value", "rows", "column", "type", "compressed", "twice"])
    if how == "value":
        row = drawn.choice(rows)
        name = drawn.choice(schema.names)
        row[name] = drawn.choice([*NUMBERS, *TEXTS, None, b"0" * 16])
    elif how == "rows":
        rows = rows * drawn.choice([0, 2, 50])
    batch = pa.RecordBatch.from_pylist(rows, schema)
    if how == "column":
        batch = batch.append_column("more", pa.nulls(len(batch), pa.null()))
    elif how == "type":
        name = drawn.choice(schema.names)
        kind = drawn.choice([pa.null(), pa.list_(pa.int8()), pa.bool_(), pa.float16()])
        at = schema.names.index(name)
        batch = batch.set_column(at, name, pa.nulls(len(batch), kind))
    sink = pa.BufferOutputStream()
    compression = drawn.choice(["zstd", "lz4"]) if how == "compressed" else None
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(sink, batch.schema, options=options) as writer:
        for _ in range(2 if how == "twice" else 1):
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def _named(victim: Victim, drawn: random.Random) -> str:
    """Something with an odd name or kind where it may be found, or a folder that is gone."""
    folder = victim.path / drawn.choice(victim.folders)
    name = drawn.choice(NAMES)
    place = folder / name
    how = drawn.choice(
        ["file", "file", "folder", "link", "loop", "pipe", "copy", "gone", "instead"]
    )
    if how == "gone":
        path = drawn.choice(victim.files)
        victim.touched.add(path)
        path.unlink(missing_ok=True)
        return f"{path.relative_to(victim.path)} is gone"
    if how == "instead":
        place = drawn.choice(victim.files)
        if not place.is_file():
            return "nothing"
        victim.touched.add(place)
        place.unlink()
        how = drawn.choice(["folder", "pipe", "link"])
    with suppress(OSError, ValueError):
        if place.exists() or place.is_symlink():
            return "nothing"
        missing = [place]
        while not missing[-1].parent.exists():
            missing.append(missing[-1].parent)
        place.parent.mkdir(parents=True, exist_ok=True)
        victim.added.append(missing[-1])
        if how == "file":
            place.write_bytes(drawn.choice([b"", b"{}", b'{"format": 2}', drawn.randbytes(50)]))
        elif how == "folder":
            place.mkdir()
            (place / "plan.json").write_text("{}")
        elif how in ("link", "loop"):
            outside = victim.path.parent / "outside"
            place.symlink_to(victim.path if how == "loop" else outside, target_is_directory=True)
        elif how == "pipe":
            os.mkfifo(place)
        else:
            source = drawn.choice(sorted((victim.path / "segments").iterdir()))
            if place.is_relative_to(source):
                return "nothing"
            shutil.copytree(source, place, symlinks=True)
    return f"{how} {place.relative_to(victim.path)}"


def reseal(victim: Victim) -> None:
    """Make every checksum right again, where that can still be done."""
    for segment in sorted((victim.path / "segments").iterdir()):
        if not any(path.is_relative_to(segment) for path in victim.touched):
            continue
        _again(victim, segment / "plan.json", partial(_mend_plan, segment))
        receipts = segment / "receipts"
        for path in sorted(receipts.iterdir()) if receipts.is_dir() else []:
            _again(victim, path, partial(_mend_receipt, victim, segment))
        _again(victim, segment / "segment.json", partial(_mend_seal, segment), own=False)
    snapshots = victim.path / "snapshots"
    own = any(path.is_relative_to(snapshots) for path in victim.touched)
    for path in sorted(snapshots.glob("*.json")) if own else []:
        _again(victim, path, partial(_mend_snapshot, snapshots))


def _again(
    victim: Victim, path: Path, mend: Callable[[dict[str, Any]], object], own: bool = True
) -> None:
    """Change a JSON file and its own checksum."""
    if path not in victim.sound or not path.is_file():
        return
    try:
        value = json.loads(path.read_bytes())
        mend(value)
        if own:
            value["checksum"] = "0" * 8
        text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        if own:
            found = f'\n  "checksum": "{crc(text.encode())}"'
            text = text.replace('\n  "checksum": "00000000"', found)
        if text.encode() != path.read_bytes():
            victim.write(path, text.encode())
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError, IndexError):
        pass  # damaged beyond that, which is a case of its own


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise OSError(path)
    return path.read_bytes()


def _mend_plan(segment: Path, plan: dict[str, Any]) -> None:
    plan["rows_crc32c"] = crc(_read(segment / "rows.arrow"))


def _mend_receipt(victim: Victim, segment: Path, receipt: dict[str, Any]) -> None:
    receipt["rows_crc32c"] = crc(_read(segment / "rows.arrow"))
    for signal_ in receipt["signals"].values():
        for file in signal_["files"]:
            place = segment / file["path"]
            if place not in victim.sound:
                continue  # it leads elsewhere
            data = _read(place)
            body = data[: len(data) - file["trailer"]]
            file.update(bytes=len(data), crc32c=crc(body))
            if len(body) < len(data):
                sealed = body + int(crc(body), 16).to_bytes(4, "little")
                if sealed != data:
                    victim.write(place, sealed)


def _mend_snapshot(folder: Path, described: dict[str, Any]) -> None:
    described["crc32c"] = crc(_read(folder / described["runs"]))


def _mend_seal(segment: Path, seal: dict[str, Any]) -> None:
    for name in seal["files"]:
        seal["files"][name] = crc(_read(segment / name))
