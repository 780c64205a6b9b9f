"""Charts as inline SVG, for a page that needs nothing else: no library, no network, no script.

A chart is text. Its colours are CSS classes (``s1``, ``s2``, ... for series, ``axis``, ``grid``, ``soft``), so that the page decides how
they look in light and in dark. Every mark carries a ``<title>``, which browsers show under the mouse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Bar", "Series", "bars", "histogram", "running_mean", "scatter", "ticks"]

_WIDTH = 760
_HEIGHT = 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 14, 12, 40
_BAR_PX, _NAME_PX, _VALUE_PX, _LONGEST_NAME = 22, 210, 150, 30


@dataclass(frozen=True)
class Series:
    """Points of one kind.

    Attributes
    ----------
    name : for the legend
    points : x, y and words of every point
    mean : a line through the running means of so many neighbours, see `running_mean`; 0 for none
    """

    name: str
    points: Sequence[tuple[float, float, str]]
    mean: int = 0


@dataclass(frozen=True)
class Bar:
    """One bar: what it is of, how long it is, and what stands behind it."""

    name: str
    value: float
    words: str


def scatter(
    series: Sequence[Series], *, x: str, y: str, highest: float | None = None, breaks: Sequence[float] = (), percent: bool = False
) -> str:
    """Points over a whole-numbered axis, from 0 upwards.

    Parameters
    ----------
    series : at least one point in all
    x, y : what the axes are
    highest : of the y axis; by default that of the points
    breaks : where something else begins: thin upright lines
    percent : whether y is a share, to be written in per cent
    """
    xs = [point[0] for one in series for point in one.points]
    top = highest if highest is not None else max(max(point[1] for one in series for point in one.points), 1.0)
    low, high = min(xs) - 0.5, max(xs) + 0.5
    marks = ticks(0, top, 5)
    top = max(top, marks[-1])
    frame = _Frame(low, high, top)
    parts = [frame.grid(marks, lambda v: f"{100 * v:.0f} %" if percent else _number(v), y)]
    parts += [frame.below([t for t in ticks(low, high, 10) if t == int(t)], _number, x)]
    parts += [f'<line class="break" x1="{frame.x(b):.1f}" x2="{frame.x(b):.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>' for b in breaks]
    radius = 4 if len(xs) <= 60 else 3 if len(xs) <= 300 else 2
    for number, one in enumerate(series, start=1):
        dots = (
            f'<circle cx="{frame.x(px):.1f}" cy="{frame.y(py):.1f}" r="{radius}"><title>{escape(words)}</title></circle>'
            for px, py, words in one.points
        )
        parts.append(f'<g class="s{number} dots">{"".join(dots)}</g>')
    for number, one in enumerate(series, start=1):
        if one.mean and len(one.points) > 1:
            means = running_mean([point[1] for point in one.points], one.mean)
            line = " ".join(f"{frame.x(point[0]):.1f},{frame.y(mean):.1f}" for point, mean in zip(one.points, means, strict=True))
            parts.append(f'<polyline class="s{number} line" points="{line}"/>')
    return _svg(_HEIGHT, parts, f"{y} over {x}")


def bars(rows: Sequence[Bar], *, label: str) -> str:
    """Bars that lie below each other, named on the left, in the order given; ``label`` says what is shown."""
    longest = max((row.value for row in rows), default=0.0) or 1.0
    room = _WIDTH - _NAME_PX - _VALUE_PX
    parts = []
    for number, row in enumerate(rows):
        top, length = number * _BAR_PX, max(room * row.value / longest, 1.0)
        name = row.name if len(row.name) <= _LONGEST_NAME else row.name[: _LONGEST_NAME - 1] + "…"
        title = f"<title>{escape(row.name)}: {escape(row.words)}</title>"
        parts.append(
            f'<g>{title}<text class="name" x="{_NAME_PX - 10}" y="{top + 15}">{escape(name)}</text>'
            f'<rect class="s1 bar" x="{_NAME_PX}" y="{top + 4}" width="{length:.1f}" height="{_BAR_PX - 8}" rx="2"/>'
            f'<text class="soft" x="{_NAME_PX + length + 8:.1f}" y="{top + 15}">{escape(row.words)}</text></g>'
        )
    return _svg(max(len(rows), 1) * _BAR_PX + 4, parts, label)


def histogram(values: Sequence[float], *, x: str, y: str, marks: Sequence[tuple[float, str]] = ()) -> str:
    """How often positive values are about how large, in bins of equal ratio: ten to a factor of ten.

    Parameters
    ----------
    values : at least one; what is not above 0 counts as the least that is
    x, y : what the axes are
    marks : values that are pointed out, with their words
    """
    least = min((v for v in values if v > 0), default=1e-3)
    logs = [math.log10(max(v, least)) for v in values]
    first, last = math.floor(min(logs) * 10), math.floor(max(logs) * 10) + 1
    first, last = min(first, last - 6), max(last, first + 6)
    counts = [0] * (last - first)
    for value in logs:
        counts[min(math.floor(value * 10), last - 1) - first] += 1
    heights = ticks(0, max(counts), 4)
    frame = _Frame(first / 10, last / 10, max(heights[-1], max(counts)))
    parts = [frame.grid(heights, _number, y)]
    decades = [(power, factor) for power in range(math.floor(first / 10), math.ceil(last / 10) + 1) for factor in (1, 2, 5)]
    shown = [math.log10(factor) + power for power, factor in decades]
    parts.append(frame.below([t for t in shown if first / 10 <= t <= last / 10], lambda t: f"{10**t:.2g}", x))
    for number, count in enumerate(counts):
        left, right = frame.x((first + number) / 10), frame.x((first + number + 1) / 10)
        between = f"{10 ** ((first + number) / 10):.2g} to {10 ** ((first + number + 1) / 10):.2g}: {count}"
        height = frame.y(0) - frame.y(count)
        parts.append(
            f'<rect class="s1 bar" x="{left + 0.5:.1f}" y="{frame.y(count):.1f}" width="{max(right - left - 1, 0.5):.1f}" '
            f'height="{height:.1f}"><title>{between}</title></rect>'
        )
    for number, (value, words) in enumerate(marks):
        at = frame.x(math.log10(max(value, least)))
        parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        side, shift = ("end", -5) if at > 0.8 * _WIDTH else ("start", 5)
        parts.append(
            f'<text class="mark-name" text-anchor="{side}" x="{at + shift:.1f}" y="{_TOP + 10 + 16 * number}">{escape(words)}</text>'
        )
    return _svg(_HEIGHT, parts, f"{y} over {x}")


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from ``low`` up to the first that reaches ``high``; at most ``most`` steps.

    >>> ticks(0, 7, 4)
    [0.0, 2.0, 4.0, 6.0, 8.0]
    """
    rough = max(high - low, 1e-9) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean of the ``width`` values (an odd number) about each one; towards the ends, of those of them that there are.

    >>> running_mean([3, 0, 6, 0], 3)
    [1.5, 3.0, 2.0, 3.0]
    """
    half, sums = width // 2, [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    spans = [(max(i - half, 0), min(i + half + 1, len(values))) for i in range(len(values))]
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in spans]


@dataclass(frozen=True)
class _Frame:
    """From values to pixels: x from ``low`` to ``high``, y from 0 to ``top``."""

    low: float
    high: float
    top: float

    def x(self, value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - self.low) / (self.high - self.low)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / self.top

    def grid(self, marks: Sequence[float], words: Callable[[float], str], label: str) -> str:
        lines = "".join(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{self.y(v):.1f}" y2="{self.y(v):.1f}"/>'
            f'<text class="soft" text-anchor="end" x="{_LEFT - 7}" y="{self.y(v) + 4:.1f}">{words(v)}</text>'
            for v in marks
            if v <= self.top
        )
        middle = (_HEIGHT - _BOTTOM + _TOP) / 2
        return lines + f'<text class="soft" text-anchor="middle" transform="translate(13 {middle}) rotate(-90)">{escape(label)}</text>'

    def below(self, marks: Sequence[float], words: Callable[[float], str], label: str) -> str:
        bottom = _HEIGHT - _BOTTOM
        numbers = "".join(
            f'<text class="soft" text-anchor="middle" x="{self.x(v):.1f}" y="{bottom + 16}">{words(v)}</text>'
            for v in marks
            if self.low <= v <= self.high
        )
        line = f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>'
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        return line + numbers + f'<text class="soft" text-anchor="middle" x="{middle}" y="{_HEIGHT - 6}">{escape(label)}</text>'


def _svg(height: float, parts: Sequence[str], label: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _number(value: float) -> str:
    return f"{value:g}"
