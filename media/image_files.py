"""Files of images in a folder or a ZIP, by name. Archives are not trusted: no file is ever unpacked to the disk."""

from __future__ import annotations

import glob
import hashlib
import os
import shlex
import stat
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, cast

from media.checksums import folder_checksums
from media.decode import ALL_SUFFIXES, IMAGE_SUFFIXES, Unusable
from torch_utils.errors import UserError, command_line, one_line, printable
from torch_utils.files import RUN_MARKER, missing_message, open_regular, regular
from torch_utils.tensors import what_it_seems

LABEL_FILE = "dataset.json"
CONVERT = "python", "dataset_tool.py", "convert"
HOW_TO_MAKE = "name a folder or ZIP of images, or draw some with: python dataset_tool.py faces --out faces32.zip"

# Limits on what an archive or a folder may demand.
UTF8_NAME = 0x800  # the flag of a member of a ZIP whose name is UTF-8
MAX_FILES = 5_000_000  # in a folder with all that is no file, such as other folders
MAX_VISITS = 100  # ways to one folder, through links; two links in each of 30 folders are a thousand million
MAX_FILE_BYTES = 256 << 20
MAX_LABEL_BYTES = 64 << 20  # as JSON they take twenty times as much memory
MAX_RATIO = 200  # unpacked bytes per byte of the archive


class ImageFiles:
    """The files in a folder and its subfolders, or in a ZIP, by name: sorted, with `/` between folders.

    Hidden files are left out, and so are files with an extension not in `suffixes`. The object can be pickled; each
    process opens the ZIP for itself. Raises UserError if `path` cannot be read, has no such files, or exceeds a limit.
    """

    random_access = True  # whether any file is read as fast as the next one

    def __init__(self, path: str | os.PathLike, suffixes: tuple[str, ...] = ("",)):
        self.path = Path(path)
        self.cycles: list[str] = []  # links to a folder that they lie in: these are not followed, others are
        self.runs: list[str] = []  # folders of training runs, whose sheets of fakes are no data
        self.others: list[str] = []  # images with an extension not in `suffixes`
        self._spelled: dict[str, str] = {}  # the names that an archive means, by those that `zipfile` reads
        self._members: dict[str, str] = {}  # what an archive or a folder calls a file whose normal name is another
        self._zip: tuple[int, zipfile.ZipFile] | None = None  # process id, and the archive as that process opened it
        try:
            self.is_zip = not self.path.is_dir()
            checks = self._list_zip() if self.is_zip else self._list_folder()
        except FileNotFoundError:
            raise UserError(missing_message(self.path, HOW_TO_MAKE)) from None
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
            if seems := what_it_seems(self.path, "a ZIP"):
                remedy = "" if ";" in seems else "; name a folder or ZIP of images"
                raise UserError(f"{self.path} is {seems}{remedy}") from None
            raise UserError(
                f"{self.path} is not a ZIP file, or is cut off ({one_line(error)}); "
                "copy it again, or name a folder of images"
            ) from None
        except OSError as error:
            raise UserError(f"cannot read {error.filename or self.path}: {error.strerror or error}") from None
        if len(checks) > MAX_FILES:
            raise UserError(f"{self.path} holds {len(checks):,} files; the limit is {MAX_FILES:,}")
        self.checks = self._with_normal_names(checks)  # by name: CRC32 in a ZIP, size in bytes in a folder
        visible = [name for name in self.checks if name.rpartition("/")[2] != LABEL_FILE and not _hidden(name)]
        self.names = sorted(name for name in visible if name.lower().endswith(suffixes))
        self.others = [
            name for name in visible if name.lower().endswith(IMAGE_SUFFIXES) and not name.lower().endswith(suffixes)
        ]
        if not self.names:
            what = f"images ({', '.join(suffixes)})" if suffixes != ("",) else "files"
            for end in (".tar", ".parquet"):
                if any(name.endswith(end) for name in self.checks):
                    shards = shlex.quote(f"{glob.escape(str(self.path))}/*{end}")
                    raise UserError(
                        f"{self.path} holds no {what} but shards; where --data takes these, name them with: "
                        f"--data {shards}"
                    )
            if readable := [name for name in self.others if name.lower().endswith(ALL_SUFFIXES)]:
                raise UserError(
                    f"{self.path} holds no {what}, but others such as {printable(min(readable))}; convert them with: "
                    + command_line(*CONVERT, "--source", self.path, "--out", f"{self.name}.zip", "--resolution", 256)
                )
            raise UserError(f"{self.path} holds no {what}; name the folder or ZIP that holds the images")

    def _with_normal_names(self, checks: dict[str, int]) -> dict[str, int]:
        """The files by their normal names; where a single folder wraps `dataset.json` and all else, without it."""
        normal: dict[str, int] = {}
        for member, check in checks.items():
            name = normal_name(self._spelled.get(member, member))
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
        visits: Counter[tuple[int, int]] = Counter()
        entries = 0
        while folders:
            folder, above = folders.pop()
            visits[above[-1]] += 1
            if visits[above[-1]] > MAX_VISITS:
                raise UserError(
                    f"links in {self.path} lead to one folder in more than {MAX_VISITS} ways, the last of which is "
                    f"{printable(folder.relative_to(self.path).as_posix())}; remove such links"
                )
            for entry in os.scandir(folder):
                entries += 1
                if entries > MAX_FILES:
                    raise UserError(
                        f"{self.path} holds more than {MAX_FILES:,} files and folders, the limit; name a part of it"
                    )
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
        # Not by `is_dir`, which fails where a name begins with a null byte, and so is empty.
        members = [member for member in self._archive().infolist() if not member.filename.endswith("/")]
        size, packed = sum(member.file_size for member in members), self.path.stat().st_size
        if size > MAX_RATIO * packed:
            raise UserError(
                f"{self.path} would unpack to {size:,} bytes from {packed:,}, as only harmful "
                "archives do; unpack it yourself if you trust it, and name the folder"
            )
        # Some programs write names in UTF-8 and do not say so, which are then read as those of DOS
        self._spelled = {m.filename: utf8_name(m.filename) for m in members if not m.flag_bits & UTF8_NAME}
        return {member.filename: member.CRC for member in members}

    def _archive(self) -> zipfile.ZipFile:
        if self._zip is None or self._zip[0] != os.getpid():
            self._zip = os.getpid(), zipfile.ZipFile(regular(self.path))
        return self._zip[1]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_zip": None}

    def open(self, name: str) -> BinaryIO:
        """Opens a file for reading. Raises Unusable."""
        try:
            called = self._members.get(name, name)
            if not self.is_zip:
                return open_regular(self.path / called)
            member = self._archive().getinfo(called)
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise Unusable("is compressed in an unusual way; unpack the archive, and name the folder")
            if member.file_size > MAX_FILE_BYTES:
                raise Unusable(f"is larger than {MAX_FILE_BYTES >> 20} MiB")
            return cast(BinaryIO, self._archive().open(member))
        except (OSError, RuntimeError, ValueError, zipfile.BadZipFile) as error:  # RuntimeError: encrypted
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
    def name(self) -> str:
        """What the data set is called: the name of the folder, or that of the ZIP without its extension."""
        path = self.path.resolve()
        return path.stem if self.is_zip else path.name

    @property
    def notes(self) -> list[str]:
        """What was left out of a folder or a ZIP, in lines for the user."""
        convertible = [name for name in self.others if name.lower().endswith(ALL_SUFFIXES)]
        unknown = [name for name in self.others if not name.lower().endswith(ALL_SUFFIXES)]
        found = (
            (self.cycles, "links that lead back to a folder above them"),
            (self.runs, "folders of training runs"),
            (convertible, "images that only dataset_tool.py convert reads"),
            (unknown, "images of formats that are not read; save them as JPEG or PNG"),
        )
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
        digest.update(self.label_bytes() or b"")
        return digest.hexdigest()[:16]

    def label_bytes(self) -> bytes | None:
        """The content of `dataset.json`, or None if there is none. Raises UserError."""
        try:
            return self.read(LABEL_FILE, MAX_LABEL_BYTES) if LABEL_FILE in self.checks else None
        except Unusable as reason:
            raise UserError(
                f"{LABEL_FILE} of {self.path} {reason}; copy it again, or convert the images with --labels folders or "
                "--labels none, which do not read it"
            ) from None


def normal_name(name: str) -> str:
    """A file's name in the one form in which names are compared: NFC, `/` between folders, no `.` for a folder.

    Archives made on Windows may have backslashes, and those made on macOS decomposed letters; labels may have either.
    """
    parts = unicodedata.normalize("NFC", name.replace("\\", "/")).split("/")
    return "/".join(part for part in parts if part not in ("", "."))


def utf8_name(name: str) -> str:
    """What `zipfile` read as a name in the characters of DOS, as UTF-8 where it is that."""
    try:
        return name.encode("cp437").decode("utf-8")
    except UnicodeError:
        return name


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
