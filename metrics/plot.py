"""Line charts as SVG, for tables of metrics and for the report: no library is needed, and every browser shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 28, 44  # margins around the axes
COLOURS = ("#1f6fb2", "#c8501e", "#3b8f3b", "#8a4fa3", "#7a5a3c")
MAX_TICKS = 6

Point = tuple[float, float, str]  # x, y, and a label or ""


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two, at most MAX_TICKS: multiples of 1, 2 or 5 times a power of ten."""
    span = high - low
    power = 10.0 ** math.floor(math.log10(span / MAX_TICKS))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if span / (power * factor) <= MAX_TICKS - 1)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def limits(values: Sequence[float]) -> tuple[float, float]:
    """What an axis shows: all values, and a margin of a twentieth of their range."""
    low, high = min(values), max(values)
    if low == high:
        return low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
    return low - (high - low) / 20, high + (high - low) / 20


def line_chart(lines: Mapping[str, Sequence[Point]], title: str, x_label: str, y_label: str) -> str:
    """An SVG of lines with a dot and perhaps a label at each point, by their names, which stand in a legend.

    Points whose x or y is not finite are left out. Raises ValueError where no point is left.
    """
    shown = {name: [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])] for name, points in lines.items()}
    points = [point for part in shown.values() for point in part]
    if not points:
        raise ValueError("no points")
    x_low, x_high = limits([x for x, _, _ in points])
    y_low, y_high = limits([y for _, y, _ in points])

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        up = (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return round(LEFT + across, 1), round(HEIGHT - BOTTOM - up, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text(WIDTH / 2, 16, title, "middle", 'font-weight="bold"'),
        text(WIDTH / 2, HEIGHT - 8, x_label, "middle"),
        text(14, HEIGHT / 2, y_label, "middle", f'transform="rotate(-90 14 {HEIGHT / 2})"'),
    ]
    for value in ticks(x_low, x_high):
        x, bottom = at(value, y_low)
        parts += [line(x, TOP, x, bottom, "#dddddd"), text(x, bottom + 15, f"{value:g}", "middle")]
    for value in ticks(y_low, y_high):
        left, y = at(x_low, value)
        parts += [line(left, y, WIDTH - RIGHT, y, "#dddddd"), text(left - 6, y + 4, f"{value:g}", "end")]
    for number, (name, part) in enumerate(shown.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x},{y}" for x, y in (at(x, y) for x, y, _ in part))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for x, y, label in part:
            x, y = at(x, y)
            parts.append(f'<circle cx="{x}" cy="{y}" r="{4 if label else 2.5}" fill="{colour}"/>')
            parts += [text(x + 6, y - 6, label, "start")] if label else []
        if len(shown) > 1:
            parts.append(text(WIDTH - RIGHT - 4, TOP + 14 * (number + 1), name, "end", f'fill="{colour}"'))
    return "\n".join([*parts, "</svg>"])


def line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}"/>'


def text(x: float, y: float, content: str, anchor: str, attributes: str = "") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" {attributes}>{escape(content)}</text>'


def stacked(charts: Sequence[str]) -> str:
    """One SVG of several charts, below each other."""
    placed = [chart.replace("<svg ", f'<svg y="{number * HEIGHT}" ', 1) for number, chart in enumerate(charts)]
    height = len(charts) * HEIGHT
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
    return "\n".join([start, *placed, "</svg>"])
