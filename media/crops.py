"""Random crops of images of any kind and size: contents and styles to train the stylizer with."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image

from media.dataset import ImageError, ImageFiles
from media.decode import ALL_FORMATS, ALL_SUFFIXES, Unusable, open_image, plain_image
from media.loader import EndlessSampler
from torch_utils.errors import printable

MAX_ENLARGED = 8  # more is mostly blur
ATTEMPTS = 1000  # unusable images in a row, after which something else is wrong
USABLE, UNUSABLE = 1, 2  # what is known of an image; 0 is not yet read


class ImageCrops(torch.utils.data.Dataset):
    """`crops[position, number]`: a crop of image `number`, uint8 [3, size, size], cut out where `position` says.

    The image's shorter side counts as `reduced` pixels, by default 2 · size. What a place in the stream gives
    depends on (seed, position, number) alone, not on the process or on what was read before, so that a resumed run
    goes on as if it had not stopped; `NumberedSampler` gives the pairs. In place of an image that cannot be used
    comes another one, which the same three choose. Raises UserError where `path` holds no images, and at reading,
    where none can be used.
    """

    def __init__(self, path: str | os.PathLike, size: int = 256, *, seed: int = 0, reduced: int | None = None):
        self.files = ImageFiles(path, ALL_SUFFIXES)
        self.path, self.names = self.files.path, self.files.names
        self.size, self.seed, self.reduced = size, seed, reduced or 2 * size
        if self.reduced < size:
            raise ValueError(f"crops of {size} from images of {self.reduced} pixels")
        # Shared, so that the main process can say what those that read have found.
        self._known = torch.zeros(len(self.names), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, place: tuple[int, int]) -> torch.Tensor:
        position, number = place
        draw = np.random.default_rng((self.seed, position, number))
        reason = None
        for _ in range(ATTEMPTS):
            where = draw.random(2)
            if self._known[number] != UNUSABLE:
                try:
                    pixels = self._crop(self.names[number], where)
                    self._known[number] = USABLE
                    return pixels
                except Unusable as unusable:
                    self._known[number] = UNUSABLE
                    reason = f"{printable(self.names[number])} {unusable}"
            number = int(draw.integers(len(self.names)))
        raise ImageError(
            f"of the {len(self.names):,} images in {self.path} none can be used"
            + (f": {reason}" if reason else "")
            + "; name another folder or ZIP"
        )

    @property
    def unusable(self) -> list[str]:
        """The names of the images that could not be used so far, in all processes."""
        return [self.names[i] for i in (self._known == UNUSABLE).nonzero().flatten().tolist()]

    @property
    def fingerprint(self) -> str:
        """16 hex digits that say whether these are the same images, as a resumed run needs."""
        return self.files.fingerprint

    def _crop(self, name: str, where: np.ndarray) -> torch.Tensor:
        """The crop whose corner is the part `where` (x and y in 0..1) of the way that it can move. Raises Unusable."""
        image = open_image(io.BytesIO(self.files.read(name)), ALL_FORMATS)
        if min(image.size) * MAX_ENLARGED < self.reduced:
            width, height = image.size
            raise Unusable(f"has {width}x{height} pixels; each side needs {-(-self.reduced // MAX_ENLARGED)} or more")
        image.draft("RGB", (2 * self.reduced, 2 * self.reduced))  # a large JPEG is not decoded in full
        image = plain_image(image)
        scale = min(image.size) / self.reduced
        box = []
        for side, part in zip(image.size, where, strict=True):
            scaled = round(side / scale)  # what it would have when reduced: only the crop is
            corner = min(int(part * (scaled - self.size + 1)), scaled - self.size)
            box.append((corner * side / scaled, min((corner + self.size) * side / scaled, side)))
        (left, right), (top, bottom) = box
        crop = image.resize((self.size, self.size), Image.Resampling.LANCZOS, (left, top, right, bottom))
        return torch.from_numpy(np.array(crop)).permute(2, 0, 1).contiguous()


class NumberedSampler(EndlessSampler):
    """An endless shuffled stream as EndlessSampler's, of pairs: the position in the stream, and the index there."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        position = self.start + self.rank
        for index in super().__iter__():
            yield position, index
            position += self.world_size
