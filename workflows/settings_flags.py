"""Settings from the command line: `--config FILE`, `--set path=value`, and a flag for every setting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stillroom.storage.errors import SettingsError, nearest
from stillroom.workflows.settings_kinds import bare, fields_of, from_text, items_of, part_of
from stillroom.workflows.yaml_text import Key

CONFIG, SET = "--config", "--set"
_DEEPEST = 4
"""Parts in parts that are looked through for the nearest name; a model may hold itself."""


@dataclass(frozen=True)
class Given:
    """One setting that was said."""

    path: Key
    value: Any
    said: str
    """How, for messages: `--epochs`, or `--set fit.epochs`."""


@dataclass(frozen=True)
class Flags:
    """What a command line says of settings, each kind in the order given."""

    files: list[str] = field(default_factory=list)
    """Configuration files."""
    sets: list[Given] = field(default_factory=list)
    flags: dict[Key, Given] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)


def read_flags(arguments: Sequence[str], kinds: Mapping[str, Any]) -> Flags:
    """Read arguments; `kinds` are the types of the settings by name.

    A list's flag is given once for each item; `--name` and `--no-name` are true and false.
    """
    found = Flags()
    left = list(arguments)
    while left:
        flag, joined, text = left.pop(0).partition("=")
        own = flag in (CONFIG, SET)
        path, kind, switch = ((), None, "") if own else _named(flag, kinds)
        if not own and not path:
            known = [*every_flag(kinds), CONFIG, SET]
            found.mistakes.append(f"{flag}: unknown; {nearest(flag, known)}")
            if not joined and left and not left[0].startswith("--"):
                left.pop(0)
            continue
        if not joined and switch:
            text = switch
        elif not joined and not left:
            found.mistakes.append(f"{flag}: a value is missing")
            continue
        elif not joined:
            text = left.pop(0)
        try:
            if flag == CONFIG:
                found.files.append(text)
            elif flag == SET:
                found.sets.append(_set(text, kinds))
            else:
                before = found.flags.get(path)
                found.flags[path] = Given(path, _value(text, kind, flag, before), flag)
        except SettingsError as error:
            found.mistakes.append(str(error))
    return found


def every_flag(kinds: Mapping[str, Any], above: str = "--") -> Iterator[str]:
    """The flag of every setting and of the parts in it."""
    for name, kind in kinds.items():
        flag = f"{above}{name.replace('_', '-')}"
        yield flag
        if above.count(".") < _DEEPEST:
            yield from every_flag(fields_of(kind) or {}, f"{flag}.")


def _named(flag: str, kinds: Mapping[str, Any]) -> tuple[Key, Any, str]:
    """The setting that a flag names, its type, and its value where it can do without one.

    No path when it names none.
    """
    if not flag.startswith("--"):
        return (), None, ""
    path, kind = _path(flag[2:], kinds)
    if kind is not None:
        return path, kind, "true" if bare(kind) is bool else ""
    path, kind = _path(flag[2:].removeprefix("no-"), kinds)
    if flag.startswith("--no-") and bare(kind) is bool:
        return path, kind, "false"
    return (), None, ""


def _path(dotted: str, kinds: Mapping[str, Any]) -> tuple[Key, Any]:
    """`fit.batch-size` as a path, with dashes where the names have underscores; and its type."""
    path: Key = ()
    kind: Any = None
    for name in dotted.split("."):
        known = kinds if not path else fields_of(kind)
        if known is not None and name not in known:
            name = name.replace("-", "_")
        kind = kinds.get(name) if not path else part_of(kind, name)
        path = (*path, name)
    return path, kind


def _set(text: str, kinds: Mapping[str, Any]) -> Given:
    dotted, equals, value = text.partition("=")
    if not equals:
        raise SettingsError(f"{SET} {text}: expected PATH=VALUE, such as fit.epochs=20")
    path, kind = _path(dotted, kinds)
    said = f"{SET} {'.'.join(path)}"
    return Given(path, from_text(value, Any if kind is None else kind, said), said)


def _value(text: str, kind: Any, flag: str, before: Given | None) -> Any:
    item = items_of(kind)
    if item is None:
        return from_text(text, kind, flag)
    return [*(before.value if before else ()), from_text(text, item, flag)]
