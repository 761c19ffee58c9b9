"""training.augment: each transform against a plain one, the filters, probabilities, derivatives, the controller."""

import math
from collections import Counter

import pytest
import torch

from torch_utils.ops.upfirdn2d import setup_filter
from training import augment
from training.augment import (
    AUGPIPES,
    SYM6,
    AdaptiveP,
    AugmentPipe,
    Strengths,
    amplify,
    cut_out,
    filter_bank,
    lookup,
    random_blits,
    random_colors,
    random_gains,
    random_geometry,
    random_holes,
    random_sigmas,
    recolor,
    warp,
)
from training.loss import gradient_penalty

POWER = torch.tensor([10.0, 1.0, 1.0, 1.0]) / 13
LOWPASS = setup_filter(SYM6)


def random_images(*shape, dtype=torch.float32):
    return torch.rand(*shape, dtype=dtype) * 2 - 1


def values(*numbers):
    return torch.tensor(numbers, dtype=torch.float32)


def force(monkeypatch, *parameters):
    """The next transforms are drawn with these parameters, in the order of their drawing; None leaves one out."""
    parameters = list(parameters)

    def forced(p, drawn, neutral):
        value = parameters.pop(0)
        return torch.as_tensor(neutral if value is None else value, dtype=torch.float32).expand_as(drawn).clone()

    monkeypatch.setattr(augment, "sometimes", forced)


# Names and arguments.


def test_names_are_sums_of_groups():
    letters = {"b": "blit", "g": "geom", "c": "color", "f": "filter", "n": "noise"}
    for name in ("bg", "bgc", "bgcf", "bgcfn"):
        assert AUGPIPES[name] == tuple(letters[letter] for letter in name)
    assert AUGPIPES["bgcfnc"] == (*AUGPIPES["bgcfn"], "cutout")
    assert {name for name, groups in AUGPIPES.items() if groups == (name,)} == set(AUGPIPES["bgcfnc"])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"name: expected one of blit, .*got 'bcg'"):
        AugmentPipe("bcg")
    with pytest.raises(ValueError, match="p: expected 0 to 1"):
        AugmentPipe("bgc", 1.5)
    for name in AUGPIPES:
        with pytest.raises(ValueError, match="expected 1, 3 or 4 channels, got 2"):
            AugmentPipe(name)(random_images(2, 2, 8, 8))
        with pytest.raises(ValueError, match="expected 4 pixels or more, both sides even or both odd, got 9x8"):
            AugmentPipe(name)(random_images(2, 3, 8, 9))
        with pytest.raises(ValueError, match="expected 4 pixels or more, both sides even or both odd, got 8x2"):
            AugmentPipe(name)(random_images(2, 3, 2, 8))


# The whole pipeline.


@pytest.mark.parametrize("name", AUGPIPES)
def test_p_of_zero_is_exactly_the_identity(name):
    torch.manual_seed(0)
    for channels, size, dtype in ((3, 8, torch.float32), (1, 19, torch.float64), (3, 64, torch.bfloat16)):
        x = random_images(3, channels, size, size).to(dtype)
        y = AugmentPipe(name)(x)
        assert y.dtype == dtype
        assert torch.equal(y, x)


@pytest.mark.parametrize("name", AUGPIPES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (1, 33, 33), (3, 64, 64), (3, 4, 4), (3, 64, 96), (1, 40, 12)])
def test_p_of_one_changes_images_of_any_size(name, shape):
    torch.manual_seed(0)
    x = random_images(16, *shape)
    y = AugmentPipe(name, 1.0)(x)
    assert y.shape == x.shape
    assert y.isfinite().all()
    assert (y != x).flatten(1).any(dim=1).float().mean() > 0.5


def test_seed_decides_and_p_does_not_move_the_random_numbers():
    x = random_images(6, 3, 16, 16)

    def run(p):
        torch.manual_seed(3)
        return AugmentPipe("bgcfnc", p)(x), torch.rand([])

    assert torch.equal(run(0.7)[0], run(0.7)[0])
    assert torch.equal(run(0.7)[1], run(0.0)[1])


@pytest.mark.parametrize("p", [0.5, 1.0])
def test_a_image_does_not_see_the_others(p):
    pipe, x = AugmentPipe("bgcfnc", p), random_images(5, 3, 16, 16)
    torch.manual_seed(1)
    expected = pipe(x)
    x[[0, 1, 3, 4]] = 7
    torch.manual_seed(1)
    assert torch.equal(pipe(x)[2], expected[2])


def test_half_precision_is_computed_in_float32():
    x = random_images(8, 3, 16, 16).bfloat16()
    pipe = AugmentPipe("bgcf", 1.0)
    torch.manual_seed(2)
    y = pipe(x)
    torch.manual_seed(2)
    assert torch.equal(y, pipe(x.float()).bfloat16())


def test_p_is_the_state():
    pipe = AugmentPipe("bgc", 0.25)
    assert {name: float(value) for name, value in pipe.state_dict().items()} == {"p": 0.25}
    other = AugmentPipe("bgc")
    other.load_state_dict(pipe.state_dict())
    assert float(other.p) == 0.25


def test_strengths_multiply_p_by_group():
    x = random_images(2000, 1, 4, 4)

    def changed(**strengths):
        torch.manual_seed(0)
        return float((AugmentPipe("bgcfnc", 0.2, Strengths(**strengths))(x) != x).flatten(1).any(dim=1).float().mean())

    off = dict.fromkeys(AUGPIPES["bgcfnc"], 0.0)
    assert changed(**off) == 0
    for group in off:
        alone = [changed(**off | {group: strength}) for strength in (0.5, 1.0, 2.0)]
        assert 0.04 < alone[0] < 0.95 * alone[1] < 0.9 * alone[2], group
    assert changed(**off | {"noise": 2.0}) == pytest.approx(0.4, abs=0.05)


# Probabilities.


SHIFTED = 1 - (1 / 8) ** 2  # 32 pixels: 8 widths from −4 to 4, of which that around 0 stays
DRAWS = {
    "x-flip": (lambda n, p: random_blits(n, p, 32, 32), 0, 3, lambda p: p / 2),
    "turns": (lambda n, p: random_blits(n, p, 32, 32), 1, 3, lambda p: p * 3 / 4),
    "whole shift": (lambda n, p: random_blits(n, p, 32, 32), 2, 3, lambda p: p * SHIFTED),
    "scale": (lambda n, p: random_geometry(n, p, 32, 32), 0, 5, lambda p: p),
    "first rotation": (lambda n, p: random_geometry(n, p, 32, 32), 1, 5, lambda p: 1 - math.sqrt(1 - p)),
    "stretch": (lambda n, p: random_geometry(n, p, 32, 32), 2, 5, lambda p: p),
    "second rotation": (lambda n, p: random_geometry(n, p, 32, 32), 3, 5, lambda p: 1 - math.sqrt(1 - p)),
    "shift": (lambda n, p: random_geometry(n, p, 32, 32), 4, 5, lambda p: p),
    "brightness": (random_colors, 0, 5, lambda p: p),
    "contrast": (random_colors, 1, 5, lambda p: p),
    "luma flip": (random_colors, 2, 5, lambda p: p / 2),
    "hue": (random_colors, 3, 5, lambda p: p),
    "saturation": (random_colors, 4, 5, lambda p: p),
    "bands": (lambda n, p: random_gains(n, p, POWER), 0, 1, lambda p: 1 - (1 - p) ** 4),
    "noise": (random_sigmas, 0, 1, lambda p: p),
    "cutout": (lambda n, p: random_holes(n, p)[1], 0, 1, lambda p: p),
}


def within(count, total, share):
    """Whether a count is within four standard deviations of its binomial distribution."""
    return abs(count - total * share) <= 4 * math.sqrt(total * share * (1 - share)) + 1e-9


@pytest.mark.parametrize("name", DRAWS)
def test_each_transform_changes_its_share(monkeypatch, name):
    """Each alone, with the others of its group left neutral."""
    draw, index, calls, share = DRAWS[name]
    sometimes, count = augment.sometimes, 0

    def only_this(p, drawn, neutral):
        nonlocal count
        count += 1
        return sometimes(p if (count - 1) % calls == index else p * 0, drawn, neutral)

    monkeypatch.setattr(augment, "sometimes", only_this)
    torch.manual_seed(0)
    total = 10000
    nothing = draw(1, torch.tensor(0.0))
    for p in (0.15, 0.6):
        values = draw(total, torch.tensor(p))
        changed = (values != nothing).flatten(1).any(dim=1) if values.ndim > 1 else values != nothing
        assert within(int(changed.sum()), total, share(p))
        assert count % calls == 0
    assert bool((draw(50, torch.tensor(1.0)) != nothing).any())


def test_transforms_are_chosen_independently():
    torch.manual_seed(0)
    total, p = 20000, 0.3
    inverse = random_geometry(total, torch.tensor(p), 32, 32)
    untouched = (inverse == torch.eye(3)).all(dim=(1, 2))
    assert within(int(untouched.sum()), total, (1 - p) ** 4)  # scale, any rotation, stretch, shift
    straight = (inverse[:, 0, 1] == 0) & (inverse[:, 1, 0] == 0)
    assert within(int(straight.sum()), total, 1 - p)  # no rotation at all
    colors = random_colors(total, torch.tensor(p))
    untouched = (colors == torch.eye(4)).all(dim=(1, 2))
    assert within(int(untouched.sum()), total, (1 - p) ** 4 * (1 - p / 2))


@pytest.mark.parametrize("p", [0.3, 0.8])
def test_nothing_leaks(p):
    """Below p ≈ 0.8 the untouched image is the most frequent one, so that G is drawn to it (section 3)."""
    torch.manual_seed(0)
    matrices = random_blits(20000, torch.tensor(p), 32, 32).int()
    turned = Counter(tuple(m.flatten().tolist()) for m in matrices[:, :2, :2])
    assert len(turned) == 8
    (first, most), (_, second) = turned.most_common(2)
    assert first == (1, 0, 0, 1)
    assert most > 1.2 * second
    moved = Counter(tuple(m.flatten().tolist()) for m in matrices)
    assert moved.most_common(1)[0][0] == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    if p < 0.5:
        colors = random_colors(20000, torch.tensor(p))
        untouched = int((colors == torch.eye(4)).all(dim=(1, 2)).sum())
        others = Counter(tuple(m.flatten().tolist()) for m in colors)
        assert others.most_common(1)[0][1] == untouched > 1000


def test_certain_turns_leak():
    """At p = 1 no direction is preferred: the test above can fail."""
    torch.manual_seed(0)
    matrices = random_blits(20000, torch.tensor(1.0), 32, 32)[:, :2, :2].int()
    turned = Counter(tuple(m.flatten().tolist()) for m in matrices)
    assert all(within(count, 20000, 1 / 8) for count in turned.values())


# Derivatives.


def test_derivatives_of_the_warp():
    torch.manual_seed(0)
    x = random_images(2, 1, 6, 6, dtype=torch.float64).requires_grad_()
    inverse = random_geometry(2, torch.tensor(1.0), 6, 6)
    assert torch.autograd.gradcheck(lambda x: warp(x, inverse, LOWPASS), x)
    assert torch.autograd.gradgradcheck(lambda x: warp(x, inverse, LOWPASS).square(), x)


def test_derivatives_of_the_pipeline():
    pipe = AugmentPipe("bgcfnc", 0.7)

    def fixed(x):
        torch.manual_seed(4)
        return pipe(x)

    x = random_images(2, 3, 4, 4, dtype=torch.float64).requires_grad_()
    assert not torch.equal(fixed(x)[0], x[0]) and not torch.equal(fixed(x)[1], x[1])
    assert torch.autograd.gradcheck(fixed, x)
    assert torch.autograd.gradgradcheck(lambda x: fixed(x).square(), x)


def test_r1_through_the_pipeline():
    """D(x) = a·T(x) with T(x) = M x + t has the penalty ‖Mᵀa‖², and that the gradient 2 M Mᵀ a by a."""
    size, pipe = 8, AugmentPipe("bgcf", 1.0)

    def augmented(x):
        torch.manual_seed(5)
        return pipe(x)

    x = random_images(1, 3, size, size, dtype=torch.float64)
    M = torch.autograd.functional.jacobian(augmented, x).view(x.numel(), x.numel())
    a = random_images(x.numel(), dtype=torch.float64).requires_grad_()
    penalty = gradient_penalty(lambda images, c: (augmented(images).flatten(1) @ a)[:, None], x, None)
    torch.testing.assert_close(penalty, (M.T @ a).square().sum())
    torch.testing.assert_close(torch.autograd.grad(penalty, a)[0], 2 * M @ (M.T @ a))


# On a GPU.


def test_no_value_is_asked_for():
    """Tensors without values have none to wait for; and all that is made has to be on the same device."""
    pipe, ada = AugmentPipe("bgcfnc", 0.5).to("meta"), AdaptiveP(interval=1).to("meta")
    x = torch.empty(2, 3, 16, 16, device="meta")
    y = pipe(x.requires_grad_())
    assert y.shape == x.shape and y.device == x.device
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    gradient.square().sum().backward()
    ada.update(pipe.p, y, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_pipeline_on_a_gpu_is_that_of_the_cpu(monkeypatch):
    torch.manual_seed(0)
    x = random_images(8, 3, 32, 32)
    inverse = random_blits(8, torch.tensor(0.5), 32, 32) @ random_geometry(8, torch.tensor(1.0), 32, 32)
    colors, gains = random_colors(8, torch.tensor(1.0)), random_gains(8, torch.tensor(1.0), POWER)
    centre, half = random_holes(8, torch.tensor(1.0))

    def run(device):
        y = warp(x.to(device), inverse.to(device), LOWPASS.to(device))
        y = amplify(recolor(y, colors.to(device)), gains.to(device), filter_bank().to(device))
        return cut_out(y, centre.to(device), half.to(device)).cpu()

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.testing.assert_close(run("cuda"), run("cpu"), rtol=1e-3, atol=2e-3)
    blits = random_blits(8, torch.tensor(1.0), 32, 32)
    assert torch.equal(lookup(x.cuda(), blits.cuda()).cpu(), lookup(x, blits))
    for name in AUGPIPES:
        assert torch.equal(AugmentPipe(name).cuda()(x.cuda()).cpu(), x)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_nothing_waits_for_the_gpu():
    pipe, ada = AugmentPipe("bgcfnc", 0.5).cuda(), AdaptiveP().cuda()
    a = random_images(3, 32, 32).cuda().requires_grad_()
    x = random_images(8, 3, 32, 32).cuda()

    def step(number):
        penalty = gradient_penalty(lambda images, c: (pipe(images) * a).square().sum(dim=(1, 2, 3))[:, None], x, None)
        penalty.backward()
        ada.update(pipe.p, pipe(x).mean(dim=(1, 2, 3)), number)

    step(0)  # builds and loads what is needed
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(1, 5):
            step(number)
    finally:
        torch.cuda.set_sync_debug_mode("default")
