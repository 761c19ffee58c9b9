"""Serves the page: starts Gradio, and refuses requests that the page does not make."""

from __future__ import annotations

import hmac
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from torch_utils.cli import choose_device
from torch_utils.errors import UserError
from web import LOOPBACK
from web.gate import Gate
from web.layout import CSS, SCRIPT, build
from web.limits import MAX_UPLOAD, QUEUE, SESSIONS
from web.shelf import Shelf


def serve(
    files: Sequence[str],
    host: str,
    port: int,
    password: str | None,
    browser: bool,
    device: str | None,
    folder: Path,
) -> None:
    """Serves the page until the process is stopped, with uploads and results in `folder`.

    Raises UserError if the port cannot be used.
    """
    blocks = build(Shelf(files, choose_device(device)), folder)
    # What is queued cannot be asked for beside the queue, which bounds the memory.
    blocks.queue(max_size=QUEUE, default_concurrency_limit=1, api_open=False)

    def admit(_: str, given: str) -> bool:
        return hmac.compare_digest(given.encode(), (password or "").encode())

    try:
        _, url, _ = blocks.launch(
            server_name=f"[{host}]" if ":" in host else host,  # an IPv6 address
            server_port=port,
            auth=admit if password else None,
            auth_message="Any user name, and the password of the one who started the page." if password else None,
            share=False,
            quiet=True,
            inbrowser=browser,
            prevent_thread_lock=True,
            max_file_size=MAX_UPLOAD,
            show_error=True,
            ssr_mode=False,
            state_session_capacity=SESSIONS,
            app_kwargs={"middleware": [Middleware(Gate, folder=folder, hosts=LOOPBACK if host in LOOPBACK else None)]},
            css=CSS,
            js=SCRIPT,
            theme=gr.themes.Default(primary_hue="indigo"),
        )
    except OSError as error:
        raise UserError(f"cannot serve at {host}:{port} ({error.strerror or error}); choose another --port") from None
    print(url, flush=True)
    print("stop with Ctrl-C", file=sys.stderr)
    try:
        threading.Event().wait()
    finally:
        blocks.close(verbose=False)
