"""Refuses requests that the page does not make: other routes and hosts, large bodies, addresses in place of files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from web.limits import MAX_FILES, MAX_REQUEST, MAX_UPLOAD

API = "/gradio_api"
READABLE = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|login_check|logout)/?|/(assets|static|svelte)/.+|"
    + API
    + r"/((info|app_id|token|user|theme\.css|login_check|startup-events|queue/data|upload_progress)/?|"
    r"heartbeat/\w+|file=.+)"
)
WRITABLE = {
    "/login": MAX_REQUEST,
    f"{API}/queue/join": MAX_REQUEST,
    f"{API}/run/predict": MAX_REQUEST,
    f"{API}/cancel": MAX_REQUEST,
    f"{API}/reset": MAX_REQUEST,
    f"{API}/upload": MAX_UPLOAD + MAX_REQUEST,
}
JSON_BODIES = (f"{API}/queue/join", f"{API}/run/predict")
REMOTE = re.compile(r"\s*([a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)


class Gate:
    """An ASGI middleware in front of Gradio."""

    def __init__(self, app: ASGIApp, folder: Path, hosts: tuple[str, ...] | None):
        """`folder` holds the uploads; `hosts` are the names by which the page is reached, None for any.

        A page of another site could otherwise reach this one by a name that it lets point here.
        """
        self.app, self.folder, self.hosts = app, folder.resolve(), hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self.refusal(scope["method"], scope["path"], headers)
        if refused is None and scope["path"].rstrip("/") in JSON_BODIES:
            body = await read_body(receive, MAX_REQUEST)
            if body is None or names_other_files(body, self.folder):
                refused = 400, "a file must be one that was uploaded"
            else:
                receive = replay(body, receive)
        if refused is not None:
            status, text = refused
            await PlainTextResponse(text, status)(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        except ClientDisconnect:
            pass  # a page that is closed in the middle of an upload
        except RuntimeError as error:
            # Gradio tells a page whose session has ended so in its stream of events, and then raises; the
            # stream, which has begun, only has to end.
            if not isinstance(error.__cause__, HTTPException):
                raise
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def refusal(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str] | None:
        """The status and the reason for which a request is refused; None if it is not."""
        host = headers.get("host", "").rsplit(":", 1)[0] if "]" not in headers.get("host", "") else "::1"
        if self.hosts is not None and host not in self.hosts:
            return 421, "this page is at another address"
        if "\\" in path or "\0" in path or ".." in path.split("/"):
            return 404, "there is no such page"
        if "transfer-encoding" in headers:  # with which a server reads on beyond the stated length
            return 411, "a request must state its length, and come as a whole instead of in chunks"
        if method in ("GET", "HEAD"):
            served = READABLE.fullmatch(path)
            remote = path.startswith(f"{API}/file=") and REMOTE.match(path.removeprefix(f"{API}/file="))
            return None if served and not remote else (404, "there is no such page")
        limit = WRITABLE.get(path.rstrip("/"))
        if method != "POST" or limit is None:
            return 404, "there is no such page"
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()):
            return 411, "the length of the request is missing"
        if int(length) > limit:
            return 413, f"the upload is larger than {limit >> 20} MB, the limit"
        if path.startswith(f"{API}/upload") and size_of(files_under(self.folder)) + int(length) > 2 * MAX_FILES:
            return 507, "too many uploads at the moment; try again in some minutes"
        return None


async def read_body(receive: Receive, limit: int) -> bytes | None:
    """The body of a request; None if it is longer than the limit or the client has gone."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if len(body) > limit:
            return None
        if not message.get("more_body", False):
            return body


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that has been read, and then what comes after it."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


def names_other_files(body: bytes, folder: Path) -> bool:
    """Whether a file in the JSON of a request is an address or lies outside the folder, or the JSON is broken."""
    try:
        values: list[Any] = [json.loads(body)]
        while values:
            value = values.pop()
            if isinstance(value, dict):
                path = value.get("path")
                if isinstance(path, str) and not Path(os.path.realpath(path)).is_relative_to(folder):
                    return True
                values.extend(value.values())
            elif isinstance(value, list):
                values.extend(value)
    except (ValueError, RecursionError, OSError):
        return True
    return False


def files_under(folder: Path) -> Iterator[Path]:
    """All files in a folder and its folders, which may vanish in the meantime."""
    for place, _, names in os.walk(folder):  # rglob raises where a folder vanishes
        yield from (Path(place, name) for name in names)


def size_of(paths: Iterable[Path]) -> int:
    """The bytes of all files that are there."""
    total = 0
    for path in paths:
        try:
            total += path.stat().st_size
        except OSError:
            continue  # removed in the meantime
    return total
