"""A curve as small as a word: an SVG that takes its colours from the page."""

from __future__ import annotations

from html import escape

from stillroom.workflows.page.finding import Curve

_WIDE, _TALL, _PAD = 120, 32, 3
"""Pixels, the margin included."""


def sparkline(curve: Curve) -> str:
    """One line from the first epoch to the last, between its own least and largest value.

    What it shows is in its title. No style of its own, which the page's rules for browsers forbid.
    """
    low, high = min(curve.values), max(curve.values)
    first, last = curve.epochs[0], curve.epochs[-1]
    points = []
    for epoch, value in zip(curve.epochs, curve.values, strict=True):
        x = _PAD + (epoch - first) / (last - first) * (_WIDE - 2 * _PAD)
        share = (value - low) / (high - low) if high > low else 0.5
        points.append(f"{x:.1f},{_TALL - _PAD - share * (_TALL - 2 * _PAD):.1f}")
    words = (
        f"{curve.metric} from {curve.values[0]:.4g} after epoch {first} "
        f"to {curve.values[-1]:.4g} after epoch {last}"
    )
    end_x, end_y = points[-1].split(",")
    return (
        f'<svg class="spark" viewBox="0 0 {_WIDE} {_TALL}" width="{_WIDE}" height="{_TALL}" role="img">'
        f'<title>{escape(words)}</title><polyline points="{" ".join(points)}"/>'
        f'<circle cx="{end_x}" cy="{end_y}" r="2.5"/></svg>'
    )
