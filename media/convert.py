"""Converts images of any kind to a data set: cropped, resized, in one colour format, with labels."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import shutil
import sys
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from PIL import Image
from tqdm import tqdm

from media.dataset import open_files, read_labels
from media.decode import ALL_FORMATS, IMAGE_SUFFIXES, WHITE, Unusable, decode_image, open_image
from media.file_format import PNG, FileFormat
from media.files import VIDEO_SUFFIXES
from media.image_files import LABEL_FILE, MAX_LABEL_BYTES, ImageFiles
from media.labels import ClassFolders, Label, LabelFile, class_folders, dump_labels
from media.shard_writer import write_shards
from media.shards import ShardFiles
from media.spool import plan_reading
from torch_utils.errors import UserError, plural, printable
from torch_utils.files import atomic_write, real_path, temporary_path
from torch_utils.sizes import Resolution, size_text, width_and_height

FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
LabelledImage = tuple[Image.Image, Label | None]
LABELS = ("auto", "json", "folders", "none")
# What becomes of images of another aspect ratio: their middle is taken, they are framed, or they are skipped.
CROPS = ("center", "pad", "none")


@dataclass(frozen=True)
class Conversion:
    """How images are converted."""

    resolution: Resolution
    channels: int = 3  # 1: grey, 3: RGB, 4: RGBA
    crop: str = "center"  # one of CROPS
    filter: str = "lanczos"
    background: tuple[int, int, int] = WHITE  # of transparent images, and of the frame of "pad"


@dataclass(frozen=True)
class Converted:
    """The result of `convert`."""

    count: int
    enlarged: int  # number of images that were smaller than the resolution
    class_names: tuple[str, ...]  # in the order of the classes: of the folders, or as dataset.json has them
    empty_folders: tuple[str, ...]  # folders that are no class, because they hold no usable image
    skipped: list[tuple[str, str]]  # files that cannot be used, with the reason
    notes: list[str]  # what was left out of the source


def convert(
    source: str | os.PathLike,
    out: str | os.PathLike,
    how: Conversion,
    *,
    labels: str = "auto",
    limit: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    stored: FileFormat = PNG,
    shard_bytes: int | None = None,
) -> Converted:
    """Converts the images of a folder or ZIP to a data set at `out`, with up to `limit` images, `stored` as it says.

    `labels`: "folders" numbers the folders of classes in `source`, "json" reads `dataset.json`, "auto" reads it if it
    exists, "none" leaves labels out. A folder without a usable image is no class. With a `limit`, images are drawn by
    `seed` in turns from all classes. With `shard_bytes`, `out` becomes a folder of tar files of up to that size, in
    which the images lie in random order, also drawn by `seed`: shards are read in pieces, and each has to be like the
    whole. Single files that cannot be used are skipped. Raises UserError if no file can be used, the labels are
    missing, `stored` has no such images, or `out` cannot be written.
    """
    stored.check_channels(how.channels)
    files = open_files(source)
    check_outside(files.path, out)
    if shard_bytes:
        check_shards(Path(out))  # before all shards are read
    found = read_labels(files) if labels in ("auto", "json") else LabelFile(None)
    if labels == "json" and found.by_name is None:
        raise UserError(
            f"{files.path} has no {LABEL_FILE} with labels; "
            "use --labels folders for one class per folder, or --labels none"
        )
    folders, usable = _class_folders(files, how) if labels == "folders" else (None, ())
    numbers = {folder: number for number, folder in enumerate(usable)}
    class_names = tuple(map(printable, usable)) or found.class_names

    def class_key(name: str) -> str | int | None:
        return folders.of(name) if folders else (found.labels or {}).get(name)

    def label_of(name: str) -> Label | None:
        return _class_of(numbers, folders.of(name)) if folders else _recorded_label(found, name)

    names: Sequence[str] = files.names if limit is None else _spread(files.names, class_key, seed)
    read, names = plan_reading(files, names, limit, shard_bytes is not None, seed, real_path(out).parent)
    skipped: list[tuple[str, str]] = []
    smaller: list[bool] = []
    images = itertools.islice(_usable_images(read, names, label_of, how, skipped, smaller), limit)
    if (first := next(images, None)) is None:
        name, reason = skipped[0]
        files_text = plural(len(skipped), "file")
        raise UserError(f"of the {files_text} in {files.path} none can be used: {printable(name)} {reason}")
    everything = itertools.chain([first], images)
    count = write_dataset(
        out, everything, overwrite=overwrite, stored=stored, class_names=class_names, shard_bytes=shard_bytes
    )
    empty = tuple(folder for folder in folders.names if folder not in numbers) if folders else ()
    return Converted(count, sum(smaller), class_names, empty, skipped, list(files.notes))


def check_outside(source: str | os.PathLike, out: str | os.PathLike) -> None:
    """Raises UserError for a result in place of the source, whose originals would be lost, or for a folder in it.

    The next conversion would take the images in such a folder for some of the source.
    """
    original, result = Path(os.path.realpath(source)), real_path(out)
    if original == result:
        raise UserError(f"{out} is what is converted, and stays as it is; name another place with --out")
    if original.is_dir() and result.suffix.lower() != ".zip" and original in result.parents:
        raise UserError(f"{result} is a folder in {original}, whose images are read; name another place with --out")


def _recorded_label(found: LabelFile, name: str) -> Label | None:
    """The label of a file in dataset.json; None if that has no labels. Raises Unusable if it has others only."""
    if found.by_name is not None and name not in found.by_name:
        raise Unusable(f"has no label in {LABEL_FILE}")
    return None if found.by_name is None else found.by_name[name]


def _usable_images(
    read: Callable[[str], bytes],
    names: Sequence[str],
    label_of: Callable[[str], Label | None],
    how: Conversion,
    skipped: list[tuple[str, str]],
    smaller: list[bool],
) -> Iterator[LabelledImage]:
    """The converted images with their labels. Appends to `skipped` each file that cannot be used, with the reason, and
    to `smaller` whether an image had to be enlarged.
    """
    for name in tqdm(names, desc="converting", unit=" files", file=sys.stderr, disable=None):
        try:
            label = label_of(name)
            is_smaller, image = _convert_file(read, name, how)
        except Unusable as reason:
            skipped.append((name, str(reason)))
        else:
            smaller.append(is_smaller)
            yield image, label


def _convert_file(read: Callable[[str], bytes], name: str, how: Conversion) -> tuple[bool, Image.Image]:
    """Whether an image had to be enlarged, and the converted image. Raises Unusable."""
    image = decode_as(open_image(io.BytesIO(read(name)), ALL_FORMATS), how, name)
    width, height = width_and_height(how.resolution)
    fits = max if how.crop == "pad" else min  # a padded image touches two borders only
    return fits(image.width / width, image.height / height) < 1, resize_to(image, how)


def _usable_folders(files: ImageFiles | ShardFiles, folders: ClassFolders, how: Conversion) -> tuple[str, ...]:
    """Those of the folders with a file that can be converted, in their order. Reads up to the first of each."""
    wanted = set(folders.names)  # in which no such file has been found yet
    for name in files.names:
        if (folder := folders.of(name)) in wanted:
            with suppress(Unusable):
                _convert_file(files.read, name, how)
                wanted.remove(folder)
    return tuple(folder for folder in folders.names if folder not in wanted)


def _spread(names: Sequence[str], class_key: Callable[[str], str | int | None], seed: int) -> list[str]:
    """The names in random order, in turns from each class, so that the first ones are spread over all classes."""
    by_class: dict[str | int | None, list[str]] = defaultdict(list)
    for name in names:
        by_class[class_key(name)].append(name)
    draw = random.Random(seed)
    for group in by_class.values():
        draw.shuffle(group)
    return [name for turn in itertools.zip_longest(*by_class.values()) for name in turn if name is not None]


def decode_as(image: Image.Image, how: Conversion, name: str | os.PathLike = "an image") -> Image.Image:
    """Decodes an image with the channels of a conversion. `name` is what a note calls it. Raises Unusable."""
    if how.channels == 4:
        return decode_image(image, "RGB", None, name).convert("RGBA")
    return decode_image(image, "L" if how.channels == 1 else "RGB", how.background, name)


def resize_to(image: Image.Image, how: Conversion) -> Image.Image:
    """Crops or pads a decoded image and resizes it, with premultiplied colours where it is transparent.

    Raises Unusable.
    """
    size, resample = width_and_height(how.resolution), FILTERS[how.filter]
    if how.crop == "pad":
        frames: dict[str, Any] = {"RGB": how.background, "RGBA": (0, 0, 0, 0), "L": _luma(how.background)}
        inner = _largest_inside(image.size, size)
        padded = Image.new(image.mode, size, frames[image.mode])
        padded.paste(image.resize(inner, resample), ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
        image = padded
    else:
        cropped = _crop_center(image, *size)
        if how.crop == "none" and cropped.size != image.size:
            shape = "square" if size[0] == size[1] else f"of the shape of {size_text(how.resolution)}"
            raise Unusable(f"is {size_text(image.size)}, not {shape} (--crop center would crop it)")
        image = cropped.resize(size, resample)
    image.info = {}  # it may hold a colour profile or a transparent colour, which `save` would write
    return image


def write_dataset(
    out: str | os.PathLike,
    images: Iterable[LabelledImage],
    *,
    overwrite: bool = False,
    stored: FileFormat = PNG,
    class_names: Sequence[str] = (),
    shard_bytes: int | None = None,
) -> int:
    """Writes images as a data set, and returns their number. Either all images have a label, or none has.

    With the extension `.zip`, `out` is an archive, and replaces an existing one only with `overwrite`. Otherwise it is
    a folder, which must be new or empty; with `shard_bytes`, of tar files. It is written atomically, through a link to
    where that leads, and the same images give the same bytes.

    Raises UserError if `out` cannot be written.
    """
    out, real = Path(out), real_path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if shard_bytes:
            check_shards(out)
            samples = ((stored.encode(image), stored.suffix[1:], _class_for_shards(label)) for image, label in images)
            return _write_folder(out, lambda folder: write_shards(folder, samples, shard_bytes, class_names))
        if out.suffix.lower() != ".zip":
            return _write_folder(out, lambda folder: _write_files(folder, images, stored, class_names))
        if out.is_dir():
            raise UserError(f"{out} is a folder; name a file with --out")
        if out.exists() and not overwrite:
            raise UserError(f"{out} exists; name another file with --out, or replace it with --overwrite")
        with atomic_write(real, replace=overwrite) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            return _write_all(
                images, lambda name, data: archive.writestr(archive_member(name), data), stored, class_names
            )
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {out}: {reason}; name another path with --out") from None


def check_folder(out: Path) -> Path:
    """The whole path of a folder that can be made, or is empty. Raises UserError for another one."""
    if out.suffix.lower() in (".tar", ".parquet"):
        raise UserError(f"{out} would be a folder with the name of a shard; name one without {out.suffix}")
    named, out = out, real_path(out)
    if out == Path.cwd():
        raise UserError(f"{named} is the current folder; name another one with --out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder; name another one with --out")
    return out


def check_shards(out: Path) -> None:
    """Raises UserError where no shards can be written to `out`."""
    if out.suffix.lower() == ".zip":
        raise UserError(f"{out} is the name of one file, but shards are several; name a folder with --out")
    check_folder(out)


def _write_folder(out: Path, fill: Callable[[Path], int]) -> int:
    """Makes a new folder with what `fill` writes into it, and returns what that returns."""
    out = check_folder(out)
    beside = temporary_path(out)
    beside.mkdir()

    try:
        count = fill(beside)
        if out.exists():
            out.rmdir()
        os.replace(beside, out)
        return count
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write_files(folder: Path, images: Iterable[LabelledImage], stored: FileFormat, class_names: Sequence[str]) -> int:
    def write(name: str, data: bytes) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return _write_all(images, write, stored, class_names)


def _write_all(
    images: Iterable[LabelledImage],
    write: Callable[[str, bytes], None],
    stored: FileFormat,
    class_names: Sequence[str],
) -> int:
    names: list[str] = []
    labels: list[Label | None] = []
    label_bytes = 0
    for index, (image, label) in enumerate(images):
        names.append(f"{index // 1000:05d}/img{index:08d}{stored.suffix}")
        labels.append(label)
        label_bytes += len(json.dumps([names[-1], label])) + 2  # as in `dump_labels`
        if label_bytes > MAX_LABEL_BYTES and label is not None:
            shards = "" if isinstance(label, tuple) else "write shards with --shards 256MB, or "
            raise UserError(
                f"the labels of more than {index:,} images are too large for {LABEL_FILE}; {shards}take fewer images "
                "with --max, or leave the labels out with --labels none"
            )
        write(names[-1], stored.encode(image))
    write(LABEL_FILE, dump_labels(names, labels, class_names))
    return len(names)


def archive_member(name: str) -> zipfile.ZipInfo:
    """An archive member whose metadata does not depend on the machine and the time."""
    member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    member.create_system, member.external_attr = 3, 0o644 << 16
    return member


def _class_folders(files: ImageFiles | ShardFiles, how: Conversion) -> tuple[ClassFolders, tuple[str, ...]]:
    """The folders of the classes, and those of them with a file that can be converted, at least two, or none.

    A folder with all that is an image, by its name or its content, wraps the classes, whatever lies beside it. Raises
    UserError if there are not two.
    """
    found = class_folders(files.names)
    while len(usable := _usable_folders(files, found, how)) == 1:
        outside = (name for name in files.names if found.of(name) != usable[0])
        if any(name.lower().endswith((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)) for name in outside):  # of another class
            break
        found = class_folders(name for name in files.names if found.of(name) == usable[0])
    if len(found.names) < 2 or len(usable) == 1:
        one = f"{found.above}{''.join(usable or found.names)}".rstrip("/")
        only = f"only {printable(one)}{' with a usable image' * (len(found.names) > 1)}" if one else "none"
        raise UserError(
            f"--labels folders needs a folder for each class, of which {files.path} has {only}; sort the images into a "
            "folder for each class, and name the folder that holds these with --source"
        )
    return found, usable


def _class_for_shards(label: Label | None) -> int | None:
    """Raises UserError for a label vector, which shards cannot hold."""
    if isinstance(label, tuple):
        raise UserError("shards hold classes, not labels of numbers; leave out --shards, or add --labels none")
    return label


def _class_of(numbers: Mapping[str, int], folder: str | None) -> int:
    """The number of a class by its folder. Raises Unusable for a file that lies in none, or in one without a number."""
    if folder is None:
        raise Unusable("is in no folder of a class")
    if folder not in numbers:
        raise Unusable("cannot be used, and neither can any other file of its class")
    return numbers[folder]


def _largest_inside(shape: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The largest width and height inside of `size` of a shape, of at least a pixel; both are (width, height)."""
    scale = min(size[0] / shape[0], size[1] / shape[1])
    return max(round(shape[0] * scale), 1), max(round(shape[1] * scale), 1)


def _crop_center(image: Image.Image, width: int, height: int) -> Image.Image:
    """The largest rectangle in the middle of an image with the shape of width × height."""
    if image.width * height > image.height * width:  # too wide
        wide, high = max(round(image.height * width / height), 1), image.height
    else:
        wide, high = image.width, max(round(image.width * height / width), 1)
    left, top = (image.width - wide) // 2, (image.height - high) // 2
    return image.crop((left, top, left + wide, top + high))


def _luma(color: tuple[int, int, int]) -> int:
    """A colour in greyscale, as Pillow converts it."""
    return cast(int, Image.new("RGB", (1, 1), color).convert("L").getpixel((0, 0)))
