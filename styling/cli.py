"""The options of stylize.py, and how they fit together."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from styling.styles import SUFFIX, is_saved
from torch_utils.errors import UserError

SMOOTH = 0.8  # the default of --smooth
TOLERANCE = 0.002  # of the sum of weights, so that three times 0.333 sum to 1


class Weights(click.ParamType):
    """Shares from 0 to 1 that sum to 1, as `0.7,0.3`."""

    name = "weights"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            weights = tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} are not numbers; write one for each style, e.g. 0.7,0.3", param, ctx)
        if not all(0 <= weight <= 1 for weight in weights):
            self.fail(f"{value!r}: each weight is a share, from 0 to 1", param, ctx)
        if abs(math.fsum(weights) - 1) > TOLERANCE:
            self.fail(f"{value!r} sum to {math.fsum(weights):g}; make it 1", param, ctx)
        return weights


class Tile(click.ParamType):
    """`auto`, `none` or the side of a tile in pixels."""

    name = "auto|none|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if isinstance(value, int) or value in ("auto", "none"):
            return value
        if not (value.isascii() and value.isdigit() and len(value) < 7) or int(value) < 16 or int(value) % 8:
            self.fail(f"{value!r} is not a tile size; write auto, none or a multiple of 8 from 16", param, ctx)
        return int(value)


@dataclass(frozen=True)
class Options:
    """The command line. click checks each option by itself, and the functions below how they fit together."""

    model: str | None
    content: str | None
    sequence: bool
    max_side: int | None
    start: float | None
    length: float | None
    style: tuple[str, ...]
    mix: tuple[float, ...] | None
    structure_from: str | None
    statistics_from: str | None
    style_scale: float
    save_style: str | None
    show_kernels: str | None
    strength: float
    preserve_color: Literal["luminance", "histogram"] | None
    mask: str | None
    feather: float | None
    smooth: float
    shifts: str
    out: str | None
    format: str | None
    overwrite: bool
    tile: int | Literal["auto", "none"]
    batch: int | None
    precision: str
    device: str | None

    @property
    def style_files(self) -> list[Path]:
        """The files of all styles in their order."""
        apart = (self.structure_from, self.statistics_from)
        return [Path(name) for name in (apart if any(apart) else self.style) if name]

    @property
    def styles(self) -> list[list[Path]]:
        """The files of each style that is applied, several if it is combined from them."""
        combined = self.mix or self.structure_from
        return [self.style_files] if combined else [[file] for file in self.style_files]

    @property
    def of_results(self) -> list[str]:
        """The given options that change how a content is stylized, and nothing in a style."""
        given = {
            "--sequence": self.sequence,
            "--max-side": self.max_side is not None,
            "--start": self.start is not None,
            "--length": self.length is not None,
            "--strength": self.strength != 1,
            "--preserve-color": self.preserve_color is not None,
            "--smooth": self.smooth != SMOOTH,
            "--shifts": self.shifts != "1",
            "--tile": self.tile != "auto",
            "--mask": self.mask is not None,
            "--format": self.format is not None,
            "--batch": self.batch is not None,
        }
        return [name for name, is_given in given.items() if is_given]

    @property
    def of_videos(self) -> list[str]:
        """The given options that change only videos, without those for other sequences of frames."""
        names = ("--start", "--length") if self.sequence else ("--start", "--length", "--smooth", "--batch")
        return [name for name in self.of_results if name in names]

    @property
    def results(self) -> list[list[Path]]:
        """The files of the styles of each result for a content: with a mask, two styles give one result."""
        return [self.style_files] if self.mask else self.styles


def check_style_options(options: Options) -> None:
    """Raises UserError if the options that name styles contradict each other."""
    if options.structure_from or options.statistics_from:
        if not (options.structure_from and options.statistics_from):
            raise UserError("--structure-from and --statistics-from belong together; name both, or use --style")
        if options.style or options.mix:
            raise UserError("--structure-from and --statistics-from replace --style and --mix; leave these out")
    count = len(options.style_files)
    if count == 0:
        raise UserError("--style is missing; name an image, or a file that --save-style wrote (see --help)")
    if options.mix and count == 1:
        raise UserError("--mix is for several styles, but there is one; name more with --style, or leave it out")
    if options.mix and len(options.mix) != count:
        raise UserError(f"--mix has {len(options.mix)} weights for {count} styles; write one for each --style")
    if options.mask and (len(options.styles) != 2 or options.structure_from):
        raise UserError("--mask needs two --style, the first for inside and the second for outside, without --mix")
    saved = [file for file in options.style_files if is_saved(file)]
    if saved and options.preserve_color == "histogram":
        raise UserError(
            f"--preserve-color histogram changes the colours of the style image, but {saved[0]} holds only kernels; "
            "name the image, or use luminance"
        )
    if saved and options.style_scale != 1:
        raise UserError(
            f"--style-scale resizes the style image, but {saved[0]} holds only kernels; name the image, or leave it out"
        )


def check_other_options(options: Options) -> None:
    """Raises UserError if the other options contradict each other."""
    if options.feather is not None and options.mask is None:
        raise UserError("--feather softens the edges of a mask; name one with --mask, or leave it out")
    if options.save_style is not None:
        count = len(options.style_files)
        if len(options.styles) > 1:
            raise UserError(f"--save-style saves one style, but there are {count}; name one, or mix them with --mix")
        if Path(options.save_style).suffix.lower() != SUFFIX:
            raise UserError(f"--save-style {options.save_style}: styles are saved as {SUFFIX}; name such a file")
    if options.show_kernels is not None:
        if len(options.styles) > 2:
            raise UserError(
                f"--show-kernels draws one or two styles, and there are {len(options.styles)}; leave some out"
            )
        if Path(options.show_kernels).suffix.lower() != ".png":
            raise UserError(
                f"--show-kernels {options.show_kernels}: the sheet is a PNG; name a file that ends with .png"
            )
        if options.out is not None and os.path.abspath(options.show_kernels) == os.path.abspath(options.out):
            raise UserError(f"--show-kernels and --out are the same file, {options.out}; name two")
    for name, path in (("--save-style", options.save_style), ("--show-kernels", options.show_kernels)):
        if path is not None and os.path.exists(path) and not options.overwrite:
            raise UserError(f"{name} {path} exists already; name another file, or replace it with --overwrite")
    alone = options.save_style is not None or options.show_kernels is not None
    if options.content is None and (options.out is not None or not alone):
        raise UserError(
            "--content is missing; only --save-style and --show-kernels need none, without --out (see --help)"
        )
    if options.content is None and (useless := options.of_results):
        raise UserError(f"{' and '.join(useless)} change results, not styles; name a --content, or leave them out")
