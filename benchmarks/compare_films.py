"""How calm a stylized film is: what stands still, beside what moves, with the smoothing of videos and without it.

    python benchmarks/compare_films.py --photo photo.jpg --moving other.jpg --style painting.jpg --out film.webp

The film is drawn: a disc cut from one photograph crosses another one, which stands still, and each pixel has the noise
of a camera. Changes are means of absolute differences from frame to frame, of 255: of pixels that the disc never comes
near, and of the others. --out shows the film beside what `stylize.py` makes of it with its default of --smooth.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import click
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from measure import name_in_record, write_record

from media.files import read_image
from media.images import to_float, to_pillow, to_uint8
from models.snapshot import load_stylizer
from networks.stylizer import resize_square
from styling.apply import FrameStylizer, Settings
from styling.shifts import SHIFTS
from styling.styles import CombinedStyle, read_style
from torch_utils import cli
from torch_utils.errors import UserError
from torch_utils.files import check_inputs_survive, write_file

RADIUS = 1 / 6  # of the disc, as a part of the film's side
NEAR = 64  # pixels around the disc's path that do not count as still: results depend on pixels so far away
SMOOTH = (0.8, 0.0)  # the default of stylize.py, and none


def draw_film(still: Tensor, moving: Tensor, frames: int, noise: float) -> tuple[Tensor, Tensor]:
    """A disc of `moving` that crosses `still`, both uint8 [3, S, S].

    Returns:
        The frames, uint8 [frames, 3, S, S], with normal noise of that standard deviation, of 255; and which pixels the
        disc never comes near, bool [S, S].
    """
    side = still.shape[-1]
    y, x = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij")
    radius, made, calm = RADIUS * side, [], torch.ones(side, side, dtype=torch.bool)
    for i in range(frames):
        across = side * ((1 + 2 * RADIUS) * i / max(frames - 1, 1) - RADIUS)
        middle = 0.78 * side + 0.04 * side * torch.sin(torch.tensor(6.3 * i / frames))
        distance = ((y - middle).square() + (x - across).square()).sqrt()
        cover = (radius - distance).clamp(0, 1)  # an edge of one pixel, as cameras have
        taken = moving.float().roll(int(across) - side // 2, dims=-1)  # the disc takes its part of the image along
        made.append(torch.lerp(still.float(), taken, cover))
        calm &= distance > radius + NEAR
    film = torch.stack(made)
    return (film + noise * torch.randn(film.shape)).round().clamp(0, 255).to(torch.uint8), calm


def changes(film: Tensor, calm: Tensor) -> dict[str, float]:
    """The mean absolute difference of successive frames, uint8 [N, 3, S, S], of 255: of still pixels and the others."""
    change = film.float().diff(dim=0).abs().mean(dim=(0, 1))
    return {"still": change[calm].mean().item(), "moving": change[~calm].mean().item()}


def encode_webp(film: Tensor, per_second: int) -> bytes:
    """Frames, uint8 [N, 3, H, W] → an animation that repeats."""
    file, (first, *others) = io.BytesIO(), [to_pillow(frame) for frame in film]
    first.save(file, "WEBP", save_all=True, append_images=others, duration=1000 // per_second, loop=0, quality=75)
    return file.getvalue()


@click.command(
    cls=cli.Command,
    example="python benchmarks/compare_films.py --photo a.jpg --moving b.jpg --style c.jpg --out film.webp",
)
@cli.option("Options", "--photo", required=True, help="The photograph that stands still.")
@cli.option("Options", "--moving", required=True, help="The photograph of which a disc moves.")
@cli.option("Options", "--style", required=True, help="The style image.")
@cli.option("Options", "--model", default="pretrained/stylizer-small.safetensors", help="The stylizer.")
@cli.option("Options", "--size", type=click.IntRange(256, 1024), default=320, help="Side of the film in pixels.")
@cli.option("Options", "--frames", type=click.IntRange(2, 999), default=36, help="Number of frames.")
@cli.option("Options", "--per-second", type=click.IntRange(1, 100), default=12, help="Frames of a second of --out.")
@cli.option(
    "Options",
    "--noise",
    type=click.FloatRange(0, 50),
    default=2.0,
    help="Standard deviation of the camera's noise, of 255.",
)
@cli.option(
    "Options",
    "--shifts",
    type=click.Choice(list(map(str, SHIFTS))),
    default="1",
    help="Places on the encoder's grid to average over.",
)
@cli.option("Options", "--out", type=cli.ResultFile(), help="Write the film and the result beside it there, a WebP.")
@cli.option("Options", "--json", "json_path", type=cli.ResultFile(), help="Write the values there as well.")
def main(
    photo: str,
    moving: str,
    style: str,
    model: str,
    size: int,
    frames: int,
    per_second: int,
    noise: float,
    shifts: str,
    out: str | None,
    json_path: str | None,
) -> None:
    """Draw a film, stylize it, and measure how much changes where nothing moves."""
    check_inputs_survive([path for path in (out, json_path) if path], [photo, moving, style, model])
    if out and Path(out).suffix.lower() != ".webp":
        raise UserError(f"--out {out}: the film is a WebP; name a file that ends with .webp")
    torch.manual_seed(0)
    still, disc = (to_uint8(resize_square(to_float(read_image(path)[None]), size))[0] for path in (photo, moving))
    film, calm = draw_film(still, disc, frames, noise)
    stylizer = load_stylizer(model)[0]
    combined = CombinedStyle((read_style(stylizer, style),))
    looks = {smooth: Settings(smooth=smooth, shifts=int(shifts)) for smooth in SMOOTH}
    made = {smooth: FrameStylizer(stylizer, combined, look)(film) for smooth, look in looks.items()}
    rows = {"film": film, **{f"smooth {smooth:g}": stylized for smooth, stylized in made.items()}}
    figures = {name: changes(row, calm) for name, row in rows.items()}
    for name, row in figures.items():
        print(f"{name:12} still {row['still']:.2f}  moving {row['moving']:.2f}")
    if json_path:
        given = {"size": size, "frames": frames, "noise": noise, "shifts": int(shifts), "model": name_in_record(model)}
        write_record(json_path, "cpu", {**given, "changes": figures})
    if out:
        side_by_side = torch.cat([film, made[SMOOTH[0]]], dim=-1)
        write_file(out, encode_webp(side_by_side, per_second))


if __name__ == "__main__":
    cli.run(main)
