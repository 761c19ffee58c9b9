"""The examples of the tab "Stylize", in examples/: a content, and styles with clear strokes and colours.

python -m web.examples      # draws them anew
"""

from __future__ import annotations

import filecmp
import math
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from media.faces import draw_face, random_face
from torch_utils.files import as_typed

FOLDER = Path(__file__).resolve().parent.parent / "examples"
SIZE, COLORS = 256, 128
INKS = {
    "waves": ((12, 44, 92), (36, 112, 168), (240, 226, 190), (244, 160, 60)),
    "mosaic": ((120, 24, 40), (220, 90, 40), (250, 200, 90), (40, 90, 80)),
    "dots": ((250, 240, 220), (210, 40, 70), (30, 60, 140), (250, 190, 40)),
    "hatching": ((236, 230, 218), (50, 46, 60), (120, 70, 50), (90, 100, 120)),
}


def copy_examples(folder: Path) -> tuple[Path, list[Path]]:
    """Copies the content and the styles into a folder, and gives their paths there."""
    folder.mkdir(parents=True, exist_ok=True)
    content, *styles = (Path(shutil.copy(FOLDER / f"{name}.png", folder)) for name in ("face", *INKS))
    return content, styles


def shipped_as(path: Path) -> str | None:
    """The path of the example whose copy a file is, as one would type it here; None for any other file."""
    example = FOLDER / path.name
    return as_typed(example) if example.is_file() and filecmp.cmp(path, example, shallow=False) else None


def draw_examples(folder: Path) -> None:
    """Draws the content and the styles into a folder."""
    images = {"face": draw_face(random_face(0, 7), SIZE)}
    images |= {name: draw_style(name, seed) for seed, name in enumerate(INKS)}
    for name, image in images.items():
        image.quantize(COLORS).save(folder / f"{name}.png", optimize=True)


def draw_style(name: str, seed: int) -> Image.Image:
    """A style image: strokes of its shape and inks at random places."""
    rng = np.random.default_rng(seed)
    inks, size = INKS[name], 2 * SIZE
    image = Image.new("RGB", (size, size), inks[0])
    pen = ImageDraw.Draw(image)
    for _ in range(900):
        x, y = rng.uniform(-20, size + 20, 2)
        ink, reach = inks[rng.integers(len(inks))], rng.uniform(10, 34)
        if name == "dots":
            pen.ellipse([x - reach / 2, y - reach / 2, x + reach / 2, y + reach / 2], ink)
        elif name == "mosaic":
            turn = rng.uniform(0, math.pi)
            corners = [(x + reach * math.cos(turn + k), y + reach * math.sin(turn + k)) for k in (0, 1.5, 3.1, 4.7)]
            pen.polygon(corners, ink, inks[0])
        elif name == "waves":
            points = [(x + t * reach / 3, y + 14 * math.sin((x + t * reach / 3) / 26)) for t in range(12)]
            pen.line(points, ink, 7, joint="curve")
        else:
            turn = math.pi / 4 + rng.normal(0, 0.15)
            pen.line([(x, y), (x + 3 * reach * math.cos(turn), y + 3 * reach * math.sin(turn))], ink, 3)
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    draw_examples(FOLDER)
