"""A web page to play with the models. `python app.py`"""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from importlib.util import find_spec
from pathlib import Path

import click

# Before PyTorch starts its threads: on shared cores, threads that wait should not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from torch_utils import cli
from torch_utils.errors import UserError, note
from torch_utils.files import missing_message
from web import LOOPBACK

EXAMPLE = """\
python app.py
python app.py --network runs/00003-ffhq-adaconv-auto8 --port 8080
ADACONV_PASSWORD=secret python app.py --host 0.0.0.0
"""


def check_models(files: tuple[str, ...]) -> None:
    """Raises UserError where a file is not there, or holds no model that the page can show."""
    for file in files:
        if not os.path.exists(file):
            raise UserError(missing_message(Path(file), "name a snapshot or a run with --network"))
    if files:
        from models.snapshot import GENERATOR, STYLIZER
        from web.shelf import kind_of

        for file in files:
            if kind_of(Path(file)) not in (GENERATOR, STYLIZER):
                raise UserError(f"{file} holds no model of this project; name another one with --network")


def check_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises UserError where nobody can listen there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: after its last stop
            probe.bind(address)
            return probe.getsockname()[1]
    except (socket.gaierror, UnicodeError):
        raise UserError(f"--host {host} is no address of this machine; take 127.0.0.1 or 0.0.0.0") from None
    except OSError as error:
        reason = error.strerror or error
        remedy = "another --port, or 0 for a free one" if error.errno != errno.EADDRNOTAVAIL else "another --host"
        raise UserError(f"cannot serve at {host}:{port} ({reason}); choose {remedy}") from None


@click.command(cls=cli.Command, example=EXAMPLE)
@cli.option(
    "Models",
    "--network",
    "files",
    multiple=True,
    metavar="PATH",
    help="A further model to choose from: a snapshot, a run, or StyleGAN2's networks (.pkl, .pt). May be repeated.",
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
    host = host.strip("[]")  # of an IPv6 address as it stands in a URL
    if host not in LOOPBACK and not password and not no_password:
        raise UserError(
            f"--host {host} lets others reach the page; protect it with --password, or write --no-password to serve "
            "everyone"
        )
    if no_password and cli.typed("password"):
        raise UserError("--password and --no-password contradict each other; leave one out")
    if find_spec("gradio") is None:
        raise UserError("the page needs gradio, which is not installed; install it with: pip install 'gradio>=6'")
    check_models(files)
    port = check_port(host, port)
    note("starting; the address of the page follows")  # importing Gradio takes seconds
    cli.end_on_signals()  # so that uploads and results are removed
    with tempfile.TemporaryDirectory(prefix="adaconv-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # of uploads and results; gradio reads it when it is imported
        from web.server import serve

        serve(files, host, port, None if no_password else password, browser, device, Path(folder))


if __name__ == "__main__":
    cli.run(main)
