"""Charts are well-formed SVG, with each point where the axes say."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from metrics.plot import line_chart, stacked, ticks

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("low, high", [(0, 1), (0.95, 1.05), (-3, 250), (1e-6, 2e-6), (12000, 25000), (0, 6.0001)])
def test_ticks_are_few_round_numbers_within(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 7 and all(low <= value <= high for value in found)
    steps = [b - a for a, b in pairwise(found)]
    assert max(steps) == pytest.approx(min(steps)) and f"{steps[0]:.0e}"[0] in "125"


def elements(svg: str, name: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter(SVG + name))


def test_points_lie_where_the_axes_say():
    svg = line_chart({"a": [(0.0, 1.0, ""), (10.0, 3.0, "best"), (5.0, math.nan, "")]}, "a < b & c", "kimg", "swd")
    (low, high) = [(float(c.get("cx")), float(c.get("cy"))) for c in elements(svg, "circle")]
    texts = {t.text: (float(t.get("x")), float(t.get("y"))) for t in elements(svg, "text")}
    assert {"a < b & c", "kimg", "swd", "best"} <= texts.keys()
    assert low[0] == texts["0"][0] and high[0] == texts["10"][0]  # above the numbers of the axis
    assert low[1] == pytest.approx(texts["1"][1] - 4) and high[1] == pytest.approx(texts["3"][1] - 4)
    (path,) = elements(svg, "polyline")
    assert path.get("points") == f"{low[0]},{low[1]} {high[0]},{high[1]}"


def test_one_point_and_none():
    assert len(elements(line_chart({"a": [(1.0, 0.0, "")]}, "a", "x", "y"), "circle")) == 1
    with pytest.raises(ValueError, match="no points"):
        line_chart({"a": [(1.0, math.inf, "")]}, "a", "x", "y")


def test_charts_below_each_other():
    charts = [line_chart({"a": [(1.0, 2.0, "")], "b": [(2.0, 2.0, "")]}, str(n), "x", "y") for n in range(3)]
    svg = stacked(charts)
    tops = [element.get("y") for element in elements(svg, "svg")]
    assert tops == [None, "0", "300", "600"] and elements(svg, "svg")[0].get("height") == "900"
    assert len(re.findall("<polyline", svg)) == 6
