"""YAML as plain data: the names, numbers, texts and lists of YAML 1.2, nothing that runs or unfolds.

Of older YAML it leaves out what surprises: `no` and `on` are texts and not booleans, `010` is ten,
`1:30` and dates are texts, `1e-3` is a number. Aliases are refused, because a few lines of them can
stand for gigabytes, and so are keys that come twice, of which one would be lost in silence.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from stillroom.storage.errors import SettingsError

Key = tuple[str, ...]
_TAG = "tag:yaml.org,2002:"
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_MEANT = ("null", "true", "false")
_DEEPEST = 100
_NUMBER = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
_SCALARS = {
    "null": r"(null|Null|NULL|~|)\Z",
    "bool": r"(true|True|TRUE|false|False|FALSE)\Z",
    "int": r"[-+]?[0-9]+\Z",
    "float": rf"({_NUMBER}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z",
}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Finds the nodes of a text; what they mean is said below."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012

    def fetch_flow_collection_start(self, kind: Any) -> Any:
        """Refuse brackets in brackets without end, for which the scanner's time grows with the cube."""
        if self.flow_level > _DEEPEST:
            problem = "nested too deep to be settings"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.get_mark())
        return super().fetch_flow_collection_start(kind)

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse an alias where it stands."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"an alias (*{event.anchor}); write out what it stands for",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)


for _name, _pattern in _SCALARS.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(_pattern), None)


@dataclass(frozen=True)
class Parsed:
    """What a text says."""

    value: Any
    lines: dict[Key, int] = field(default_factory=dict)
    """The line, from 1, of every key and list item, by its path."""


def parse_yaml(text: str, name: str) -> Parsed:
    """A text's one value; `name` stands in messages.

    SettingsError lists what is wrong with its line: no YAML, several documents, a key that comes
    twice, an alias, a tag.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise SettingsError(f"{name}{line}: not YAML that can be read: {error.problem}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{name}: not YAML that can be read: {error}") from None
    except RecursionError:
        raise SettingsError(f"{name}: nested too deep to be settings") from None
    mistakes: list[str] = []
    parsed = Parsed(None)
    value = None if node is None else _value(node, (), parsed.lines, mistakes)
    if mistakes:
        raise SettingsError("\n".join(f"{name}:{mistake}" for mistake in mistakes))
    return Parsed(value, parsed.lines)


def _value(node: Any, path: Key, lines: dict[Key, int], mistakes: list[str]) -> Any:
    if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
        return _mapping(node, path, lines, mistakes)
    if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
        for index, item in enumerate(node.value):
            lines[(*path, str(index))] = item.start_mark.line + 1
        items = enumerate(node.value)
        return [_value(item, (*path, str(index)), lines, mistakes) for index, item in items]
    kind = node.tag.removeprefix(_TAG)
    try:
        if isinstance(node, yaml.ScalarNode) and kind in (*_SCALARS, "str"):
            return _scalar(kind, node.value)
    except ValueError:
        pass  # a tag that does not fit, or more digits than Python reads
    line = node.start_mark.line + 1
    mistakes.append(f"{line}: {'.'.join(path)}: {node.tag} is not read; write plain values")
    return None


def _mapping(node: Any, path: Key, lines: dict[Key, int], mistakes: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            mistakes.append(f"{line}: a key is a name, found a list or mapping")
            continue
        key = str(key_node.value)
        place = (*path, key)
        if key in found:
            mistakes.append(
                f"{line}: {'.'.join(place)} comes twice, first in line {lines[place]}; drop one"
            )
            continue
        lines[place] = line
        found[key] = _value(value_node, place, lines, mistakes)
    return found


def _scalar(kind: str, text: str) -> Any:
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text)
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def as_yaml(value: Any) -> str:
    """A plain value in one line, as `parse_yaml` reads it back.

    >>> as_yaml({"rate": 1e-05, "names": ["no", "kd 2"], "none": None})
    '{rate: 1e-05, names: [no, "kd 2"], none: null}'
    """
    if isinstance(value, dict):
        return f"{{{', '.join(f'{as_yaml(str(k))}: {as_yaml(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_yaml, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' * (value < 0)}.inf"
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and _WORD.fullmatch(value) and value.lower() not in _MEANT:
        return value
    escaped = (c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)
    return "".join(escaped)
