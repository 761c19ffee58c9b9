"""From the options of a command line to the configuration of a training, checked against data and machine.

`options` are those that the user gave, under their names with underscores; a resumed run has the options of its record
below them. Nothing here changes them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import torch

from media.dataset import ImageDataset, convert_command, possible_resolution
from media.decode import ALL_SUFFIXES
from media.image_files import ImageFiles
from media.labels import check_same_classes
from metrics import find_detector, higher_is_better, parse_metric
from models.encoder import load_encoder
from models.snapshot import load_stylizer
from networks.discriminator import DiscriminatorConfig
from networks.generator import GeneratorConfig
from networks.stylizer import StylizerConfig
from networks.vgg import STRIDE, Classifier
from torch_utils import distributed
from torch_utils.errors import UserError, plural
from torch_utils.files import missing_message
from torch_utils.sizes import Resolution, nominal_side, size_text, width_and_height
from training.config import ClassifierConfig, Schedules, StylizerTrainConfig, TrainConfig
from training.finetune import find_initial, initial_fields
from training.presets import R3GAN_DECAY_KIMG, default_batch_gpu, preset

FASTER_BY = 1.5  # bf16 has to be, for `auto` to take it on a CPU: other parts of a step gain less

# --- the generator --------------------------------------------------------------------------------------------------


def configure_gan(options: Mapping[str, Any], resuming: bool = False) -> TrainConfig:
    """The configuration of train.py. Raises UserError or click.UsageError for options that cannot be used."""
    if "data" not in options:
        raise click.UsageError("--data is missing: name a folder or ZIP of images")
    values = dict(options)
    if "metrics" in options:
        values["metrics"] = parse_metrics(options["metrics"])
    if options.get("keep_best") == "none":
        values["keep_best"] = ""
    for path in options.get("detector_weights", []):
        if not Path(path).is_file():
            raise UserError(missing_message(Path(path), "name the file with --detector-weights"))
    if options.get("init_from") and not resuming:  # a resumed run records the file that it began with
        path = find_initial(options["init_from"])
        values = {**initial_fields(path, values.get("modulation")), **values, "init_from": str(path)}
    gpus = distributed.count_gpus(options.get("gpus"))
    dataset = ImageDataset(
        options["data"],
        use_labels=options.get("cond", False),
        background=options.get("background"),
        skip_unreadable=options.get("skip_unreadable", False),
    )
    values["vector_labels"] = dataset.vector_labels
    config = resolve(values, dataset.resolution, dataset.channels, dataset.c_dim, gpus)
    if not resuming:
        check_effect(options, dataset, config)
    if config.keep_best:
        try:
            higher_is_better(config.keep_best, config.metrics)
        except UserError as error:
            raise UserError(f"{error.message}; --keep-best none keeps none") from None
    return config


def check_effect(options: Mapping[str, Any], dataset: ImageDataset, config: TrainConfig) -> None:
    """Raises UserError for an option that would change nothing; a run that was begun with one may go on."""
    if options.get("background") and not dataset.transparent:
        raise UserError(f"--background is for transparent images, and {dataset.path} has none; leave it out")
    if options.get("cfg") == "r3gan" and options.get("loss", "relativistic") != "relativistic":
        raise UserError("--cfg r3gan is for the relativistic loss; leave --loss out, or take another --cfg")
    for name in ("pl_weight", "mixing") if config.schedules else ():
        if name in options:
            raise UserError(
                f"--{name.replace('_', '-')} is for StyleGAN2's recipe, and --cfg r3gan has its own; leave it out"
            )
    check_tf32(options, config.gpus)
    if "target" in options and config.aug == "fixed":
        keeps = "--cfg r3gan raises p by a schedule" if config.schedules else "--aug fixed keeps p"
        raise UserError(f"--target is for --aug ada, which adapts p to it, but {keeps}; leave --target out")


def parse_metrics(text: str | list[str]) -> list[str]:
    """The names in `fid50k_full,swd2k`, or [] for `none`; a list is of a resumed run. Raises UserError."""
    given = text.split(",") if isinstance(text, str) else text
    names = [] if text == "none" else [name.strip() for name in given]
    for name in names:
        if detector := parse_metric(name).detector:
            find_detector(detector)
    return names


def resolve(
    options: Mapping[str, Any], resolution: Resolution, img_channels: int, c_dim: int, gpus: int
) -> TrainConfig:
    """The configuration for a data set: the preset `options["cfg"]`, with every option that is given over it.

    Options whose value is None count as not given. Raises UserError for values that do not go together.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if given.get("freezed") and not given.get("init_from"):
        raise UserError("--freezed without --init-from would keep layers that never learned; name a run to start from")
    values = preset(given.get("cfg", "auto"), nominal_side(resolution), gpus)
    if given.get("loss") == "relativistic" and values.get("aug") == "ada":
        values["aug"] = "noaug"  # see check_augmentation
    check_augmentation(given, values)
    processes = count_processes(given, gpus, values.get("procs", 1))
    batch = given.get("batch", values["batch"])
    batch_gpu = given.get("batch_gpu") or default_batch_gpu(given.get("cfg", "auto"), max(batch // processes, 1))
    batch_gpu = split_batch(batch, batch_gpu, processes)
    # Karras et al. 2020 (StyleGAN2-ADA), `auto`: a heuristic for R1's weight
    values.setdefault("gamma", 0.0002 * math.prod(width_and_height(resolution)) / batch)
    values.setdefault("mbstd_group", 4)
    if given.get("init_from"):  # the weights have been averaged, and D knows its images (StyleGAN2-ADA, appendix D)
        values |= {"ema_rampup": None, "ada_kimg": 100.0}
    values |= given
    values |= {"gpus": gpus, "procs": processes, "batch_gpu": batch_gpu}
    values["precision"] = resolve_precision(values.get("precision"), gpus)
    if values["precision"] == "fp32":  # nothing can overflow, and the published code clamps only in half precision
        values["clamp"] = None
    generator = generator_config(values, resolution, img_channels, c_dim)
    shared = ("resolution", "img_channels", "c_dim", "cbase", "cmax", "clamp", "vector_labels")
    discriminator = DiscriminatorConfig(
        **{name: getattr(generator, name) for name in shared},
        map_depth=values.get("class_map_depth", generator.map_depth),
        # Samples that share a standard deviation are in one microbatch.
        mbstd_group=min(batch_gpu, values["mbstd_group"]),
    )
    if values.get("cfg") == "r3gan" and not values.get("schedules"):
        values["schedules"] = r3gan_schedules(values)
    return TrainConfig(**own_fields(TrainConfig, values), generator=generator, discriminator=discriminator)


def generator_config(
    values: Mapping[str, Any], resolution: Resolution, img_channels: int, c_dim: int
) -> GeneratorConfig:
    modulation = values.get("modulation", "adaconv")
    norm = values.get("norm") or ("instance" if modulation == "adain" else "demod")
    data = {"resolution": resolution, "img_channels": img_channels, "c_dim": c_dim}
    try:
        return GeneratorConfig(
            **{**own_fields(GeneratorConfig, values), **data, "modulation": modulation, "norm": norm}
        )
    except ValueError as error:
        if str(error).startswith("cbase: "):
            raise UserError(f"--{str(error).replace(': ', ' ', 1)}") from None
        raise UserError(f"--modulation {modulation} --norm {norm}: {error}") from None


def r3gan_schedules(values: Mapping[str, Any]) -> Schedules:
    """R3GAN's schedules; those of a training that is shorter than the published one are shortened with it."""
    decay_kimg = min(values.get("kimg", TrainConfig.kimg), R3GAN_DECAY_KIMG)
    ema_kimg = values["ema_kimg"] * decay_kimg / R3GAN_DECAY_KIMG
    # the averaged weights of --init-from are kept, and not replaced by those of the first step
    first = ema_kimg if values.get("init_from") else 0.0
    return Schedules(decay_kimg=decay_kimg, ema_kimg=(first, ema_kimg), p=(0.0, values["p"]))


def check_augmentation(given: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raises UserError where options of the augmentation do not go together. `values` are those of the preset."""
    aug = given.get("aug", values.get("aug", "noaug"))
    loss = given.get("loss", values.get("loss"))
    if aug == "ada" and loss == "relativistic":
        raise UserError(
            "--aug ada measures overfitting by the sign of D(x), which the relativistic loss leaves open; "
            "take --aug fixed with --p, or --cfg r3gan, which raises p by a schedule"
        )
    useless = [f"--{name}" for name in ("augpipe", "target", "p") if name in given]
    fits = ["--aug ada"] * (loss != "relativistic") + ["--aug fixed"] * ("target" not in given)
    if aug == "noaug" and useless:
        add = f"add {' or '.join(fits)}" if fits else "leave --target out"
        raise UserError(f"{' and '.join(useless)} without augmentation; {add}")
    if aug == "fixed" and "p" not in {**values, **given}:
        raise UserError("--aug fixed needs --p, the probability of each transform")


# --- the encoder ----------------------------------------------------------------------------------------------------


def configure_classifier(options: Mapping[str, Any], resuming: bool = False) -> ClassifierConfig:
    """The configuration of train_encoder.py. Raises UserError or click.UsageError for options that cannot be used."""
    if "data" not in options:
        raise click.UsageError("--data is missing: name a folder or ZIP of images with labels")
    gpus = distributed.count_gpus(options.get("gpus"))
    data = ImageDataset(options["data"], use_labels=True)
    if data.vector_labels:
        raise UserError(f"the labels of {data.path} are numbers; an encoder learns from classes, name a set with them")
    if len(data.required_labels.unique()) < 2:
        raise UserError(f"{data.path} has one class only; an encoder learns from telling several apart")
    if options.get("test"):
        check_test(ImageDataset(options["test"], use_labels=True), data)
    config = resolve_classifier(options, gpus)
    if not resuming:
        check_tf32(options, gpus)
    if data.channels == 4:
        raise UserError(
            f"{data.path} has transparent images, of which an encoder sees colours only; lay them on a background "
            f"with: {convert_command(data.files, data.resolution, 3)}"
        )
    if not isinstance(data.resolution, int):
        square = possible_resolution((min(data.resolution),) * 2)
        raise UserError(
            f"{data.path} has images of {size_text(data.resolution)}, but an encoder learns from squares; crop them "
            f"with: {convert_command(data.files, square, 3)}"
        )
    least, most = Classifier.STRIDE, data.resolution
    if most < least:
        raise UserError(
            f"{data.path} has images of {size_text(most)}, and the classifier needs {least} pixels a side; enlarge "
            f"them with: {convert_command(data.files, least, 3)}"
        )
    if any(not least <= side <= most for side in config.sizes):
        raise UserError(
            f"--sizes {','.join(map(str, config.sizes))}: take sides from {least}, the classifier's stride, to {most}, "
            "that of the images"
        )
    side = min([data.resolution, *config.sizes])
    if config.batch_gpu * (side // Classifier.STRIDE) ** 2 < 2:
        raise UserError(
            f"{config.batch_gpu} image of {side}² at a time is too little for batch normalization, which "
            "needs two values of a channel; take at least 2 with --batch and --batch-gpu"
        )
    return config


def resolve_classifier(options: Mapping[str, Any], gpus: int) -> ClassifierConfig:
    """The configuration that the options give, with what they leave out as a default. Raises UserError."""
    given = {name: value for name, value in options.items() if value is not None}
    return ClassifierConfig(**own_fields(ClassifierConfig, given | machine_values(given, gpus, ClassifierConfig.batch)))


def check_test(test: ImageDataset, data: ImageDataset) -> None:
    """Raises UserError where a classifier of `data` cannot be tested on `test`."""
    if test.vector_labels:
        raise UserError(
            f"the labels of {test.path} are numbers, not classes; name with --test images of the same classes"
        )
    if test.channels != data.channels:
        raise UserError(
            f"{test.path} has images of {plural(test.channels, 'channel')}, but {data.path} of {data.channels}; "
            f"make them alike with: {convert_command(test.files, data.resolution, data.channels)}"
        )
    if test.resolution != data.resolution:
        raise UserError(
            f"{test.path} has images of {size_text(test.resolution)}, but {data.path} of {size_text(data.resolution)}; "
            f"make them alike with: {convert_command(test.files, data.resolution, data.channels)}"
        )
    if test.c_dim > data.c_dim:
        raise UserError(
            f"{test.path} has classes up to {test.c_dim - 1}, but {data.path} up to {data.c_dim - 1}; "
            "name with --test images of the same classes"
        )
    check_same_classes(str(test.path), test.class_names, str(data.path), data.class_names)


# --- the stylizer ---------------------------------------------------------------------------------------------------


def configure_stylizer(options: Mapping[str, Any], resuming: bool = False) -> StylizerTrainConfig:
    """The configuration of train_stylizer.py. Raises UserError or click.UsageError for options that cannot be used."""
    for name in ("content", "style"):
        if name not in options:
            raise click.UsageError(f"--{name} is missing: name a folder or ZIP of images")
        if not (resuming or options.get("encoder_weights") or options.get("init_from")):
            ImageFiles(options[name], ALL_SUFFIXES)  # what is wrong is said before weights are downloaded
    if options.get("init_from") and options.get("encoder_weights") and not resuming:
        raise UserError("--encoder-weights would not be used: --init-from has an encoder; leave one of them out")
    if options.get("size", STRIDE) % STRIDE:
        raise UserError(f"--size {options['size']}: take a multiple of {STRIDE}, the encoder's stride")
    if "init_from" not in options:  # whose style size is another; said before weights are downloaded
        style_size = options.get("style_size") or StylizerConfig.style_size
        check_resize(options.get("resize"), options.get("size", StylizerTrainConfig.size), style_size)
    useless = [f"--{name.replace('_', '-')}" for name in ("kernel_size", "style_channels") if options.get(name)]
    if options.get("modulation") == "adain" and useless and not resuming:
        raise UserError(f"{' and '.join(useless)} would change nothing: AdaIN has no predicted kernels; leave them out")
    gpus = distributed.count_gpus(options.get("gpus"))
    if not resuming:
        check_tf32(options, gpus)
    values = {**options, **machine_values(options, gpus, StylizerTrainConfig.batch), "data": options["content"]}
    try:
        stylizer = StylizerConfig(**network_values(options))
        config = StylizerTrainConfig(**own_fields(StylizerTrainConfig, values), stylizer=stylizer)
    except ValueError as error:
        raise UserError(f"the model cannot be built: {error}") from None
    if config.size < (least := config.stylizer.min_size):
        raise UserError(
            f"--size {config.size} is too small for kernels of {config.stylizer.kernel_size}²; "
            f"take {least + -least % STRIDE} or more"
        )
    if config.equivariance_weight and config.size - STRIDE < (least := config.stylizer.min_size):
        raise UserError(
            f"--equivariance-weight cuts off {STRIDE} pixels; take --size {least + -least % STRIDE + STRIDE}"
        )
    check_resize(config.resize, config.size, config.stylizer.style_size)
    return config


def check_resize(resize: int | None, size: int, style_size: int) -> None:
    """Raises UserError if images whose shorter side is scaled to `resize` have no crops of these sizes."""
    for name, side in (("size", size), ("style-size", style_size)):
        if resize is not None and resize < side:
            raise UserError(
                f"--resize {resize}: images of that size have no crops of --{name} {side}; "
                f"take --resize {max(size, style_size)} or more, or a smaller --{name}"
            )


def network_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a StylizerConfig: those given, over those of --init-from, or else the encoder's width.

    New stylizers reflect at borders, where zeros would draw a frame.
    """
    given = own_fields(StylizerConfig, options)
    StylizerConfig(**given)  # before the encoder is looked for: what is wrong is said at once
    if options.get("init_from") and len(given) < len(fields(StylizerConfig)):
        return {**vars(load_stylizer(options["init_from"])[0].config), **given}
    if "width" not in given:
        given["width"] = load_encoder(options.get("encoder_weights")).width
    return {"border": "reflect", **given}


# --- all three ------------------------------------------------------------------------------------------------------


def own_fields(config_class: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that are fields of a dataclass."""
    names = {field.name for field in fields(config_class)}
    return {name: value for name, value in values.items() if name in names}


def machine_values(options: Mapping[str, Any], gpus: int, default_batch: int) -> dict[str, Any]:
    """Processes, precision and how the batch is split, where `auto` on the CPU is bf16 if the CPU computes with it."""
    processes = count_processes(options, gpus)
    batch = options.get("batch") or default_batch
    return {
        "gpus": gpus,
        "procs": processes,
        "batch": batch,
        "batch_gpu": split_batch(batch, options.get("batch_gpu"), processes),
        "precision": resolve_precision(options.get("precision"), gpus, cpu_precision),
    }


def check_tf32(options: Mapping[str, Any], gpus: int) -> None:
    """Raises UserError for --tf32 where there is no GPU."""
    if options.get("tf32") and not gpus:
        raise UserError("--tf32 is for GPUs, and this run has none; leave it out")


def count_processes(options: Mapping[str, Any], gpus: int, default: int = 1) -> int:
    """One process for each GPU; on the CPU, as many as --procs says. Raises UserError where that says otherwise."""
    procs = options.get("procs")
    if gpus and procs not in (None, gpus):
        raise UserError(f"--procs {procs} is for the CPU; add --gpus 0, or leave it out: each GPU has one process")
    return gpus or procs or default


def split_batch(batch: int, batch_gpu: int | None, processes: int) -> int:
    """The images of a microbatch: `batch_gpu`, or a process's whole share of the batch. Raises UserError."""
    if batch % processes:
        raise UserError(
            f"--batch {batch} cannot be split evenly over {processes} processes; take a multiple of {processes}, or "
            "another number of processes"
        )
    share = batch // processes
    if share % (batch_gpu or share):
        raise UserError(
            f"--batch-gpu {batch_gpu} does not divide the {plural(share, 'image')} of a process (--batch {batch}, "
            f"{plural(processes, 'process', 'es')}); take a divisor"
        )
    return batch_gpu or share


def resolve_precision(precision: str | None, gpus: int, on_cpu: Callable[[], str] = lambda: "fp32") -> str:
    """The precision that `auto`, or no option, stands for on this machine; without GPUs what `on_cpu` says."""
    if precision not in (None, "auto"):
        return precision
    if not gpus:
        return on_cpu()
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def cpu_precision() -> str:
    """bf16 where the CPU convolves in it FASTER_BY times as fast as in float32, or faster; else fp32.

    Measured, because the instructions alone do not say: AMX has many times float32's rate, and AVX512-BF16 only half of
    it on some processors.
    """
    float32, bfloat16 = convolution_seconds(torch.float32), convolution_seconds(torch.bfloat16)
    return "bf16" if bfloat16 * FASTER_BY <= float32 else "fp32"


def convolution_seconds(dtype: torch.dtype) -> float:
    """The time of one 3 × 3 convolution of 128 channels at 16², in channels-last memory: the best of ten."""
    x = torch.ones(8, 128, 16, 16, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(128, 128, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    seconds = []
    for _ in range(12):
        start = time.perf_counter()
        torch.nn.functional.conv2d(x, weight, padding=1)
        seconds.append(time.perf_counter() - start)
    return min(seconds[2:])  # the first ones prepare the kernel
