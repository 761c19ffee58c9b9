"""Models on the Hugging Face Hub, by `owner/name`; everything else works without huggingface_hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from models.snapshot import GENERATOR, TRAINED_BY, WEIGHTS, find_snapshot
from torch_utils.errors import UserError, note, one_line
from torch_utils.files import missing_message

INSTALL = "install huggingface_hub with: pip install huggingface_hub"
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)  # owner/name on the Hub
NETWORK_HELP = (  # of --network, where it may be on the Hub
    "A generator: a snapshot, a run, a folder of runs, StyleGAN2's networks (.pkl, .pt), or owner/name on the "
    "Hugging Face Hub.  [default: the newest under runs, else the shipped one]"
)


def may_be_repository(name: str) -> bool:
    """Whether a name can be owner/name on the Hub, rather than the path of a file that does not exist.

    A name is a path if its first part is a folder here, or if it ends like a model's file. Paths are not looked up on
    the Hub, which takes long to answer without a connection.
    """
    is_file = name.endswith((".safetensors", ".pkl", ".pt", ".pth", ".zip"))
    return REPOSITORY.fullmatch(name) is not None and not is_file and not Path(name).parent.is_dir()


def download_model(repository: str, **hub: Any) -> Path:
    """The file of a model of `save_pretrained` on the Hub, in its cache; `hub` are arguments of hf_hub_download.

    Without a connection it tries for half a minute, in silence. Raises UserError if huggingface_hub is not installed,
    or if there is no such model or no connection.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"{repository} does not exist here; to load it from the Hub, {INSTALL}") from None
    verbosity = huggingface_hub.logging.get_verbosity()
    huggingface_hub.logging.set_verbosity_error()  # not a warning for each attempt to connect
    try:
        return Path(huggingface_hub.hf_hub_download(repo_id=repository, filename=WEIGHTS, **hub))
    except Exception as error:  # also errors of the library that its version transfers with, as of a proxy
        reason = one_line(error, 400)
        raise UserError(f"{repository} does not exist here, and the Hub has no {WEIGHTS} of it: {reason}") from None
    finally:
        huggingface_hub.logging.set_verbosity(verbosity)


def find_model(name: str | os.PathLike | None, kind: str = GENERATOR) -> Path:
    """The snapshot that `find_snapshot` finds, or, for an `owner/name` that is nothing here, that of the Hub.

    A name that is similar to a file or folder here is not asked for. Raises UserError.
    """
    if name is not None and not os.path.lexists(name) and may_be_repository(os.fspath(name)):
        remedy = f"name a snapshot or a folder of runs with {TRAINED_BY[kind][1]}"
        if missing_message(Path(name), remedy).endswith(remedy):
            note(f"network: {name} is nothing here; it is looked for on the Hugging Face Hub")
            return download_model(os.fspath(name))
    return find_snapshot(name, kind)
