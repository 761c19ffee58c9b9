"""latents.walks: walks pass their keys, end where they began, and are as smooth as they say."""

from __future__ import annotations

import pytest
import torch

from latents.walks import INTERPOLATIONS, class_walk, closed_walk, frames, noise_walk, slerp, there_and_back, w_walk
from media.images import to_uint8
from tests.latents.small import generator


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("count", [2, 3, 7])
def test_a_walk_passes_its_keys_and_is_closed(interpolation, count):
    torch.manual_seed(0)
    keys = torch.randn(count, 5, dtype=torch.float64)
    walk = closed_walk(keys, interpolation)
    places = torch.arange(count, dtype=torch.float64)
    torch.testing.assert_close(walk(places), keys, rtol=1e-12, atol=1e-12)
    for around in (count, -count, 3 * count):
        positions = places + 0.3
        torch.testing.assert_close(walk(positions + around), walk(positions), rtol=1e-9, atol=1e-9)
    near = walk(torch.tensor([count - 1e-7, 0.0, 1e-7], dtype=torch.float64))
    torch.testing.assert_close(near, keys[:1].expand(3, -1), rtol=1e-5, atol=1e-5)


def test_a_spline_has_no_bend_and_linear_has():
    torch.manual_seed(0)
    keys, step = torch.randn(5, 3, dtype=torch.float64), 1e-4

    def jumps(interpolation):
        """How much speed and acceleration differ before and after the keys, the first one among them."""
        walk = closed_walk(keys, interpolation)
        points = [walk(torch.arange(5.0, dtype=torch.float64) + i * step) for i in range(-2, 3)]
        before, after = (points[2] - points[1]) / step, (points[3] - points[2]) / step
        bend_before = (points[2] - 2 * points[1] + points[0]) / step**2
        bend_after = (points[4] - 2 * points[3] + points[2]) / step**2
        return float((after - before).abs().max()), float((bend_after - bend_before).abs().max())

    speed, bend = jumps("spline")
    assert speed < 1e-2 and bend < 1e-1
    assert jumps("linear")[0] > 0.5


def test_a_spline_through_a_sine_is_the_sine():
    angles = torch.arange(24, dtype=torch.float64) * 2 * torch.pi / 24
    positions = torch.linspace(0, 24, 100, dtype=torch.float64)
    found = closed_walk(angles.sin()[:, None], "spline")(positions)[:, 0]
    torch.testing.assert_close(found, (positions * 2 * torch.pi / 24).sin(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("interpolation", ["linear", "slerp", "spline"])
def test_a_model_without_z_walks_as_well(interpolation):
    assert closed_walk(torch.zeros(3, 0), interpolation)(torch.linspace(0, 3, 5)).shape == (5, 0)


def test_a_spline_solves_its_system_for_any_number_of_keys():
    torch.manual_seed(0)
    for count in (2, 5):
        keys = torch.randn(count, 3, dtype=torch.float64)
        system = 4 * torch.eye(count, dtype=torch.float64)
        for i in range(count):
            system[i, i - 1] += 1
            system[i, (i + 1) % count] += 1
        bends = torch.linalg.solve(system, 6 * (keys.roll(1, 0) - 2 * keys + keys.roll(-1, 0)))
        middle = (keys + keys.roll(-1, 0)) / 2 - (bends + bends.roll(-1, 0)) / 16
        positions = torch.arange(count, dtype=torch.float64) + 0.5
        torch.testing.assert_close(closed_walk(keys, "spline")(positions), middle)
    many = torch.randn(200_000, 2)  # of which a matrix would have 320 GB
    torch.testing.assert_close(closed_walk(many, "spline")(torch.tensor([199_999.0])), many[-1:])


def test_shares_of_classes_sum_to_one_all_the_way():
    G = generator(c_dim=2)
    seen = []
    G.mapping.embed.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    z, c = torch.randn(2, 8).double(), torch.eye(2).double()
    for interpolation in INTERPOLATIONS:
        w_walk(G, z, c, "z", interpolation)(torch.linspace(0, 2, 9, dtype=torch.float64))
        torch.testing.assert_close(seen.pop().sum(dim=1), torch.ones(9).double())


def test_slerp_is_an_arc_at_even_speed():
    a, b = torch.tensor([[1.0, 0, 0]]), torch.tensor([[0, 1.0, 0]])
    for t in (0.0, 0.25, 0.5, 1.0):
        angle = torch.tensor(t * torch.pi / 2)
        expected = torch.stack([angle.cos(), angle.sin(), torch.tensor(0.0)])[None]
        torch.testing.assert_close(slerp(a, b, torch.tensor([[t]])), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slerp(a, 3 * b, torch.tensor([[0.5]])).norm(), torch.tensor(2.0))
    torch.testing.assert_close(slerp(a, a, torch.tensor([[0.5]])), a)  # no arc, and no division by zero
    assert slerp(a, -a, torch.tensor([[0.5]])).isfinite().all()


def walked(G, count=12, keys=3, space="w", interpolation="spline", part="all", layers=None, **options):
    torch.manual_seed(1)
    z, c = torch.randn(keys, 8).double(), torch.zeros(keys, G.config.c_dim).double()
    if G.config.c_dim:
        c[torch.arange(keys), torch.arange(keys) % G.config.c_dim] = 1
    walk = w_walk(G, z, c, space, interpolation)
    layers = range(G.config.num_ws) if layers is None else layers
    return z, c, torch.stack(list(frames(G, walk, count, keys, layers=layers, part=part, **options)))


@pytest.mark.parametrize("space", ["w", "z"])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_frames_go_through_the_images_of_the_keys(space, interpolation):
    G = generator(c_dim=2)
    G.w_avg.normal_()
    z, c, found = walked(G, space=space, interpolation=interpolation, psi=0.7)
    assert found.shape == (12, 3, 16, 16)
    expected = to_uint8(G(z, c, 0.7, "const"))
    assert (found[::4].int() - expected.int()).abs().max() <= 1
    assert (found[2].int() - found[0].int()).abs().max() > 5


def test_cells_walk_one_after_the_other_in_any_batch():
    G = generator()
    _, _, one = walked(G)
    _, _, cells = walked(G, cells=(2, 1), batch=3, scale=2)
    assert cells.shape == (12, 3, 32, 64)
    left, right = cells[:, :, ::2, :32:2], cells[:, :, ::2, 32::2]
    assert (left.int() - one.int()).abs().max() <= 1
    assert (right.int() - one.roll(-4, 0).int()).abs().max() <= 1  # a key later


def test_a_walk_of_one_part_moves_that_part():
    G = generator()
    _, _, found = walked(G, part="structure", layers=range(5))
    _, _, whole = walked(G)
    assert (found[0].int() - whole[0].int()).abs().max() <= 1
    assert (found[4].int() - found[0].int()).abs().max() > 5
    assert (found[4].int() - whole[4].int()).abs().max() > 5
    _, _, still = walked(G, part="structure", layers=[])
    assert (still.int() - whole[0].int()).abs().max() <= 1


def test_frames_come_as_they_are_asked_for():
    G = generator()
    torch.manual_seed(1)
    walk = w_walk(G, torch.randn(2, 8).double(), torch.zeros(2, 0).double(), "w", "linear")
    endless = frames(G, walk, 10**9, 2, layers=range(6))
    assert next(endless).shape == (3, 16, 16)


def test_classes_stay_between_those_of_the_keys_and_change_smoothly():
    """No share of a class is negative, as it would be on a spline, and the velocity has no jump."""
    classes = torch.tensor([0, 1, 1, 2, 0, 3])
    c = torch.eye(4, dtype=torch.float64)[classes]
    positions = torch.linspace(0, 6, 601, dtype=torch.float64)
    spline, walk = closed_walk(c, "spline")(positions), class_walk(c)(positions)
    assert spline.min() < -0.05  # the fault
    assert walk.min() >= 0 and torch.allclose(walk.sum(dim=1), torch.ones(601, dtype=torch.float64))
    assert torch.equal(walk[:600:100], c) and torch.allclose(walk[600], c[0])
    assert walk.diff(n=2, dim=0).abs().max() < 1e-3  # of a straight walk with corners it is 1e-2
    shares = torch.rand(5, 3, dtype=torch.float64)
    between = class_walk(shares)(positions[:500])
    low, high = torch.minimum(shares, shares.roll(-1, 0)), torch.maximum(shares, shares.roll(-1, 0))
    assert (between >= low.repeat_interleave(100, 0) - 1e-12).all()
    assert (between <= high.repeat_interleave(100, 0) + 1e-12).all()


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_walk_of_w_for_each_layer_is_that_of_each_layer(interpolation):
    torch.manual_seed(0)
    keys, origin = torch.randn(4, 3, 5).double(), torch.randn(5).double()
    positions = torch.linspace(0, 4, 13, dtype=torch.float64)
    found = closed_walk(keys, interpolation, origin)(positions)
    for layer in range(3):
        torch.testing.assert_close(found[:, layer], closed_walk(keys[:, layer], interpolation, origin)(positions))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_spline_there_and_back_comes_to_rest_at_both_ends(count):
    torch.manual_seed(0)
    keys = torch.randn(count, 4, dtype=torch.float64)
    walk = closed_walk(there_and_back(keys), "spline")
    places, small = torch.arange(count, dtype=torch.float64), 1e-5
    torch.testing.assert_close(walk(places), keys)
    ends = places[[0, -1]]
    assert ((walk(ends + small) - walk(ends - small)) / (2 * small)).abs().max() < 1e-6
    if count > 2:
        assert ((walk(places + small) - walk(places - small)) / (2 * small))[1:-1].abs().min() > 1e-3


def test_half_a_round_goes_from_the_first_image_to_the_last():
    G = generator()
    torch.manual_seed(1)
    ws = G.ws(torch.randn(3, 8).double(), torch.zeros(3, 0).double())
    walk = closed_walk(there_and_back(ws), "spline")
    found = torch.stack(list(frames(G, walk, 9, 4, layers=range(G.config.num_ws), half=True)))
    expected = to_uint8(G.synthesis(ws, "const"))
    assert (found[::4].int() - expected.int()).abs().max() <= 1
    assert (found[1].int() - found[0].int()).abs().max() < (found[2].int() - found[1].int()).abs().max()  # from rest


def test_noise_passes_with_the_layers_that_walk_and_keeps_its_variance():
    G = generator(noise=True)
    torch.manual_seed(1)
    ws = G.ws(torch.randn(2, 8).double(), torch.zeros(2, 0).double())
    maps = [torch.randn(2, 1, *layer.size).double() for layer in G.synthesis.layers()]
    everything = range(G.config.num_ws)
    at = noise_walk(maps, everything)
    middle = at(torch.zeros(1), torch.tensor([0.5]))[-1]
    assert middle.shape == maps[-1][:1].shape and 0.8 < middle.square().mean() / maps[-1].square().mean() < 1.2
    for chosen, follows in ((everything, range(len(maps))), ([1], [1])):
        noise = noise_walk(maps, chosen)(torch.zeros(1), torch.ones(1))
        for i, (found, layer) in enumerate(zip(noise, maps, strict=True)):
            torch.testing.assert_close(found, layer[1:] if i in follows else layer[:1])
    walk = closed_walk(ws, "spline")
    found = torch.stack(list(frames(G, walk, 4, 2, layers=everything, noise=maps)))
    assert (found[::2].int() - to_uint8(G.synthesis(ws, maps)).int()).abs().max() <= 1
    assert (found[::2].int() - to_uint8(G.synthesis(ws, "const")).int()).abs().max() > 5
