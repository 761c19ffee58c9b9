"""`python -m torch_utils.ops`: which kernels are built here, from what, for which GPUs."""

from __future__ import annotations

import click

from torch_utils import cli
from torch_utils.ops import native


def describe(device: str, build: bool) -> str:
    """One line on the kernels for a device; with `build` they are compiled first, even where that failed before."""
    try:
        made = native.plan(device)
        if build:
            native.build(device, again=True)
    except native.Unavailable as error:
        return f"{device}: none: {error}"
    what = f"with {made.compiler}" + (f", for {made.architectures}" if made.architectures else "")
    if made.library.exists():
        return f"{device}: {made.library}, built {what}"
    failed = made.folder / "failed"
    if failed.exists():
        return f"{device}: none: {failed.read_text()}; `make ops` tries again"
    return f"{device}: not built yet; the first use builds them {what}"


@click.command(cls=cli.Command, example="python -m torch_utils.ops --build")
@cli.option("Options", "--build", is_flag=True, help="Compile them first, even where that failed before.")
def main(build: bool) -> None:
    """Tells which C++ and CUDA kernels are there; without them, plain PyTorch does the same more slowly."""
    print(f"ADACONV_OPS={native.mode()}")
    for device in ("cpu", "cuda"):
        print(describe(device, build))


if __name__ == "__main__":
    cli.run(main)
