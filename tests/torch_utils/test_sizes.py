"""torch_utils.sizes: which sizes networks can have, and how they are written."""

import itertools
import math

import pytest

from torch_utils.sizes import (
    MAX_SIDE,
    block_sizes,
    is_possible,
    nearest_sizes,
    no_size_message,
    nominal_side,
    nominal_sides,
    parse_resolution,
    size_text,
    to_resolution,
    width_and_height,
)


def test_possible_sizes_are_those_of_the_definition():
    """h₀·2ⁿ × w₀·2ⁿ with h₀ and w₀ from 3 to 16 and n from 2 on."""
    largest = 160
    expected = {
        (w << n, h << n)
        for n, w, h in itertools.product(range(2, 8), range(3, 17), range(3, 17))
        if max(w << n, h << n) <= largest
    }
    sides = range(1, largest + 1)
    assert {size for size in itertools.product(sides, sides) if is_possible(to_resolution(size))} == expected


def test_blocks_double_from_the_smallest_constant():
    assert block_sizes(64) == [(4, 4), (8, 8), (16, 16), (32, 32), (64, 64)]
    assert block_sizes((96, 64)) == [(4, 6), (8, 12), (16, 24), (32, 48), (64, 96)]
    assert block_sizes((640, 384))[0] == (3, 5) and len(block_sizes((640, 384))) == 8
    assert block_sizes(MAX_SIDE)[-1] == (MAX_SIDE, MAX_SIDE)
    for wrong in (8, 68, 2 * MAX_SIDE, (96, 20), (12, 240), 0, -64, (16, 10**30)):
        assert not is_possible(wrong)


def test_the_nearest_sizes_are_the_largest_inside_and_the_smallest_around():
    sides = range(12, 161, 4)  # all sides that are possible at all up to 160
    possible = [size for size in itertools.product(sides, sides) if is_possible(to_resolution(size))]
    for width, height in itertools.product((3, 12, 34, 50, 77, 101, 128), (12, 20, 64, 90, 127)):
        inside = [(w, h) for w, h in possible if w <= width and h <= height]
        around = [(w, h) for w, h in possible if w >= width and h >= height]
        areas = [math.prod(width_and_height(size)) for size in nearest_sizes((width, height))]
        largest, smallest = max((w * h for w, h in inside), default=0), min(w * h for w, h in around)
        assert areas == [area for area in dict.fromkeys((largest, smallest)) if area]
    assert nearest_sizes(34) == [32, 36] and nearest_sizes((1280, 720)) == [(1280, 640), (1280, 768)]
    assert no_size_message((5, 10000)) == "5x10000 is no size for a model (see docs/data.md#sizes)"


@pytest.mark.parametrize("power", range(4, 12))
def test_the_nominal_side_of_a_square_is_its_side(power):
    assert nominal_sides(2**power) == [2**i for i in range(2, power + 1)]


def test_nominal_sides_are_powers_of_two_near_the_mean_side():
    for w, h, n in itertools.product(range(3, 17), range(3, 17), range(2, 5)):
        side, mean = nominal_side(to_resolution((w << n, h << n))), ((w << n) * (h << n)) ** 0.5
        assert side & (side - 1) == 0
        assert 2**-0.5 * (1 - 1e-9) < side / mean < 2**0.5 * (1 - 1e-9)
        assert nominal_side(to_resolution((h << n, w << n))) == side
    assert [nominal_side(size) for size in ((96, 64), (640, 384), 48, (128, 64))] == [64, 512, 64, 64]


def test_sizes_are_written_width_first():
    assert parse_resolution("96x64") == parse_resolution(" 96×64 ") == (96, 64)
    assert parse_resolution("64") == parse_resolution("64x64") == 64
    assert (size_text((96, 64)), size_text(64)) == ("96x64", "64x64")
    for text in ("", "x", "96x", "x64", "96x64x3", "9.6x64", "-96x64", "96 64", "٩٦"):
        with pytest.raises(ValueError, match=r"is not a size; write e\.g\. 64, or width x height: 96x64"):
            parse_resolution(text)


def test_one_form_for_each_resolution():
    assert to_resolution([96, 64]) == to_resolution((96, 64)) == (96, 64)
    assert to_resolution([64, 64]) == to_resolution(64) == 64
    for wrong in (True, 64.0, "64", [64], [96, 64, 3], [96, 64.0], [True, 64], None, {}):
        with pytest.raises(ValueError, match="expected a side, or width and height"):
            to_resolution(wrong)
