"""`python -m torch_utils.ops`: which kernels are built here, from what, for which GPUs."""

from __future__ import annotations

import click
import torch

from torch_utils import cli
from torch_utils.cache import NotPrivate, check_private
from torch_utils.ops import native


def describe(device: str, build: bool) -> tuple[str, bool]:
    """One line on the kernels for a device, and whether they are there, or could not be for want of a toolkit.

    With `build` they are compiled first, even where that failed before.
    """
    try:
        made = native.plan(device)
    except native.Unavailable as error:
        return f"{device}: none: {error}", device != "cpu"
    try:
        if build:
            native.build(device, again=True)
    except native.Unavailable as error:
        return f"{device}: none: {error}", False
    what = f"with {made.compiler}" + (f", for {made.architectures}" if made.architectures else "")
    try:
        check_private(made.library)
        return f"{device}: {made.library}, built {what}", True
    except NotPrivate as error:
        return f"{device}: none: {error}", False
    except FileNotFoundError:
        pass
    if (made.folder / "failed").exists():
        return f"{device}: none: {native.read_failure(made)}; `make ops` tries again", False
    return f"{device}: not built yet; the first use builds them {what}", False


def check(device: str) -> tuple[list[str], bool]:
    """A line for each op of a device, compared with its reference, and whether all are right."""
    if device == "cuda" and not torch.cuda.is_available():
        return ["cuda: not checked: there is no GPU here"], True
    try:
        libraries = [native.build(name) for name in (("cpu",) if device == "cpu" else ("cpu", "cuda"))]
    except native.Unavailable as error:
        return [f"{device}: nothing to check: {error}"], True
    from torch_utils.ops import selfcheck  # it needs a system on which kernels can be built

    folder = libraries[-1].parent
    try:
        found = selfcheck.faults(device, libraries, folder, again=True)
    except selfcheck.Interrupted as error:
        return [f"{device}: not checked: {error}"], False
    lines = [f"{device}: {op}: {found.get(op, 'as its reference')}" for op in selfcheck.OPS[device]]
    return [*lines, f"{device}: kept in {selfcheck.record_path(device, folder)}"], not found


@click.command(cls=cli.Command, example="python -m torch_utils.ops --build")
@cli.option("Options", "--build", is_flag=True, help="Compile them first, even where that failed before.")
@cli.option(
    "Options", "--check", "check_all", is_flag=True, help="Compare each op with its reference, on small inputs."
)
def main(build: bool, check_all: bool) -> None:
    """Tells which C++ and CUDA kernels are there; without them, plain PyTorch does the same more slowly.

    With --build it ends with 1 where compiling fails; a machine without CUDA's toolkit does without those for GPUs.
    With --check it ends with 1 where an op differs from its reference; the first use of the ops makes the same check.
    """
    print(f"ADACONV_OPS={native.mode()}")
    lines, there = zip(*(describe(device, build) for device in ("cpu", "cuda")), strict=True)
    print("\n".join(lines))
    if build and not all(there):
        raise SystemExit(1)
    if check_all:
        results = [check(device) for device in ("cpu", "cuda")]
        print("\n".join(line for lines, _ in results for line in lines))
        if not all(right for _, right in results):
            raise SystemExit(1)


if __name__ == "__main__":
    cli.run(main)
