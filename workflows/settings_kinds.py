"""What a setting's type takes: which names lie in it, and what a text given for it means."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from stillroom.workflows.yaml_text import parse_yaml

_LISTS = (list, tuple, set, frozenset)
_MAPPINGS = (dict, Mapping)


def bare(kind: Any) -> Any:
    """A type without what is annotated to it, and without None."""
    kind = _unannotated(kind)
    if _is_union(kind):
        some = [part for part in get_args(kind) if part is not type(None)]
        if len(some) == 1:
            return bare(some[0])
    return kind


def _unannotated(kind: Any) -> Any:
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return kind


def fields_of(kind: Any) -> dict[str, Any] | None:
    """The names in a dataclass, pydantic model or TypedDict with their types; None of others."""
    kind = bare(kind)
    if not isinstance(kind, type):
        return None
    if isinstance(models := getattr(kind, "model_fields", None), dict):
        return {field.alias or name: _annotated(field) for name, field in models.items()}
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        return {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.init}
    if typing.is_typeddict(kind):
        return typing.get_type_hints(kind, include_extras=True)
    return None


def _annotated(field: Any) -> Any:
    # pydantic keeps what is annotated apart from the type; only its text is shown here.
    return Annotated[field.annotation, field] if field.description else field.annotation


def items_of(kind: Any) -> Any:
    """The type of a list's items (of a tuple's first); None of what is no list."""
    kind = bare(kind)
    origin = get_origin(kind) or kind
    if not isinstance(origin, type) or not issubclass(origin, _LISTS):
        return None
    return next(iter(get_args(kind)), Any)


def is_mapping(kind: Any) -> bool:
    """Whether a type takes any names: a dict, or anything at all."""
    kind = bare(kind)
    return kind is Any or (get_origin(kind) or kind) in _MAPPINGS or _is_union(kind)


def part_of(kind: Any, name: str) -> Any:
    """The type of what lies under a name; None when nothing can."""
    fields = fields_of(kind)
    if fields is not None:
        return fields.get(name)
    if not is_mapping(kind):
        return None
    arguments = get_args(bare(kind))
    return arguments[1] if len(arguments) == 2 and not _is_union(bare(kind)) else Any


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def from_text(text: str, kind: Any, name: str) -> Any:
    """What a text on the command line stands for: itself where a text is wanted, else YAML.

    `null` is None where the type takes that. SettingsError where YAML is wanted and it is none.
    """
    whole, kind = _unannotated(kind), bare(kind)
    if text == "null" and whole is not kind:
        return None
    if get_origin(kind) is Literal:
        plain = all(isinstance(value, str) for value in get_args(kind))
    else:
        # pydantic reads numbers, booleans, dates and the like from texts by itself.
        plain = isinstance(kind, type) and not _is_container(kind)
        if plain and issubclass(kind, Enum):
            plain = all(isinstance(member.value, str) for member in kind)
    return text if plain else parse_yaml(text, name).value


def _is_container(kind: Any) -> bool:
    return kind is object or items_of(kind) is not None or is_mapping(kind) or bool(fields_of(kind))


def spelled(kind: Any) -> str:
    """A type as people read it in a list of settings.

    >>> spelled(tuple[float, ...]), spelled(int | None), spelled(Literal["a", "b"])
    ('float, several times', 'int or null', 'a or b')
    """
    kind = _unannotated(kind)
    if kind is type(None):
        return "null"
    if _is_union(kind):
        return " or ".join(map(spelled, get_args(kind)))
    if get_origin(kind) is Literal:
        return " or ".join(str(value) for value in get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " or ".join(str(member.value) for member in kind)
    if (item := items_of(kind)) is not None:
        return f"{spelled(item)}, several times"
    if kind is Any:
        return "anything"
    if isinstance(kind, type) and issubclass(kind, PurePath):
        return "path"
    names = {str: "text", bool: "true or false"}
    return names.get(kind) or (kind.__name__ if isinstance(kind, type) else str(kind))
