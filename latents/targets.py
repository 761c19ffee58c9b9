"""The pictures that codes are to be found for, as the generator would make them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from styling.pictures import list_pictures
from torch_utils.cli import UserError
from torch_utils.files import missing
from torch_utils.pictures import ALL_FORMATS, Unusable, one_line, open_picture
from training.convert import Conversion, convert_picture


def find_targets(path: str | os.PathLike) -> list[Path]:
    """The picture itself, or those of a folder. Raises UserError where there are none."""
    path = Path(path)
    if path.is_dir():
        return list_pictures(path)
    if not path.exists():
        raise UserError(missing(path, "name a picture or a folder of them with --target"))
    return [path]


def read_targets(paths: Sequence[Path], resolution: int, channels: int) -> Tensor:
    """uint8 [N, channels, resolution, resolution]: the middle square, resized, as dataset_tool.py converts pictures.

    Raises UserError for the first that cannot be used.
    """
    how = Conversion(resolution, channels)
    pictures = []
    for path in paths:
        try:
            with open(path, "rb") as file:
                pixels = np.array(convert_picture(open_picture(file, ALL_FORMATS), how))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or one_line(error)}; name another picture") from None
        except Unusable as reason:
            raise UserError(f"{path} {reason}; name another picture, or save it as PNG") from None
        pictures.append(torch.from_numpy(pixels.reshape(resolution, resolution, channels)).permute(2, 0, 1))
    return torch.stack(pictures)
