"""What the commands of generate.py share: options, and the model that they name."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import torch
from torch import Tensor
from tqdm import tqdm

from latents.codes import fingerprint
from latents.mixing import PARTS
from latents.names import class_name
from media.labels import MAX_CLASSES
from models.classes import chosen_class, chosen_label
from models.hub import NETWORK_HELP, find_model
from models.sampling import SEEDS_OF, SEEDS_OF_HELP, SeedsOf, check_seeds, class_centers, labels_in_turn, latents
from models.snapshot import found_text, load_generator
from networks.generator import Generator
from torch_utils import cli
from torch_utils.cli import choose_device
from torch_utils.errors import UserError, note, one_line, plural
from torch_utils.memory import keep_freed_memory
from torch_utils.sizes import width_and_height

Shares = dict[int | str, float]  # of classes by number or by name, which sum to 1


# --- types of options -----------------------------------------------------------------------------------------------


class GridSize(click.ParamType):
    """Columns and rows such as `8x4`."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})", value.lower())
        if match is None:
            self.fail(f"{value!r} is not a size; write columns x rows, each up to 9999, e.g. 8x4", param, ctx)
        return int(match[1]), int(match[2])


class Numbers(click.ParamType):
    """Numbers within bounds such as `-3,0,3`."""

    name = "numbers"

    def __init__(self, low: float, high: float):
        self.type = cli.Float(low, high)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        parts = value.split(",") if isinstance(value, str) else [value]
        return tuple(self.type.convert(part, param, ctx) for part in parts)


class Classes(click.ParamType):
    """Classes such as `0-3,cat`, and mixtures of classes such as `1+cat`, or `1:0.2+cat:0.8` with their shares."""

    name = "classes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Shares]:
        if isinstance(value, list):
            return value
        found: list[Shares] = []
        for part in value.split(","):
            if re.fullmatch(r"\s*\d+\s*-\s*\d*\s*", part, re.ASCII):
                numbers = cli.NumberRanges(MAX_CLASSES - len(found)).convert(part, param, ctx)
                found.extend({number: 1.0} for number in numbers)
            else:
                found.append(self.mixture(part, param, ctx))
            if len(found) > MAX_CLASSES:
                self.fail(f"more than {MAX_CLASSES:,} classes; split them over several runs", param, ctx)
        return found

    def mixture(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> Shares:
        """One class, or the shares of several, joined by `+`."""
        shares: Shares = {}
        for term in text.split("+"):
            match = re.fullmatch(r"\s*([^:]+?)\s*(?::\s*(\d+\.?\d*|\.\d+)\s*)?", term, re.ASCII)
            if match is None:
                self.fail(f"{term.strip()!r} is not a class; write e.g. 3, cat, 0-5, 1+3 or 1:0.2+3:0.8", param, ctx)
            name = cli.ClassName().convert(match[1], param, ctx)
            shares[name] = shares.get(name, 0) + float(match[2] or 1)
        if not 0 < (total := sum(shares.values())) < math.inf:
            self.fail(f"the shares of {one_line(text.strip())!r} sum to {total:g}", param, ctx)
        return {name: share / total for name, share in shares.items()}


# --- options --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelOptions:
    """The options of every command: which model, and how its latents and images are made."""

    network: str | None = None
    trunc: tuple[float, ...] = (1.0,)
    trunc_class: bool = False
    classes: list[Shares] | None = None
    label: tuple[tuple[float, ...], ...] = ()
    seeds_of: SeedsOf = "adaconv"
    noise_mode: Literal["const", "random", "none"] = "const"
    batch: int | None = None
    precision: str = "fp32"
    device: str | None = None

    @property
    def labels(self) -> list[str]:
        """The names, in files' names, of the labels that images get in turn: `class2`, or `label0.2_0.7`."""
        vectors = ["label" + "_".join(f"{number:.6g}" for number in label) for label in self.label]
        return vectors or [f"class{class_name(shares)}" for shares in self.classes or []]


def model_options(command: Callable) -> Callable:
    """Adds the options of `ModelOptions`, which the command gets as the argument `options`."""
    return with_model_options("const: the model's constant noise. none: no noise.", "const", "none")(command)


def with_model_options(noise_help: str, *noise_modes: str) -> Callable:
    """`model_options` with other values of --noise-mode."""
    trunc_help = (
        "Truncation psi: 1 for none; towards 0, images approach the mean image. A list has a value for each layer in "
        "turn, such as 0.5,0.5,1; its last value is for all further layers."
    )
    trunc_class_help = "Truncate towards the mean image of each image's class, in place of the mean of all classes."
    class_help = (
        "Class of all images, by number or by name. Of several, such as 0-3,cat, each image gets one in turn. 1+3 is "
        "halfway between two classes, 1:0.2+3:0.8 nearer to class 3.  [default: the classes that occurred in "
        "training, in turn]"
    )
    label_help = (
        "Label of all images for a model whose labels are numbers, such as 0.2,0.7. Can be given several times: then "
        "each image gets one in turn.  [default: labels of the data set in turn]"
    )
    batch_help = (
        "Images at a time. This changes speed and memory, and, as sums are rounded in another order, single values of "
        "some images by one level of 255.  [default: 64; 16 above 64²]"
    )
    modes = click.Choice(noise_modes)
    added = (
        cli.network_option(help=NETWORK_HELP),
        cli.option("Images", "--trunc", type=Numbers(-9, 9), default="1.0", help=trunc_help),
        cli.option("Images", "--trunc-class", is_flag=True, help=trunc_class_help),
        cli.option("Images", "--class", "classes", type=Classes(), help=class_help),
        cli.option("Images", "--label", type=Numbers(-1e30, 1e30), multiple=True, help=label_help),
        cli.option("Images", "--seeds-of", type=click.Choice(SEEDS_OF), default=SEEDS_OF[0], help=SEEDS_OF_HELP),
        cli.option("Images", "--noise-mode", type=modes, default="const", help=noise_help),
        cli.option("Machine", "--batch", type=cli.Integer(1, 2**16), help=batch_help),
        cli.inference_precision_option(),
        cli.device_option(),
    )

    def decorate(command: Callable) -> Callable:
        command = cli.gather(ModelOptions, "options")(command)
        for add in reversed(added):
            command = add(command)
        return command

    return decorate


def seeds_option(*names: str, **settings: Any) -> Callable:
    """An option that takes seeds."""
    return cli.option("Images", *names, type=cli.NumberRanges(), **settings)


def layers_option(*names: str, use: str = "change", default: str = "all") -> Callable:
    """An option that takes layers, --layers by default; `default` is what its help says about leaving it out."""
    help_text = f"Layers to {use}, such as 0-3,5, where 0 is the coarsest.  [default: {default}]"
    return cli.option("Layers", *(names or ("--layers",)), "layers", type=cli.NumberRanges(), help=help_text)


def part_option() -> Callable:
    """`--part`, one of `latents.mixing.PARTS`."""
    help_text = (
        "Part of the layers' style to change: structure is the depthwise kernels, channels the pointwise kernels, bias "
        "the biases."
    )
    return cli.option("Layers", "--part", type=click.Choice(PARTS), default="all", help=help_text)


def scale_option(least: int) -> Callable:
    """`--scale`, whose default enlarges images to at least so many pixels a side."""
    help_text = f"Factor to enlarge images by, without smoothing.  [default: enlarge to at least {least} pixels]"
    return cli.option("Output", "--scale", type=cli.Integer(1, 64), help=help_text)


def in_turn(seeds: Sequence[int], labels: int) -> list[int]:
    """The seeds of a walk, repeated so that each of so many labels has one."""
    return [seeds[i % len(seeds)] for i in range(max(len(seeds), labels))]


# --- the model ------------------------------------------------------------------------------------------------------


@dataclass
class Model:
    """A generator, and how its latents are made."""

    G: Generator
    path: Path
    kimg: float
    psi: float | Tensor
    classes: list[dict[int, float]] | None  # the shares of classes by their numbers
    batch: int
    labels: Tensor | None = None  # [K, c_dim], the label vectors of --label
    seeds_of: SeedsOf = "adaconv"
    trunc_class: bool = False  # whether truncation is towards the mean of the class
    found: str = ""  # how the path was found, where the user named none

    def shares(self, seeds: Sequence[int]) -> Tensor:
        """c [N, c_dim] for seeds: what --class or --label give in turn, or the model's label of the seed's number."""
        given = len(self.classes or () if self.labels is None else self.labels)
        if given > len(seeds):
            unused = f"the last {given - len(seeds)} not used"
            note(f"note: {plural(given, 'label')} for {plural(len(seeds), 'image')}: {unused}")
        if self.labels is not None:
            return self.labels[torch.arange(len(seeds)) % len(self.labels)]
        if self.classes is None:
            return labels_in_turn(self.G, seeds).cpu()
        c = torch.zeros(len(seeds), self.G.config.c_dim)
        for i in range(len(seeds)):
            for number, share in self.classes[i % len(self.classes)].items():
                c[i, number] = share
        return c

    def zc(self, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """z [N, z_dim] and c [N, c_dim] of seeds, on the device of the model. Raises UserError for seeds without z."""
        check_seeds(seeds, self.seeds_of)
        device = self.G.w_avg.device
        return latents(seeds, self.G.config.z_dim, self.seeds_of).to(device), self.shares(seeds).to(device)

    @torch.no_grad()
    def ws(self, seeds: Sequence[int]) -> Tensor:
        """ws [N, num_ws, w_dim] of seeds."""
        z, c = self.zc(seeds)
        return self.G.ws(z, c, self.psi, self.centers(c))

    def centers(self, c: Tensor) -> Tensor | None:
        """The w [N, w_dim] that images of c [N, c_dim] are truncated towards; None for the mean of all."""
        return class_centers(self.G, c) if self.trunc_class else None

    def announce(self) -> None:
        """Prints which model it is."""
        note(f"network: {self.path} ({self.kimg:g} kimg){self.found}")

    def compare_origin(self, file: str, origin: object) -> None:
        """Prints a note if a file was made with another model; `origin` is the fingerprint in it, if there is one."""
        if origin is not None and origin != fingerprint(self.path):
            note(f"note: {file} was made with another model than {self.path}")


def open_model(options: ModelOptions) -> Model:
    """The model that the options name. Raises UserError if they do not fit it."""
    keep_freed_memory()
    path = find_model(options.network)
    G, info = load_generator(path, torch.device(choose_device(options.device)))
    set_precision(G, options.precision)
    return prepare_model(G, info, path, options)


def set_precision(G: Generator, precision: str) -> None:
    """Lets a generator compute in a precision. Raises UserError if it could overflow in that."""
    try:
        G.synthesis.compute_in(precision)
    except ValueError as error:
        raise UserError(f"--precision {precision}: {error}") from None


def prepare_model(G: Generator, info: Mapping[str, Any], path: Path, options: ModelOptions) -> Model:
    """A generator that has been loaded from `path` with its `info`. Raises UserError if the options do not fit it."""
    numbers = {name: chosen_class(name, G.config, info, path) for shares in options.classes or [] for name in shares}
    classes = None if options.classes is None else [by_number(shares, numbers) for shares in options.classes]
    small = math.prod(width_and_height(G.config.resolution)) <= 64 * 64
    batch = options.batch or (64 if small else 16)  # small layers are fast only with many images
    labels = torch.stack([chosen_label(label, G, path) for label in options.label]) if options.label else None
    if options.trunc_class:
        check_trunc_class(options, G, path)
    if options.noise_mode == "random" and not G.config.noise:
        note(f"note: {path} has no noise; --noise-mode random changes nothing")
    psi = layer_psi(options.trunc, G.config.num_ws)
    found = found_text(options.network, path)
    return Model(G, path, info["kimg"], psi, classes, batch, labels, options.seeds_of, options.trunc_class, found)


def check_trunc_class(options: ModelOptions, G: Generator, path: Path) -> None:
    """Raises UserError where --trunc-class would change nothing."""
    if not G.config.c_dim:
        raise UserError(f"--trunc-class: {path} was trained without classes; leave out --trunc-class")
    if all(psi == 1 for psi in options.trunc):
        raise UserError("--trunc-class says what --trunc truncates towards; add e.g. --trunc 0.7, or leave it out")


def by_number(shares: Shares, numbers: Mapping[int | str, int]) -> dict[int, float]:
    """Shares of classes that are given by number or by name, by number."""
    found: dict[int, float] = {}
    for name, share in shares.items():
        found[numbers[name]] = found.get(numbers[name], 0) + share
    return found


def layer_psi(trunc: tuple[float, ...], num_ws: int) -> float | Tensor:
    """The truncation of all layers as one number, or [num_ws] from several numbers, the last of which is repeated."""
    if len(trunc) == 1:
        return trunc[0]
    if len(trunc) > num_ws:
        raise UserError(f"--trunc has {len(trunc)} numbers, but the model has {num_ws} layers; write fewer")
    return torch.tensor([*trunc, *[trunc[-1]] * (num_ws - len(trunc))])


def collect(batches: Iterable[Tensor], total: int) -> Tensor:
    """All images of the batches, with a progress bar if stderr is a terminal."""
    images = []
    with tqdm(total=total, unit="image", disable=not sys.stderr.isatty()) as bar:
        for batch in batches:
            images.append(batch)
            bar.update(len(batch))
    return torch.cat(images)
