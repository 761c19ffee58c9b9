"""A web page to play with the models. `python app.py`"""

from __future__ import annotations

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

import click

# Before PyTorch starts its threads: on shared cores, threads that wait should not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from torch_utils import cli
from torch_utils.errors import UserError

EXAMPLE = """\
python app.py
python app.py --network runs/00003-ffhq-adaconv-auto8 --port 8080
python app.py --host 0.0.0.0 --password secret
"""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@click.command(cls=cli.Command, example=EXAMPLE)
@cli.option(
    "Models",
    "--network",
    "files",
    multiple=True,
    metavar="PATH",
    help="A further model to choose from: a snapshot, a run, or a network pickle of StyleGAN2 (.pkl). May be repeated.",
)
@cli.option(
    "Server", "--host", default="127.0.0.1", help="Address to serve at; 0.0.0.0 is every address of the machine."
)
@cli.option("Server", "--port", type=cli.Integer(0, 65535), default=7860, help="Port to serve at; 0 takes a free one.")
@cli.option(
    "Server",
    "--password",
    metavar="TEXT",
    envvar="ADACONV_PASSWORD",
    help="Password that the page asks for, with any user name. The environment variable ADACONV_PASSWORD hides it from "
    "the list of processes.",
)
@cli.option("Server", "--no-password", is_flag=True, help="Serve everyone who reaches --host, without a password.")
@cli.option("Server", "--browser/--no-browser", default=True, help="Open the page in a browser, if there is one.")
@cli.device_option()
def main(
    files: tuple[str, ...], host: str, port: int, password: str | None, no_password: bool, browser: bool,
    device: str | None,
) -> None:  # fmt: skip
    """Serve a web page to play with the models: images, mixes, videos, edits, inversion, kernels and style transfer.

    The page is at http://127.0.0.1:7860 and can be reached from this machine only, unless --host says otherwise.
    """
    if host not in LOOPBACK and not password and not no_password:
        raise UserError(
            f"--host {host} lets others reach the page; protect it with --password, or write --no-password to serve "
            "everyone"
        )
    if find_spec("gradio") is None:
        raise UserError("the page needs gradio, which is not installed; install it with: pip install 'gradio>=6'")
    with tempfile.TemporaryDirectory(prefix="adaconv-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # of uploads and results; gradio reads it when it is imported
        from web.server import serve

        serve(files, host, port, None if no_password else password, browser, device, Path(folder))


if __name__ == "__main__":
    cli.run(main)
