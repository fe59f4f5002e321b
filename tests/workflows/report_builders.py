"""Results of a run as a page gets them, made up, and the page's tags and words."""

from __future__ import annotations

import random
from html.parser import HTMLParser
from typing import Any

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
    rows: int = 4000,
    ece: float = 0.03,
    seeds: int = 5,
    digest: str = "a",
) -> dict[str, Any]:
    """A student as gathering gives it."""
    rng = random.Random(name)
    half = half if seeds > 1 else 0.0
    runs = []
    for seed in range(seeds):
        final = accuracy + (rng.uniform(-half, half))
        curve = [
            {"epoch": e, "loss": 2.0 / e, "accuracy": final - 0.25 * 0.75**e} for e in range(1, 21)
        ]
        metrics = {"accuracy": final, "agreement": final + 0.01, "ece": ece, "nll": 0.2}
        more = {"digest": f"{digest}-{name}-{seed}", "seconds": 3.0 + seed / 10}
        runs.append({"seed": seed, "metrics": metrics, "curve": curve, **more})
    return {
        "name": name,
        "architecture": architecture,
        "build": f"digest of {architecture}",
        "recipe": recipe,
        "terms": [f"1 * {recipe.replace(' ', '_')}(student.logits)"],
        "learns_from": ["logits"] if taught else ["label"],
        "uses_teacher": taught,
        "parameters": {"mlp-64": 52_650, "cnn-8": 9_098}.get(architecture, 1000),
        "rows": rows,
        "snapshot": 3 if taught else None,
        "metrics": {
            "accuracy": interval(accuracy, half),
            "agreement": interval(accuracy + 0.01, half),
            "ece": interval(ece, half),
            "nll": interval(0.2, half),
        },
        "seconds": interval(3.2, half),
        "rows_per_second": interval(25_000.0, 10.0),
        "runs": runs,
        "reliability": bins(rng, 0.02) if recipe == "top-3" else [],
    }


METRICS = {
    "accuracy": {"better": "higher", "share": True},
    "agreement": {"better": "higher", "share": True},
    "ece": {"better": "lower", "share": False},
    "nll": {"better": "lower", "share": False},
}


def segment(number: int, teacher: str = "wide-cnn x5", **more: Any) -> dict[str, Any]:
    given = {"name": f"{number:04d}-cnn", "teacher": teacher, "digest": "9f3c" * 8, "rows": 4000}
    return {
        **given,
        "bytes": 1_234_567,
        "why": "first",
        "at": 1_795_636_801,
        "seconds": 13.0,
        **more,
    }


def realistic() -> dict[str, Any]:
    return {
        "stillroom": "report",
        "format": 2,
        "title": "Digits: one teacher, eight students",
        "when": "2026-11-21 14:00 UTC",
        "dataset": {"name": "MNIST 5k", "train_rows": 4000, "test_rows": 1000},
        "metrics": METRICS,
        "main": "accuracy",
        "references": [
            {
                "name": "wide-cnn x5",
                "what": "teacher",
                "parameters": 4_212_345,
                "metrics": {"accuracy": 0.981, "nll": 0.07, "ece": 0.011},
                "reliability": bins(random.Random(1), 0.0),
            }
        ],
        "students": [
            student("MLP, labels", "mlp-64", "labels", False, 0.9300, ece=0.045),
            student("MLP, soft targets", "mlp-64", "soft targets", True, 0.9452, ece=0.012),
            student("MLP, top-3 answers", "mlp-64", "top-3", True, 0.9331, ece=0.044),
            student("MLP, 400 labels", "mlp-64", "labels", False, 0.861, half=0.008, rows=400),
            student("MLP, 400 + teacher", "mlp-64", "soft targets", True, 0.9389, rows=400),
            student("CNN, labels", "cnn-8", "labels", False, 0.9610, ece=0.020),
            student("CNN, soft targets", "cnn-8", "soft targets", True, 0.9650, ece=0.014),
            student("CNN, features", "cnn-8", "features", True, 0.9520, ece=0.031),
        ],
        "cache": {
            "path": "digits.cache",
            "snapshot": 3,
            "snapshots": 3,
            "rows": 4000,
            "bytes": 1_234_567,
            "signals": [
                {"name": "logits", "shape": [10], "dtype": "float16", "encoding": "float16"}
                | {"bytes": 80_000, "error": {"max_abs": 0.0039, "rms": 0.0011}},
                {"name": "features", "shape": [256], "dtype": "float32", "encoding": "int8 rows"}
                | {"bytes": 1_130_000, "error": {"max_abs": 0.021, "rms": 0.0057}},
                {"name": "tokens", "shape": [None, 2], "dtype": "int64", "encoding": "plain"}
                | {"bytes": 24_567, "error": {"max_abs": 0, "rms": 0}},
            ],
            "teachers": [
                {"name": "wide-cnn x5", "digest": "9f3c" * 8, "identities": 1, "differs": []}
            ],
            "segments": [segment(1)],
        },
        "cost": {
            "teacher_seconds": 12.4,
            "teaching_seconds": 13.0,
            "teacher_rows": 4000,
            "student_seconds": 131.0,
            "trainings": 40,
            "rows_read": 2_000_000,
            "online_teacher_seconds": 6200.0,
            "students": 2,
        },
        "environment": {"machine": "x86_64, 2 cores", "python": "3.12.3", "torch": "2.9.0"}
        | {"stillroom": "0.1.0"},
        "stopped": ["MLP, wide, seed 0: stopped after epoch 2 of 20, accuracy 0.5000, by asha"],
        "differing": [differing()],
    }


def differing(**changes: Any) -> dict[str, Any]:
    row = {
        "key": "row-7",
        "apart": 4.07,
        "label": "seven",
        "teacher": "seven (92%)",
        "student": "one (90%)",
        "inputs": [
            {"column": "image", "kind": "picture", "source": "data:image/png;base64,AAAA"}
            | {"width": 28, "height": 28},
            {"column": "text", "kind": "text", "text": "a <b>text</b>"},
            {"column": "sound", "kind": "numbers", "text": "0.1, 0.2, … (16,000 numbers)"},
        ],
    }
    return {
        "student": "CNN, soft targets",
        "seed": 0,
        "note": "",
        "what": "KL divergence",
        "unit": "nats",
        "compared": 1000,
        "mean": 0.31,
        "largest": 4.07,
        "edges": [0.0, 2.0, 4.07],
        "counts": [990, 10],
        "agree": 0.961,
        "right": {"both": 940, "student": 11, "teacher": 25, "neither": 24},
        "rows": [row],
        **changes,
    }


def plainly(page: Page) -> str:
    """The text with typewriter quotes, dashes and minus signs."""
    return page.text.translate({0x201C: "'", 0x201D: "'", 0x2013: "-", 0x2212: "-"})


def short(*students: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Results of which little is to be drawn: no curves, no diagrams, no cache."""
    bare = [
        {**s, "reliability": [], "runs": [{**run, "curve": []} for run in s["runs"]]}
        for s in students
    ]
    left_out = {"students": bare, "cache": None, "cost": None, "differing": [], "references": []}
    left_out["stopped"] = []
    return realistic() | left_out | more


def undrawn(*students: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Results of which nothing is drawn, for what is about words."""
    return short(*students, main="", **more)
