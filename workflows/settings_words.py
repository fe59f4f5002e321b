"""A workflow's settings as people read them: as help, and as the file that would say them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin

from stillroom.workflows.config import SCHEMA
from stillroom.workflows.settings import Settings, parameters_of
from stillroom.workflows.settings_kinds import bare, fields_of, is_mapping, spelled
from stillroom.workflows.yaml_text import Key, as_yaml

_WIDTH = 100
_INDENT = 30
_EMPTY = inspect.Parameter.empty


class _Needed(str):
    """In place of a default: when a part of an optional setting must be given."""


def settings_help(workflow: Callable[..., Any], own: tuple[str, ...] = ()) -> str:
    """What a workflow does and every setting of it: flag, type, what its docstring says, default.

    `own` are flags that the command line keeps for itself; settings of these names are said by --set.
    """
    about, texts = _documented(workflow)
    lines = [f"Settings of {workflow.__name__}: {about}".rstrip(": ")]
    for name, parameter in parameters_of(workflow).items():
        for key, kind, default, text in _parts(
            (name,), parameter.annotation, parameter.default, texts.get(name, "")
        ):
            lines += _entry(key, kind, default, text, own)
    lines.append("  Also as `name: value` in a file (--config FILE), or --set NAME=VALUE.")
    return "\n".join(lines)


def as_config(settings: Settings) -> str:
    """The configuration file that says these settings, with where each came from as a comment.

    Saved and given as --config it is the same settings.
    """
    lines = [(f"{SCHEMA}: {settings.schema}", "")]
    lines += _config_lines({name: plain(v) for name, v in settings.values.items()}, (), settings)
    width = min(max(len(line) for line, _ in lines), _WIDTH // 2)
    return "\n".join(f"{line:<{width}}  # {said}" if said else line for line, said in lines)


def plain(value: Any) -> Any:
    """A setting's value as plain JSON; what is none is shown as its repr."""
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value, fallback=repr, inf_nan_mode="constants", by_alias=True)


def origins(settings: Settings) -> dict[str, str]:
    """Where each setting came from, by its dotted name; of a mapping, each part."""
    found: dict[str, str] = {}

    def visit(value: Any, path: Key) -> None:
        if isinstance(value, dict) and value:
            for name, part in value.items():
                visit(part, (*path, name))
        else:
            found[".".join(path)] = settings.origin(path)

    for name, value in settings.values.items():
        visit(plain(value), (name,))
    return found


def _config_lines(
    values: Mapping[str, Any], above: Key, settings: Settings
) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        path, key = (*above, name), f"{'  ' * len(above)}{as_yaml(name)}:"
        if isinstance(value, dict) and value:
            yield key, ""
            yield from _config_lines(value, path, settings)
        else:
            yield f"{key} {as_yaml(value)}", settings.origin(path)


def _parts(path: Key, kind: Any, default: Any, text: str) -> Iterator[tuple[Key, Any, Any, str]]:
    """A setting, or its parts where it has names of its own."""
    fields = fields_of(kind)
    if not fields or len(path) > 3:
        yield path, kind, default, text or _described(kind)
        return
    texts, optional = _field_texts(bare(kind)), default is None
    for name, inner in fields.items():
        made = default is _EMPTY or optional
        value = _class_default(bare(kind), name) if made else _part(default, name)
        if value is _EMPTY and optional:
            value = _Needed(f"required where {path[-1]} is given")
        yield from _parts((*path, name), inner, value, texts.get(name, ""))


def _part(value: Any, name: str) -> Any:
    return value.get(name, _EMPTY) if isinstance(value, Mapping) else getattr(value, name, _EMPTY)


def _class_default(kind: Any, name: str) -> Any:
    """What a field of a dataclass or pydantic model is when it is not given."""
    found = getattr(kind, "model_fields", {}).get(name) or next(
        (f for f in getattr(kind, "__dataclass_fields__", {}).values() if f.name == name), None
    )
    if callable(factory := getattr(found, "default_factory", None)):
        return factory()
    value = getattr(found, "default", _EMPTY)
    return value if _can_be_shown(value) else _EMPTY


def _can_be_shown(value: Any) -> bool:
    """Whether it is a default; both libraries have an object of their own for none."""
    return value is not dataclasses.MISSING and type(value).__name__ != "PydanticUndefinedType"


def _entry(key: Key, kind: Any, default: Any, text: str, own: tuple[str, ...]) -> list[str]:
    flag = f"--{'.'.join(key).replace('_', '-')}"
    if bare(kind) is bool:
        flag = f"{flag}, --no-{flag[2:]}"
    elif is_mapping(kind):
        flag = f"{flag}.NAME"
    if flag.partition(",")[0] in own:
        flag = f"--set {'.'.join(key)}=..."  # the command has a flag of this name
    says = [text] if text else []
    says.append("" if bare(kind) is bool else spelled(kind))
    if isinstance(default, _Needed):
        says.append(default)
    else:
        says.append("required" if default is _EMPTY else f"default {as_yaml(plain(default))}")
    words = "; ".join(part for part in says if part)
    head = f"  {flag}"
    joined = f"{head:<{_INDENT}}" if len(head) < _INDENT else f"{head}\n{'':<{_INDENT}}"
    return textwrap.wrap(
        joined.rstrip("\n") + words,
        _WIDTH,
        subsequent_indent=" " * _INDENT,
        drop_whitespace=True,
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _documented(workflow: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The first line of a docstring, and what it says of each argument as `name: text`.

    Texts end at the next name, or at an empty line.
    """
    doc = inspect.getdoc(workflow) or ""
    names = "|".join(map(re.escape, inspect.signature(workflow).parameters))
    if not names:
        return doc.partition("\n")[0], {}
    starts = list(re.finditer(rf"(?:^|[;\n])[ \t]*(?:and )?({names})(?: \([^)\n]*\))?:\s", doc))
    texts = {}
    ends = [*(after.start() for after in starts[1:]), len(doc)]
    for start, end in zip(starts, ends, strict=False):
        text = doc[start.end() : end].split("\n\n")[0]
        texts[start[1]] = " ".join(text.split()).rstrip(";.,")
    return doc.partition("\n")[0], texts


def _described(kind: Any) -> str:
    """What `Annotated[..., Field(description=...)]` says."""
    notes = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    return next((str(n.description) for n in notes if getattr(n, "description", None)), "")


def _field_texts(kind: type) -> dict[str, str]:
    """The text under each field of a class, by the field's name."""
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return {}
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    texts = {}
    for field, under in itertools.pairwise(body):
        match field, under:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                texts[name] = " ".join(text.split()).rstrip(".")
    return texts
