"""Digests: one spelling of a JSON value, its hash, and how two identities differ in words."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stillroom.storage.errors import listed

_DIGEST = re.compile(r"[0-9a-f]{32,64}")
_VERSION = re.compile(r"v?\d+(\.\w+)+([+-].*)?")
_PACKAGE = re.compile(r"(.*\bof )?([\w.-]+) (\d[\w.]*)")
_LONGEST = 60
_NAMED = 3
"""Names of a group that are spelled out."""


def canonical(value: Any) -> str:
    """The one spelling of a JSON value: sorted keys, no spaces, no NaN.

    Tuples count as lists. TypeError for anything that JSON cannot hold, because its identity would
    depend on the process that printed it.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest(value: Any) -> str:
    """SHA-256 of the canonical spelling, as 64 hexadecimal digits.

    >>> digest({"b": 1, "a": [2]}) == digest({"a": (2,), "b": 1})
    True
    """
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Each field in which two identities differ, in the order of their names.

    Digests that lie side by side are one field: it is said which of them differ. Of code it is said
    whose, and which constant. Versions are named by their package.

    >>> a, b = "0" * 64, "1" * 64
    >>> differences({"weights": {"bias": a, "weight": a}}, {"weights": {"bias": b, "weight": a}})
    ['weights differ in bias']
    >>> differences({"precision": "float32"}, {"precision": "bfloat16"})
    ['precision: float32 became bfloat16']
    >>> differences({"libraries": {"torch": "2.12.0"}}, {"libraries": {"torch": "2.13.0"}})
    ['torch 2.12.0 became 2.13.0']
    >>> differences({"names": ["a", "b"]}, {"names": ["b", "c"]})
    ['names: a gone; c new']
    """
    return list(dict.fromkeys(_differences(old, new, where)))


def _differences(old: Any, new: Any, where: str) -> Iterator[str]:
    if canonical(old) == canonical(new):
        return
    if isinstance(old, dict) and isinstance(new, dict):
        if _is_code(old) and _is_code(new):
            yield from _of_code(old, new, where)
        elif where and _are_group(old) and _are_group(new):
            yield _group(old, new, where)
        else:
            # What is many digests comes first: it is what a teacher is made of.
            first = {
                k for k in old.keys() & new.keys() if _are_group(old[k]) and _are_group(new[k])
            }
            for key in sorted({*old, *new}, key=lambda key: (key not in first, key)):
                yield from _field(old, new, key, f"{where}.{key}".strip("."))
    elif isinstance(old, list) and isinstance(new, list):
        yield from _items(old, new, where)
    elif isinstance(old, str) and isinstance(new, str):
        yield _texts(old, new, where)
    else:
        yield _became(old, new, where)


def _field(old: Mapping[str, Any], new: Mapping[str, Any], key: str, place: str) -> Iterator[str]:
    if key in old and key in new:
        yield from _differences(old[key], new[key], place)
        return
    value, word = (new[key], "new") if key in new else (old[key], "gone")
    if isinstance(value, str) and _VERSION.fullmatch(value):
        yield f"{key} {value} {word}"
    else:
        yield f"{place}: {word}"


def _texts(old: str, new: str, where: str) -> str:
    if _DIGEST.fullmatch(old) and _DIGEST.fullmatch(new):
        return f"{where} changed"  # the digits of a digest say nothing to anybody
    if _VERSION.fullmatch(old) and _VERSION.fullmatch(new):
        return f"{where.rpartition('.')[2]} {old} became {new}"
    was, now = _PACKAGE.fullmatch(old), _PACKAGE.fullmatch(new)
    if was and now and was[1] == now[1] and was[2] == now[2]:
        return f"{was[2]} {was[3]} became {now[3]}"
    return _became(old, new, where)


def _became(old: Any, new: Any, where: str) -> str:
    if old is None or new is None:
        return f"{where}: {'new' if old is None else 'gone'}"
    was, now = _short(old), _short(new)
    if was is None or now is None or was == now:
        return f"{where} changed"
    return f"{where}: {was} became {now}"


def _items(old: Sequence[Any], new: Sequence[Any], where: str) -> Iterator[str]:
    if any(isinstance(item, dict) for item in (*old, *new)):
        if len(old) != len(new):
            yield f"{where}: {len(old):,} became {len(new):,}"
        else:
            for was, now in zip(old, new, strict=True):
                yield from _differences(was, now, where)
        return
    if not all(isinstance(item, str) for item in (*old, *new)):
        yield _became(old, new, where)  # numbers have places, names do not
        return
    gone = [item for item in old if item not in new]
    more = [item for item in new if item not in old]
    words = [f"{listed(map(_spelled, gone))} gone"] * bool(gone)
    words += [f"{listed(map(_spelled, more))} new"] * bool(more)
    yield f"{where}: {'; '.join(words) or 'another order'}"


def _are_group(value: Any) -> bool:
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(v, str) and _DIGEST.fullmatch(v) for v in value.values())


def _group(old: Mapping[str, str], new: Mapping[str, str], where: str) -> str:
    """One field made of many digests, such as weights tensor by tensor."""
    both = sorted(old.keys() & new.keys())
    changed = [name for name in both if old[name] != new[name]]
    named = {"gone": old.keys() - new.keys(), "new": new.keys() - old.keys(), "changed": changed}
    if len(changed) == len(both) > _NAMED:
        named["changed"] = [f"all other {len(both):,}"]
    if old.keys() != new.keys():
        words = [f"{listed(sorted(n), _NAMED)} {word}" for word, n in named.items() if n]
        return f"{where}: {'; '.join(words)}"
    if len(changed) == len(both) > _NAMED:
        return f"{where} differ in all {len(both):,}"
    some = f"{len(changed):,} of {len(both):,}: " if len(changed) > 1 else ""
    return f"{where} differ in {some}{listed(changed, _NAMED)}"


def without_code(identity: Any) -> Any:
    """The identity but for what it says of code: weights, files, settings, versions.

    Code travels with the object that it is of, and its source may be out of sight where that arrives.
    """
    if isinstance(identity, dict):
        kept = {k: v for k, v in identity.items() if not (isinstance(v, dict) and _is_code(v))}
        return {k: without_code(v) for k, v in kept.items()}
    return [without_code(v) for v in identity] if isinstance(identity, list) else identity


def _is_code(value: Mapping[str, Any]) -> bool:
    """What `code_identity` gives."""
    return value.keys() == {"root", "code"} and isinstance(value["code"], dict)


def _of_code(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> Iterator[str]:
    """Whose source differs, or else which constant, package or argument."""
    yield from _of_root(old["root"], new["root"], where)
    before, after = old["code"], new["code"]
    for name in sorted(before.keys() & after.keys()):
        was, now = before[name], after[name]
        if not isinstance(was, dict) or not isinstance(now, dict):
            if was != now:
                yield f"code of {name} changed"
            continue
        if was.get("source") != now.get("source"):
            yield f"code of {name} changed"
        if was.get("defaults") != now.get("defaults"):
            yield f"defaults of {name} changed"
        used, uses = was.get("uses", {}), now.get("uses", {})
        for key in sorted(used.keys() & uses.keys()):
            yield from _differences(_plain(used[key]), _plain(uses[key]), f"{key} of {name}")
    # A name that came or went changed the source that uses it; alone it says nothing more.
    if old["root"] == new["root"] and not (before.keys() & after.keys()):
        yield f"{where} changed"


def _of_root(old: Any, new: Any, where: str) -> Iterator[str]:
    """The function itself, and the arguments of a partial."""
    if isinstance(old, dict) and isinstance(new, dict) and "partial" in old and "partial" in new:
        name = old["partial"] if isinstance(old["partial"], str) else where
        yield from _of_root(old["partial"], new["partial"], where)
        yield from _differences(_plain(old["args"]), _plain(new["args"]), f"arguments of {name}")
        before, after = old["keywords"], new["keywords"]
        for key in sorted({*before, *after}):
            yield from _field(_plain(before), _plain(after), key, f"{key} of {name}")
    else:
        yield from _differences(_plain(old), _plain(new), where)


def _plain(value: Any) -> Any:
    """Values of code as they were before each was spelled as JSON; an array is its digest."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        if value.keys() & {"array", "tensor"}:
            return digest(value)
        return {key: _plain(item) for key, item in value.items()}
    return value


def _short(value: Any) -> str | None:
    """A value in a few words; None for one that is too long to be one."""
    text = _spelled(value)
    if len(text) <= _LONGEST and "\\n" not in text:
        return text
    return None


def _spelled(value: Any) -> str:
    """As JSON, but a plain word without quotes."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w.+/:-]*", value):
        return value if value not in ("true", "false", "null") else f'"{value}"'
    return json.dumps(value, ensure_ascii=False)
