"""Cartoon faces: a labelled data set of any size and resolution that needs no download.

`random_face` draws the parameters of face `index` of a seed, which do not depend on the number of faces or on the
resolution. `draw_face` draws it at a higher resolution and reduces it, which gives smooth edges. The label is the
colour of the hair.

Lengths are fractions of the image's side. x points right and y down, from the middle of the head.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]

HAIR_COLORS = ("black", "brown", "blond", "red", "grey", "blue")  # the position is the label
HAIR_RGB: tuple[RGB, ...] = (
    (44, 36, 42), (116, 70, 40), (240, 198, 92), (206, 84, 34), (186, 188, 196), (58, 98, 206),
)  # fmt: skip
HAIR_SHARES = (0.20, 0.20, 0.18, 0.16, 0.14, 0.12)
SKIN_RGB: tuple[RGB, ...] = (
    (255, 226, 204), (250, 208, 174), (234, 182, 138), (204, 146, 102), (160, 106, 72), (116, 76, 54),
)  # fmt: skip
IRIS_RGB: tuple[RGB, ...] = ((84, 52, 30), (52, 96, 168), (58, 122, 78), (104, 116, 128), (140, 92, 34))
FRAME_RGB: tuple[RGB, ...] = ((30, 30, 36), (122, 30, 40), (32, 58, 116), (104, 66, 26))
EYE_Y = 0.012
WHITE, DARK, WARM = (255, 255, 255), (34, 26, 30), (84, 30, 22)

# The styles of each feature, with their relative frequencies.
HAIR_STYLES = {
    "buzz": 1, "short": 2.5, "spiky": 1.5, "curly": 2, "bun": 1.5, "bob": 2, "long": 2.5, "pigtails": 1,
}  # fmt: skip
FRINGES = {"straight": 2, "side": 3, "centre": 2, "high": 1.5}
MOUTHS = {"smile": 3, "laugh": 3, "neutral": 1.5, "sad": 1, "surprised": 1, "lips": 1.5}
BEARDS = {"none": 8, "stubble": 1, "full": 1.2, "moustache": 1, "goatee": 0.8}
NOSES = {"button": 2, "long": 1.5, "shadow": 1.5}
GLASSES = {"none": 7, "round": 1.5, "square": 1.5}
COLLARS = {"round": 2, "v": 1.5, "shirt": 1.5}
BACKGROUNDS = {"plain": 2, "gradient": 3, "disc": 2, "split": 1.5}

# How far the hair in front stands off the head sideways and upwards, and the height at which it ends.
CAPS = {
    "buzz": (1.015, 1.02, -0.03), "short": (1.06, 1.14, 0.02), "spiky": (1.05, 1.08, 0.0),
    "curly": (1.04, 1.06, -0.02), "bun": (1.05, 1.08, 0.02), "bob": (1.14, 1.13, 0.2),
    "long": (1.16, 1.14, 0.3), "pigtails": (1.07, 1.1, 0.02),
}  # fmt: skip


@dataclass(frozen=True)
class Face:
    """The parameters of a drawing: lengths in fractions of the side, angles in degrees."""

    label: int
    hair: RGB
    hair_style: str
    fringe: str
    side: int  # of the parting: -1 or 1
    background: str
    background_rgb: tuple[RGB, RGB]
    skin: RGB
    shirt: RGB
    collar: str
    shift: tuple[float, float]
    scale: float
    tilt: float
    turn: float  # how far the features are shifted sideways on the head
    width: float  # of half the head
    height: float  # of half the head
    jaw: float  # 0: an ellipse; larger: narrower towards the chin
    eye_gap: float  # from the middle to each eye
    eye_width: float
    eye_height: float
    iris: RGB
    gaze: tuple[float, float]  # -1..1: as far as the iris can go
    lashes: bool
    brow_angle: float
    brow_width: float
    brow_raise: float
    nose: str
    mouth: str
    mouth_width: float
    lips: RGB
    beard: str
    glasses: str
    frame: RGB
    blush: float
    freckles: bool
    earrings: bool


def random_face(seed: int, index: int) -> Face:
    """The parameters of face `index` of the data set `seed`."""
    rng = np.random.default_rng((seed, index))

    def between(low: float, high: float) -> float:
        return low + (high - low) * rng.random()

    def one_of(shares: dict[str, float]) -> str:
        return list(shares)[_draw(rng, tuple(shares.values()))]

    def around(color: RGB, spread: float) -> RGB:
        light = between(-spread, spread)
        red, green, blue = (min(max(int(v + light + between(-spread, spread) / 3), 0), 255) for v in color)
        return red, green, blue

    label = _draw(rng, HAIR_SHARES)
    hair = around(HAIR_RGB[label], 14)
    tone = between(0, len(SKIN_RGB) - 1)
    skin = around(blend(SKIN_RGB[int(tone)], SKIN_RGB[int(tone) + 1], tone % 1), 5)
    if HAIR_COLORS[label] == "brown" and np.abs(np.subtract(hair, skin)).sum() < 120:
        hair = blend(hair, WARM, 0.45)  # brown hair on brown skin would not be seen
    style = one_of(HAIR_STYLES)
    long_hair = style in ("bun", "bob", "long", "pigtails")
    return Face(
        label=label, hair=hair, hair_style=style, fringe=one_of(FRINGES),
        side=1 if rng.random() < 0.5 else -1,
        background=one_of(BACKGROUNDS), background_rgb=_background_colors(rng, hair, skin),
        skin=skin, shirt=_vivid(rng, between(0.3, 0.75), between(0.4, 0.95)), collar=one_of(COLLARS),
        shift=(between(-0.03, 0.03), between(0.0, 0.03)), scale=between(1.02, 1.14),
        tilt=between(-7, 7), turn=between(-0.03, 0.03),
        width=between(0.235, 0.285), height=between(0.285, 0.33), jaw=between(0.02, 0.3),
        eye_gap=between(0.108, 0.13), eye_width=between(0.054, 0.068), eye_height=between(0.044, 0.066),
        iris=around(IRIS_RGB[_draw(rng, (3, 2, 1.5, 1, 1))], 10),
        gaze=(between(-0.9, 0.9), between(-0.5, 0.8)), lashes=rng.random() < (0.7 if long_hair else 0.15),
        brow_angle=between(-14, 18), brow_width=between(0.016, 0.032), brow_raise=between(0.024, 0.05),
        nose=one_of(NOSES), mouth=one_of(MOUTHS), mouth_width=between(0.07, 0.105),
        lips=around((196, 62, 72), 22),
        beard="none" if long_hair and rng.random() < 0.94 else one_of(BEARDS),
        glasses=one_of(GLASSES), frame=FRAME_RGB[_draw(rng, (3, 1, 1, 1))],
        blush=between(0, 0.4), freckles=rng.random() < 0.15,
        earrings=rng.random() < (0.4 if long_hair else 0.05),
    )  # fmt: skip


def draw_face(face: Face, size: int) -> Image.Image:
    """The face as an RGB image of `size` x `size` pixels."""
    reduction = max(2, 1024 // size) if size > 128 else max(8, 256 // size)
    canvas = _background(face, size * reduction)
    pen = Pen(canvas, face)
    _back_hair(pen, face)
    _body(Pen(canvas, face, upright=True), face)
    _head(pen, face)
    _beard(pen, face)
    _nose(pen, face)
    _mouth(pen, face)
    _eyes(pen, face)
    _front_hair(pen, face)
    _brows(pen, face)
    if face.glasses != "none":
        _glasses(pen, face)
    return canvas.reduce(reduction)


def faces(count: int, resolution: int, seed: int = 0) -> Iterator[tuple[Image.Image, int]]:
    """Yields `count` RGB images of `resolution` x `resolution` pixels, each with its label."""
    for index in range(count):
        face = random_face(seed, index)
        yield draw_face(face, resolution), face.label


# ---- Parameters


def _draw(rng: np.random.Generator, shares: tuple[float, ...]) -> int:
    """A random position, with probabilities in proportion to `shares`."""
    return int(np.searchsorted(np.cumsum(shares) / np.sum(shares), rng.random(), side="right"))


def blend(a: RGB, b: RGB, share: float) -> RGB:
    """Interpolates from `a` (share 0) to `b` (share 1), or extrapolates, and clamps to black and white."""
    red, green, blue = (min(max(round(x + (y - x) * share), 0), 255) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _vivid(rng: np.random.Generator, saturation: float, value: float) -> RGB:
    """A colour of random hue."""
    red, green, blue = (int(255 * part) for part in colorsys.hsv_to_rgb(rng.random(), saturation, value))
    return red, green, blue


def _background_colors(rng: np.random.Generator, hair: RGB, skin: RGB) -> tuple[RGB, RGB]:
    """Two tones of a colour: of four random ones, the one that differs most from hair and skin."""
    candidates = [_vivid(rng, 0.12 + 0.42 * rng.random(), 0.5 + 0.45 * rng.random()) for _ in range(4)]
    first = max(candidates, key=lambda color: np.abs(np.subtract(color, (hair, skin))).sum(1).min())
    return first, blend(first, WHITE if rng.random() < 0.6 else DARK, 0.15 + 0.25 * rng.random())


# ---- Drawing


class Pen:
    """Draws on a canvas in the coordinates of a face, with the tilt of the head unless `upright`."""

    def __init__(self, canvas: Image.Image, face: Face, upright: bool = False):
        self.draw = ImageDraw.Draw(canvas)
        angle = 0.0 if upright else np.deg2rad(face.tilt)
        self.unit = canvas.width * face.scale
        self.matrix = self.unit * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        self.middle = canvas.width * (np.array([0.5, 0.5]) + face.shift)

    def fill(self, points: ArrayLike, color: RGB) -> None:
        """Fills a polygon with corners [P, 2]."""
        self.draw.polygon((np.asarray(points) @ self.matrix + self.middle).ravel().tolist(), fill=color)

    def ellipse(self, x: float, y: float, rx: float, ry: float, color: RGB) -> None:
        self.fill(_ellipse(x, y, rx, ry), color)

    def stroke(self, points: ArrayLike, width: float, color: RGB) -> None:
        """Draws a line with round ends through points [P, 2]."""
        path = np.asarray(points) @ self.matrix + self.middle
        radius = self.unit * width / 2
        self.draw.line(path.ravel().tolist(), fill=color, width=max(1, round(2 * radius)), joint="curve")
        for x, y in (path[0], path[-1]):
            self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


def _ellipse(x: float, y: float, rx: float, ry: float, start: float = 0, stop: float = 360) -> np.ndarray:
    """Points [P, 2] from angle `start` to `stop`, clockwise from the top, in degrees."""
    angles = np.deg2rad(np.linspace(start, stop, 8 + abs(int(stop - start)) // 9))
    return np.stack([x + rx * np.sin(angles), y - ry * np.cos(angles)], axis=1)


def _bow(x: float, y: float, half: float, depth: float) -> np.ndarray:
    """Points [9, 2] of a curve from x - half to x + half whose middle hangs `depth` below its ends."""
    steps = np.linspace(-1, 1, 9)
    return np.stack([x + half * steps, y + depth * (1 - steps**2)], axis=1)


def _move(points: ArrayLike, x: float, y: float = 0, side: int = 1) -> np.ndarray:
    """Moves points [P, 2] by (x, y). With side = -1, they are mirrored first."""
    return np.add(np.multiply(points, (side, 1)), (x, y))


def _outline(face: Face, grow: float = 1.0) -> np.ndarray:
    """Points of the head's outline [P, 2], clockwise from the top."""
    points = _ellipse(0, 0, face.width * grow, face.height * grow)
    points[:, 0] *= 1 - face.jaw * np.clip(points[:, 1] / face.height, 0, 1) ** 2
    return points


def _background(face: Face, side: int) -> Image.Image:
    first, second = face.background_rgb
    canvas = Image.new("RGB", (side, side), first)
    draw = ImageDraw.Draw(canvas)
    if face.background == "gradient":
        canvas.paste(second, mask=Image.linear_gradient("L").resize((side, side)))
    elif face.background == "disc":
        draw.ellipse((0.06 * side, 0.02 * side, 0.94 * side, 0.9 * side), fill=second)
    elif face.background == "split":
        draw.polygon([(0, side), (side, side), (side, 0.3 * side), (0, 0.7 * side)], fill=second)
    return canvas


def _back_hair(pen: Pen, face: Face) -> None:
    """The hair behind the head and the shoulders."""
    w, h = face.width, face.height
    shade = blend(face.hair, WARM, 0.28)
    if face.hair_style == "long":
        pen.ellipse(0, -0.02, w * 1.22, h * 1.16, shade)
        pen.fill([(-w * 1.22, 0), (w * 1.22, 0), (w * 1.32, 0.6), (-w * 1.32, 0.6)], shade)
    elif face.hair_style == "bob":
        pen.ellipse(0, -0.02, w * 1.2, h * 1.14, shade)
        left = [(-w, 0.29), (-w * 1.24, 0.24), (-w * 1.2, -0.02)]
        pen.fill([*left, *_move(left[::-1], 0, side=-1)], shade)
    elif face.hair_style == "curly":
        for x, y in _ellipse(0, -0.03, w * 1.08, h * 0.98, -125, 125)[::2]:
            pen.ellipse(x, y, 0.085, 0.085, shade)
    elif face.hair_style == "pigtails":
        for side in (-1, 1):
            pen.ellipse(side * w * 1.28, 0.06, 0.085, 0.13, shade)
            pen.ellipse(side * w * 1.27, 0.05, 0.065, 0.11, face.hair)
            pen.ellipse(side * w * 1.15, -0.04, 0.028, 0.028, face.shirt)
    elif face.hair_style == "bun":
        pen.ellipse(0, -h - 0.05, 0.1, 0.085, shade)
        pen.ellipse(-0.01, -h - 0.06, 0.08, 0.062, face.hair)


def _body(pen: Pen, face: Face) -> None:
    """Shoulders, collar, and the neck in the shadow of the chin."""
    shadow = blend(face.skin, WARM, 0.3)
    pen.ellipse(0, 0.66, 0.42, 0.3, blend(face.shirt, DARK, 0.25))
    pen.ellipse(0, 0.67, 0.4, 0.3, face.shirt)
    if face.collar == "round":
        pen.ellipse(0, 0.37, 0.14, 0.075, blend(face.shirt, WHITE, 0.35))
        pen.ellipse(0, 0.36, 0.115, 0.065, shadow)
    elif face.collar == "v":
        pen.fill([(-0.13, 0.36), (0.13, 0.36), (0, 0.5)], shadow)
    pen.fill([(-0.1, 0.15), (0.1, 0.15), (0.1, 0.39), (-0.1, 0.39)], shadow)
    if face.collar == "shirt":
        for side in (-1, 1):
            flap = _move([(0.1, 0.33), (0, 0.43), (0.09, 0.5), (0.19, 0.4)], 0, side=side)
            pen.fill(flap, blend(face.shirt, WHITE, 0.75))


def _head(pen: Pen, face: Face) -> None:
    shade = blend(face.skin, WARM, 0.2)
    for side in (-1, 1):
        x = side * face.width * 1.02 - face.turn * 0.5
        pen.ellipse(x, 0.03, 0.042, 0.065, shade)
        pen.ellipse(x, 0.03, 0.024, 0.042, blend(face.skin, (200, 80, 70), 0.3))
        if face.earrings:
            pen.ellipse(x, 0.105, 0.018, 0.018, (250, 214, 80))
    pen.fill(_outline(face), shade)
    pen.fill(_outline(face) * (0.975, 0.975) - (0, 0.006), face.skin)
    if face.blush > 0.12:
        for side in (-1, 1):
            pen.ellipse(face.turn + side * 0.15, 0.12, 0.045, 0.032, blend(face.skin, (232, 84, 84), face.blush))
    if face.freckles:
        for side in (-1, 1):
            for x, y in ((0.105, 0.095), (0.14, 0.085), (0.165, 0.1), (0.12, 0.125), (0.15, 0.13)):
                pen.ellipse(face.turn + side * x, y, 0.008, 0.008, blend(face.skin, (130, 60, 20), 0.5))


def _beard(pen: Pen, face: Face) -> None:
    color = blend(face.hair, WARM, 0.2)
    if face.beard in ("stubble", "full"):
        full = face.beard == "full"
        outline = _outline(face, 1.03 if full else 0.975)
        jaw = outline[outline[:, 1] > 0.02]
        cheek = face.width * 0.8
        top = [(-cheek, 0.1), (-0.13, 0.16), (-0.06, 0.14), (0.06, 0.14), (0.13, 0.16), (cheek, 0.1)]
        pen.fill([*jaw, *_move(top, face.turn)], color if full else blend(face.skin, face.hair, 0.3))
    elif face.beard == "goatee":
        pen.ellipse(face.turn, face.height - 0.045, 0.075, 0.07, color)
    if face.beard in ("moustache", "full", "goatee"):
        for side in (-1, 1):
            half = [(0, 0.128), (0.06, 0.132), (0.115, 0.172), (0.06, 0.166), (0, 0.16)]
            pen.fill(_move(half, face.turn, side=side), color)


def _nose(pen: Pen, face: Face) -> None:
    x, color = face.turn * 1.6, blend(face.skin, (150, 50, 40), 0.38)
    if face.nose == "button":
        pen.ellipse(x, 0.098, 0.034, 0.026, color)
        pen.ellipse(x - 0.006, 0.09, 0.02, 0.013, blend(face.skin, WHITE, 0.15))
    elif face.nose == "long":
        ridge = [(x - 0.008, 0.025), (x - face.side * 0.026, 0.104), (x + face.side * 0.014, 0.112)]
        pen.stroke(ridge, 0.018, color)
    else:
        pen.fill([(x - 0.006, 0.03), (x + face.side * 0.042, 0.112), (x - face.side * 0.012, 0.116)], color)


def _mouth(pen: Pen, face: Face) -> None:
    x, y, half = face.turn * 1.2, 0.195, face.mouth_width
    dark = (112, 26, 36)
    on_light = sum(face.skin) > 420 and face.beard != "full"
    line = blend(face.lips, dark, 0.5) if on_light else blend(face.lips, WHITE, 0.1)
    if face.mouth == "smile":
        pen.stroke(_bow(x, y - 0.018, half, 0.045), 0.024, line)
    elif face.mouth == "neutral":
        pen.stroke(_bow(x, y, half * 0.8, 0.006), 0.024, line)
    elif face.mouth == "sad":
        pen.stroke(_bow(x, y + 0.022, half * 0.85, -0.035), 0.024, line)
    elif face.mouth == "surprised":
        pen.ellipse(x, y + 0.01, half * 0.5, half * 0.6, face.lips)
        pen.ellipse(x, y + 0.01, half * 0.34, half * 0.42, dark)
    elif face.mouth == "lips":
        upper = [(-0.025, -0.026), (0, -0.018), (0.025, -0.026)]
        pen.fill([*_move(upper, x, y), *_bow(x, y, half * 0.8, 0.038)[::-1]], face.lips)
        pen.stroke(_bow(x, y, half * 0.62, 0.006), 0.01, dark)
    else:
        tongue, teeth = y + 0.014, y - 0.025
        pen.fill([*_bow(x, teeth, half, 0.012), *_bow(x, teeth, half, 0.082)[::-1]], dark)
        pen.fill([*_bow(x, tongue, half * 0.55, 0.002), *_bow(x, tongue, half * 0.55, 0.036)[::-1]], (226, 104, 112))
        pen.fill([*_bow(x, teeth, half * 0.9, 0.012), *_bow(x, teeth, half * 0.84, 0.038)[::-1]], WHITE)


def _eyes(pen: Pen, face: Face) -> None:
    y, rx, ry = EYE_Y, face.eye_width, face.eye_height
    radius = 0.76 * min(rx, ry)
    for side in (-1, 1):
        x = side * face.eye_gap + face.turn
        iris_x, iris_y = x + face.gaze[0] * (rx - radius), y + face.gaze[1] * (ry - radius)
        pen.ellipse(x, y, rx, ry, WHITE)
        pen.ellipse(iris_x, iris_y, radius, radius, face.iris)
        pen.ellipse(iris_x, iris_y, radius * 0.58, radius * 0.58, DARK)
        pen.ellipse(iris_x - 0.014, iris_y - 0.014, 0.011, 0.011, WHITE)
        pen.stroke(_ellipse(x, y, rx, ry, -85, 85), 0.02 if face.lashes else 0.013, DARK)
        if face.lashes:
            pen.stroke(_move([(rx * 0.9, -ry * 0.4), (rx + 0.02, -ry * 0.75)], x, y, side), 0.016, DARK)


def _brows(pen: Pen, face: Face) -> None:
    y = EYE_Y - face.eye_height - face.brow_raise
    rise = np.tan(np.deg2rad(face.brow_angle)) * 0.05
    color = blend(face.hair, WARM if max(face.hair) > 120 else DARK, 0.5)
    for side in (-1, 1):
        x = side * face.eye_gap + face.turn
        inner, top, outer = (-0.055, rise), (0.01, -0.012), (0.06, 0.006 - rise)
        pen.stroke(_move([inner, top, outer], x, y, side), face.brow_width, color)


def _hairline(face: Face, along: np.ndarray) -> np.ndarray:
    """The height y of the hair's lower edge at `along` = -1 (left temple) to 1 (right temple)."""
    h = face.height
    if face.hair_style == "buzz":
        return -h * (0.62 - 0.25 * along**4)
    if face.fringe == "straight":
        return -h * (0.44 - 0.05 * along**2)
    if face.fringe == "side":
        return -h * (0.8 - 0.42 * np.abs(along - 0.45 * face.side) ** 0.8)
    if face.fringe == "centre":
        return -h * (0.84 - 0.62 * np.abs(along) ** 1.1)
    return -h * (0.68 - 0.2 * along**4)


def _front_hair(pen: Pen, face: Face) -> None:
    """The cap of hair with its lower edge on the forehead, and a lighter streak."""
    w, h, style = face.width, face.height, face.hair_style
    grow_x, grow_y, end = CAPS[style]
    along = np.linspace(-0.88, 0.88, 19)
    edge = np.stack([along * w, _hairline(face, along)], axis=1)
    pen.fill([*edge, *np.add(edge[::-1], (0, 0.03))], blend(face.skin, WARM, 0.28))
    reach = 90 + np.rad2deg(np.arcsin(min(end / (h * grow_y), 0.6)))
    arc = _ellipse(0, 0, w * grow_x, h * grow_y, -reach, reach)
    pen.fill([*arc, (0.88 * w, end), *edge[::-1], (-0.88 * w, end)], face.hair)
    if style == "spiky":
        for angle in np.linspace(-66, 66, 7):
            turns = np.deg2rad([angle - 13, angle + 6, angle + 13])
            lengths = np.array([1.02, 1.3, 1.02])
            pen.fill(np.stack([w * lengths * np.sin(turns), -h * lengths * np.cos(turns)], axis=1), face.hair)
    light = blend(face.hair, WHITE, 0.28)
    if style == "curly":
        for x, y in _ellipse(0, -0.01, w * 0.98, h * 0.98, -80, 80)[::2]:
            pen.ellipse(x, y, 0.06, 0.06, face.hair)
            pen.ellipse(x - 0.012, y - 0.014, 0.024, 0.022, light)
    elif style != "buzz":
        pen.stroke(_ellipse(0, 0, w * 0.78, h * 0.92, -face.side * 48, -face.side * 12), 0.028, light)


def _glasses(pen: Pen, face: Face) -> None:
    y, r = EYE_Y, face.eye_width + 0.028
    for side in (-1, 1):
        x = side * face.eye_gap + face.turn
        if face.glasses == "round":
            ring = _ellipse(x, y, r, r)
        else:
            ring = _move([(-r, -0.07), (r, -0.07), (r * 0.9, 0.075), (-r * 0.9, 0.075), (-r, -0.07)], x, y)
        pen.stroke(ring, 0.02, face.frame)
        pen.stroke([(x + side * r, y - 0.02), (side * face.width, y - 0.02)], 0.018, face.frame)
    gap = face.eye_gap - r
    pen.stroke(_bow(face.turn, y - 0.005, max(gap, 0.012), -0.012), 0.02, face.frame)
