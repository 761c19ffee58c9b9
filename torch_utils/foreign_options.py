"""What options of NVIDIA's StyleGAN repositories, and of other stylizers, are called here (docs/stylegan2.md)."""

from __future__ import annotations

from collections.abc import Collection

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
