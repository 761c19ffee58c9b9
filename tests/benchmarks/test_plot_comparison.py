"""benchmarks/plot_comparison.py: bands over seeds, and what it says of metrics that a record lacks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import plot_comparison

from torch_utils.errors import UserError


def test_the_band_is_the_standard_deviation_over_seeds():
    assert plot_comparison.mean_and_deviation([[10.0, 2.0], [14.0, 2.0], [12.0, 5.0]]) == (
        [12.0, 3.0],
        [2.0, pytest.approx(3**0.5)],
    )
    assert plot_comparison.mean_and_deviation([[4.0, 3.0]]) == ([4.0, 3.0], [0.0, 0.0])


def test_a_metric_that_a_record_lacks_is_named_with_those_it_has(tmp_path):
    record = tmp_path / "record.json"
    row = {"kimg": [0, 1], "swd2k": [[3, 2]], "fd2k": [[2, 1]], "fd2k at equal time": [1]}
    record.write_text(json.dumps({"variants": {"adain": row}}))
    with pytest.raises(UserError, match=r"has no kd2k of adain; --metric can be swd2k, fd2k$"):
        plot_comparison.main([str(record), "--metric", "kd2k", "--out", str(tmp_path / "c.png")], standalone_mode=False)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"variants": []}', '{"variants": {}}', '{"variants": {"a": 5}}', "no JSON"]
)
def test_another_file_is_no_record(tmp_path, content):
    record = tmp_path / "record.json"
    record.write_text(content)
    with pytest.raises(UserError, match=r"record\.json is no record of compare_modulations\.py"):
        plot_comparison.main([str(record), "--out", str(tmp_path / "c.png")], standalone_mode=False)


def test_there_is_a_panel_over_hours_where_the_record_has_costs(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed")
    seen = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, out, **_: seen.append(self.axes))
    row = {"kimg": [0.0, 1.8, 3.6], "swd2k": [[None, 4, 2], [None, 6, 4]], "seconds_per_kimg": 1000.0}
    record = tmp_path / "record.json"
    record.write_text(json.dumps({"variants": {"adain": row}}))
    plot_comparison.main([str(record), "--out", "curves.png"], standalone_mode=False)
    kimg, hours = (axes.lines[0] for axes in seen[0])
    assert list(kimg.get_xdata()) == [1.8, 3.6] and list(hours.get_xdata()) == [0.5, 1.0]
    assert list(kimg.get_ydata()) == list(hours.get_ydata()) == [5, 3]


def test_a_variant_is_drawn_from_the_first_record_that_has_it(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed")
    seen = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, out, **_: seen.append(self.axes))
    contents = {"a": {"adain": [[4, 2]], "modconv": [[7, 5]]}, "b": {"adain": [[9, 9]], "adaconv": [[3, 1]]}}
    for name, variants in contents.items():
        rows = {variant: {"kimg": [1, 2], "swd2k": runs} for variant, runs in variants.items()}
        (tmp_path / f"{name}.json").write_text(json.dumps({"variants": rows}))
    records = [str(tmp_path / f"{name}.json") for name in "ab"]
    plot_comparison.main([*records, "--out", "curves.png"], standalone_mode=False)
    drawn = {line.get_label().split()[0]: list(line.get_ydata()) for line in seen[0][0].lines}
    assert drawn == {"adain": [4, 2], "modconv": [7, 5], "adaconv": [3, 1]}
