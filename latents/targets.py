"""The images that codes are to be found for, as the generator would make them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from media.convert import Conversion, convert_image
from media.decode import ALL_FORMATS, Unusable, open_image
from media.files import list_images
from torch_utils.errors import UserError, one_line
from torch_utils.files import missing


def find_targets(path: str | os.PathLike) -> list[Path]:
    """The image itself, or those of a folder. Raises UserError where there are none."""
    path = Path(path)
    if path.is_dir():
        return list_images(path)
    if not path.exists():
        raise UserError(missing(path, "name an image or a folder of them with --target"))
    return [path]


def read_targets(paths: Sequence[Path], resolution: int, channels: int) -> Tensor:
    """uint8 [N, channels, resolution, resolution]: the middle square, resized, as dataset_tool.py converts images.

    Raises UserError for the first that cannot be used.
    """
    how = Conversion(resolution, channels)
    images = []
    for path in paths:
        try:
            with open(path, "rb") as file:
                pixels = np.array(convert_image(open_image(file, ALL_FORMATS), how))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or one_line(error)}; name another image") from None
        except Unusable as reason:
            raise UserError(f"{path} {reason}; name another image, or save it as PNG") from None
        images.append(torch.from_numpy(pixels.reshape(resolution, resolution, channels)).permute(2, 0, 1))
    return torch.stack(images)
