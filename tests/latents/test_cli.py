"""latents.cli: classes and seeds as they are typed, within bounds."""

from __future__ import annotations

import click
import pytest

from latents.cli import Classes
from latents.sheets import check_grid
from torch_utils.errors import UserError


def test_classes_and_mixtures():
    assert Classes().convert("0-2,cat", None, None) == [{0: 1.0}, {1: 1.0}, {2: 1.0}, {"cat": 1.0}]
    (shares,) = Classes().convert("1:0.5+cat:1.5", None, None)
    assert shares == {1: 0.25, "cat": 0.75}


@pytest.mark.parametrize(
    "text, words",
    [
        ("0-9999999", "more than 100,000"),
        (",".join(["0-60000"] * 2), "more than"),
        ("3:" + "9" * 400, "sum to inf"),
        ("3:0", "sum to 0"),
    ],
)
def test_classes_beyond_all_bounds(text, words):
    with pytest.raises(click.BadParameter, match=words):
        Classes().convert(text, None, None)


def test_a_grid_is_no_larger_than_an_image_may_be():
    check_grid(144, 12, 512)
    with pytest.raises(UserError, match="a sheet of 12288x12288 pixels is too large"):
        check_grid(144, 12, 1024)
