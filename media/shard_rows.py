"""The samples of one shard, one after another: of a tar file as WebDataset lays it out, or of a Parquet file.

A shard is read as a stream, from a disk or through fsspec from elsewhere. Nothing in it is executed or unpickled.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from media.labels import MAX_CLASSES, are_class_names
from torch_utils.errors import UserError, one_line
from torch_utils.files import open_regular
from torch_utils.schema import read_json

MAX_IMAGE_BYTES = 256 << 20
MAX_LABEL_BYTES = 1 << 20
MAX_RECORD = 1 << 20  # bytes to whose multiples programs fill up a tar file
MAX_RATIO = 64  # of a compressed tar file: unpacked bytes to those read
CLASS_FILE = "dataset.json"
IMAGE_NAMES = ("image", "img", "png", "jpg", "jpeg", "webp")  # suffixes in tar files, or columns of Parquet files
LABEL_NAMES = ("label", "labels", "cls", "class")

MORE = "more follows where it should end; it is damaged, or several tar files in one"
CHECKSUM = 8  # bytes after what gzip has compressed

Row = tuple[bytes, int]  # an image file and its class; -1 for none


class ShardError(Exception):
    """A shard that is not as it should be: the message is the reason."""


def rows(address: str, start: int = 0) -> Iterator[Row]:
    """Yields the samples of a shard, from the position `start` on.

    An image file that is larger than MAX_IMAGE_BYTES is left empty. Raises ShardError, OSError, and what the libraries
    raise for damaged files.
    """
    with open_shard(address) as file:
        yield from parquet_rows(file, start) if address.lower().endswith(".parquet") else tar_rows(file, start)


def open_shard(address: str) -> BinaryIO:
    """Opens a local file, or one at an address such as `s3://…`, for reading. Raises OSError."""
    if "://" not in address:
        return open_regular(address)
    import fsspec

    return cast(BinaryIO, fsspec.open(address, "rb").open())


def label_number(value: Any) -> int:
    """A class, from 0 to 99,999; -1 for everything else. Of a sample's JSON, the first with one counts."""
    found = [value.get(name) for name in LABEL_NAMES] if isinstance(value, dict) else [value]
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool) and 0 <= n < MAX_CLASSES), -1)


def class_names(address: str) -> tuple[str, ...]:
    """The names of the classes: from the columns of a Parquet file, or a `dataset.json` beside a local tar file."""
    if address.lower().endswith(".parquet"):
        with open_shard(address) as file, import_parquet().ParquetFile(file) as table:
            _, label = find_columns(table.schema_arrow)
            names = features_of(table.schema_arrow).get(label or "", {}).get("names")
    elif "://" in address:
        return ()
    else:
        try:
            content = read_json(Path(address).with_name(CLASS_FILE))
            names = content.get("class_names") if isinstance(content, dict) else None
        except (OSError, ValueError):
            return ()
    return tuple(names or ()) if are_class_names(names) else ()


# --- WebDataset -----------------------------------------------------------------------------------------------------


def tar_rows(file: BinaryIO, start: int = 0) -> Iterator[Row]:
    """The samples of a tar file. Members that follow one another and differ in their suffixes only are one sample.

    A member `.png`, `.jpg` or `.webp` is the image. The first member `.json` or `.cls` with a class gives it. What has
    no image is no sample. Raises ShardError for a file that is cut off, damaged between its members, or compressed to
    much less than images can be.
    """
    key, image, label, position = "", None, -1, 0
    with tarfile.open(fileobj=file, mode="r|*", tarinfo=Member) as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps all members, which would be the whole of the memory
            if is_bomb(archive, member, file):
                raise ShardError("it unpacks to much more than it has, as only harmful files do")
            folder, slash, name = member.name.rpartition("/")
            if not member.isfile() or name.startswith("."):
                continue
            stem, _, suffix = name.partition(".")
            if (member_key := folder + slash + stem) != key:
                if image is not None and (position := position + 1) > start:
                    yield image, label
                key, image, label = member_key, None, -1
            suffix = suffix.lower()
            if suffix in IMAGE_NAMES and image is None:
                image = read_member(archive, member, MAX_IMAGE_BYTES) if position >= start else b""
            elif suffix in ("json", "cls") and label < 0 and position >= start:
                label = parse_label(suffix, read_member(archive, member, MAX_LABEL_BYTES))
        check_end(archive, file)
        if image is not None and position + 1 > start:
            yield image, label


def is_bomb(archive: tarfile.TarFile, member: tarfile.TarInfo, file: BinaryIO) -> bool:
    """Whether a compressed file claims far more bytes than images can become. Of a plain one, what it has is all."""
    if archive.fileobj.comptype == "tar":  # type: ignore[attr-defined]
        return False
    return member.offset_data + member.size > MAX_IMAGE_BYTES + MAX_RATIO * file.tell()


# Headers of a member with more than fits one block, such as a long name. `tarfile` reads them into memory.
LONG_HEADERS = {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK} | {
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE
}  # fmt: skip
MAX_HEADER_BYTES = 1 << 20


class Member(tarfile.TarInfo):
    """A header. `tarfile` takes a file for whole that is cut off or damaged at one; here the end has to be marked."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Member:
        if len(buf) < tarfile.BLOCKSIZE:
            raise ShardError("it is cut off")
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.InvalidHeaderError:  # type: ignore[attr-defined]
            raise ShardError("something other than a member of a tar file is in it") from None
        if member.type in LONG_HEADERS and member.size > MAX_HEADER_BYTES:
            raise ShardError(f"a name or header in it has {member.size:,} bytes, as only harmful files have")
        return member


def check_end(archive: tarfile.TarFile, file: BinaryIO) -> None:
    """Raises ShardError where more follows than the zeros with which programs fill up the last record of a tar file.

    `tarfile` takes the first block of zeros for the end, also in a file with a hole, in one whose download was not
    completed, and where another tar file follows. Records have 20 blocks, or in other programs a power of two.
    """
    stream: Any = archive.fileobj
    while (tail := stream.tell() - archive.offset) < 2 * tarfile.BLOCKSIZE + MAX_RECORD and not has_ended(stream):
        if not (block := stream.read(tarfile.BLOCKSIZE)):
            break
        if block.strip(b"\0"):
            raise ShardError(MORE)
    if has_ended(stream) and len((stream.cmp.unused_data + file.read(MAX_RECORD)).rstrip(b"\0")) > CHECKSUM:
        raise ShardError(MORE)
    if archive.offset == 0:
        raise ShardError("there is no file in it")
    record = max(tarfile.RECORDSIZE, min(stream.tell() & -stream.tell(), MAX_RECORD))
    if tail >= 2 * tarfile.BLOCKSIZE + record:
        raise ShardError("its end is zeros, as if it was not copied whole; copy it again, or pack it again with tar")


def has_ended(stream: Any) -> bool:
    """Whether all of a compressed file is read; `tarfile` would collect in memory what follows."""
    return stream.comptype != "tar" and stream.cmp.eof and not stream.dbuf


def read_member(archive: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> bytes:
    """The content of a member; empty where it is larger than `limit`."""
    if member.size > limit or member.issparse() or (content := archive.extractfile(member)) is None:
        return b""
    return content.read()


def parse_label(suffix: str, data: bytes) -> int:
    """The class in a member `.json` or, as a number such as `03`, in a member `.cls`; -1 if there is none."""
    try:
        return label_number(int(data) if suffix == "cls" and data.strip().isdigit() else json.loads(data))
    except (ValueError, RecursionError):
        return -1


# --- Parquet --------------------------------------------------------------------------------------------------------


def parquet_rows(file: BinaryIO, start: int = 0) -> Iterator[Row]:
    """The rows of a Parquet file: images as binary columns, or as the columns that Hugging Face's data sets have.

    One row is in memory at a time: all rows of a small file may share one value, which is as large as a page can be.
    """
    parquet = import_parquet()
    with parquet.ParquetFile(file) as table:
        image, label = find_columns(table.schema_arrow)
        groups = list(range(table.num_row_groups))
        while groups and start >= (count := table.metadata.row_group(groups[0]).num_rows):
            start -= count
            groups.pop(0)
        columns = [image] if label is None else [image, label]
        for row in islice(table.iter_batches(1, groups, columns) if groups else (), start, None):
            number = None if label is None else row.column(label)[0].as_py()
            yield image_bytes(row.column(image)[0].as_py()), label_number(number)


def import_parquet() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError("reading Parquet files needs pyarrow; install it with: pip install 'datasets>=4.0'") from None
    return parquet


def find_columns(schema: Any) -> tuple[str, str | None]:
    """The names of the columns of images and of classes. Raises ShardError if there are no images."""
    kinds = {name: feature.get("_type") for name, feature in features_of(schema).items()}
    images = [name for name in schema.names if kinds.get(name) == "Image"]
    images += [name for name in IMAGE_NAMES if name in schema.names]
    labels = [name for name in schema.names if kinds.get(name) == "ClassLabel"]
    labels += [name for name in LABEL_NAMES if name in schema.names]
    labels = [name for name in labels if str(schema.field(name).type).startswith(("int", "uint"))]
    if not images:
        raise ShardError(f"no column holds images; its columns are {one_line(', '.join(schema.names))}")
    return images[0], labels[0] if labels else None


def features_of(schema: Any) -> dict[str, dict[str, Any]]:
    """What Hugging Face's metadata says of each column; {} without any."""
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: feature for name, feature in found.items() if isinstance(feature, dict)}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def image_bytes(value: Any) -> bytes:
    """The image file in a cell; empty where there is none, but only, for example, the name of a file."""
    data = value.get("bytes") if isinstance(value, dict) else value
    return data if isinstance(data, bytes) and len(data) <= MAX_IMAGE_BYTES else b""
