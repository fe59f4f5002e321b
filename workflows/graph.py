"""The steps of a workflow as a picture: what needs what, what would run now and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from operator import or_
from typing import Any

from stillroom.pipeline.execute import ordered, plan
from stillroom.pipeline.step import Run, Step

_FARTHEST = 48
"""Column up to which what is said of steps is lined up."""
_STYLES = {
    "fresh": "fill:#eef4ee,stroke:#4a7a4a,color:#1c2b1c",
    "stale": "fill:#fdf0d5,stroke:#b8740f,color:#3d2604",
    "refused": "fill:#fbe3e1,stroke:#b3261e,color:#410e0b",
}
_MARKS = {"fresh": "\N{WHITE CIRCLE}", "stale": "\N{BLACK CIRCLE}", "refused": "\N{BALLOT X}"}
_BAR = "\N{BOX DRAWINGS LIGHT VERTICAL}"
_FORK = "\N{BOX DRAWINGS LIGHT VERTICAL AND RIGHT}\N{BOX DRAWINGS LIGHT HORIZONTAL} "
_END = "\N{BOX DRAWINGS LIGHT UP AND RIGHT}\N{BOX DRAWINGS LIGHT HORIZONTAL} "


@dataclass(frozen=True)
class Node:
    """A step in the picture."""

    step: str
    needs: tuple[str, ...]
    """Steps that come before, without those that others of them need anyway."""
    why: str
    """Why it would run; empty when it is fresh."""
    refused: str = ""
    """Why it cannot run; empty when it can."""

    @property
    def state(self) -> str:
        """fresh, stale or refused."""
        return "refused" if self.refused else "stale" if self.why else "fresh"

    @property
    def words(self) -> str:
        """Its state in words."""
        if self.refused:
            return f"cannot run: {self.refused}"
        return f"run: {self.why}" if self.why else "fresh"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {**asdict(self), "needs": list(self.needs), "state": self.state}


def graph_of(steps: Sequence[Step], run: Run) -> list[Node]:
    """Every step, each after what it needs; nothing is computed."""
    planned = list(plan(steps, run))
    needs = direct(steps)
    return [Node(p.step, needs[p.step], p.why, p.refused) for p in planned]


def direct(steps: Sequence[Step]) -> dict[str, tuple[str, ...]]:
    """What each step needs by name, without what follows from the rest; steps in order."""
    bits: dict[str, int] = {}
    behind: dict[str, int] = {}  # as bits: in a long chain of rounds every step has thousands
    found: dict[str, tuple[str, ...]] = {}
    for step in ordered(steps):
        names = list(dict.fromkeys(needed.name for needed in step.needs))
        further = reduce(or_, (behind[name] for name in names), 0)
        found[step.name] = tuple(name for name in names if not bits[name] & further)
        bits[step.name] = 1 << len(bits)
        behind[step.name] = reduce(or_, (bits[name] for name in names), further)
    return found


def graph_text(nodes: Sequence[Node]) -> str:
    """A tree for the terminal, from what runs first to what runs last.

    A step stands once, below the last one that it waits for; others are named beside it.
    """
    dependents: dict[str, list[Node]] = {node.step: [] for node in nodes}
    for node in nodes:
        for need in node.needs:
            dependents[need].append(node)
    lines: list[tuple[str, str]] = []
    above: set[str] = set()
    waiting = [(node, "", "", "") for node in reversed(nodes) if not node.needs]
    while waiting:
        node, parent, head, indent = waiting.pop()
        if not parent and lines:
            lines.append(("", ""))
        elif parent and head == indent:
            lines.append((f"{indent}{_BAR}", ""))
        others = ", ".join(name for name in node.needs if name != parent)
        words = f"{node.words} (also needs {others})" if others else node.words
        lines.append((f"{head}{_MARKS[node.state]} {node.step}", words))
        above.add(node.step)
        below = [child for child in dependents[node.step] if above.issuperset(child.needs)]
        waiting += [
            (child, node.step, *_branch(indent, child is below[-1], len(below) > 1))
            for child in reversed(below)
        ]
    width = min(max((len(head) for head, _ in lines), default=0), _FARTHEST)
    return "\n".join(f"{head:<{width}}  {words}".rstrip() for head, words in lines)


def _branch(indent: str, last: bool, several: bool) -> tuple[str, str]:
    """What stands before a step and before what is below it; a chain stays in its column."""
    if not several:
        return indent, indent
    return (
        (f"{indent}{_END}", f"{indent}   ") if last else (f"{indent}{_FORK}", f"{indent}{_BAR}  ")
    )


def graph_mermaid(nodes: Sequence[Node]) -> str:
    """Mermaid text, which GitHub and many wikis draw."""
    name = {node.step: f"s{index}" for index, node in enumerate(nodes)}
    lines = ["flowchart TD"]
    lines += [
        f'  {name[n.step]}["{_quoted(n.step)}<br/>{_quoted(n.words)}"]:::{n.state}' for n in nodes
    ]
    lines += [f"  {name[need]} --> {name[node.step]}" for node in nodes for need in node.needs]
    lines += [f"  classDef {state} {style}" for state, style in _STYLES.items()]
    return "\n".join(lines)


def graph_json(nodes: Sequence[Node]) -> Mapping[str, Any]:
    """The steps in the order in which they run, as plain JSON."""
    return {"steps": [node.to_json() for node in nodes]}


def _quoted(text: str) -> str:
    """Text that Mermaid takes as it is."""
    return "".join(f"#{ord(c)};" if c in '"#&<>`;\n' else c for c in text)
