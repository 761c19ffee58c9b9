"""Names of the files that commands write: they say what of the command line an image or a sheet depends on."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from torch_utils.errors import UserError, consecutive, numbers_text
from torch_utils.files import short_name

LONGEST_NAME = 120  # bytes of an image's or a sheet's name; what is longer ends with a digest


def image_names(seeds: Sequence[int], labels: Sequence[str]) -> list[str]:
    """`seed0005` for each image, or `seed0005-class2` if the label varies; what is longer ends with a digest."""
    names = [f"seed{seed:04d}" for seed in seeds]
    if varies(labels):
        names = [f"{name}-{labels[i % len(labels)]}" for i, name in enumerate(names)]
    return [short_name(name, LONGEST_NAME) for name in names]


def varies(labels: Sequence[str]) -> bool:
    """Whether --class or --label give images different labels."""
    return len(set(labels)) > 1


def class_name(shares: Mapping[int | str, float]) -> str:
    """`2` or `cat` for a class, `1+3` for equal shares of two, and `1_0.2+3_0.8` for others."""
    equal = len(set(shares.values())) == 1
    return plain("+".join(str(term) if equal else f"{term}_{share:.6g}" for term, share in shares.items()))


def plain(text: str) -> str:
    """The text with `_` in place of all but letters, digits and `_.+-`, for a part of a file's name."""
    return re.sub(r"[^\w.+-]", "_", text)


def target_names(targets: Sequence[str]) -> list[str]:
    """Images' names as parts of files' names, no two of them alike: `anna` for `anna.jpg`, `a_1` for `a/1.png`.

    Those that only their extensions tell apart keep them, `anna.jpg`; what is then still alike gets a number.
    """
    stems = [plain(os.path.splitext(target)[0]) or "image" for target in targets]
    count = Counter(stems)
    found: dict[str, None] = {}
    last: Counter[str] = Counter()
    for target, stem in zip(targets, stems, strict=True):
        name = unique = short_name(stem if count[stem] == 1 else plain(target), LONGEST_NAME)
        while unique in found:
            last[name] += 1
            unique = f"{name}-{last[name] + 1}"
        found[unique] = None
    return list(found)


def check_names(names: Sequence[str]) -> None:
    """Raises UserError if two images would be written into one file."""
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UserError(
            f"{count} images would be written to {name}.png; name each seed once, or make one sheet with --grid"
        )


def seeds_name(seeds: Sequence[int]) -> str:
    """Seeds in a file's name: `0003`, `0000-0007`, or `0000-0003_0200` if they are not consecutive."""
    runs = consecutive(seeds)
    return "_".join(f"{first:04d}" if first == last else f"{first:04d}-{last:04d}" for first, last in runs)


def sheet_name(name: str, part: str = "all", layers: Sequence[int] | None = None, labels: Sequence[str] = ()) -> str:
    """The name of a sheet's file with the part and the layers that were chosen, and the labels if they vary."""
    if part != "all":
        name += f"-{part}"
    if layers is not None:
        name += f"-layers{numbers_text(sorted(set(layers))).replace(',', '_')}"
    if varies(labels):  # `-class0_1`
        kind = "label" if labels[0].startswith("label") else "class"
        name += f"-{kind}{'_'.join(label.removeprefix(kind) for label in labels)}"
    return short_name(name, LONGEST_NAME)


def seeds_sheet_name(seeds: Sequence[int], labels: Sequence[str]) -> str:
    """`seeds0000-0007`, for the sheet of the images of seeds."""
    numbers = seeds_name(seeds)
    return sheet_name(f"seeds{numbers if len(seeds) > 1 else f'{numbers}-{numbers}'}", labels=labels)
