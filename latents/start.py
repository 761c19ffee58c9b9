"""What a command starts from: the latents of files, as projector.py writes them, and those of seeds."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from latents.cli import Model, ModelOptions
from latents.codes import Codes, join_codes, load_codes
from latents.names import seeds_name, target_names
from models.sampling import SEEDS_OF
from torch_utils import cli
from torch_utils.errors import UserError, printable


@dataclass(frozen=True)
class Start:
    """The latents of N images, those of files before those of seeds, and what the images are called."""

    codes: Codes
    files: list[str]  # the names of those of files
    image_names: list[str]  # of these, for their images
    seeds: Sequence[int] = ()

    @property
    def names(self) -> list[str]:
        """What a sheet calls each image: `anna`, or `3` for a seed."""
        return [*self.files, *map(str, self.seeds)]

    @property
    def text(self) -> str:
        """All of them in a file's name: `anna_0003-0005`."""
        return "_".join([*self.files, *([seeds_name(self.seeds)] if self.seeds else [])])

    def with_seeds(self, model: Model, seeds: Sequence[int], ws: Tensor) -> Start:
        """These latents, truncated as the model says, and after them ws [N, num_ws, w_dim] of seeds."""
        own = Codes(model.G.truncated(self.codes.ws, model.psi), self.codes.noise)
        return replace(self, codes=join_codes(model.G, [own, Codes(ws)]), seeds=seeds)


def codes_option(*names: str, use: str) -> Callable:
    """An option that takes files of latents; `use` says what for."""
    help_text = (
        f"Latents {use}: an .npz file that projector.py wrote. Can be given several times; 'out/projected-*.npz' in "
        "quotes names all such files."
    )
    return cli.option("Images", *names, multiple=True, metavar="FILE", help=help_text)


def check_options(option: str, files: Sequence[str], seeds: Sequence[int] | None, options: ModelOptions) -> None:
    """Raises UserError if options are given that do not apply to the latents of the files that `option` names."""
    if not files:
        return
    if not seeds and options.seeds_of != SEEDS_OF[0]:
        raise UserError("--seeds-of says what seeds draw, and there are none; leave it out")
    if not seeds and (options.classes is not None or options.label):
        given = "--label" if options.label else "--class"
        raise UserError(f"{given} applies to seeds; the latents of {option} have their labels in them; leave it out")
    if options.trunc_class:
        raise UserError(
            f"--trunc-class applies to seeds; the class of the latents of {option} is not known; leave it out"
        )
    if options.noise_mode == "random":
        raise UserError(f"--noise-mode random draws noise from seeds; take const or none with {option}")


def read_codes(files: Sequence[str], model: Model) -> Start:
    """The latents of files, one after the other, as they are there, without truncation; none without files.

    An image is called as the target that it was found for, without the extension, or `w0003` where the file does not
    say. A file that was made with another model gets a note. Raises UserError.
    """
    read = []
    for file in _listed(files):
        read.append(load_codes(file, model.G))
        model.compare_origin(file, read[-1].about.get("fingerprint"))
    targets = [name for codes in read for name in codes.targets or [""] * len(codes.ws)]
    names = target_names([target or f"w{number:04d}" for number, target in enumerate(targets)])
    images = [f"w-{name}" if target else name for name, target in zip(names, targets, strict=True)]
    return Start(join_codes(model.G, read), names, images)


def _listed(files: Sequence[str]) -> list[str]:
    """The files, with those that fit it in place of each pattern. Raises UserError for a pattern that fits none."""
    found: list[str] = []
    for file in files:
        if os.path.exists(file) or not glob.has_magic(file):
            found.append(file)
        elif matches := sorted(glob.glob(file)):
            found += matches
        else:
            raise UserError(f"no file fits {printable(file)}; name files that projector.py wrote")
    return found
