"""Writes tar files as WebDataset lays them out: an image and, where there are labels, a JSON file for each sample."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from media.shard_rows import CLASS_FILE

Sample = tuple[bytes, str, int | None]  # an image file, its suffix without the dot, and the class
END_BYTES = 1024  # two empty blocks, with which a tar file ends


def write_shards(folder: Path, samples: Iterable[Sample], shard_bytes: int, class_names: Sequence[str] = ()) -> int:
    """Writes `folder/00000.tar` and so on, each of up to `shard_bytes`, and returns the number of samples.

    A sample that is larger has a shard of its own. The names of the classes go into a `dataset.json` beside the shards.
    The same samples give the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for shard, members in itertools.groupby(in_shards(samples, shard_bytes), key=lambda found: found[0]):
        with tarfile.open(folder / f"{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            for _, contents in members:
                for suffix, content in contents.items():
                    member = tarfile.TarInfo(f"{count:08d}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps a record of each
                count += 1
    if class_names:
        (folder / CLASS_FILE).write_text(json.dumps({"labels": None, "class_names": list(class_names)}))
    return count


def in_shards(samples: Iterable[Sample], shard_bytes: int) -> Iterator[tuple[int, dict[str, bytes]]]:
    """The number of the shard of each sample, and its files by their suffixes."""
    shard, taken = 0, END_BYTES
    for data, suffix, label in samples:
        contents = {suffix: data}
        if label is not None:
            contents["json"] = json.dumps({"label": label}).encode()
        size = sum(512 + -(-len(content) // 512) * 512 for content in contents.values())
        if taken > END_BYTES and -(-(taken + size) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE > shard_bytes:
            shard, taken = shard + 1, END_BYTES
        taken += size
        yield shard, contents
