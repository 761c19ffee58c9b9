"""Data sets: a folder or a ZIP of images of one size, with class labels in `dataset.json`.

The format is that of the StyleGAN2-ADA and StyleGAN3 tools. Archives and images are not trusted: sizes are checked
before anything is unpacked or decoded, and no file is ever unpacked to the disk.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from media.alpha import Color, premultiply
from media.cache import SharedImageCache
from media.decode import FORMATS, SUFFIXES, WHITE, Unusable, decode_image, open_image, stored_mode, upright_size
from media.image_files import CONVERT, LABEL_FILE, ImageFiles, normal_name
from media.labels import L, LabelFile, add_label, class_folders, parse_labels
from media.shards import ShardFiles, is_sharded
from torch_utils.errors import UserError, WorkerError, command_line, numbers_text, one_line, printable
from torch_utils.sizes import RULE, Resolution, is_possible, size_option, size_text, to_resolution, width_and_height

CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}
SQUARES = tuple(16 << i for i in range(7))  # the sides that messages propose: powers of two from 16 to 1024
HEADERS_CHECKED = 100  # images whose headers are read on opening a data set, spread over all of it
MAX_UNREADABLE = 0.01  # of all images may be skipped
MAX_CACHE_BYTES = 1 << 30  # decoded images of a data set that are kept in memory


class ImageError(WorkerError):
    """An image of the data set that cannot be used."""


class SizesDiffer(ImageError):
    """Images of which a data set cannot consist, or that cannot be compared with others, by their size or kind."""


class NoLabels(UserError):
    """A data set without labels, where they are needed."""


class UnreadableError(ImageError):
    """An image that cannot be decoded, as one that is cut off."""


def open_files(path: str | os.PathLike, suffixes: tuple[str, ...] = ("",)) -> ImageFiles | ShardFiles:
    """The files of a data set in a folder, in a ZIP or in shards. Raises UserError."""
    return ShardFiles(str(path)) if is_sharded(str(path)) else ImageFiles(path, suffixes)


def read_labels(files: ImageFiles | ShardFiles) -> LabelFile:
    """The labels in `dataset.json` by the files' normal names, and the names of the classes.

    The labels are None if there is no such file, or if they are null. In shards, labels are beside the images. Raises
    UserError if the file is malformed.
    """
    if isinstance(files, ShardFiles):
        return LabelFile(files.labels_by_name(), files.class_names)
    data = files.label_bytes()
    if data is None:
        return LabelFile(None)
    where = f"{LABEL_FILE} of {files.path}"
    found = parse_labels(data, where)
    labels = found.labels and _by_normal_name(found.labels, where)
    vectors = found.vectors and _by_normal_name(found.vectors, where)
    return replace(found, labels=labels, vectors=vectors)


def _by_normal_name(labels: Mapping[str, L], where: str) -> dict[str, L]:
    """Labels by the normal names of their files. Raises UserError where two spellings of one have different labels."""
    normal: dict[str, L] = {}
    for name, label in labels.items():
        add_label(normal, normal_name(name), label, where)
    return normal


class ImageDataset(torch.utils.data.Dataset):
    """Images with labels: `dataset[i]` is (uint8 [C, H, W], float32 [c_dim]), a one-hot class or a label vector.

    `mirror` doubles the length: image n + i is image i of n, flipped left-right. With `use_labels`, `labels` holds the
    classes, int64 [len], and `class_names` their names if they have some, or with `vector_labels` float32 [len, c_dim];
    otherwise `labels` is None, and c_dim is 0.
    If all images fit into MAX_CACHE_BYTES, each is decoded only once. With `skip_unreadable`, the next image that can
    be decoded takes the place of one that cannot, and `unreadable` tells which ones those are, uint8 [images].

    Transparent images have 4 channels and premultiplied colours (media/alpha.py); with a `background` they are laid on
    that colour, and have 3. A message on images that have to be resized proposes `model_resolution`, that of the model
    which they are for.

    Raises UserError if the data set is malformed; most images are checked only when they are read.
    """

    suffixes: tuple[str, ...] = SUFFIXES  # of the files that are read
    formats: tuple[str, ...] = FORMATS
    any_sizes = False  # whether each image can have a size of its own

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        use_labels: bool = False,
        mirror: bool = False,
        background: Color | None = None,
        skip_unreadable: bool = False,
        model_resolution: Resolution | None = None,
    ):
        self.files = open_files(path, self.suffixes)
        self.path = self.files.path
        self.name = self.files.name
        self.names = self.files.names
        self.mirror, self.background, self.model_resolution = mirror, background, model_resolution
        self.resolution: Resolution = 0
        self.channels = 0
        self._cache: SharedImageCache | None = None
        # In memory that all processes share which read, also those that are no forks.
        self.unreadable = torch.zeros(len(self.names), dtype=torch.uint8).share_memory_() if skip_unreadable else None
        checked = HEADERS_CHECKED if self.files.random_access else 1
        for index in np.unique(np.linspace(0, len(self.names) - 1, checked).astype(int)):
            name = self.names[index]
            with self._skipped(int(index)), self._name_unusable(name), self.files.open(name) as file:
                self._check(name, open_image(file, self.formats))
        self.transparent = False
        self._settle()
        self.labels: torch.Tensor | None = None
        self.class_names: tuple[str, ...] = ()
        if use_labels:
            self.labels, self.class_names = self._read_labels()
        self.vector_labels = self.labels is not None and self.labels.ndim == 2
        self.c_dim = 0
        if self.labels is not None:
            self.c_dim = self.labels.shape[1] if self.vector_labels else len(self.class_names) or self._classes()

    @property
    def size(self) -> str:
        """The size of the images, as `64x64`."""
        return size_text(self.resolution)

    def _settle(self) -> None:
        """Notes what the images have in common, once some have been checked, and makes room to keep them."""
        if not self.resolution:
            self._read(0)
        width, height = width_and_height(self.resolution)
        self.transparent = self.channels == 4
        if self.background is not None and self.transparent:
            self.channels = 3
        shape = (self.channels, height, width)
        max_bytes = MAX_CACHE_BYTES if self.files.random_access else 0
        self._cache = SharedImageCache.create(len(self.names), shape, max_bytes)

    @property
    def notes(self) -> list[str]:
        """What a user should know before training, in lines."""
        notes = list(self.files.notes)
        if self.vector_labels:
            low, high = self.required_labels.aminmax(dim=0)
            if constant := (low == high).nonzero().flatten().tolist():
                notes.append(f"numbers of the labels of {self.path} that are always the same: {numbers_text(constant)}")
        elif self.labels is not None:
            counts = torch.bincount(self.labels, minlength=self.c_dim)
            if unused := (counts == 0).nonzero().flatten().tolist():
                notes.append(f"classes of {self.path} without an image: {one_line(numbers_text(unused))}")
        elif self._has_labels():
            notes.append(f"{self.path} has labels, which are not used without --cond")
        return notes

    def _classes(self) -> int:
        """The number of classes without names: up to the largest that occurs."""
        return int(self.required_labels.max()) + 1

    def _has_labels(self) -> bool:
        """Whether there are labels that --cond could use."""
        if isinstance(self.files, ShardFiles):
            return self.files.labels is not None
        with suppress(UserError):  # unusable labels, which nobody asked for
            found = read_labels(self.files)
            return found.labels is not None or found.vectors is not None
        return False

    @property
    def required_labels(self) -> torch.Tensor:
        """The labels of a data set that was opened with `use_labels`."""
        if self.labels is None:
            raise ValueError("the data set was opened without use_labels")
        return self.labels

    def __len__(self) -> int:
        return len(self.names) * (2 if self.mirror else 1)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self._item(index, *self._read(index % len(self.names)))

    def item(self, index: int, data: bytes) -> tuple[torch.Tensor, torch.Tensor]:
        """`dataset[index]`, whose file was read before."""
        return self._item(index, *self._read(index % len(self.names), data))

    def _read(self, number: int, data: bytes | None = None) -> tuple[int, np.ndarray]:
        """An image uint8 [C, H, W] and its number, which is another one where images are skipped. Raises ImageError."""
        while True:
            if self.unreadable is None or not self.unreadable[number]:
                with self._skipped(number):
                    return number, self._pixels(number, data)
            number, data = (number + 1) % len(self.names), None

    @contextmanager
    def _skipped(self, number: int) -> Iterator[None]:
        """Notes that an image cannot be decoded, if such images are skipped."""
        try:
            yield
        except UnreadableError:
            if self.unreadable is None:
                raise
            self.unreadable[number] = 1
            self.check_unreadable(self.unreadable)

    def check_unreadable(self, unreadable: torch.Tensor) -> list[str]:
        """The names of the images that these flags [images] mark. Raises ImageError if they are too many."""
        names = [self.names[number] for number in unreadable.nonzero().flatten().tolist()]
        if len(names) > MAX_UNREADABLE * len(self.names):
            raise ImageError(
                f"{self.path}: {len(names):,} of {len(self.names):,} images cannot be decoded, of which "
                f"--skip-unreadable leaves out up to {MAX_UNREADABLE:.0%}; the first is {printable(names[0])}, all are "
                f"listed by: {self._check_command()}"
            )
        return names

    def _pixels(self, number: int, data: bytes | None) -> np.ndarray:
        """An image as uint8 [C, H, W], kept or decoded. Raises ImageError."""
        pixels = self._cache.get(number) if self._cache else None
        if pixels is None:
            pixels = self._decode(self.names[number], data)
            if self._cache:
                self._cache.put(number, pixels)
        return pixels

    def _item(self, index: int, number: int, pixels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The image `number` as that of an index, flipped or not."""
        if index >= len(self.names):
            pixels = pixels[:, :, ::-1]
        label = torch.zeros(self.c_dim)
        if self.labels is not None:
            if self.vector_labels:
                label.copy_(self.labels[number])
            else:
                label[self.labels[number]] = 1
        return torch.from_numpy(pixels.copy()), label

    def _decode(self, name: str, data: bytes | None = None) -> np.ndarray:
        """An image as uint8 [C, H, W], from its file or from the content of it. Raises ImageError."""
        with self._name_unusable(name):
            image = open_image(io.BytesIO(self.files.read(name) if data is None else data), self.formats)
            self._check(name, image)
            pixels = self._to_pixels(image)
        return pixels[None] if self.channels == 1 else pixels.transpose(2, 0, 1)

    def _to_pixels(self, image: Image.Image) -> np.ndarray:
        """The pixels of an opened image, uint8 [H, W, C], or [H, W] in grey. Raises Unusable."""
        mode = stored_mode(image)
        if mode == "RGBA" and self.background is not None:
            return np.asarray(decode_image(image, "RGB", self.background))
        if mode == "RGBA":
            return premultiply(decode_image(image, "RGB", None).convert("RGBA"))
        # without an alpha channel, a file can still name one colour that is transparent
        return np.asarray(decode_image(image, mode, WHITE if self.background is None else self.background))

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_cache": None}  # only forked processes share its memory

    @property
    def fingerprint(self) -> str:
        """A hash of the files, 16 hex digits."""
        return self.files.fingerprint

    def choose(self, count: int, seed: int) -> list[int]:
        """The indices of `count` images without flips, drawn by `seed`; of shards, those of as few as hold so many."""
        if isinstance(self.files, ShardFiles):
            return self.files.choose(count, seed)
        return np.random.default_rng(seed).permutation(len(self.names))[:count].tolist()

    def content_hash(self, indices: Sequence[int], progress: bool = False) -> str:
        """The SHA-256 of the CRC32s of these images' files, in this order, and of whether each is flipped.

        Of transparent images it depends on the background, too; of others on one that is not white, on which single
        colours that are transparent would lie. The same images have the same hash in a ZIP and in a
        folder, whose files are read for it, under any names. Of shards, it is a hash of their fingerprint and the
        indices. Raises ImageError.
        """
        matters = self.transparent or self.background not in (None, WHITE)
        digest = hashlib.sha256(f"{self.background}".encode() if matters else b"")
        if isinstance(self.files, ShardFiles):
            digest.update(self.fingerprint.encode() + np.asarray(indices, "<i8").tobytes())
            return digest.hexdigest()
        names = sorted({self.names[index % len(self.names)] for index in indices})
        with self._name_unusable():
            checksums = self.files.checksums(names, progress)
        for index in indices:
            flipped, number = divmod(index, len(self.names))
            digest.update(f"{checksums[self.names[number]]:08x}{flipped}\n".encode())
        return digest.hexdigest()

    def _check(self, name: str, image: Image.Image) -> None:
        """Checks that an image has the size and the channels of the first one. Raises SizesDiffer."""
        size, mode = upright_size(image), stored_mode(image)
        if not self.resolution:
            if problem := describe_mismatch(size, mode):
                command = self._convert_command(possible_resolution(size), CHANNELS.get(mode, 3))
                raise SizesDiffer(f"{self.path}: {printable(name)} {problem}; convert the images with: {command}")
            self.resolution, self.channels = to_resolution(size), CHANNELS[mode]
            self._first = size, mode
        if (size, CHANNELS.get(mode)) != (self._first[0], CHANNELS[self._first[1]]):
            first = describe(*self._first)
            channels = CHANNELS[mode] if mode == self._first[1] else 3
            raise SizesDiffer(
                f"{self.path}: {printable(name)} is {describe(size, mode)}, but {printable(self.names[0])} is "
                f"{first}; convert the images with: {self._convert_command(self.resolution, channels)}"
            )

    def _convert_command(self, resolution: Resolution, channels: int) -> str:
        """The command that makes all images alike, of the model's resolution where it is known."""
        return convert_command(self.files, self.model_resolution or resolution, channels)

    def _check_command(self) -> str:
        return command_line("python", "dataset_tool.py", "check", "--data", self.path)

    @contextmanager
    def _name_unusable(self, name: str = "") -> Iterator[None]:
        """Raises ImageError in place of Unusable, with the name of the file, unless the reason begins with it."""
        try:
            yield
        except Unusable as reason:
            raise UnreadableError(
                f"{self.path}: {f'{printable(name)} ' if name else ''}{reason}; {self._how_to_mend()}"
            ) from None

    def _how_to_mend(self) -> str:
        """What to do about an image that cannot be used."""
        return f"find all such files with: {self._check_command()}"

    def _read_labels(self) -> tuple[torch.Tensor, tuple[str, ...]]:
        """The classes of all images [len], and the names of the classes. Raises UserError."""
        if isinstance(self.files, ShardFiles):
            labels = self._read_shard_labels(self.files)
            return torch.cat([labels, labels]) if self.mirror else labels, self.files.class_names
        found = read_labels(self.files)
        if (by_name := found.by_name) is None:
            why = "its labels are null" if LABEL_FILE in self.files.checks else f"it has no {LABEL_FILE}"
            raise NoLabels(f"{self.path} has no labels ({why}); {self._how_to_label()}")
        missing = [name for name in self.names if name not in by_name]
        if missing:
            unknown = min(set(by_name) - set(self.names), default=None)
            but = f", and it names {printable(unknown)}, which is not there" if unknown else ""
            raise UserError(
                f"{self.path}: {len(missing):,} of {len(self.names):,} images have no label in {LABEL_FILE}, the first "
                f"is {printable(missing[0])}{but}; {'correct the names or ' if unknown else ''}add labels"
            )
        labels = torch.tensor([by_name[name] for name in self.names])
        return torch.cat([labels, labels]) if self.mirror else labels, found.class_names

    def _how_to_label(self) -> str:
        """How to make labels of folders: of the own ones, unless these are the numbered ones of `write_dataset`."""
        folders = class_folders(self.names).names
        size = size_option(self.resolution or SQUARES[4])
        how = "--resolution", size, "--channels", self.channels, "--labels", "folders"
        out = f"{self.name}-labels.zip"
        if len(folders) > 1 and not all(re.fullmatch(r"\d{5}", folder) for folder in folders):
            make = command_line(*CONVERT, "--source", self.path, "--out", out, *how)
            return f"make them of its folders with: {make}"
        make = command_line(*CONVERT, "--source", "SORTED", "--out", out, *how)
        return f"sort the images into a folder for each class, in a folder SORTED, and then run: {make}"

    def _read_shard_labels(self, files: ShardFiles) -> torch.Tensor:
        if files.labels is None:
            raise NoLabels(f"{self.path} has no labels: no sample has a class under the name label, cls or class")
        if missing := int((files.labels < 0).sum()):
            raise UserError(f"{self.path}: {missing:,} of {len(self.names):,} images have no label; add labels")
        return torch.from_numpy(files.labels.astype(np.int64))


KINDS = {  # of images, by Pillow's modes
    "1": "black and white", "L": "greyscale", "LA": "greyscale with transparency", "I;16": "greyscale of 16 bits",
    "I;16B": "greyscale of 16 bits", "I": "greyscale of 32 bits", "F": "greyscale of floats",
}  # fmt: skip


def describe(size: tuple[int, int], mode: str) -> str:
    """For example `32x32 RGB`."""
    return f"{size[0]}x{size[1]} {KINDS.get(mode, mode)}"


def describe_mismatch(size: tuple[int, int], mode: str) -> str | None:
    """Why a data set cannot consist of such images, or None if it can."""
    if mode not in CHANNELS:
        hint = "; greyscale with transparency becomes RGBA with --channels 4" if mode == "LA" else ""
        return f"is of the kind {mode}, not RGB, RGBA or greyscale of 8 bits{hint}"
    if not is_possible(to_resolution(size)):
        return f"has {size[0]}x{size[1]} pixels, which is no size for a model (see {RULE})"
    return None


def possible_resolution(size: tuple[int, int]) -> Resolution:
    """What to convert images of this width and height to: their own size, or else the largest square of SQUARES."""
    if is_possible(resolution := to_resolution(size)):
        return resolution
    return max((side for side in SQUARES if side <= min(size)), default=SQUARES[0])


def convert_command(files: ImageFiles | ShardFiles, resolution: Resolution, channels: int) -> str:
    """The command that converts images to a resolution; 3 channels are what it takes without an option."""
    size = size_option(resolution)
    kind = () if channels == 3 else ("--channels", channels)
    return command_line(
        *CONVERT, "--source", files.path, "--out", f"{files.name}-{size}.zip", "--resolution", size, *kind
    )
