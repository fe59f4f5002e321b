"""The HTML report: self-contained, honest about lost comparisons, the same bytes each time."""

from __future__ import annotations

import copy
import random
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from stillroom.workflows.report import write_report
from stillroom.workflows.report_words import compare
from stillroom.workflows.spelling import amount, duration, share

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and insists that every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def interval(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def bins(rng: random.Random, bias: float) -> list[dict[str, Any]]:
    middles = [0.1 * i + 0.05 for i in range(1, 10)]
    return [
        {"confidence": m, "accuracy": min(1.0, max(0.0, m + bias + rng.uniform(-0.04, 0.04)))}
        | {"count": int(4 + 500 * m**6)}
        for m in middles
    ]


def student(
    name: str,
    architecture: str,
    recipe: str,
    taught: bool,
    accuracy: float,
    *,
    half: float = 0.003,
    labels: int = 4000,
    ece: float = 0.03,
    seeds: int = 5,
) -> dict[str, Any]:
    rng = random.Random(name)
    half = half if seeds > 1 else 0.0
    runs = []
    for seed in range(seeds):
        final = accuracy + (rng.uniform(-half, half))
        curve = [
            {"epoch": e, "loss": 2.0 / e, "accuracy": final - 0.25 * 0.75**e} for e in range(1, 21)
        ]
        runs.append(
            {"seed": seed, "accuracy": final, "agreement": final + 0.01, "ece": ece, "nll": 0.2}
            | {"seconds": 3.0 + seed / 10, "curve": curve}
        )
    return {
        "name": name,
        "architecture": architecture,
        "recipe": recipe,
        "parameters": {"mlp-64": 52_650, "cnn-8": 9_098}.get(architecture, 1000),
        "labels": labels,
        "rows": labels,
        "uses_teacher": taught,
        "accuracy": interval(accuracy, half),
        "agreement": interval(accuracy + 0.01, half),
        "ece": interval(ece, half),
        "nll": interval(0.2, half),
        "seconds": interval(3.2, half),
        "runs": runs,
        "reliability": bins(rng, -0.03 if not taught else 0.02),
    }


def realistic() -> dict[str, Any]:
    return {
        "title": "Digits: one teacher, eight students",
        "when": "2026-11-21 14:00",
        "dataset": {"name": "MNIST 5k", "train_rows": 4000, "test_rows": 1000, "classes": 10},
        "teacher": {
            "name": "wide-cnn x5",
            "parameters": 4_212_345,
            "accuracy": 0.981,
            "nll": 0.07,
            "ece": 0.011,
            "identity": "9f3c" * 8,
            "reliability": bins(random.Random(1), 0.0),
        },
        "students": [
            student("MLP, labels", "mlp-64", "labels", False, 0.9300, ece=0.045),
            student("MLP, soft targets", "mlp-64", "soft targets", True, 0.9452, ece=0.012),
            student("MLP, top-3 answers", "mlp-64", "top-3", True, 0.9331, ece=0.044),
            student("MLP, 400 labels", "mlp-64", "labels", False, 0.861, half=0.008, labels=400),
            student("MLP, 400 + teacher", "mlp-64", "soft targets", True, 0.9389, labels=400),
            student("CNN, labels", "cnn-8", "labels", False, 0.9610, ece=0.020),
            student("CNN, soft targets", "cnn-8", "soft targets", True, 0.9650, ece=0.014),
            student("CNN, features", "cnn-8", "features", True, 0.9520, ece=0.031),
        ],
        "cache": {
            "path": "runs/digits/cache",
            "snapshot": 3,
            "rows": 4000,
            "bytes": 1_234_567,
            "signals": [
                {"name": "logits", "shape": [10], "dtype": "float16", "encoding": "float16"}
                | {"bytes": 80_000, "error": {"max_abs": 0.0039, "rms": 0.0011}},
                {"name": "features", "shape": [256], "dtype": "float32", "encoding": "int8 rows"}
                | {"bytes": 1_130_000, "error": {"max_abs": 0.021, "rms": 0.0057}},
                {"name": "answer", "shape": [], "dtype": "int64", "encoding": "plain"}
                | {"bytes": 24_567, "error": {"max_abs": 0, "rms": 0}},
            ],
        },
        "cost": {
            "teacher_seconds": 12.4,
            "teacher_rows": 4000,
            "student_seconds": 131.0,
            "students": 40,
            "epochs_rows": 2_000_000,
            "online_teacher_seconds": 6200.0,
            "wall_seconds": 171.0,
        },
        "environment": {"machine": "x86_64, 2 cores", "python": "3.12.3", "torch": "2.9.0"}
        | {"stillroom": "0.1.0"},
    }


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "run" / "report.html"
    write_report(realistic(), path)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return path.read_text("utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def written(results: dict[str, Any], folder: Path) -> str:
    write_report(results, folder / "report.html")
    return (folder / "report.html").read_text("utf-8")


def plainly(page: Page) -> str:
    """The text with typewriter quotes, dashes and minus signs."""
    return page.text.translate({0x201C: "'", 0x201D: "'", 0x2013: "-", 0x2212: "-"})


def short(*students: dict[str, Any]) -> dict[str, Any]:
    """Results with the required parts only, without runs so that there is little to draw."""
    small = [{k: v for k, v in s.items() if k != "reliability"} for s in students]
    return {k: realistic()[k] for k in ("title", "dataset", "teacher")} | {"students": small}


def test_refers_to_nothing_outside(text: str, page: Page) -> None:
    assert not re.search(r"https?:|//[a-z]|@import|@font-face", text)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    targets = [a[k] or "" for _, a in page.tags for k in ("href", "src", "xlink:href") if k in a]
    assert targets
    assert all(target.startswith("#") for target in targets)


def test_ids_are_unique_and_references_resolve(text: str, page: Page) -> None:
    ids = Counter(a["id"] for _, a in page.tags if "id" in a)
    assert set(ids.values()) == {1}
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert {a or b for a, b in used} <= set(ids)


def test_accessible(page: Page) -> None:
    assert ("html", {"lang": "en"}) in page.tags
    assert page.count("title") == 1
    drawings = [a for tag, a in page.tags if tag == "svg"]
    assert len(drawings) == 2 + 9 + 2 + 1 + 1  # dots, reliability, curves, bytes, seconds
    assert all(a["role"] == "img" and a["aria-label"] for a in drawings)
    assert page.count("figcaption") == page.count("figure")
    assert all("scope" in a for tag, a in page.tags if tag == "th")


def test_figures_take_the_colours_of_the_page(text: str) -> None:
    svg = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "currentColor" in svg
    assert "font-family" not in svg
    assert set(re.findall(r"(?:fill|stroke): (#\w+)", svg)) == set()


def test_shows_the_numbers(page: Page) -> None:
    for one in realistic()["students"]:
        assert one["name"] in page.text
        low, mean, high = (one["accuracy"][k] for k in ("low", "mean", "high"))
        assert f"{mean:.1%} {low * 100:.1f}-{high * 100:.1f}" in plainly(page)
    assert "0.0039" in page.text
    assert "exact" in page.text
    assert "1.2 MB" in page.text
    assert "95% t-intervals" in page.text
    assert "9f3c" * 8 in page.text
    assert "torch 2.9.0" in page.text


def test_summary_says_where_distillation_won_and_lost(page: Page) -> None:
    said = plainly(page)
    assert "The best student by mean accuracy is 'CNN, soft targets' at 96.5% (96.2-96.8)" in said
    assert "463 times fewer parameters" in said
    assert "The best trained on labels alone is 'CNN, labels' at 96.1%" in said
    won = "'MLP, soft targets' (+1.5 points) and 'MLP, 400 + teacher' (+7.8 points)"
    same = "'MLP, top-3 answers' (+0.3 points) and 'CNN, soft targets' (+0.4 points)"
    lost = "'CNN, features' (-0.9 points)"
    told = f"distillation won for {won}; it made no difference for {same}; it lost for {lost}."
    assert told in said
    assert "In calibration (ECE), it won for 'MLP, soft targets'; it made no" in said
    assert "it lost for 'CNN, features'." in said
    assert "decides nothing" not in said


def test_cost_is_computed_and_says_how(page: Page) -> None:
    said = plainly(page)
    assert "12.4 s; inside every training it would have cost 103.3 min, 500 times as much" in said
    assert "visited 2,000,000 rows, every epoch counted. At the measured 3.1 ms a row" in said
    assert "2.4 min from the cache against 105.5 min, 44.1 times as much" in said


def test_verdicts() -> None:
    rows = [{**s, "one_seed": False} for s in realistic()["students"]]
    found = {c["student"]["name"]: c for c in compare(rows)}
    assert found["MLP, 400 + teacher"]["baseline"]["name"] == "MLP, 400 labels"
    words = {name: (c["accuracy"]["word"], c["ece"]["word"]) for name, c in found.items()}
    assert words["MLP, soft targets"] == ("won", "won")
    assert words["MLP, top-3 answers"] == ("no difference", "no difference")
    assert words["CNN, features"] == ("lost", "lost")
    weaker = {**rows[5], "name": "weaker", "accuracy": interval(0.90, 0.003)}
    assert compare([weaker, *rows])[-1]["baseline"]["name"] == "CNN, labels"
    rows[5]["one_seed"] = True
    assert compare(rows)[-1]["accuracy"]["word"] == "undecided"


def test_label_only_student_that_is_best_is_named(tmp_path: Path) -> None:
    plain = student("plain", "a", "labels", False, 0.95, seeds=2)
    taught = student("taught", "a", "soft", True, 0.90, seeds=2)
    other = student("other", "b", "soft", True, 0.80, seeds=2)
    page = Page(written(short(plain, taught, other), tmp_path))
    assert "is 'plain' at 95.0%" in plainly(page)
    assert "It was trained on labels alone, without the teacher." in page.text
    assert "distillation lost for 'taught' (-5.0 points)." in plainly(page)
    assert "No label-only counterpart was trained for 'other'." in plainly(page)


def test_escapes_names(tmp_path: Path) -> None:
    name = '_$x$ <b>"bold"</b> & #010101'
    text = written(short(student(name, "<i>a</i>", "r", True, 0.9, seeds=2)), tmp_path)
    assert "<b>" not in text
    assert "<i>" not in text
    page = Page(text)
    assert page.text.count(name) >= 2
    assert any(name in (a.get("aria-label") or "") for _, a in page.tags)


def test_equal_results_give_equal_bytes(text: str, tmp_path: Path) -> None:
    results = realistic()
    before = copy.deepcopy(results)
    assert written(results, tmp_path) == text
    assert results == before


def test_one_seed(tmp_path: Path) -> None:
    both = [student(n, "a", n, n == "soft", 0.9, seeds=1) for n in ("labels", "soft")]
    page = Page(written(short(*both), tmp_path))
    assert "one seed, no interval" in page.text
    assert "90.0% one seed" in page.text
    assert "which has no interval, decides nothing" in page.text
    assert "distillation cannot be judged for" in page.text
    assert "won for" not in page.text


def test_optional_parts_may_be_absent(tmp_path: Path) -> None:
    few = ("name", "architecture", "uses_teacher", "accuracy")
    one = {k: student("only", "a", "r", True, 0.9)[k] for k in few}
    results = short(one) | {"dataset": {"name": "d"}, "teacher": {"name": "t", "accuracy": 0.9}}
    results |= {"cache": {"rows": 10}, "cost": {"teacher_seconds": 1.0}}
    page = Page(written(results, tmp_path))
    assert page.count("svg") == 1
    assert "Reliability" not in page.text
    assert "None" not in page.text


def test_values_may_be_absent(tmp_path: Path) -> None:
    results = realistic()
    results["students"] = results["students"][:2]
    results["students"][0] |= {"ece": None, "agreement": {"mean": None}, "reliability": []}
    del results["cache"]["signals"][0]["error"]
    page = Page(written(results, tmp_path))
    assert "logits 10 float16 float16 80.0 kB — —" in page.text
    assert "None" not in page.text
    assert "In calibration" not in page.text


def test_lines_of_one_panel_differ() -> None:
    from stillroom.workflows.plots import line_looks

    many = [{"uses_teacher": i > 3, "recipe": f"r{i}", "labels": 10} for i in range(20)]
    assert len(set(line_looks(many))) == 20
    assert line_looks([many[5], many[5]]) == [line_looks([many[5]])[0]] * 2


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (("teacher",), "teacher"),
        (("teacher", "accuracy"), r"results\['teacher'\] lacks accuracy"),
        (("students", 0, "uses_teacher"), r"results\['students'\]\[0\] lacks uses_teacher"),
        (("students", 0, "accuracy", "mean"), "lacks mean"),
    ],
)
def test_missing_required_part(path: tuple[Any, ...], said: str, tmp_path: Path) -> None:
    results = part = realistic()
    for key in path[:-1]:
        part = part[key]
    del part[path[-1]]
    with pytest.raises(KeyError, match=said):
        write_report(results, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_no_students(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one student"):
        write_report(realistic() | {"students": []}, tmp_path / "report.html")


@pytest.mark.parametrize("module", ["jinja2", "stillroom.workflows.plots"])
def test_missing_extra(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import stillroom.workflows

    monkeypatch.delattr(stillroom.workflows, "plots", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'stillroom\[report\]'"):
        write_report(realistic(), tmp_path / "report.html")


def test_import_is_cheap() -> None:
    code = "import sys, stillroom.workflows.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_formats() -> None:
    assert [amount(n) for n in (None, 999, 1500, 2.5e9)] == ["—", "999 B", "1.5 kB", "2.5 GB"]
    shown = [duration(s) for s in (0.0031, 12.44, 600, 9000)]
    assert shown == ["3.1 ms", "12.4 s", "10.0 min", "2.5 h"]
    assert share(float("nan")) == "—"
