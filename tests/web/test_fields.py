"""web.fields: what the page's controls are called by generate.py."""

from __future__ import annotations

import pytest

pytest.importorskip("gradio")

from latents.cli import in_turn
from web.fields import ANY_CLASS, MIXTURE, class_number


@pytest.mark.parametrize(
    "chosen, expected",
    [
        (None, ""),
        ("", ""),
        (ANY_CLASS, ""),
        ("class 2", "2"),
        ("2: blond hair", "2"),
        ("12: ratio 1:2", "12"),
        ("3", "3"),
        ("1+3", "1+3"),
        ("1:0.2+3:0.8", "1:0.2+3:0.8"),
        ("1: 0.2+3: 0.8", "1: 0.2+3: 0.8"),
        ("blond hair:0.2+red hair:0.8", "blond hair:0.2+red hair:0.8"),
        ("red hair", "red hair"),
        ("0,2", "0,2"),
    ],
)
def test_a_class_is_what_class_takes(chosen, expected):
    assert class_number(chosen) == expected


def test_mixtures_by_numbers_fit_another_model():
    assert all(map(MIXTURE.fullmatch, ("2", "1+3", "1:0.2+3:0.8"))) and not MIXTURE.fullmatch("red hair")


def test_each_class_of_a_walk_has_a_seed():
    """As `generate.py video` repeats them."""
    assert in_turn([4, 9], 3) == [4, 9, 4] and in_turn([4, 9, 2], 2) == [4, 9, 2] and in_turn([4, 9], 0) == [4, 9]
