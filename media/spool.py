"""The order in which files are read for a conversion: any order, though shards are fast in their own order only."""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from media.decode import Unusable
from media.image_files import ImageFiles
from media.shards import ShardFiles
from torch_utils.errors import UserError


def plan_reading(
    files: ImageFiles | ShardFiles, names: Sequence[str], limit: int | None, mixed: bool, seed: int, folder: Path
) -> tuple[Callable[[str], bytes], Sequence[str]]:
    """What reads a file, and the names in the order in which they are read: the first `limit`, and then the others.

    These take the place of what cannot be used. The first ones are in random order if `mixed`. Of shards they are in
    the shards' order or, mixed, in a `Spool`. Raises UserError.
    """
    if limit is None and not mixed:
        return files.read, names
    chosen = list(names[:limit])
    others = names[len(chosen) :]
    if mixed:
        chosen = random.Random(seed).sample(chosen, len(chosen))
    if not isinstance(files, ShardFiles):
        return files.read, [*chosen, *others]
    if mixed:
        return Spool(files, chosen, folder).read, [*chosen, *others]
    return files.read, [*sorted(chosen, key=files.names.number), *others]


class Spool:
    """Files of shards in a temporary file, from which any of them is read fast.

    It lies in `folder`, takes as much room as the files, and vanishes with the object. Raises UserError where it cannot
    be written.
    """

    def __init__(self, files: ShardFiles, names: Sequence[str], folder: Path):
        self.files, self.places = files, dict[str, tuple[int, int]]()
        in_order = sorted(names, key=files.names.number)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            for name in tqdm(in_order, desc="reading shards", unit=" files", file=sys.stderr, disable=None):
                with suppress(Unusable):  # `read` says why
                    self.places[name] = self.file.tell(), self.file.write(files.read(name))
            self.file.flush()
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"cannot copy the images of the shards to {folder}: {reason}; name another path with --out"
            ) from None

    def read(self, name: str) -> bytes:
        """An image file, from the shard if it is none of the names. Raises Unusable."""
        if name not in self.places:
            return self.files.read(name)
        start, size = self.places[name]
        self.file.seek(start)
        return self.file.read(size)
