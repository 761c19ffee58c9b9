"""Random crops of images of any format and size: the content and style images that train the stylizer."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image

from media.dataset import ImageError
from media.decode import ALL_FORMATS, ALL_SUFFIXES, Unusable, decode_image, open_image
from media.image_files import ImageFiles
from media.loader import EndlessSampler
from torch_utils.errors import plural, printable

MAX_ENLARGEMENT = 8  # an image that is enlarged more is too blurred to use
MAX_ATTEMPTS = 1000  # unusable images in a row, after which reading gives up
USABLE, UNUSABLE = 1, 2  # the status of an image; 0: not read yet


class ImageCrops(torch.utils.data.Dataset):
    """`crops[position, number]` is a random crop of image `number`, uint8 [3, size, size].

    The crop is taken from the image scaled so that its shorter side has `reduced` pixels, by default 2 · size. With
    `scales` above 1, that number is multiplied by a factor which is drawn anew for each crop, from 1 / scales to
    scales, evenly in its logarithm. The number stays at least `size`, with which the crop reaches from side to side,
    and at most 8 times the image's own.

    The position in the stream of images seeds the crop's place: the result depends only on (seed, position, number),
    not on the process or on earlier reads, so that a resumed run continues exactly. `NumberedSampler` yields these
    pairs. An image that cannot be used is replaced by another one, which depends on the same three numbers.

    Raises UserError if `path` holds no images, or, on reading, if none of them can be used.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        size: int = 256,
        *,
        seed: int = 0,
        reduced: int | None = None,
        scales: float = 1.0,
    ):
        self.files = ImageFiles(path, ALL_SUFFIXES)
        self.path, self.names = self.files.path, self.files.names
        self.size, self.seed, self.reduced = size, seed, reduced or 2 * size
        self.scales = scales
        if self.reduced < size:
            raise ValueError(f"crops of {size} from images of {self.reduced} pixels")
        if scales < 1:
            raise ValueError(f"scales: expected a number from 1, got {scales:g}")
        # Shared with the worker processes, so that the main process can report the unusable images they found.
        self._status = torch.zeros(len(self.names), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, place: tuple[int, int]) -> torch.Tensor:
        position, number = place
        draw = np.random.default_rng((self.seed, position, number))
        reason = None
        for _ in range(MAX_ATTEMPTS):
            where = draw.random(2)
            reduced = self.reduced
            if self.scales > 1:
                reduced = max(round(reduced * self.scales ** draw.uniform(-1, 1)), self.size)
            if self._status[number] != UNUSABLE:
                try:
                    pixels = self._crop(self.names[number], where, reduced)
                    self._status[number] = USABLE
                    return pixels
                except Unusable as unusable:
                    self._status[number] = UNUSABLE
                    reason = f"{printable(self.names[number])} {unusable}"
            number = int(draw.integers(len(self.names)))
        raise ImageError(
            f"of the {plural(len(self.names), 'image')} in {self.path} none can be used"
            + (f": {reason}" if reason else "")
            + "; name another folder or ZIP"
        )

    @property
    def unusable(self) -> list[str]:
        """The names of the images found unusable so far, in all worker processes."""
        return [self.names[i] for i in (self._status == UNUSABLE).nonzero().flatten().tolist()]

    def why(self, number: int) -> str:
        """The name of an image that was found unusable, and the reason."""
        try:
            self._crop(self.names[number], np.zeros(2), self.reduced)
        except Unusable as reason:
            return f"{printable(self.names[number])} {reason}"
        return f"{printable(self.names[number])} could not be read"

    def found_unusable(self) -> torch.Tensor:
        """Whether each image was found unusable so far, bool [images]: in this process and those that read for it."""
        return self._status == UNUSABLE

    @property
    def fingerprint(self) -> str:
        """A hash of the files, 16 hex digits, with which a resumed run recognizes its data."""
        return self.files.fingerprint

    def _crop(self, name: str, where: np.ndarray, reduced: int) -> torch.Tensor:
        """The crop at the relative position `where`, x and y in 0..1, of the image with that shorter side.

        (0, 0) is the top left. Raises Unusable.
        """
        image = open_image(io.BytesIO(self.files.read(name)), ALL_FORMATS)
        if min(image.size) * MAX_ENLARGEMENT < self.reduced:
            width, height = image.size
            raise Unusable(
                f"has {width}x{height} pixels; each side needs {-(-self.reduced // MAX_ENLARGEMENT)} or more"
            )
        reduced = min(reduced, MAX_ENLARGEMENT * min(image.size))
        image.draft("RGB", (2 * reduced, 2 * reduced))  # JPEGs are decoded at a reduced size where that is enough
        image = decode_image(image, name=name)
        scale = min(image.size) / reduced
        box = []
        for side, part in zip(image.size, where, strict=True):
            scaled = round(side / scale)  # the side of the scaled image, of which only the crop is computed
            corner = min(int(part * (scaled - self.size + 1)), scaled - self.size)
            box.append((corner * side / scaled, min((corner + self.size) * side / scaled, side)))
        (left, right), (top, bottom) = box
        crop = image.resize((self.size, self.size), Image.Resampling.LANCZOS, (left, top, right, bottom))
        return torch.from_numpy(np.array(crop)).permute(2, 0, 1).contiguous()


class NumberedSampler(EndlessSampler):
    """The stream of EndlessSampler as pairs (position in the stream, index)."""

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
        position = self.start + self.rank
        for index in super().__iter__():
            yield position, index
            position += self.world_size
