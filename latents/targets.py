"""The images that projection looks for, at the size of the generator's images."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from media.alpha import premultiply
from media.convert import Conversion, decode_as, resize_to
from media.decode import ALL_FORMATS, ALL_SUFFIXES, Unusable, open_image
from media.files import list_images, note_left_out
from media.image_files import ImageFiles
from torch_utils.errors import UserError, one_line, printable
from torch_utils.files import missing_message, open_regular
from torch_utils.sizes import Resolution, width_and_height


@dataclass(frozen=True)
class TargetFile:
    """An image that has not been read yet; `path` says where it is, for messages."""

    name: str
    path: Path
    open: Callable[[], BinaryIO]


@dataclass(frozen=True)
class Targets:
    """The images that could be read, and what is wrong with the others."""

    names: list[str]
    images: Tensor  # uint8 [N, C, H, W]
    skipped: list[str]  # what is wrong with the others, beginning with their paths
    enlarged: int  # number of images that were smaller


def find_targets(path: str | os.PathLike) -> list[TargetFile]:
    """The image itself, the images of a folder, or those of a data set, which is a ZIP or a folder of folders.

    Raises UserError if there are none.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(missing_message(path, "name an image, a folder of images or a data set with --target"))
    if path.is_file() and path.suffix.lower() != ".zip":
        return [target_file(path)]
    if path.is_dir():
        with suppress(UserError):  # it may hold images in folders below it, as a data set does
            images = list_images(path)
            note_left_out(path)
            return [target_file(image) for image in images]
    files = ImageFiles(path, ALL_SUFFIXES)
    return [TargetFile(name, path / name, partial(files.open, name)) for name in files.names]


def target_file(path: Path) -> TargetFile:
    """A file as one image, whatever its name and whatever else may be in it."""
    return TargetFile(path.name, path, partial(open_regular, path))


def read_targets(files: list[TargetFile], resolution: Resolution, channels: int) -> Targets:
    """The middle of each image, of the shape of `resolution` and resized to it, as dataset_tool.py converts images.

    Images that cannot be used are skipped. Raises UserError if there are no others.
    """
    how = Conversion(resolution, channels)
    width, height = width_and_height(resolution)
    names, images, skipped, enlarged = [], [], [], 0
    for target in files:
        try:
            with target.open() as file:
                decoded = decode_as(open_image(file, ALL_FORMATS), how, target.path)
                image = resize_to(decoded, how)
                pixels = premultiply(image) if channels == 4 else np.array(image)
        except OSError as error:
            skipped.append(f"{printable(str(target.path))} cannot be read ({error.strerror or one_line(error)})")
        except Unusable as reason:
            skipped.append(f"{printable(str(target.path))} {reason}")
        else:
            names.append(target.name)
            enlarged += decoded.width < width or decoded.height < height
            images.append(torch.from_numpy(pixels.reshape(height, width, channels)).permute(2, 0, 1))
    if not images:
        others = f", and the other {len(files) - 1} cannot be used either" * (len(files) > 1)
        raise UserError(f"{skipped[0]}{others}; name another image, or save it as PNG")
    return Targets(names, torch.stack(images), skipped, enlarged)
