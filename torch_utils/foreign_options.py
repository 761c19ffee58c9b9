"""What a wrong command line probably means: options of NVIDIA's StyleGAN repositories, and of other stylizers, are
called otherwise here (docs/stylegan2.md), flags have no value, and commands come first."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise

import click

HERE = {
    "--allow-tf32": "--tf32, without a value",
    "--alpha": "--strength",
    "--dest": "--out",
    "--fp32": "--precision fp32",
    "--max-images": "--max",
    "-n": "--dry-run",
    "--network": "--model",
    "--num-steps": "--steps",
    "--output": "--out",
    "--projected-w": "--w",
    "--resize-filter": "--filter",
    "--save-video": "--video, without a value",
    "--styles": "--layers",
    "--w-frames": "--seconds, the length of the whole video,",
}
NEEDLESS = {"--nhwc", "--nobench", "--mbstd-group"}


def probably_meant(
    words: Sequence[str], error: click.UsageError, options: Iterable[click.Option], commands: Collection[str]
) -> str | None:
    """What to say of the words of a command line that have an error; None if nothing is known of it.

    `options` are those of the command that is run, `commands` the other ones beside it.
    """
    options = list(options)
    valued = {name for option in options if not option.is_flag for name in option.opts}
    for before, word in pairwise(["", *words]):
        if word in commands and before not in valued:  # a folder may be called as a command is
            return f"the command comes first: write {word} before all options"
    flags = [name for option in options if option.is_flag for name in (*option.opts, *option.secondary_opts)]
    if flag := flag_with_value(words, flags):
        return f"{flag} has no value here: write {flag} to turn it on, and leave it out otherwise"
    if isinstance(error, click.NoSuchOption):
        return called_here(error.option_name, [name for option in options for name in option.opts])
    return None


def flag_with_value(words: Sequence[str], flags: Collection[str]) -> str | None:
    """The first of `flags` that has a value among the words of a command line, such as --mirror=1 or --mirror 1."""
    for word, after in pairwise([*words, ""]):
        name, given, _ = word.partition("=")
        if name in flags and (given or after.lower() in ("0", "1", "true", "false")):
            return name
    return None


def called_here(name: str, options: Collection[str]) -> str | None:
    """What to say of an option that a command with these `options` does not have; None if nothing is known of it."""
    here = HERE.get(name)
    if here is not None and here.split()[0].rstrip(",") in options:
        return f"there is no {name}: it is {here} here"
    if name == "--transform" and "--source" in options:  # dataset_tool.py's; --crop is something else elsewhere
        return "there is no --transform: --crop center, the default, is its center-crop"
    if name == "--subset":
        return "there is no --subset: make a smaller data set with python dataset_tool.py convert --max"
    if name in NEEDLESS:
        return f"there is no {name}, and nothing here needs it; leave it out"
    return None
