"""Augmentation of what the discriminator sees: the pipeline of StyleGAN2-ADA, and the controller of its strength.

Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data": sections 2 and 3, appendix B. Each
transform is applied to each image with probability p, independently. All is differentiable in the images, any
number of times (the generator learns through the pipeline, R1 takes its gradient of a gradient); random numbers come
from the images' device, and nothing waits for it.

The execution of each group is a function of images and parameters (`lookup`, `warp`, `recolor`, `amplify`,
`cut_out`), apart from the drawing of the parameters (`random_blits` and so on). Where the paper reads
Lognormal(0, (σ·ln 2)²), the code says 2^N(0, σ²), which is the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from torch_utils import distributed
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d

# The pipelines by their names in the paper, as the groups of transforms that they are made of.
AUGPIPES: dict[str, tuple[str, ...]] = {
    "blit": ("blit",),
    "geom": ("geom",),
    "color": ("color",),
    "filter": ("filter",),
    "noise": ("noise",),
    "cutout": ("cutout",),
    "bg": ("blit", "geom"),
    "bgc": ("blit", "geom", "color"),
    "bgcf": ("blit", "geom", "color", "filter"),
    "bgcfn": ("blit", "geom", "color", "filter", "noise"),
    "bgcfnc": ("blit", "geom", "color", "filter", "noise", "cutout"),
    "r3gan": ("blit", "geom", "color", "cutout"),
}

# Orthogonal low-pass filters with sum √2: Daubechies' least asymmetric ones ("Ten Lectures on Wavelets", table 6.3)
# with 2 and 6 vanishing moments.
SYM2 = (0.48296291314453416, 0.8365163037378079, 0.22414386804201339, -0.12940952255126037)
SYM6 = (
    0.01540410932704478, 0.00349071208422209, -0.11799011114851972, -0.04831174258569751,
    0.491055941927974, 0.7876411410286505, 0.33792942172816537, -0.07263752278637645,
    -0.02106029251237077, 0.04472490177078135, 0.00176771186425398, -0.00780070832503238,
)  # fmt: skip
# The tap that stands for the middle of SYM6, which is not quite symmetric. Its delay for the lowest frequencies, 5.1,
# would put edges less well in place: rotated drawings came out nearest to the truth with 5.0.
SYM6_CENTRE = 5


@dataclass(frozen=True)
class Strengths:
    """The probability of each group's transforms, as a multiple of p."""

    blit: float = 1.0
    geom: float = 1.0
    color: float = 1.0
    filter: float = 1.0
    noise: float = 1.0
    cutout: float = 1.0


STRENGTHS = {"r3gan": Strengths(color=0.5)}  # pipelines in which the probability of a group is not p


class AugmentPipe(nn.Module):
    """Augments images with the groups of transforms of `name`, a key of AUGPIPES.

    p is a buffer, so it belongs to the training state, and changing it does not wait for the device.
    """

    p: Tensor
    lowpass: Tensor
    bands: Tensor
    power: Tensor

    def __init__(self, name: str, p: float = 0.0, strengths: Strengths | None = None):
        super().__init__()
        if name not in AUGPIPES:
            raise ValueError(f"name: expected one of {', '.join(AUGPIPES)}, got {name!r}")
        if not 0 <= p <= 1:
            raise ValueError(f"p: expected 0 to 1, got {p}")
        self.groups, self.strengths = AUGPIPES[name], strengths or STRENGTHS.get(name, Strengths())
        self.register_buffer("p", torch.tensor(float(p)))
        self.register_buffer("lowpass", setup_filter(SYM6), persistent=False)
        self.register_buffer("bands", filter_bank(), persistent=False)
        # λ, the power that is expected in each band: natural images have a spectrum of 1/f
        self.register_buffer("power", torch.tensor([10.0, 1.0, 1.0, 1.0]) / 13, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """images [N, 1, 3 or 4, H, W] in −1..1 → the same shape and type, possibly beyond that range.

        Of 4 channels, the colours are premultiplied with alpha (media/alpha.py). What moves pixels or filters them
        moves and filters alpha as well; colours and noise change, as far as it can be seen, only the others.

        Half precision is computed in float32. At p = 0 the result is equal to the images.

        Raises:
            ValueError: if the images are smaller than 4 × 4, have one even and one odd side, which a turn by 90° could
                not keep on whole pixels, or are not grey, RGB or RGBA.
        """
        n, channels, height, width = images.shape
        if channels not in (1, 3, 4):
            raise ValueError(f"images: expected 1, 3 or 4 channels, got {channels}")
        if min(height, width) < 4 or (height - width) % 2:
            raise ValueError(f"images: expected 4 pixels or more, both sides even or both odd, got {width}x{height}")
        x = images.to(torch.promote_types(images.dtype, torch.float32))
        if "blit" in self.groups or "geom" in self.groups:
            x = self._move(x)
        if "color" in self.groups:
            x = recolor(x, random_colors(n, self.p * self.strengths.color))
        if "filter" in self.groups:
            x = amplify(x, random_gains(n, self.p * self.strengths.filter, self.power), self.bands)
        if "noise" in self.groups:
            sigma = random_sigmas(n, self.p * self.strengths.noise).to(x.dtype)
            noise = sigma.view(-1, 1, 1, 1) * torch.randn_like(x)
            if channels == 4:  # as much as can be seen of it, and none of alpha
                noise = torch.cat([noise[:, :3] * opacity(x), torch.zeros_like(noise[:, 3:])], dim=1)
            x = x + noise
        if "cutout" in self.groups:
            x = cut_out(x, *random_holes(n, self.p * self.strengths.cutout))
        return x.to(images.dtype)

    def _move(self, x: Tensor) -> Tensor:
        """Blits and general geometric transforms, executed as one.

        Images that got none of the general ones are looked up pixel by pixel, which is exact.
        """
        n, _, height, width = x.shape
        inverse = torch.eye(3, device=x.device).expand(n, 3, 3)
        if "blit" in self.groups:
            inverse = random_blits(n, self.p * self.strengths.blit, height, width)
        blitted = lookup(x, inverse)
        if "geom" not in self.groups:
            return blitted
        general = random_geometry(n, self.p * self.strengths.geom, height, width)
        general_is_identity = (general == torch.eye(3, device=x.device)).all(dim=(1, 2))
        return torch.where(general_is_identity.view(-1, 1, 1, 1), blitted, warp(x, inverse @ general, self.lowpass))


class AdaptiveP(nn.Module):
    """Moves p so that r_t = E[sign(D(x))] over real images x comes to `target` (section 3, with the sign heuristic).

    Every `interval` steps p goes up if r_t is above the target, a sign of overfitting, and down if below, by a step
    that takes it from 0 to 1 in `kimg` thousand real images. The sums are buffers, so they belong to the training
    state, and are the same in all processes.
    """

    signs: Tensor
    count: Tensor

    def __init__(self, target: float = 0.6, kimg: float = 500.0, interval: int = 4):
        super().__init__()
        self.target, self.kimg, self.interval = target, kimg, interval
        self.register_buffer("signs", torch.zeros([]))  # sum over the logits since p was last moved
        self.register_buffer("count", torch.zeros([]))  # of those logits

    @torch.no_grad()
    def update(self, p: Tensor, real_logits: Tensor, step: int) -> None:
        """Takes in this process's D(x), any shape, of training step `step` = 0, 1, …; may move p, in place."""
        processes = distributed.world_size()
        self.signs += distributed.mean(real_logits.float().sign().sum()) * processes
        self.count += real_logits.numel() * processes
        if (step + 1) % self.interval == 0:
            r = self.signs / self.count
            p += (r - self.target).sign() * self.count / (self.kimg * 1000)
            p.clamp_(0, 1)
            self.signs.zero_()
            self.count.zero_()


# --- parameters -----------------------------------------------------------------------------------------------------


def sometimes(p: Tensor, values: Tensor, neutral: float) -> Tensor:
    """values [N, ...], each of the N with probability p, else replaced by `neutral`."""
    chosen = torch.rand(len(values), device=values.device) < p
    return torch.where(chosen.view(-1, *[1] * (values.ndim - 1)), values, neutral)


def uniform(shape: list[int], low: float, high: float, device: torch.device) -> Tensor:
    return torch.rand(shape, device=device) * (high - low) + low


def in_pixels(fractions: Tensor, height: float, width: float) -> Tensor:
    """Fractions (x, y) [N, 2] of the width and the height as pixels."""
    return torch.stack([fractions[:, 0] * width, fractions[:, 1] * height], dim=1)


def scaling(x: Tensor, y: Tensor) -> Tensor:
    """x, y [N] → [N, 3, 3]."""
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return torch.stack([x, zero, zero, zero, y, zero, zero, zero, one], dim=1).view(-1, 3, 3)


def rotation(angle: Tensor) -> Tensor:
    """Radians [N] → [N, 3, 3]."""
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], dim=1).view(-1, 3, 3)


def translation(x: Tensor, y: Tensor) -> Tensor:
    """x, y [N] → [N, 3, 3]."""
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return torch.stack([one, zero, x, zero, one, y, zero, zero, one], dim=1).view(-1, 3, 3)


def random_blits(n: int, p: Tensor, height: int, width: int) -> Tensor:
    """Flips, turns by 90° and whole-pixel shifts [N, 3, 3]: from a pixel of the result to where it comes from.

    Coordinates are pixels from the image's middle, x to the right and y down, so that a circle stays a circle in an
    image of any shape; shifts are fractions of the width and of the height. As the matrices lead backwards, the first
    transform stands on the left; each has a distribution that is the same backwards.
    """
    flip = sometimes(p, torch.randint(2, [n], device=p.device).float(), 0)
    turns = sometimes(p, torch.randint(4, [n], device=p.device).float(), 0)
    shift = sometimes(p, in_pixels(uniform([n, 2], -0.125, 0.125, p.device), height, width).round(), 0)
    # rounded because cos(π/2) is not exactly 0
    turn = rotation(turns * (math.pi / 2)).round()
    return scaling(1 - 2 * flip, torch.ones_like(flip)) @ turn @ translation(*shift.unbind(1))


def random_geometry(n: int, p: Tensor, height: int, width: int) -> Tensor:
    """Scalings, rotations and shifts [N, 3, 3], as in `random_blits`; exactly the identity where none was chosen.

    Both rotations, before and after the scaling along the axes, have the probability 1 − √(1 − p), so that there is
    any with probability p.
    """
    p_rotation = 1 - (1 - p).clamp(min=0).sqrt()
    scale = sometimes(p, torch.exp2(0.2 * torch.randn(n, device=p.device)), 1)
    before = sometimes(p_rotation, uniform([n], -math.pi, math.pi, p.device), 0)
    stretch = sometimes(p, torch.exp2(0.2 * torch.randn(n, device=p.device)), 1)
    after = sometimes(p_rotation, uniform([n], -math.pi, math.pi, p.device), 0)
    shift = sometimes(p, in_pixels(torch.randn(n, 2, device=p.device), 0.125 * height, 0.125 * width), 0)
    inverse = scaling(1 / scale, 1 / scale) @ rotation(before) @ scaling(1 / stretch, stretch) @ rotation(after)
    return inverse @ translation(*shift.unbind(1))


def random_colors(n: int, p: Tensor) -> Tensor:
    """Brightness, contrast, luma flip, hue and saturation as [N, 4, 4], which map (r, g, b, 1)."""
    eye = torch.eye(4, device=p.device)
    turn = eye[:3, :3].roll(1, 0) - eye[:3, :3].roll(-1, 0)
    turn = F.pad(turn / math.sqrt(3), (0, 1, 0, 1))  # x ↦ v × x, with the luma axis v = (1, 1, 1)/√3
    luma = F.pad(torch.full([3, 3], 1 / 3, device=p.device), (0, 1, 0, 1))  # v vᵀ
    fixed = luma + F.pad(torch.ones([1, 1], device=p.device), (3, 0, 3, 0))  # what hue and saturation leave alone

    brightness = sometimes(p, 0.2 * torch.randn(n, device=p.device), 0)
    contrast = sometimes(p, torch.exp2(0.5 * torch.randn(n, device=p.device)), 1)
    flip = sometimes(p, torch.randint(2, [n], device=p.device).float(), 0).view(-1, 1, 1)
    hue = sometimes(p, uniform([n], -math.pi, math.pi, p.device), 0).view(-1, 1, 1)
    saturation = sometimes(p, torch.exp2(torch.randn(n, device=p.device)), 1).view(-1, 1, 1)

    one = torch.ones_like(contrast)
    C = torch.diag_embed(torch.stack([contrast, contrast, contrast, one], dim=1))
    C[:, :3, 3] = (brightness * contrast)[:, None]
    C = (eye - 2 * flip * luma) @ C  # Householder's reflection
    C = (hue.cos() * eye + (1 - hue.cos()) * fixed + hue.sin() * turn) @ C  # Rodrigues' formula
    return (saturation * eye + (1 - saturation) * fixed) @ C


def random_gains(n: int, p: Tensor, power: Tensor) -> Tensor:
    """Amplitude of each of the four bands, [N, 4]; each amplification keeps the total of the expected `power` [4]."""
    factor = torch.exp2(torch.randn(n, 4, 1, device=p.device))
    gains = torch.where(torch.eye(4, dtype=torch.bool, device=p.device), factor, 1)  # row i amplifies band i alone
    gains = gains / (power * gains.square()).sum(dim=2, keepdim=True).sqrt()
    return sometimes(p, gains.flatten(0, 1), 1).view(n, 4, 4).prod(dim=1)


def random_sigmas(n: int, p: Tensor) -> Tensor:
    """The standard deviation of each image's noise, [N], itself of a half-normal distribution."""
    return sometimes(p, 0.1 * torch.randn(n, device=p.device).abs(), 0)


def random_holes(n: int, p: Tensor) -> tuple[Tensor, Tensor]:
    """A rectangle of half of each side for each image: its centre (x, y) [N, 2] and half of it [N], as fractions."""
    return torch.rand(n, 2, device=p.device), sometimes(p, torch.full([n], 0.25, device=p.device), 0)


# --- execution ------------------------------------------------------------------------------------------------------


def reflect(position: Tensor, size: int) -> Tensor:
    """Whole positions, mirrored at the centres of the first and the last pixel as often as needed to lie within."""
    return (size - 1) - (position.remainder(2 * (size - 1)) - (size - 1)).abs()


def transform(matrix: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """[N, 3, 3] applied to all points of the axes y [T] × x [S]: their [N, 2 (x, y), T, S].

    Written out, since a product of matrices may round coordinates to ten bits on a GPU (TF32).
    """
    a, b, shift = (matrix[:, :2, column, None, None] for column in range(3))
    return a * x[None, :] + b * y[:, None] + shift


def lookup(x: Tensor, inverse: Tensor) -> Tensor:
    """x [N, C, H, W] moved by whole pixels, turns of 90° and flips; `inverse` [N, 3, 3] as in `random_blits`.

    Beyond its edges an image goes on as its mirror image.
    """
    n, channels, height, width = x.shape
    bottom, right = (height - 1) / 2, (width - 1) / 2  # from the middle
    axes = torch.arange(height, device=x.device) - bottom, torch.arange(width, device=x.device) - right
    column, row = transform(inverse, *axes).unbind(1)
    column, row = reflect((column + right).round().long(), width), reflect((row + bottom).round().long(), height)
    index = (row * width + column).view(n, 1, -1).expand(-1, channels, -1)
    return x.flatten(2).gather(2, index).view_as(x)


def warp(x: Tensor, inverse: Tensor, lowpass: Tensor) -> Tensor:
    """x [N, C, H, W] moved by any affine transform; `inverse` [N, 3, 3] as in `random_blits`.

    Appendix B: ×2 upsampling by an orthogonal low-pass filter, bilinear interpolation, downsampling by the same
    filter; the identity comes out as it went in, except beside the edges. The paper pads the image by reflection, by
    as much as the transforms need. Here the interpolation reflects its coordinates instead, which is padding without
    end (but for the slight asymmetry of the filter): there is no margin to be known, and none to be computed. Only the
    filters' reach of 3 pixels is padded.
    """
    taps, reach = len(lowpass), 3
    bottom, right = (x.shape[2] - 1) / 2, (x.shape[3] - 1) / 2  # from the middle
    # Pixel k stands at 2k + SYM6_CENTRE of the full upsampled image. Keep what lies between the centres of the first
    # and the last pixel, for `grid_sampler` reflects at the first and last value.
    before = taps - 1 - SYM6_CENTRE - 2 * reach
    after = taps - 2 - 4 * reach - before
    # In pixels from the image's middle: all values that the downsampling takes, and where they come from.
    rows, columns = (
        (torch.arange(2 * side + taps - 2, device=x.device) - (side - 1) - SYM6_CENTRE) / 2 for side in x.shape[2:]
    )
    source_x, source_y = transform(inverse, rows, columns).unbind(1)
    grid = torch.stack([source_x / right, source_y / bottom], dim=3)  # −1 and 1: the first and the last value
    x = upfirdn2d(F.pad(x, [reach] * 4, mode="reflect"), lowpass, up=2, padding=(before, after) * 2, gain=4)
    x = _Warp.apply(x, grid.to(x.dtype))
    return upfirdn2d(x, lowpass, down=2, flip_filter=True)


BILINEAR, REFLECTION, ALIGN_CORNERS = 0, 2, True


class _Warp(Function):
    """The image at the points of a grid. It is linear in the image, so its gradient is its adjoint.

    PyTorch's own gradient of `grid_sample` cannot be differentiated again.
    """

    @staticmethod
    def forward(ctx, x: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = x.shape
        return torch.ops.aten.grid_sampler_2d(x, grid, BILINEAR, REFLECTION, ALIGN_CORNERS)

    @staticmethod
    def backward(ctx, dy: Tensor):
        return _WarpAdjoint.apply(dy, ctx.saved_tensors[0], ctx.shape), None


class _WarpAdjoint(Function):
    """Spreads the values at the points of a grid over an image of `shape`; its gradient is the warp again."""

    @staticmethod
    def forward(ctx, dy: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        x = dy.new_empty(shape)  # only its shape matters, for the gradient of the grid is not asked for
        mask = [True, False]
        dx, _ = torch.ops.aten.grid_sampler_2d_backward(dy, x, grid, BILINEAR, REFLECTION, ALIGN_CORNERS, mask)
        return dx

    @staticmethod
    def backward(ctx, ddx: Tensor):
        return _Warp.apply(ddx, ctx.saved_tensors[0]), None, None


def opacity(x: Tensor) -> Tensor:
    """Alpha of x [N, 4, H, W] as [N, 1, H, W] in 0..1."""
    return (x[:, 3:] + 1) / 2


def recolor(x: Tensor, C: Tensor) -> Tensor:
    """x [N, 1, 3 or 4, H, W] with C [N, 4, 4] applied to each (r, g, b, 1); a grey image is r = g = b.

    With 4 channels, C is applied to the straight colours s in −1..1, and alpha stays as it is. A premultiplied colour
    is p = a·(s + 1) − 1 with the opacity a in 0..1, so a·s = p + 1 − a, and an invisible pixel stays invisible.
    """
    C = C.to(x.dtype)
    if x.shape[1] == 4:
        a = opacity(x)
        weighted = torch.cat([x[:, :3] + 1 - a, a], dim=1)  # a·(r, g, b, 1)
        colors = (C[:, :3] @ weighted.flatten(2)).unflatten(2, x.shape[2:])
        return torch.cat([colors + a - 1, x[:, 3:]], dim=1)
    matrix, offset = C[:, :3, :3], C[:, :3, 3:]
    if x.shape[1] == 1:  # the mean colour
        matrix, offset = matrix.sum(dim=2, keepdim=True).mean(dim=1, keepdim=True), offset.mean(dim=1, keepdim=True)
    return (matrix @ x.flatten(2) + offset).view_as(x)


def filter_bank() -> Tensor:
    """Filters [4, 43] for the bands [0, π/8], [π/8, π/4], [π/4, π/2], [π/2, π], made from SYM2; their sum is a 1.

    With P(z) = H(z)·H(z⁻¹)/2 and Q(z) = P(−z) = 1 − P(z): P(z)P(z²)P(z⁴), P(z)P(z²)Q(z⁴), P(z)Q(z²), Q(z).
    """
    low = np.convolve(SYM2, SYM2[::-1]) / 2
    high = low * (-1.0) ** np.arange(-3, 4)
    rest, bands = np.ones(1), []
    for step in (1, 2, 4):
        spread = np.zeros([2, 6 * step + 1])
        spread[:, ::step] = low, high
        bands.append(np.convolve(rest, spread[1]))
        rest = np.convolve(rest, spread[0])
    bands.append(rest)
    padded = [np.pad(band, (len(rest) - len(band)) // 2) for band in reversed(bands)]
    return torch.tensor(np.stack(padded), dtype=torch.float32)


def amplify(x: Tensor, gains: Tensor, bands: Tensor) -> Tensor:
    """x [N, C, H, W] filtered along both axes by the sum of `bands` [4, F] with each image's gains [N, 4].

    The borders are reflected. An image whose gains are all 1 stays exactly as it is.
    """
    n, channels, height, width = x.shape
    reach = bands.shape[1] // 2
    weight = (gains @ bands).to(x.dtype).repeat_interleave(channels, dim=0)[:, None]  # [N·C, 1, F]
    rows, columns = (reflect(torch.arange(-reach, side + reach, device=x.device), side) for side in (height, width))
    y = x.index_select(2, rows).index_select(3, columns).flatten(0, 1)[None]
    y = F.conv2d(y, weight[:, :, None, :], groups=n * channels)
    y = F.conv2d(y, weight[:, :, :, None], groups=n * channels)
    return torch.where((gains == 1).all(dim=1).view(-1, 1, 1, 1), x, y.view_as(x))


def cut_out(x: Tensor, centre: Tensor, half: Tensor) -> Tensor:
    """x [N, C, H, W] with a rectangle of zeros, its centre (x, y) [N, 2] and half of it [N] as fractions of W and H."""

    def inside(number: int, side: int) -> Tensor:
        """Whether each position along an axis lies in the rectangle, [N, side]."""
        low = ((centre[:, number] - half) * side).round()
        high = ((centre[:, number] + half) * side).round()
        axis = torch.arange(side, device=x.device)
        return (axis >= low[:, None]) & (axis < high[:, None])

    columns, rows = inside(0, x.shape[3]), inside(1, x.shape[2])
    return x.masked_fill((columns[:, None, :] & rows[:, :, None])[:, None], 0)
