"""What a report makes of numbers: directions of metrics, verdicts, spelling, looks of lines."""

from __future__ import annotations

import pytest

from stillroom.workflows.intervals import interval as t_interval
from stillroom.workflows.reporting.comparing import against_labels
from stillroom.workflows.reporting.metrics import UnknownBetterError, main_of, metric_of
from stillroom.workflows.spelling import amount, duration, share
from tests.workflows.report_builders import realistic, student


@pytest.mark.parametrize(
    ("name", "better", "is_share"),
    [
        ("accuracy", "higher", True),
        ("test_accuracy", "higher", True),
        ("recall@10", "higher", True),
        ("map50", "higher", True),
        ("recall_at_5", "higher", True),
        ("ece", "lower", False),
        ("val-nll", "lower", False),
        ("perplexity", "lower", False),
        ("accuracy_loss", "unknown", False),
        ("wobble", "unknown", False),
        ("", "unknown", False),
    ],
)
def test_what_a_name_tells(name: str, better: str, is_share: bool) -> None:
    found = metric_of(name)
    assert (found.better, found.is_share) == (better, is_share)


def test_directions_can_be_said() -> None:
    assert metric_of("wobble", {"wobble": "lower"}).sign == -1
    assert metric_of("accuracy", {"accuracy": "lower"}).sign == -1
    with pytest.raises(UnknownBetterError, match="'wobble': better is higher or lower, found 'up'"):
        metric_of("wobble", {"wobble": "up"})
    every = [metric_of(n) for n in ("wobble", "nll", "f1")]
    assert [m.name for m in (main_of(every), main_of(every, "nll")) if m] == ["f1", "nll"]
    assert main_of(every[:2]) == every[1]
    assert main_of([]) is None


def test_numbers_are_spelled_by_their_kind() -> None:
    accuracy, bits = metric_of("accuracy"), metric_of("bits")
    assert (accuracy.spell(0.9512), accuracy.moved(-0.012)) == ("95.1%", "−1.2 points")  # noqa: RUF001
    assert [bits.spell(v) for v in (0.0042, 2.5, 31.41, 314.15)] == [
        "0.0042",
        "2.500",
        "31.41",
        "314.1",
    ]
    assert bits.spell(float("nan")) == bits.spell(None) == "—"
    assert bits.span(t_interval([2.0, 2.2])) == "0.829–3.371"  # noqa: RUF001


def test_formats() -> None:
    assert [amount(n) for n in (None, 999, 1500, 2.5e9)] == ["—", "999 B", "1.5 kB", "2.5 GB"]
    shown = [duration(s) for s in (0.0031, 12.44, 600, 9000)]
    assert shown == ["3.1 ms", "12.4 s", "10.0 min", "2.5 h"]
    assert share(float("nan")) == "—"


def test_lines_of_one_panel_differ() -> None:
    from stillroom.workflows.reporting.drawing import line_looks, point_looks

    many = [student(f"s{i}", "a", f"r{i}", i > 3, 0.9, seeds=1) for i in range(20)]
    assert len(set(line_looks(many))) == 20
    assert len(set(point_looks(many))) == 20
    assert line_looks([many[5], many[5]]) == [line_looks([many[5]])[0]] * 2


def test_verdicts() -> None:
    rows = realistic()["students"]
    metrics = [metric_of("accuracy"), metric_of("ece")]
    found = {c["student"]["name"]: c for c in against_labels(rows, metrics, metrics[0])}
    assert found["MLP, 400 + teacher"]["baseline"]["name"] == "MLP, 400 labels"
    words = {n: tuple(c["verdicts"][m.name]["word"] for m in metrics) for n, c in found.items()}
    assert words["MLP, soft targets"] == ("won", "won")
    assert words["MLP, top-3 answers"] == ("no difference", "no difference")
    assert words["CNN, features"] == ("lost", "lost")
    weaker = student("weaker", "cnn-8", "labels", False, 0.90)
    best = against_labels([weaker, *rows], metrics, metrics[0])[-1]
    assert best["baseline"]["name"] == "CNN, labels"
    rows[5]["runs"] = rows[5]["runs"][:1]
    last = against_labels(rows, metrics, metrics[0])[-1]
    assert last["verdicts"]["accuracy"]["word"] == "undecided"
