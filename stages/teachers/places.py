"""Places in a module that a signal is read from, as they are spelled, and patterns of them.

A place is a module's name as torch spells it ("" is the whole module), with `:key` behind it for an
entry of its output or `:input` for what it is given; or, around a name, one of

    attention(name)                     attention weights
    query(name) key(name) value(name)   what its projections give, cut into heads

A pattern is a place whose name holds `*` (anything within one dotted part), `**` (any parts), `?` or
`[...]`; it stands for every module that matches, in their order. `last(pattern)` is the last of them,
and `last` alone, where no module has that name, the input of the last Linear layer: the classifier.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stillroom.storage.errors import SignalError, UnknownSignalError, nearest

if TYPE_CHECKING:
    from torch import nn

INPUT = "input"
"""Behind a module's name: not what it gives but what it is given."""
PARTS = ("attention", "query", "key", "value")
"""What can be read from inside an attention module."""
_CALL = re.compile(rf"({'|'.join(PARTS)}|last)\((.*)\)(?::(.*))?", re.DOTALL)
_WILD = re.compile(r"(\*\*|\*|\?|\[[^\]]+\])")
_UNNAMEABLE = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Spot:
    """One place, taken apart."""

    layer: str
    """The module's name, or a pattern of names."""
    key: str = ""
    """The entry of its output; INPUT for what it is given; empty for all of it."""
    part: str = ""
    """One of PARTS, or empty."""
    last: bool = False
    """Only the last module that the pattern matches."""

    @classmethod
    def of(cls, place: str) -> Spot:
        """As spelled.

        >>> Spot.of("lm_head:input")
        Spot(layer='lm_head', key='input', part='', last=False)
        >>> Spot.of("attention(last(blocks.*.attn))")
        Spot(layer='blocks.*.attn', key='', part='attention', last=True)
        """
        call = _CALL.fullmatch(place)
        if call is None:
            layer, _, key = place.partition(":")
            return cls(layer, key)
        name, inner, key = call[1], cls.of(call[2]), call[3] or ""
        if name == "last":
            return cls(inner.layer, key or inner.key, inner.part, True)
        if inner.key or inner.part or key:
            raise SignalError(f"{place!r}: {name}(...) takes a module's name and nothing else")
        return cls(inner.layer, "", name, inner.last)

    def __str__(self) -> str:
        """As it is spelled once its pattern is replaced by a name."""
        name = f"{self.part}({self.layer})" if self.part else self.layer
        return f"{name}:{self.key}" if self.key else name

    @property
    def is_pattern(self) -> bool:
        """Whether it takes the module's names to say what it stands for."""
        return self.last or self.layer == "last" or bool(_WILD.search(self.layer))


def has_patterns(layers: Mapping[str, str]) -> bool:
    """Whether a teacher's signals depend on the names of its modules."""
    return any(Spot.of(place).is_pattern for place in layers.values())


def expanded(
    module: nn.Module, layers: Mapping[str, str], owner: str
) -> dict[str, tuple[str, str]]:
    """{signal: (its place, the name that it was asked under)}, each with one module's name.

    Of a pattern each match is a signal of its own. Where the signal's name holds `{}`, those are
    replaced by what the wildcards matched: one by one, or one `{}` by all of it joined by `-`; other
    names get `-` and the same behind them. What a signal's name cannot hold (dots) becomes `-`:

        {"attn": "blocks.*.attn"}      attn-0, attn-1, ...
        {"hidden.{}": "blocks.*"}      hidden-0, hidden-1, ...

    Raises UnknownSignalError for a pattern that matches nothing, which says what there is, and
    SignalError for two signals of one name.
    """
    modules = dict(module.named_modules(remove_duplicate=False))
    found: dict[str, tuple[str, str]] = {}
    for name, place in layers.items():
        for signal, spot in _matches(name, Spot.of(place), modules, owner):
            if signal in found:
                raise SignalError(
                    f"{owner}: {place!r} and {layers[found[signal][1]]!r} are both signal {signal!r}; "
                    "give them other names, with a {} for each wildcard"
                )
            found[signal] = (str(spot), name)
    return found


def _matches(
    name: str, spot: Spot, modules: Mapping[str, nn.Module], owner: str
) -> Iterator[tuple[str, Spot]]:
    if not spot.is_pattern or spot.layer in modules:
        yield name, spot
        return
    if spot.layer == "last":
        yield name, _classifier_input(modules, owner)
        return
    pattern = _compiled(spot.layer)
    matched = [
        (layer, m.groups()) for layer in modules if layer and (m := pattern.fullmatch(layer))
    ]
    if not matched:
        kinds = {re.sub(r"(?<![^.])\d+(?![^.])", "*", layer) for layer in modules if layer}
        raise UnknownSignalError(
            f"{owner}: no layer matches {spot.layer!r}; {nearest(spot.layer, kinds)}"
        )
    if spot.last:
        layer, _ = matched[-1]
        yield name, Spot(layer, spot.key, spot.part)
        return
    for layer, groups in matched:
        yield _named(name, groups, owner), Spot(layer, spot.key, spot.part)


def _classifier_input(modules: Mapping[str, nn.Module], owner: str) -> Spot:
    from torch import nn

    linear = [layer for layer, module in modules.items() if isinstance(module, nn.Linear) and layer]
    if not linear:
        raise UnknownSignalError(
            f"{owner}: 'last' is the input of the last Linear layer, and there is none; name a layer: "
            f"{nearest('last', [layer for layer in modules if layer])}"
        )
    return Spot(linear[-1], INPUT)


def _compiled(pattern: str) -> re.Pattern[str]:
    """Each wildcard is a group."""
    said = {"**": r"(.*)", "*": r"([^.]*)", "?": r"([^.])"}
    pieces = _WILD.split(pattern)
    found = [
        re.escape(piece) if i % 2 == 0 else said.get(piece) or f"({piece.replace('[!', '[^')})"
        for i, piece in enumerate(pieces)
    ]
    return re.compile("".join(found))


def _named(name: str, groups: Sequence[str], owner: str) -> str:
    holes = name.count("{}")
    if holes == 0:
        name, holes = f"{name}-{{}}", 1
    if holes not in (1, len(groups)):
        raise SignalError(
            f"{owner}: signal {name!r} has {holes} {{}} for {len(groups)} wildcards; expected one for "
            "each, or one for all"
        )
    filled = iter(["-".join(groups)] if holes == 1 else groups)
    return _UNNAMEABLE.sub("-", re.sub(r"\{\}", lambda _: next(filled), name))
