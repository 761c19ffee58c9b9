"""Images of any sizes and kinds in a folder or a ZIP, for what resizes each by itself, as detectors of metrics do."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from media.dataset import CHANNELS, ImageDataset, describe_mismatch, open_files
from media.decode import (
    ALL_FORMATS,
    ALL_SUFFIXES,
    SUFFIXES,
    WHITE,
    Unusable,
    decode_image,
    open_image,
    stored_mode,
    upright_size,
)
from torch_utils import distributed
from torch_utils.sizes import size_text, to_resolution


class MixedImages(ImageDataset):
    """Images of any sizes: `dataset[i]` is (uint8 [3, H, W], label), with a height and a width of its own.

    All formats that can be decoded are read, and all kinds of images: grey ones have three equal channels, transparent
    ones are laid on the background, white unless another is given. `resolution` is 0. Nothing is kept in memory.
    """

    suffixes, formats, any_sizes = ALL_SUFFIXES, ALL_FORMATS, True

    def __init__(self, path: str | os.PathLike, **options: Any):
        self._sizes: set[tuple[int, int]] = set()  # of the images whose headers are read here
        super().__init__(path, **options)

    def _check(self, name: str, image: Image.Image) -> None:
        """Any image will do that `open_image` has opened."""
        if not self.channels:  # before `_settle`
            self._sizes.add(image.size)

    @property
    def size(self) -> str:
        """The size of the images, or the smallest and the largest of those that were looked at."""
        first, *_, last = sorted([*self._sizes, *self._sizes], key=lambda size: (math.prod(size), size))
        texts = [size_text(to_resolution(size)) for size in (first, last)]
        return texts[0] if first == last else f"sizes such as {' and '.join(texts)}"

    def _settle(self) -> None:
        self.channels, self.background = 3, WHITE if self.background is None else self.background
        self.transparent = True  # some may be: so that `content_hash` depends on the background

    def _how_to_mend(self) -> str:
        return "copy it again, or remove it"

    def _to_pixels(self, image: Image.Image) -> np.ndarray:
        return np.asarray(decode_image(image, "RGB", self.background))


def open_images(path: str | os.PathLike, **options: Any) -> ImageDataset:
    """The images in a folder, a ZIP or shards: `MixedImages` unless they are a data set as `ImageDataset` wants it.

    The options are those of `ImageDataset`. All processes call it together; one of them reads the header of every image
    until two differ. Shards are always taken for a data set. Raises UserError.
    """
    return (ImageDataset if distributed.on_rank_0(are_alike, path) else MixedImages)(path, **options)


def are_alike(path: str | os.PathLike) -> bool:
    """Whether all images have one size, which models can have, and as many channels, in the formats of data sets."""
    files = open_files(path, ALL_SUFFIXES)
    if not files.random_access:
        return True
    if not all(name.lower().endswith(SUFFIXES) for name in files.names):
        return False
    first = None
    for name in tqdm(files.names, desc="sizes", unit=" images", delay=3, disable=None):
        try:
            with files.open(name) as file:
                image = open_image(file)
                # A PNG whose orientation comes last would be decoded for it; if turned, it is an error when it is read.
                is_known = image.format != "PNG" or "exif" in image.info
                size = upright_size(image) if is_known else image.size
                mode = stored_mode(image)
        except Unusable:
            continue  # an error when it is read
        if first is None and describe_mismatch(size, mode):
            return False
        first = first or (size, CHANNELS.get(mode))
        if (size, CHANNELS.get(mode)) != first:
            return False
    return True
