"""What lies where in a plain tar of records, as WebDataset writes them: read once, never extracted."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillroom.stages.data.row_hashes import THREADS
from stillroom.storage.errors import GARBLED, RowsError, StillroomError
from stillroom.storage.files import read_json, write_atomic

_NAME = re.compile(r"((?:.*/|)[^./][^./]*)\.([^/]+)", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BLOCK = 512
"""Tars are written in blocks of so many bytes; blocks of zeros end them."""


@dataclass
class Shard:
    """The members of one tar, and the file as it was when they were read."""

    path: Path
    size: int
    mtime_ns: int
    records: list[tuple[str, dict[str, tuple[int, int]]]] = field(default_factory=list)
    """In order: a key, and of each field where its bytes begin and how many they are."""
    broken: dict[int, str] = field(default_factory=dict)
    """What is wrong with records, by their number."""
    cut: str = ""
    """Where and how the file ends too early; empty when it does not."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Members that belong to no record, and why."""


def find_shards(given: str | Path | Sequence[str | Path]) -> list[Path]:
    """Files, folders of .tar files (in order of names), or names with a range in braces.

    >>> [path.name for path in find_shards("none/train-{08..10}.tar")]
    Traceback (most recent call last):
    FileNotFoundError: no tar at none/train-08.tar
    """
    each = [given] if isinstance(given, str | Path) else list(given)
    paths: list[Path] = []
    for path in map(Path, (name for one in each for name in _spread(str(one)))):
        if path.is_dir():
            inside = sorted(p for p in path.glob("*.tar") if p.name[0] not in "._" and p.is_file())
            if not inside:
                raise RowsError(f"the folder {path} holds no .tar file")
            paths += inside
        elif path.exists():
            paths.append(path)
        else:
            raise FileNotFoundError(f"no tar at {path}")
    if not paths:
        raise RowsError("no tars were named")
    if doubled := sorted({str(path) for path in paths if paths.count(path) > 1}):
        raise RowsError(f"{', '.join(doubled)} is named more than once")
    return paths


def _spread(name: str) -> list[str]:
    """WebDataset's spelling of many shards: {000..012} stands for each number, zeros in front kept."""
    if (found := _BRACES.search(name)) is None:
        return [name]
    first, last, width = int(found[1]), int(found[2]), len(found[1])
    if last < first or last - first > 1_000_000:
        raise ValueError(f"{found[0]} in {name} is no range of shards")
    before, after = name[: found.start()], name[found.end() :]
    return [
        more for n in range(first, last + 1) for more in _spread(f"{before}{n:0{width}d}{after}")
    ]


def split_name(name: str) -> tuple[str, str] | None:
    """Key and field of a member: its path up to the first dot of its last part, and what follows.

    None where there is no such dot. The field is in lower case, as WebDataset has it.

    >>> split_name("a.b/0017.seg.PNG")
    ('a.b/0017', 'seg.png')
    """
    found = _NAME.fullmatch(name)
    return None if found is None else (found[1], found[2].lower())


def read_indexes(paths: Sequence[Path], kept: Path | None) -> list[Shard]:
    """The index of each tar; from the JSON file `kept`, where its size and time are still those."""
    known = {} if kept is None else _kept(kept)

    def one(path: Path) -> Shard:
        found, state = known.get(str(path)), path.stat()
        if found is not None and (found.size, found.mtime_ns) == (state.st_size, state.st_mtime_ns):
            return found
        return read_index(path)

    with ThreadPoolExecutor(THREADS) as pool:
        shards = list(pool.map(one, paths))
    if kept is not None and any(known.get(str(shard.path)) is not shard for shard in shards):
        every = [{**vars(shard), "path": str(shard.path)} for shard in shards]
        write_atomic(kept, [json.dumps({"format": 1, "shards": every}).encode()])
    return shards


def _kept(file: Path) -> dict[str, Shard]:
    """Indexes by path; whatever else lies there is written anew."""
    with suppress(*GARBLED, StillroomError):
        said = read_json(file)
        if said["format"] == 1:
            return {each["path"]: _from_json(each) for each in said["shards"]}
    return {}


def _from_json(said: Mapping[str, Any]) -> Shard:
    records = [
        (str(key), {str(f): (int(start), int(size)) for f, (start, size) in fields.items()})
        for key, fields in said["records"]
    ]
    broken = {int(number): str(why) for number, why in said["broken"].items()}
    path, size, mtime_ns = Path(said["path"]), int(said["size"]), int(said["mtime_ns"])
    return Shard(path, size, mtime_ns, records, broken, str(said["cut"]), dict(said["left_out"]))


def read_index(path: Path) -> Shard:
    """Every member's place. RowsError for what is no plain tar, and for one without any member."""
    state = path.stat()
    shard = Shard(path, state.st_size, state.st_mtime_ns)
    _require_plain(path)
    before, last = "the beginning", -1
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                end = member.offset_data + member.size
                where = f"member {member.name!r} at byte {member.offset:,}"
                if member.size < 0 or member.offset <= last:
                    raise tarfile.HeaderError(f"{where} says that it has {member.size:,} bytes")
                last = member.offset
                cut = member.isreg() and end > state.st_size
                _take(shard, member, f"{where} ends after the file" if cut else "")
                if cut:
                    shard.cut = (
                        f"the file ends at byte {state.st_size:,}, within {where} (of "
                        f"{member.size:,} bytes); what followed is lost"
                    )
                    break
                before = where
                tar.members.clear()  # type: ignore[attr-defined]  # it keeps every header that it read
            if not shard.cut:
                # It stops without a word at the end of the file, and where it knows no header.
                shard.cut = _cut(path, tar.offset, before)
    except tarfile.ReadError as error:
        if before == "the beginning":
            raise RowsError(f"{path} is no tar: {error}") from error
        shard.cut = f"behind {before} it is damaged ({error}); what followed is lost"
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        shard.cut = f"behind {before} it is damaged ({error}); what followed is lost"
    return shard


def _require_plain(path: Path) -> None:
    with open(path, "rb") as file:
        head = file.read(6)
    for magic, name in _PACKED.items():
        if head.startswith(magic):
            raise RowsError(
                f"{path} is compressed ({name}): rows in any order need a plain .tar, in which each "
                "member can be found without reading those before it. Unpack it once (images in it are "
                "compressed already)"
            )
    if not head:
        raise RowsError(f"{path} is empty, 0 bytes; a tar without members has 1,024")


def _cut(path: Path, offset: int, before: str) -> str:
    """What is wrong where the members end; empty where a block of zeros ends them."""
    with open(path, "rb") as file:
        file.seek(offset)
        block = file.read(_BLOCK)
    if block == bytes(_BLOCK):
        return ""
    if len(block) < _BLOCK:
        return (
            f"the file ends behind {before}, without the blocks of zeros that end a tar; what followed is "
            "lost"
        )
    return (
        f"behind {before}, at byte {offset:,}, stands no header of a member; what followed is lost"
    )


def _take(shard: Shard, member: tarfile.TarInfo, wrong: str) -> None:
    name = member.name
    try:
        name.encode()
    except UnicodeEncodeError:
        shard.left_out[ascii(name)[1:-1]] = "its name is no UTF-8"
        return
    if member.isdir():
        return
    split = split_name(name)
    if not member.isreg() or member.issparse():
        shard.left_out[name] = "no plain file"
    elif _META.match(name):
        shard.left_out[name] = "notes about the tar, by its name"
    elif split is None:
        shard.left_out[name] = "its name has no key and field: key.field"
    else:
        key, part = split
        if not shard.records or shard.records[-1][0] != key:
            shard.records.append((key, {}))
        number, parts = len(shard.records) - 1, shard.records[-1][1]
        if part in parts:
            shard.broken[number] = f"more than one field {part!r}"
        elif wrong:
            shard.broken[number] = wrong
        parts.setdefault(part, (member.offset_data, member.size))
