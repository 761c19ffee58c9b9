"""The cache folder: compiled kernels, downloaded weights and statistics, in which nobody else can put anything.

What is in it is used as it is, and the kernels are code. So the folder is made for its user alone, and nothing is
taken from it that another user could have put there.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


class NotPrivate(OSError):
    """Something in the cache folder that another user could have put there. Its text says what to do."""


def cache_folder() -> Path:
    """The folder of compiled and downloaded files: $ADACONV_CACHE, $XDG_CACHE_HOME/adaconv or ~/.cache/adaconv."""
    if folder := os.environ.get("ADACONV_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "adaconv"


def make_private_folder(folder: Path) -> None:
    """Makes a folder in the cache folder, or that itself, with access for this user alone, if it does not exist.

    Raises NotPrivate as `check_private` does, and OSError where it cannot be made.
    """
    cache_folder().parent.mkdir(parents=True, exist_ok=True)
    for part in _from_root(folder):
        part.mkdir(mode=0o700, exist_ok=True)
        check_private(part)


def check_private(path: Path) -> None:
    """Raises NotPrivate unless the cache folder, `path` in it, and what is between belong to this user or root.

    Nobody else may be able to write to them, and none may be a link. Raises FileNotFoundError where one is missing.
    """
    for part in _from_root(path):
        status = part.lstat()
        if stat.S_ISLNK(status.st_mode):
            problem = "is a link"
        elif not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
            problem = "is neither a file nor a folder"
        elif status.st_uid not in (os.geteuid(), 0):
            problem = "belongs to another user"
        elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            problem = "can be written to by other users"
        else:
            continue
        raise NotPrivate(f"{part} {problem}, so it is not used; name a folder of your own with ADACONV_CACHE=")


def _from_root(path: Path) -> list[Path]:
    """The cache folder, and each part of the way from there to `path`."""
    root = cache_folder()
    parts = path.relative_to(root).parts
    return [root.joinpath(*parts[:count]) for count in range(len(parts) + 1)]
