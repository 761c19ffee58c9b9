"""web.fields: what the page's controls are called by generate.py."""

from __future__ import annotations

from types import SimpleNamespace

import click
import pytest

pytest.importorskip("gradio")

from latents.cli import in_turn
from torch_utils.errors import UserError
from web.codes import SEED
from web.fields import ANY_CLASS, MAX_SEED, MIXTURE, class_number, read_layers
from web.kernels import kernels


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
    assert class_number(chosen, []) == expected


def test_every_class_of_a_model_can_be_chosen():
    """Whatever it is called, as folders of digits are, and where that looks like a mixture."""
    names = ["0: 0", "1: 1", "2: 1+1", "3: 0.5", "4: 4:0.2+1:0.8", "class 0"]
    assert [class_number(name, names) for name in names] == [str(number) for number in range(len(names))]


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, None])
def test_a_seed_beyond_the_bounds_is_a_mistake_in_kernels_too(seed):
    page = SimpleNamespace(shelf=SimpleNamespace(class_names=lambda name: []))
    for first, second in ((seed, 0), (0, seed)):
        with pytest.raises(UserError, match="a seed is a whole number from 0 to"):
            kernels(page, "model", "fp32", [], SEED, first, True, SEED, second, "", 1, "", False)


def test_a_field_of_numbers_takes_no_memory():
    with pytest.raises(click.BadParameter, match="more than 1,000 numbers"):
        read_layers("0-9999999")
    assert read_layers("0-3,5") == [0, 1, 2, 3, 5]


def test_mixtures_by_numbers_fit_another_model():
    assert all(map(MIXTURE.fullmatch, ("2", "1+3", "1:0.2+3:0.8"))) and not MIXTURE.fullmatch("red hair")


def test_each_class_of_a_walk_has_a_seed():
    """As `generate.py video` repeats them."""
    assert in_turn([4, 9], 3) == [4, 9, 4] and in_turn([4, 9, 2], 2) == [4, 9, 2] and in_turn([4, 9], 0) == [4, 9]
