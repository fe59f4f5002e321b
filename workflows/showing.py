"""A cache on one screen: its teachers and what they are, its signals, its snapshots."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from stillroom.storage.errors import UnknownRowError, listed, nearest
from stillroom.storage.identity import digest
from stillroom.workflows.printing import console
from stillroom.workflows.spelling import NONE, amount, whole

if TYPE_CHECKING:
    from rich.table import Table

_CHANGES = 5
"""Fields in which an identity differs from the one before that are named."""
_SNAPSHOTS = 10
"""The newest snapshots that are shown."""


def chosen_teachers(described: Mapping[str, Any], name: str | None) -> list[dict[str, Any]]:
    """The teachers, or the one of that name; UnknownRowError with the nearest when there is none."""
    teachers: list[dict[str, Any]] = described["teachers"]
    chosen = [t for t in teachers if name in (None, t["name"])]
    if name is not None and not chosen:
        known = nearest(name, [t["name"] for t in teachers])
        raise UnknownRowError(f"{described['path']} has no teacher {name!r}; {known}")
    return chosen


def print_identities(described: Mapping[str, Any], teacher: str | None) -> None:
    """The identities in full, as JSON: teacher, digest, identity."""
    found = {
        t["name"]: {i["digest"]: i["identity"] for i in t["identities"]}
        for t in chosen_teachers(described, teacher)
    }
    print(json.dumps(found, indent=2, ensure_ascii=False))


def print_cache(described: Mapping[str, Any], teacher: str | None = None) -> None:
    """Everything that a person asks of a cache first."""
    out = console()
    teachers = chosen_teachers(described, teacher)
    counts = [
        _count(len(described[what]), what[:-1]) for what in ("teachers", "segments", "snapshots")
    ]
    out.print(f"{described['path']}: {', '.join(counts)}, {amount(described['bytes'])}")
    for one in teachers:
        out.print()
        out.print(f"[bold]teacher {one['name']}[/bold]")
        out.print(_identities(one["identities"]))
        out.print()
        out.print(_signals(one["name"], one["identities"][-1]["digest"], described["segments"]))
    for draft in described["unfinished"]:
        done = f"{draft['shards_finished']:,} of {draft['shards']:,} shards"
        out.print(f"{draft['name']}: not finished, {done}; teach again to go on")
    if described.get("derived"):
        out.print()
        out.print(_derived(described["derived"]))
    out.print()
    if len(described["snapshots"]) > _SNAPSHOTS:
        older = len(described["snapshots"]) - _SNAPSHOTS
        out.print(f"{_count(older, 'older snapshot')}: --json has all")
    out.print(_snapshots(described["snapshots"][-_SNAPSHOTS:]))


def _identities(identities: Sequence[Mapping[str, Any]]) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for index, one in enumerate(identities):
        rows = f"{whole(one['rows'])} rows in {_count(len(one['segments']), 'segment')}"
        words = [f"{rows}, {amount(one['bytes'])}, {_serves(one['snapshots'])}, {_span(one)}"]
        # What the first one is, and of each later one how it differs from that before it.
        words += (
            one["differs"][:_CHANGES] if index else ["; ".join(identity_words(one["identity"]))]
        )
        if len(one["differs"]) > _CHANGES:
            words.append(f"and {len(one['differs']) - _CHANGES:,} more fields: --json has all")
        table.add_row(one["digest"][:12], _plain("\n".join(words)))
    return table


def identity_words(identity: Mapping[str, Any]) -> list[str]:
    """Each field of an identity in a few words: what is short as it is, what is long as a digest.

    >>> identity_words({"libraries": {"torch": "2.13"}, "weights": {"a": "0" * 64}})
    ['torch 2.13', 'weights 1 part, f266212e']
    """
    words = []
    for name, value in identity.items():
        if value in (None, "", [], {}):
            continue
        if name == "libraries" and isinstance(value, dict):
            words.append(", ".join(f"{package} {version}" for package, version in value.items()))
        elif isinstance(value, dict):
            parts = f"{_count(len(value), 'part')}, " if "root" not in value else ""
            words.append(f"{name} {_root(value)}{parts}{digest(value)[:8]}")
        elif isinstance(value, list):
            words.append(f"{name} {listed(value)}")
        else:
            words.append(f"{name} {value}")
    return words


def _root(code: Mapping[str, Any]) -> str:
    """The name of the function of a code identity."""
    root = code.get("root")
    while isinstance(root, dict) and "partial" in root:
        root = root["partial"]
    return f"{root}, " if isinstance(root, str) else ""


def _signals(teacher: str, digest: str, segments: Sequence[Mapping[str, Any]]) -> Table:
    """The signals of a teacher's newest identity, over all its segments."""
    table = _table("signal", "row", "encoding", "from", "bytes a row", "bytes", "error")
    found: dict[str, list[tuple[Mapping[str, Any], int]]] = {}
    for segment in segments:
        if (segment["teacher"], segment["digest"]) == (teacher, digest):
            for name, signal in segment["signals"].items():
                found.setdefault(name, []).append((signal, segment["rows"]))
    for name, each in found.items():
        newest = each[-1][0]
        size, rows = sum(s["bytes"] for s, _ in each), sum(n for _, n in each)
        errors: dict[str, float] = {}
        for signal, _ in each:
            for kind, value in signal["error"].items():
                errors[kind] = max(value, errors.get(kind, value))
        shape = "x".join("*" if n is None else str(n) for n in newest["shape"]) or "1"
        kind = newest["dtype"] if isinstance(newest["dtype"], str) else "record"
        row = [name, f"{kind}[{shape}]", newest["encoding"], newest["source"] or "output"]
        row += [f"{size / max(rows, 1):,.1f}", amount(size)]
        table.add_row(*map(_plain, row), ", ".join(f"{k} {v:.2g}" for k, v in errors.items()))
    return table


def _derived(results: Sequence[Mapping[str, Any]]) -> Table:
    """What was computed over the whole cache, and from what."""
    table = _table("derived", "from", "rows", "arrays", "why")
    for one in results:
        if "damaged" in one:
            table.add_row(*map(_plain, (one["record"], "", "", "damaged", one["damaged"])))
            continue
        reads = one["identity"]["reads"]
        names = [s["name"] for s in reads["signals"].values()]
        names += [c.get("column", c.get("name")) for c in reads["columns"].values()]
        arrays = ", ".join(f"{n} {a}" for n, a in one["arrays"].items())
        row = (one["name"], ", ".join(names), whole(one["rows"]), arrays, one["why"])
        table.add_row(*map(_plain, row))
    return table


def _snapshots(snapshots: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("snapshot", "after", "made", "rows", "why")
    for s in snapshots:
        after = NONE if s["parent"] is None else str(s["parent"])
        row = (str(s["number"]), after, _day(s["at"]), whole(s["rows"]), s["why"])
        table.add_row(*map(_plain, row))
    return table


def _table(*headings: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        right = heading in ("bytes", "bytes a row", "rows", "snapshot", "after")
        table.add_column(heading, justify="right" if right else "left")
    return table


def _plain(text: str) -> str:
    """Without markup: names and reasons are shown as they are."""
    from rich.markup import escape

    return escape(text)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _day(at: int | None) -> str:
    return NONE if at is None else datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M")


def _span(one: Mapping[str, Any]) -> str:
    first, last = _day(one["first"]), _day(one["last"])
    return first if first == last else f"{first} to {last}"


def _serves(numbers: Sequence[int]) -> str:
    if not numbers:
        return "no snapshot"
    first, last = numbers[0], numbers[-1]
    if first == last:
        return f"snapshot {first}"
    whole_range = len(numbers) == last - first + 1
    return f"snapshots {first} to {last}" if whole_range else f"snapshots {listed(numbers)}"
