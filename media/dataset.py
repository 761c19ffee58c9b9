"""Data sets: a folder or a ZIP of images of one size, with class labels in `dataset.json`.

The format is that of the StyleGAN2-ADA and StyleGAN3 tools. Archives and images are not trusted: sizes are checked
before anything is unpacked or decoded, and no file is ever unpacked to the disk.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from PIL import Image

from media.cache import SharedImageCache
from media.checksums import folder_checksums
from media.decode import Unusable, decode_image, open_image, stored_mode
from media.labels import LabelFile, parse_labels
from torch_utils.errors import UserError, numbers_text, one_line, printable
from torch_utils.files import RUN_MARKER, missing
from torch_utils.sizes import EXPECTED, Resolution, is_possible, size_text, to_resolution, width_and_height

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
CHANNELS = {"L": 1, "RGB": 3}
LABEL_FILE = "dataset.json"
SQUARES = tuple(16 << i for i in range(7))  # the sides that messages propose: powers of two from 16 to 1024
HEADERS_CHECKED = 100  # images whose headers are read on opening a data set, spread over all of it

# Limits on what an archive may demand.
MAX_FILES = 5_000_000
MAX_FILE_BYTES = 256 << 20
MAX_LABEL_BYTES = 64 << 20
MAX_RATIO = 200  # unpacked bytes per byte of the archive

MAX_CACHE_BYTES = 1 << 30  # decoded images of a data set that are kept in memory


class ImageError(UserError):
    """An image of the data set that cannot be used.

    A DataLoader reraises an error of a worker with the whole traceback as its message, of which only the last line is
    kept.
    """

    def __init__(self, message: str):
        super().__init__(message.strip().rpartition("ImageError: ")[2])


class ImageFiles:
    """The files in a folder and its subfolders, or in a ZIP, by name: sorted, with `/` between folders.

    Hidden files are left out, and so are files with an extension not in `suffixes`. The object can be pickled; each
    process opens the ZIP for itself. Raises UserError if `path` cannot be read, has no such files, or exceeds a limit.
    """

    def __init__(self, path: str | os.PathLike, suffixes: tuple[str, ...] = ("",)):
        self.path = Path(path)
        self.cycles: list[str] = []  # links to a folder that they lie in: these are not followed, others are
        self.runs: list[str] = []  # folders of training runs, whose sheets of fakes are no data
        self._members: dict[str, str] = {}  # what an archive or a folder calls a file whose normal name is another
        self._zip: tuple[int, zipfile.ZipFile] | None = None  # process id, and the archive as that process opened it
        try:
            self.is_zip = not self.path.is_dir()
            checks = self._list_zip() if self.is_zip else self._list_folder()
        except FileNotFoundError:
            raise UserError(missing(self.path, "make a data set with dataset_tool.py faces or convert")) from None
        except zipfile.BadZipFile as error:
            raise UserError(
                f"{self.path} is not a ZIP file, or is cut off ({error}); copy it again, or name a folder of images"
            ) from None
        except OSError as error:
            raise UserError(f"cannot read {error.filename or self.path}: {error.strerror or error}") from None
        if len(checks) > MAX_FILES:
            raise UserError(f"{self.path} holds {len(checks):,} files; the limit is {MAX_FILES:,}")
        self.checks = self._with_normal_names(checks)  # by name: CRC32 in a ZIP, size in bytes in a folder
        self.names = sorted(
            name
            for name in self.checks
            if name.lower().endswith(suffixes) and name.rpartition("/")[2] != LABEL_FILE and not _hidden(name)
        )
        if not self.names:
            what = f"images ({', '.join(suffixes)})" if suffixes != ("",) else "files"
            raise UserError(f"{self.path} holds no {what}; name the folder or ZIP that holds the images")

    def _with_normal_names(self, checks: dict[str, int]) -> dict[str, int]:
        """The files by their normal names; where a single folder wraps `dataset.json` and all else, without it."""
        normal: dict[str, int] = {}
        for member, check in checks.items():
            name = normal_name(member)
            if name in normal:
                first = self._members.get(name, name)
                raise UserError(
                    f"{self.path} holds {printable(first)} and {printable(member)}, which are one name in different "
                    "spellings; remove or rename one of them"
                )
            normal[name] = check
            if name != member:
                self._members[name] = member
        wrapping = {name.split("/")[0] for name in normal if not _hidden(name)}
        if len(wrapping) == 1 and f"{(prefix := wrapping.pop())}/{LABEL_FILE}" in normal:
            visible = [name for name in normal if not _hidden(name)]
            self._members = {name[len(prefix) + 1 :]: self._members.get(name, name) for name in visible}
            normal = {name[len(prefix) + 1 :]: normal[name] for name in visible}
        return normal

    def _list_folder(self) -> dict[str, int]:
        checks: dict[str, int] = {}
        status = self.path.stat()
        folders = [(self.path, [(status.st_dev, status.st_ino)])]  # each with itself and all folders above it
        while folders:
            folder, above = folders.pop()
            for entry in os.scandir(folder):
                path = Path(entry.path)
                if not path.exists():
                    continue  # a dangling link
                status = entry.stat()
                if stat.S_ISREG(status.st_mode):
                    checks[path.relative_to(self.path).as_posix()] = status.st_size
                elif stat.S_ISDIR(status.st_mode):
                    if (status.st_dev, status.st_ino) in above:
                        self.cycles.append(path.relative_to(self.path).as_posix())
                    elif (path / RUN_MARKER).exists():
                        self.runs.append(path.relative_to(self.path).as_posix())
                    else:
                        folders.append((path, [*above, (status.st_dev, status.st_ino)]))
        return checks

    def _list_zip(self) -> dict[str, int]:
        members = [member for member in self._archive().infolist() if not member.is_dir()]
        size, packed = sum(member.file_size for member in members), self.path.stat().st_size
        if size > MAX_RATIO * packed:
            raise UserError(
                f"{self.path} would unpack to {size:,} bytes from {packed:,}, as only harmful "
                "archives do; unpack it yourself if you trust it, and name the folder"
            )
        return {member.filename: member.CRC for member in members}

    def _archive(self) -> zipfile.ZipFile:
        if self._zip is None or self._zip[0] != os.getpid():
            self._zip = os.getpid(), zipfile.ZipFile(self.path)
        return self._zip[1]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_zip": None}

    def open(self, name: str) -> BinaryIO:
        """Opens a file for reading. Raises Unusable."""
        try:
            called = self._members.get(name, name)
            if not self.is_zip:
                return open(self.path / called, "rb")
            member = self._archive().getinfo(called)
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise Unusable("is compressed in an unusual way; unpack the archive, and name the folder")
            if member.file_size > MAX_FILE_BYTES:
                raise Unusable(f"is larger than {MAX_FILE_BYTES >> 20} MiB")
            return cast(BinaryIO, self._archive().open(member))
        except (OSError, RuntimeError, zipfile.BadZipFile) as error:  # RuntimeError: encrypted
            raise Unusable(f"cannot be read ({error})") from None

    def read(self, name: str, limit: int = MAX_FILE_BYTES) -> bytes:
        """The content of a file of up to `limit` bytes. Raises Unusable."""
        with self.open(name) as file:
            try:
                data = file.read(limit + 1)
            except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                raise Unusable(f"cannot be read ({error})") from None
        if len(data) > limit:
            raise Unusable(f"is larger than {limit >> 20} MiB")
        return data

    @property
    def notes(self) -> list[str]:
        """What was left out of a folder, in lines for the user."""
        found = ((self.cycles, "links that lead back to a folder above them"), (self.runs, "folders of training runs"))
        return [f"left out {what}: {len(names):,}, first {printable(min(names))}" for names, what in found if names]

    def checksums(self, names: Iterable[str], progress: bool = False) -> dict[str, int]:
        """The CRC32 of each of these files, from the archive's directory, or read and kept in the cache folder.

        Raises Unusable, with the name of the file before the reason.
        """
        if self.is_zip:
            return {name: self.checks[name] for name in names}
        return folder_checksums(self.path, {name: self._members.get(name, name) for name in names}, progress)

    @cached_property
    def fingerprint(self) -> str:
        """A hash, 16 hex digits, of the names, of the files' CRC32s, and of `dataset.json`. Raises UserError."""
        digest = hashlib.sha256()
        try:
            checksums = self.checksums(self.names)
        except Unusable as reason:
            raise UserError(f"{self.path}: {reason}; make it readable, or remove it") from None
        for name in self.names:
            digest.update(f"{name}\0{checksums[name]}\n".encode("utf-8", "surrogateescape"))
        digest.update(_label_bytes(self) or b"")
        return digest.hexdigest()[:16]


def read_labels(files: ImageFiles) -> LabelFile:
    """The labels in `dataset.json` by the files' normal names, and the names of the classes.

    The labels are None if there is no such file, or if they are null. Raises UserError if the file is malformed.
    """
    data = _label_bytes(files)
    if data is None:
        return LabelFile(None)
    found = parse_labels(data, f"{LABEL_FILE} of {files.path}")
    if found.labels is None:
        return found
    return replace(found, labels={normal_name(name): label for name, label in found.labels.items()})


class ImageDataset(torch.utils.data.Dataset):
    """Images with labels: `dataset[i]` is (uint8 [C, H, W], one-hot float32 [c_dim]).

    `mirror` doubles the length: image n + i is image i of n, flipped left-right. With `use_labels`, `labels` holds the
    classes, int64 [len], and `class_names` their names if they have some; otherwise `labels` is None, and c_dim is 0.
    If all images fit into MAX_CACHE_BYTES, each is decoded only once. Raises UserError if the data set is malformed;
    most images are checked only when they are read.
    """

    def __init__(self, path: str | os.PathLike, *, use_labels: bool = False, mirror: bool = False):
        self.files = ImageFiles(path, SUFFIXES)
        self.path = self.files.path
        self.name = self.path.resolve().stem if self.files.is_zip else self.path.resolve().name
        self.names = self.files.names
        self.mirror = mirror
        self.resolution: Resolution = 0
        self.channels = 0
        for index in np.unique(np.linspace(0, len(self.names) - 1, HEADERS_CHECKED).astype(int)):
            with self._name_unusable(self.names[index]), self.files.open(self.names[index]) as file:
                self._check(self.names[index], open_image(file))
        width, height = width_and_height(self.resolution)
        shape = (self.channels, height, width)
        self._cache = SharedImageCache.create(len(self.names), shape, MAX_CACHE_BYTES)
        self.labels: torch.Tensor | None = None
        self.class_names: tuple[str, ...] = ()
        if use_labels:
            self.labels, self.class_names = self._read_labels()
        self.c_dim = 0 if self.labels is None else len(self.class_names) or int(self.labels.max()) + 1

    @property
    def notes(self) -> list[str]:
        """What a user should know before training, in lines."""
        notes = list(self.files.notes)
        if self.labels is not None:
            counts = torch.bincount(self.labels, minlength=self.c_dim)
            if unused := (counts == 0).nonzero().flatten().tolist():
                notes.append(f"classes of {self.path} without an image: {one_line(numbers_text(unused))}")
        elif self._has_labels():
            notes.append(f"{self.path} has labels, which are not used without --cond")
        return notes

    def _has_labels(self) -> bool:
        """Whether there are labels that --cond could use."""
        with suppress(UserError):  # unusable labels, which nobody asked for
            return read_labels(self.files).labels is not None
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
        number = index % len(self.names)
        pixels = self._cache.get(number) if self._cache else None
        if pixels is None:
            pixels = self._decode(self.names[number])
            if self._cache:
                self._cache.put(number, pixels)
        if index >= len(self.names):
            pixels = pixels[:, :, ::-1]
        label = torch.zeros(self.c_dim)
        if self.labels is not None:
            label[self.labels[index]] = 1
        return torch.from_numpy(pixels.copy()), label

    def _decode(self, name: str) -> np.ndarray:
        """An image as uint8 [C, H, W]. Raises ImageError."""
        with self._name_unusable(name):
            image = open_image(io.BytesIO(self.files.read(name)))
            self._check(name, image)
            pixels = np.asarray(decode_image(image, stored_mode(image)))
        return pixels[None] if self.channels == 1 else pixels.transpose(2, 0, 1)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_cache": None}  # only forked processes share its memory

    @property
    def fingerprint(self) -> str:
        """A hash of the files, 16 hex digits."""
        return self.files.fingerprint

    def content_hash(self, indices: Sequence[int], progress: bool = False) -> str:
        """The SHA-256 of the CRC32s of these images' files, in this order, and of whether each is flipped.

        The same images have the same hash in a ZIP and in a folder, whose files are read for it, under any names.
        Raises ImageError.
        """
        names = sorted({self.names[index % len(self.names)] for index in indices})
        with self._name_unusable():
            checksums = self.files.checksums(names, progress)
        digest = hashlib.sha256()
        for index in indices:
            flipped, number = divmod(index, len(self.names))
            digest.update(f"{checksums[self.names[number]]:08x}{flipped}\n".encode())
        return digest.hexdigest()

    def _check(self, name: str, image: Image.Image) -> None:
        """Checks that an image has the size and the channels of the first one. Raises ImageError."""
        mode = stored_mode(image)
        if not self.resolution:
            if problem := describe_mismatch(image.size, mode):
                square = max((side for side in SQUARES if side <= min(image.size)), default=SQUARES[0])
                raise ImageError(f"{self.path}: {printable(name)} {problem}; {self._convert_command(square)}")
            self.resolution, self.channels = to_resolution(image.size), CHANNELS[mode]
        size, channels = width_and_height(self.resolution), CHANNELS.get(mode)
        if (image.size, channels) != (size, self.channels):
            first = describe(size, "L" if self.channels == 1 else "RGB")
            raise ImageError(
                f"{self.path}: {printable(name)} is {describe(image.size, mode)}, but "
                f"{printable(self.names[0])} is {first}; {self._convert_command(self.resolution)}"
            )

    def _convert_command(self, resolution: Resolution) -> str:
        """The end of a message: how to convert the images to a resolution."""
        size = resolution if isinstance(resolution, int) else size_text(resolution)
        return (
            f"convert them with: dataset_tool.py convert --source {self.path} "
            f"--out {self.name}-{size}.zip --resolution {size}"
        )

    @contextmanager
    def _name_unusable(self, name: str = "") -> Iterator[None]:
        """Raises ImageError in place of Unusable, with the name of the file, unless the reason begins with it."""
        try:
            yield
        except Unusable as reason:
            raise ImageError(
                f"{self.path}: {printable(name)}{' ' * bool(name)}{reason}; find all such files with: "
                f"dataset_tool.py check --data {self.path}"
            ) from None

    def _read_labels(self) -> tuple[torch.Tensor, tuple[str, ...]]:
        """The classes of all images [len], and the names of the classes. Raises UserError."""
        found = read_labels(self.files)
        by_name = found.labels
        if by_name is None:
            why = "its labels are null" if LABEL_FILE in self.files.checks else f"it has no {LABEL_FILE}"
            raise UserError(
                f"{self.path} has no labels ({why}); make them with: dataset_tool.py convert --labels folders"
            )
        missing = [name for name in self.names if name not in by_name]
        if missing:
            raise UserError(
                f"{self.path}: {len(missing):,} of {len(self.names):,} images have no label in "
                f"{LABEL_FILE}, the first is {printable(missing[0])}; add labels"
            )
        labels = torch.tensor([by_name[name] for name in self.names])
        return torch.cat([labels, labels]) if self.mirror else labels, found.class_names


def describe(size: tuple[int, int], mode: str) -> str:
    """For example `32x32 RGB`."""
    return f"{size[0]}x{size[1]} {'greyscale' if mode == 'L' else mode}"


def describe_mismatch(size: tuple[int, int], mode: str) -> str | None:
    """Why a data set cannot consist of such images, or None if it can."""
    if mode not in CHANNELS:
        return f"is of the kind {mode}, not RGB or greyscale of 8 bits"
    if not is_possible(to_resolution(size)):
        return f"has {size[0]}x{size[1]} pixels, but a model needs {EXPECTED}"
    return None


def normal_name(name: str) -> str:
    """A file's name in the one form in which names are compared: NFC, `/` between folders, no `.` for a folder.

    Archives made on Windows may have backslashes, and those made on macOS decomposed letters; labels may have either.
    """
    parts = unicodedata.normalize("NFC", name.replace("\\", "/")).split("/")
    return "/".join(part for part in parts if part not in ("", "."))


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _label_bytes(files: ImageFiles) -> bytes | None:
    """The content of `dataset.json`, or None if there is none. Raises UserError."""
    try:
        return files.read(LABEL_FILE, MAX_LABEL_BYTES) if LABEL_FILE in files.checks else None
    except Unusable as reason:
        raise UserError(f"{LABEL_FILE} of {files.path} {reason}") from None
