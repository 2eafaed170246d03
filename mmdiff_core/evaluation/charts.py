"""Charts as inline SVG; their colours are the page's CSS variables, for light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from .intervals import Interval

COLOURS = 6  # variables --row-0 ... of the page


@dataclass(frozen=True)
class Point:
    """One image in the scatter. `colour` is the number of its row."""

    x: float
    y: float
    colour: int
    told: str


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover low..high; a half to each side of a single value."""
    if not high > low:
        low, high = low - 0.5, low + 0.5
    width = high - low
    step = 10 ** math.floor(math.log10(width / count))
    step *= next(f for f in (1, 2, 5, 10) if width / (step * f) <= count)
    first = math.floor(low / step)
    return [round((first + i) * step, 10) for i in range(math.ceil(high / step) - first + 1)]


def bars(
    groups: Sequence[str],
    rows: Sequence[Mapping[str, Interval]],
    lines: Mapping[str, float],
    label: str,
) -> str:
    """Horizontal bars: for each group one bar of every row, with its interval; `lines` are drawn
    across, as floor and oracle."""
    height, left, width = 9, 170, 640
    known = [*_ends(rows), *lines.values()]
    scale = ticks(min(0.0, *known), max(known))
    low, high = scale[0], scale[-1]

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * width

    block = height * len(rows) + 7
    bottom = 26 + block * len(groups)
    parts = [_axis(x(tick), bottom, f"{tick:g}") for tick in scale]
    for number, name in enumerate(groups):
        top = 26 + block * number
        middle = top + height * len(rows) / 2 + 4
        parts.append(f'<text x="{left - 8}" y="{middle:.1f}" class="end">{_cut(name)}</text>')
        for r, row in enumerate(rows):
            if name in row:
                parts.append(_bar(x, row[name], top + r * height, height - 2, r))
    for number, (name, value) in enumerate(lines.items()):
        parts.append(_line(x(value), bottom, name, number))
    parts.append(_text(left + width / 2, bottom + 32, label, "middle"))
    return _svg(left + width + 50, bottom + 40, parts, f"{label} by subject")


def _ends(rows: Sequence[Mapping[str, Interval]]) -> list[float]:
    """Everything that the bars and their lines reach."""
    found: list[float] = []
    for row in rows:
        for each in row.values():
            found += [v for v in (each.mean, each.low, each.high) if v is not None]
    return found


def _bar(x, interval: Interval, top: float, height: float, colour: int) -> str:
    start, end = sorted((x(0.0), x(interval.mean)))
    told = f"{interval.mean:.3f} ({interval.units} images)"
    drawn = (
        f'<rect x="{start:.1f}" y="{top:.1f}" width="{max(end - start, 1):.1f}" height="{height}" '
        f'class="row-{colour % COLOURS}"><title>{told}</title></rect>'
    )
    if interval.low is None:
        return drawn
    middle = top + height / 2
    return drawn + (
        f'<path d="M{x(interval.low):.1f} {middle:.1f}H{x(interval.high):.1f}" class="whisker"/>'
    )


def scatter(points: Sequence[Point], across: str, up: str) -> str:
    """Images as points: `across` on the horizontal axis, `up` on the vertical one."""
    left, top, width, height = 70, 16, 620, 380
    xs = [point.x for point in points]
    ys = [point.y for point in points]
    x_scale, y_scale = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))

    def x(value: float) -> float:
        return left + (value - x_scale[0]) / (x_scale[-1] - x_scale[0]) * width

    def y(value: float) -> float:
        return top + height - (value - y_scale[0]) / (y_scale[-1] - y_scale[0]) * height

    parts = [_axis(x(tick), top + height, f"{tick:g}", top) for tick in x_scale]
    for tick in y_scale:
        parts.append(f'<path d="M{left} {y(tick):.1f}h{width}" class="grid"/>')
        parts.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" class="end">{tick:g}</text>')
    for point in points:
        place = f'cx="{x(point.x):.1f}" cy="{y(point.y):.1f}"'
        told = f"<title>{escape(point.told)}</title>"
        parts.append(f'<circle {place} r="4" class="row-{point.colour % COLOURS}">{told}</circle>')
    parts.append(_text(left + width / 2, top + height + 38, across, "middle"))
    turned = f'transform="rotate(-90 16 {top + height / 2})"'
    parts.append(f'<text x="16" y="{top + height / 2}" {turned} class="middle">{escape(up)}</text>')
    return _svg(left + width + 20, top + height + 46, parts, f"{across} against {up}")


def _axis(x: float, bottom: float, text: str, top: float = 20) -> str:
    return (
        f'<path d="M{x:.1f} {top}V{bottom}" class="grid"/>'
        f'<text x="{x:.1f}" y="{bottom + 15}" class="middle">{text}</text>'
    )


def _line(x: float, bottom: float, name: str, number: int) -> str:
    return (
        f'<path d="M{x:.1f} 18V{bottom}" class="bound bound-{number % 2}"/>'
        f'<text x="{x:.1f}" y="12" class="middle small">{escape(name)}</text>'
    )


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'


def _cut(text: str, most: int = 26) -> str:
    return escape(text if len(text) <= most else f"{text[: most - 1]}…")


def _svg(width: float, height: float, parts: Sequence[str], told: str) -> str:
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px"'
    return f'<svg {size} role="img" aria-label="{escape(told)}">{"".join(parts)}</svg>'
