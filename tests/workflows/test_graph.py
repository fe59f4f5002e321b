"""The graph of a workflow: every step once, in an order that can run, stale ones with their reason."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import combinations
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.pipeline import Run, Step, execute
from stillroom.workflows.graph import Node, direct, graph_json, graph_mermaid, graph_of, graph_text
from stillroom.workflows.graph_svg import graph_svg

SVG = "{http://www.w3.org/2000/svg}"


def number(run: Run, inputs: Any, *, value: int = 1) -> dict[str, Any]:
    return {"value": value}


def steps(value: int = 1) -> list[Step]:
    data = Step("data", number)
    teach = Step("teach", number, {"value": value}, (data,))
    small, large = (Step(name, number, needs=(data, teach)) for name in ("small", "large"))
    return [Step("report", number, needs=(data, teach, small, large)), Step("alone", number)]


def test_the_tree_shows_every_step_once_with_why_it_would_run(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert (
        graph_text(graph_of(steps(), run)).splitlines()[0] == "● data       run: it never ran here"
    )
    execute(steps(), run)
    assert graph_text(graph_of(steps(2), run)).splitlines() == [
        "○ data       fresh",
        "│",
        "● teach      run: setting value: 1 became 2",
        "├─ ● small   run: after teach",
        "└─ ● large   run: after teach",
        "   │",
        "   ● report  run: after teach, small, large (also needs small)",
        "",
        "○ alone      fresh",
    ]


def test_as_json_it_is_what_the_plan_says(tmp_path: Path) -> None:
    execute(steps(), Run(tmp_path))
    (tmp_path / "steps" / "small.json").unlink()
    found = {s["step"]: s for s in graph_json(graph_of(steps(), Run(tmp_path)))["steps"]}
    assert found["small"] == {
        "step": "small",
        "needs": ["teach"],
        "why": "it never ran here",
        "refused": "",
        "state": "stale",
    }
    assert found["report"]["needs"] == ["small", "large"]
    assert [found[name]["state"] for name in ("data", "teach", "report")] == [
        "fresh",
        "fresh",
        "stale",
    ]


def nodes() -> list[Node]:
    """What could be in a file that somebody else wrote."""
    hostile = 'setting name: "<script>" became "a & b; #c"\n%%{init: 1}%%'
    return [
        Node("a", (), hostile),
        Node("b-" + "long" * 20, ("a",), "", "the disk is full " * 20),
        Node("c", ("a",), ""),
    ]


def test_mermaid_text_holds_nothing_that_could_be_its_syntax() -> None:
    first, *lines = graph_mermaid(nodes()).splitlines()
    assert first == "flowchart TD"
    boxes = [line for line in lines if line.startswith("  s") and "-->" not in line]
    assert len(boxes) == 3
    for line in boxes:
        inner = re.fullmatch(r'  s\d\["(.*)<br/>(.*)"\]:::(fresh|stale|refused)', line)
        assert inner is not None
        assert not set('"<>&`\n') & set(inner[1] + inner[2])
    assert [line for line in lines if "-->" in line] == ["  s0 --> s1", "  s0 --> s2"]


def test_the_picture_says_the_same_and_escapes_it() -> None:
    root = ET.fromstring(graph_svg(nodes(), 'a"<b>'))
    assert root.get("aria-label") == 'steps of a"<b>'
    titles = {title.text for title in root.iter(f"{SVG}title")}
    assert titles == {f"{node.step}: {node.words}" for node in nodes()}
    assert [g.get("class") for g in root.iter(f"{SVG}g")] == ["stale", "refused", "fresh"]
    assert "script" not in {element.tag.removeprefix(SVG) for element in root.iter()}


@st.composite
def graphs(draw: Any) -> list[Step]:
    """Any workflow: each step needs some of those before it."""
    made: list[Step] = []
    for index in range(draw(st.integers(1, 9))):
        picked = draw(st.lists(st.integers(0, index - 1), unique=True) if index else st.just([]))
        made.append(Step(f"s{index}", number, needs=tuple(made[i] for i in picked)))
    return made


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_any_graph_is_drawn_whole(made: list[Step]) -> None:
    needs = direct(made)
    drawn = [Node(name, above, "stale" * (len(above) % 2)) for name, above in needs.items()]
    # A need that is left out still follows from the others.
    for step in made:
        reached, waiting = set(), list(needs[step.name])
        while waiting:
            name = waiting.pop()
            reached.add(name)
            waiting += needs[name]
        assert reached >= {needed.name for needed in step.needs}
        assert set(needs[step.name]) <= {needed.name for needed in step.needs}
    # The tree: each once, after everything it needs.
    order = re.findall(r"[○●✗] (s\d)", graph_text(drawn))
    assert sorted(order) == sorted(needs)
    assert all(order.index(n) < order.index(name) for name, above in needs.items() for n in above)
    # The picture: no box over another, and as many arrows as needs.
    root = ET.fromstring(graph_svg(drawn))
    boxes = [
        [float(box.attrib[key]) for key in ("x", "y", "width", "height")]
        for box in root.iter(f"{SVG}rect")
        if box.get("class") == "box"
    ]
    assert len(boxes) == len(made)
    for (x, y, w, h), (x2, y2, w2, h2) in combinations(boxes, 2):
        assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
    _, _, wide, tall = map(float, root.attrib["viewBox"].split())
    assert all(x >= 0 and y >= 0 and x + w <= wide and y + h <= tall for x, y, w, h in boxes)
    edges = [p.attrib["d"] for p in root.iter(f"{SVG}path") if p.get("class") == "edge"]
    assert len(edges) >= sum(map(len, needs.values()))


def test_a_chain_deeper_than_the_stack_is_drawn() -> None:
    last = Step("0", number)
    for depth in range(1, 2000):
        last = Step(str(depth), number, needs=(last,))
    needs = direct([last])
    text = graph_text([Node(name, above, "") for name, above in needs.items()])
    assert text.count("○") == 2000
    assert len({line.index("○") for line in text.splitlines() if "○" in line}) == 1


def test_of_nothing_the_picture_is_empty() -> None:
    assert graph_text([]) == ""
    assert not list(ET.fromstring(graph_svg([])).iter(f"{SVG}g"))
