"""The HTML page of a run: self-contained, honest about lost comparisons, the same bytes each time."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from stillroom.workflows.reporting import writing
from stillroom.workflows.reporting.writing import page_text, write_page
from tests.workflows.report_builders import (
    Page,
    interval,
    plainly,
    realistic,
    short,
    student,
    undrawn,
)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "run" / "report.html"
    write_page(realistic(), path)
    assert sorted(p.name for p in path.parent.iterdir()) == ["report.html", "results.json"]
    return path.read_text("utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_refers_to_nothing_outside(text: str, page: Page) -> None:
    assert not re.search(r"https?:|//[a-z]|@import|@font-face", text)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    targets = [a[k] or "" for _, a in page.tags for k in ("href", "src", "xlink:href") if k in a]
    assert targets
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in targets)


def test_ids_are_unique_and_references_resolve(text: str, page: Page) -> None:
    ids = Counter(a["id"] for _, a in page.tags if "id" in a)
    assert set(ids.values()) == {1}
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert {a or b for a, b in used} <= set(ids)


def test_accessible(page: Page) -> None:
    assert ("html", {"lang": "en"}) in page.tags
    assert page.count("title") == 1
    drawings = [a for tag, a in page.tags if tag == "svg"]
    # intervals and places, divergence, reliability, curves, bytes, seconds
    assert len(drawings) == 4 + 1 + 2 + 2 + 1 + 1
    assert all(a["role"] == "img" and a["aria-label"] for a in drawings)
    assert page.count("figcaption") == page.count("figure")
    assert all("scope" in a for tag, a in page.tags if tag == "th")
    assert all(a["alt"] for tag, a in page.tags if tag == "img")
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_figures_take_the_colours_of_the_page(text: str) -> None:
    svg = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "currentColor" in svg
    assert "font-family" not in svg
    assert set(re.findall(r"(?:fill|stroke): (#\w+)", svg)) == set()


def test_shows_the_numbers(page: Page) -> None:
    for one in realistic()["students"]:
        assert one["name"] in page.text
        low, mean, high = (one["metrics"]["accuracy"][k] for k in ("low", "mean", "high"))
        assert f"{mean:.1%} {low * 100:.1f}-{high * 100:.1f}" in plainly(page)
    assert "0.0039" in page.text
    assert "exact" in page.text
    assert "n × 2" in page.text  # noqa: RUF001
    assert "1.2 MB" in page.text
    assert "95% t-intervals" in page.text
    assert "9f3c" * 8 in page.text
    assert "torch 2.9.0" in page.text
    assert "ECE lower is better" in page.text
    assert "accuracy higher is better" in page.text
    assert "N*: from 2 such trainings on" in page.text
    assert "Stopped early MLP, wide, seed 0: stopped after epoch 2 of 20" in page.text


def test_summary_says_where_distillation_won_and_lost(page: Page) -> None:
    said = plainly(page)
    assert "gets 98.1% of the 1,000 held-out rows of MNIST 5k right" in said
    assert "The best student by mean accuracy is 'CNN, soft targets' at 96.5% (96.2-96.8)" in said
    assert "463 times fewer parameters" in said
    assert "The best trained without a teacher is 'CNN, labels' at 96.1%" in said
    won = "'MLP, soft targets' (+1.5 points) and 'MLP, 400 + teacher' (+7.8 points)"
    same = "'MLP, top-3 answers' (+0.3 points) and 'CNN, soft targets' (+0.4 points)"
    lost = "'CNN, features' (-0.9 points)"
    told = f"distillation won for {won}; it made no difference for {same}; it lost for {lost}."
    assert told in said
    assert "In ECE, it won for 'MLP, soft targets' (-0.033); it made no" in said
    assert "it lost for 'CNN, features' (+0.011)." in said
    assert "decides nothing" not in said


def test_cost_is_computed_and_says_how(page: Page) -> None:
    said = plainly(page)
    assert "12.4 s; inside every training it would have cost 103.3 min, 500 times as much" in said
    assert "visited 2,000,000 rows, every epoch counted. At the measured 3.1 ms a row" in said
    assert "2.4 min from the cache against 105.5 min, 44.1 times as much" in said


def test_rows_that_differ_are_shown_with_their_inputs(page: Page) -> None:
    (picture,) = [a for tag, a in page.tags if tag == "img"]
    assert picture["src"] == "data:image/png;base64,AAAA"
    assert picture["alt"] == "image of row-7"
    assert "a <b>text</b>" in page.text
    assert "16,000 numbers" in page.text
    assert "4.07 nats" in page.text
    assert "Label seven Teacher seven (92%) Student one (90%)" in page.text
    assert "the same first choice for 96.1% of them. The KL divergence is 0.31 nats" in page.text
    assert "Student wrong 25 24" in page.text


def test_a_page_without_the_rows_says_why() -> None:
    entry = {"student": "soft", "seed": 3, "note": "Not shown: it needs a head.", "rows": []}
    one = undrawn(student("soft", "a", "soft", True, 0.9, seeds=1), differing=[entry])
    assert "soft, seed 3 Not shown: it needs a head." in Page(page_text(one)).text


def test_student_without_a_teacher_that_is_best_is_named() -> None:
    plain = student("plain", "a", "labels", False, 0.95, seeds=2)
    taught = student("taught", "a", "soft", True, 0.90, seeds=2)
    other = student("other", "b", "soft", True, 0.80, seeds=2)
    page = Page(page_text(short(plain, taught, other)))
    assert "is 'plain' at 95.0%" in plainly(page)
    assert "It was trained without a teacher." in page.text
    assert "distillation lost for 'taught' (-5.0 points)." in plainly(page)
    assert "No counterpart without a teacher was trained for 'other'." in plainly(page)


def test_escapes_names() -> None:
    name = '_$x$ <b>"bold"</b> & #010101'
    text = page_text(short(student(name, "<i>a</i>", "r", True, 0.9, seeds=2)))
    assert "<b>" not in text
    assert "<i>" not in text
    page = Page(text)
    assert page.text.count(name) >= 2
    assert any(name in (a.get("aria-label") or "") for _, a in page.tags)


def test_equal_results_give_equal_bytes(text: str) -> None:
    results = realistic()
    before = copy.deepcopy(results)
    assert page_text(results) == text
    assert results == before


def test_one_seed() -> None:
    both = [student(n, "a", n, n == "soft", 0.9, seeds=1) for n in ("labels", "soft")]
    page = Page(page_text(short(*both)))
    assert "one seed, no interval" in page.text
    assert "90.0% one seed" in page.text
    assert "which has no interval, decides nothing" in page.text
    assert "distillation cannot be judged for" in page.text
    assert "won for" not in page.text


def test_metrics_that_nobody_knows_are_shown_and_not_judged() -> None:
    odd = {"wobble": {"better": "unknown", "share": False}}
    students = [student(n, "a", n, n == "soft", 0.9, seeds=2) for n in ("labels", "soft")]
    for one, level in zip(students, (-3.0, 250.0), strict=True):
        one["metrics"] = {"wobble": interval(level, 0.5)}
        for run in one["runs"]:
            run["metrics"] = {"wobble": level}
    page = Page(page_text(short(*students, metrics=odd, main="wobble")))
    assert "wobble direction not known" in page.text
    assert "250.0 249.5-250.5" in plainly(page)
    assert "-3.000 -3.500 to -2.500" in plainly(page)
    assert "Whether more or less wobble is better is not known" in page.text
    assert not re.search(r"\b(won|lost|best)\b", page.text)


def test_no_number_at_all() -> None:
    one = student("only", "a", "r", True, 0.9, seeds=1) | {"metrics": {}}
    one["runs"] = [{**run, "metrics": {}} for run in one["runs"]]
    page = Page(page_text(short(one, metrics={}, main="")))
    assert "the evaluation gave no number" in page.text
    assert page.count("svg") == 0
    assert "None" not in page.text


def test_a_sweep_shows_its_best_students_where_all_do_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cap, most in (("_LINES", 2), ("_POINTS", 3), ("_DIAGRAMS", 1)):
        monkeypatch.setattr(writing, cap, most)
    many = [student(f"s{i}", "a", "top-3", True, 0.5 + i / 100, seeds=1) for i in range(5)]
    more = {"students": many, "cache": None, "cost": None, "differing": [], "references": []}
    page = Page(page_text(realistic() | more))
    assert "the best 2 of 5" in page.text
    assert "The best 1 of 5 students" in page.text
    assert "the best 3 of 5 students" in page.text
    assert all(f"s{i}" in page.text for i in range(5))
    drawn = [a["aria-label"] or "" for tag, a in page.tags if tag == "svg"]
    (curves,) = [label for label in drawn if "epoch" in label]
    (diagram,) = [label for label in drawn if "Reliability" in label]
    assert "s4" in curves
    assert "s3" in curves
    assert "s2" not in curves
    assert "s4" in diagram


def test_no_students(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one student"):
        write_page(realistic() | {"students": []}, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["jinja2", "stillroom.workflows.reporting.figures"])
def test_missing_extra(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import stillroom.workflows.reporting

    monkeypatch.delattr(stillroom.workflows.reporting, "figures", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'stillroom\[report\]'"):
        write_page(realistic(), tmp_path / "report.html")


def test_import_is_cheap() -> None:
    code = (
        "import sys, stillroom.workflows.reporting.step; "
        "sys.exit(bool({'matplotlib', 'jinja2', 'torch'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
