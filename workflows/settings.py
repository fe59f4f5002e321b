"""A workflow's settings: its arguments, given by defaults, files, --set and flags, checked as a whole.

Later ones of these win. A mapping (also a dataclass or pydantic model) is filled in name by name, so a
file may set one field of it; a list is taken whole.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.storage.errors import SettingsError, listed, nearest
from stillroom.workflows.config import SCHEMA, migrations_of, read_config
from stillroom.workflows.settings_flags import SET, read_flags
from stillroom.workflows.settings_kinds import fields_of, items_of, part_of, spelled
from stillroom.workflows.yaml_text import Key

DEFAULT = "default"


@dataclass(frozen=True)
class Settings:
    """What a workflow is called with, and where each part of it was said."""

    values: Mapping[str, Any]
    """Its arguments by name, of the types that its signature names."""
    origins: Mapping[Key, str]
    """Of each part that was given, by its path: `--flag`, `--set path` or `file:line`."""
    schema: int
    """The version of the workflow's settings."""
    notices: tuple[str, ...] = ()
    """What the user should be told, such as that a file was migrated."""

    def origin(self, key: Key) -> str:
        """Where a part was said, or what it lies in; `default` when nowhere."""
        return next((self.origins[p] for p in _around(key) if p in self.origins), DEFAULT)


def settings_of(workflow: Callable[..., Any], arguments: Sequence[str] = ()) -> Settings:
    """Settings from a command line: `--config FILE`, `--set path=value`, and `--name value` flags.

    Raises SettingsError with every mistake at once: unknown names with the nearest, values of wrong
    types, what is missing; each with its flag, or file and line.
    """
    parameters = parameters_of(workflow)
    kinds = {name: parameter.annotation for name, parameter in parameters.items()}
    migrations = migrations_of(workflow)
    flags = read_flags(arguments, kinds)
    mistakes, notices, tree = list(flags.mistakes), [], _Tree(kinds)
    for path in flags.files:
        try:
            config = read_config(path, migrations)
        except SettingsError as error:
            mistakes += str(error).splitlines()
            continue
        notices += [config.migrated] if config.migrated else []
        tree.place = config.place
        tree.add((), config.settings)
    for given in (*flags.sets, *flags.flags.values()):
        tree.place = lambda key, said=given.said: said  # type: ignore[misc]
        tree.add(given.path, given.value)
    mistakes += tree.mistakes
    values = dict(_checked(parameters, tree, mistakes))
    if mistakes:
        lines = "\n  ".join(dict.fromkeys(mistakes))
        raise SettingsError(f"settings of {workflow.__name__}:\n  {lines}")
    origins = {path: place(path) for path, place in tree.places.items()}
    return Settings(values, origins, 1 + len(migrations), tuple(notices))


def parameters_of(workflow: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """A workflow's arguments, each with a type: its annotation, or that of a plain default.

    SettingsError for types that cannot be found, and for arguments without names.
    """
    try:
        parameters = inspect.signature(workflow, eval_str=True).parameters
    except NameError as error:
        raise SettingsError(
            f"the types of {workflow.__name__}'s settings cannot be read: {error}; import what they "
            "name at run time, not for type checkers only"
        ) from error
    found = {}
    for name, parameter in parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise SettingsError(
                f"{workflow.__name__} takes {parameter}, which no setting can name; name each setting"
            )
        if name == SCHEMA:
            raise SettingsError(
                f"{workflow.__name__} has a setting `{SCHEMA}`, which in a file is its version; rename it"
            )
        if parameter.annotation is parameter.empty:
            plain = type(parameter.default) in (bool, int, float, str)
            parameter = parameter.replace(annotation=type(parameter.default) if plain else Any)
        found[name] = parameter
    return found


class _Tree:
    """What was given so far, and where; later values replace earlier ones."""

    def __init__(self, kinds: Mapping[str, Any]) -> None:
        self.kinds = kinds
        self.given: dict[str, Any] = {}
        self.places: dict[Key, Callable[[Key], str]] = {}
        self.mistakes: list[str] = []
        self.place: Callable[[Key], str]

    def add(self, path: Key, value: Any) -> None:
        """Put a value at a path, mappings part by part; names that do not exist are noted."""
        known, kind = self._known(path)
        if kind is None and path:
            if known is not None:
                words = f"unknown; {nearest(path[-1], known)}"
            else:
                above = path[:-1]
                words = f"{'.'.join(above)} is {spelled(self._known(above)[1])}, which has no parts"
            self.mistakes.append(f"{_where(self.place(path), path)}: {words}")
            return
        if isinstance(value, Mapping) and (not path or value):
            for key, part in value.items():
                self.add((*path, str(key)), part)
            return
        self._items(path, kind, value)
        where = self.given
        for name in path[:-1]:
            if not isinstance(where.get(name), dict):
                where[name] = {}
            where = where[name]
        for old in [key for key in self.places if key[: len(path)] == path]:
            del self.places[old]
        where[path[-1]] = value
        self.places[path] = self.place

    def _known(self, path: Key) -> tuple[list[str] | None, Any]:
        """The names that are known beside the last of a path (None: no names can be), and its type."""
        if not path:
            return list(self.kinds), None
        kind = self.kinds.get(path[0])
        names: list[str] | None = list(self.kinds)
        for name in path[1:]:
            fields = fields_of(kind)
            names, kind = list(fields) if fields is not None else None, part_of(kind, name)
        return names, kind

    def _items(self, path: Key, kind: Any, value: Any) -> None:
        """Unknown names inside a list's items; pydantic would let them pass."""
        item = items_of(kind)
        if item is None or not isinstance(value, list | tuple):
            return
        known = fields_of(item)
        for index, each in enumerate(value):
            place = (*path, str(index))
            for name in each if isinstance(each, Mapping) else ():
                if known is not None and name not in known:
                    whose = _where(self.place((*place, name)), (*place, name))
                    self.mistakes.append(f"{whose}: unknown; {nearest(name, known)}")
            self._items(place, item, each)


def _checked(
    parameters: Mapping[str, inspect.Parameter], tree: _Tree, mistakes: list[str]
) -> Iterator[tuple[str, Any]]:
    """Every argument with its value; mistakes are added to the list."""
    for name, parameter in parameters.items():
        if name in tree.given:
            value = _filled(parameter.default, tree.given[name])
            yield name, _valid(name, value, parameter.annotation, tree, mistakes)
        elif parameter.default is parameter.empty:
            flag = f"--{name.replace('_', '-')}"
            mistakes.append(f"{flag}: required ({spelled(parameter.annotation)}), and not given")
        else:
            yield name, parameter.default


def _filled(default: Any, given: Any) -> Any:
    """What was given, with the parts of the default that were not."""
    if not isinstance(given, dict):
        return given
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        parts = {f.name: getattr(default, f.name) for f in dataclasses.fields(default) if f.init}
    elif isinstance(fields := getattr(type(default), "model_fields", None), dict):
        parts = {field.alias or name: getattr(default, name) for name, field in fields.items()}
    else:
        parts = dict(default) if isinstance(default, Mapping) else {}
    return {**parts, **{name: _filled(parts.get(name), part) for name, part in given.items()}}


def _valid(name: str, value: Any, kind: Any, tree: _Tree, mistakes: list[str]) -> Any:
    from pydantic import PydanticUserError, TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        for found in error.errors(include_url=False):
            mistakes.append(_mistake((name, *map(str, found["loc"])), value, found, tree))
    except PydanticUserError:
        mistakes.append(f"{name} is {spelled(kind)}, which no flag or file can say; leave it out")
    return value


def _mistake(path: Key, value: Any, found: Mapping[str, Any], tree: _Tree) -> str:
    """One mistake, with where it was said."""
    place, inside = path[:1], value
    for step in path[1:]:  # pydantic also names the parts of a union, which are no place
        if isinstance(inside, Mapping) and step in inside:
            inside = inside[step]
        elif isinstance(inside, list | tuple) and step.isdigit() and int(step) < len(inside):
            inside = inside[int(step)]
        elif found["type"] == "missing" and step == path[-1]:
            inside = None
        else:
            continue
        place = (*place, step)
    words = str(found["msg"]).removeprefix("Value error, ")
    if found["type"] == "missing":
        words = "required, and not given"
    elif not isinstance(found["input"], Mapping) and found["type"] != "value_error":
        words += f", found {found['input']!r:.80}"
    said = next((tree.places[p](place) for p in _around(place) if p in tree.places), "")
    parts = [tree.places[p](p) for p in tree.places if p[: len(place)] == place and p != place]
    whose = f" ({listed(parts)})" if parts and not said else ""
    return f"{_where(said, place)}{whose}: {words}"


def _around(path: Key) -> Iterator[Key]:
    """A path and everything that it lies in."""
    return (path[:end] for end in range(len(path), 0, -1))


def _where(said: str, path: Key) -> str:
    """A part as the user said it: a flag, a --set, or a place in a file and its name there."""
    name = ".".join(path)
    if said.startswith("--") and not said.startswith(SET):
        return f"--{name.replace('_', '-')}"
    return said if said == f"{SET} {name}" else f"{said}: {name}".removeprefix(": ")
