"""The graph of a workflow's steps as an SVG: layers from top to bottom, edges around the boxes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from stillroom.workflows.graph import Node

_BOX, _LINE, _GAP, _LAYER, _EDGE, _PAD = 230, 16, 24, 46, 16, 16
"""Pixels: a box's width, a line of text, between boxes, between layers, an edge's own room, margin."""
_CHARACTERS, _LINES, _MORE = 34, 3, " \N{HORIZONTAL ELLIPSIS}"
"""Of what is said in a box; all of it is in its title."""
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; } .name { font-weight: 600; }
.box { fill: #eef4ee; stroke: #4a7a4a; } .stale .box { fill: #fdf0d5; stroke: #b8740f; stroke-width: 2; }
.refused .box { fill: #fbe3e1; stroke: #b3261e; stroke-width: 2; stroke-dasharray: 5 3; }
.edge { fill: none; stroke: #6e7781; } .ground { fill: #ffffff; } .tip { fill: #6e7781; }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3; } .ground { fill: #0d1117; }
.box { fill: #16241a; stroke: #6fae74; } .stale .box { fill: #33260d; stroke: #e0a84a; }
.refused .box { fill: #3a1614; stroke: #f2857c; } .edge { stroke: #8b949e; } .tip { fill: #8b949e; } }
"""


@dataclass
class _Place:
    """Where something stands in its layer: a box, or an edge on its way past it."""

    layer: int
    above: list[str]
    lines: list[str]
    wide: int = _EDGE
    x: float = 0

    @property
    def tall(self) -> int:
        return _LINE * (len(self.lines) + 1) if self.lines else 0


def graph_svg(nodes: Sequence[Node], name: str = "workflow") -> str:
    """An SVG that needs no script and no font, dark where the reader's screen is."""
    places = _placed(nodes)
    layers = [[p for p in places.values() if p.layer == i] for i in range(_depth(places) + 1)]
    wide = max((sum(p.wide + _GAP for p in layer) - _GAP for layer in layers), default=0)
    for layer in layers:
        # Everything is as near to what it waits for as its left neighbour lets it.
        layer.sort(key=lambda p: _middle(p, places, wide))
        left = max(0.0, (wide - sum(p.wide + _GAP for p in layer) + _GAP) / 2)
        for place in layer:
            place.x = left + place.wide / 2
            left += place.wide + _GAP
    tall = [max(place.tall for place in layer) for layer in layers]
    tops = [_PAD + sum(tall[:i]) + _LAYER * i for i in range(len(layers))]
    width, height = wide + 2 * _PAD, _PAD * 2 + sum(tall) + _LAYER * max(len(layers) - 1, 0)
    drawn = [*_edges(places, tops, tall), *_boxes(nodes, places, tops)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
            f'width="{width:g}" height="{height:g}" role="img" aria-label="steps of {escape(name)}">',
            f"<style>{_STYLE}</style>",
            '<rect class="ground" width="100%" height="100%"/>',
            *drawn,
            "</svg>\n",
        ]
    )


def _placed(nodes: Sequence[Node]) -> dict[str, _Place]:
    """Each step one layer below the last that it needs; an edge has a place in every layer between."""
    places: dict[str, _Place] = {}
    for node in nodes:
        layer = 1 + max((places[need].layer for need in node.needs), default=-1)
        above = []
        for need in node.needs:
            last = need
            for between in range(places[need].layer + 1, layer):
                passed = f"{need}/{node.step}/{between}"  # no step has a slash in its name
                places[passed] = _Place(between, [last], [])
                last = passed
            above.append(last)
        said = textwrap.wrap(node.words, _CHARACTERS, max_lines=_LINES, placeholder=_MORE)
        long = len(node.step) > _CHARACTERS - 4
        shown = node.step[: _CHARACTERS - 5] + _MORE if long else node.step
        places[node.step] = _Place(layer, above, [shown, *said], _BOX)
    return places


def _depth(places: Mapping[str, _Place]) -> int:
    return max((place.layer for place in places.values()), default=-1)


def _middle(place: _Place, places: Mapping[str, _Place], wide: float) -> float:
    above = [places[name].x for name in place.above]
    return sum(above) / len(above) if above else wide / 2


def _edges(places: Mapping[str, _Place], tops: Sequence[int], tall: Sequence[int]) -> Iterator[str]:
    for place in places.values():
        x, y = place.x + _PAD, tops[place.layer]
        for name in place.above:
            over = places[name]
            # An edge on its way past a layer runs straight down to that layer's end.
            start = tops[over.layer] + (over.tall if over.lines else tall[over.layer])
            half = (start + y) / 2
            line = f"M{over.x + _PAD:g} {start:g}C{over.x + _PAD:g} {half:g} {x:g} {half:g} {x:g} {y:g}"
            line += "" if place.lines else f"V{y + tall[place.layer]:g}"
            yield f'<path class="edge" d="{line}"/>'
        if place.lines and place.above:
            yield f'<path class="tip" d="M{x - 4:g} {y - 8:g}h8l-4 8z"/>'


def _boxes(
    nodes: Sequence[Node], places: Mapping[str, _Place], tops: Sequence[int]
) -> Iterator[str]:
    for node in nodes:
        place = places[node.step]
        x, y = place.x - _BOX / 2 + _PAD, tops[place.layer]
        yield f'<g class="{node.state}"><title>{escape(node.step)}: {escape(node.words)}</title>'
        yield f'<rect class="box" x="{x:g}" y="{y:g}" width="{_BOX}" height="{place.tall}" rx="6"/>'
        for index, line in enumerate(place.lines):
            kind = ' class="name"' if index == 0 else ""
            at = y + _LINE * (index + 1) + 3
            yield f'<text x="{x + 12:g}" y="{at:g}"{kind}>{escape(line)}</text>'
        yield "</g>"
