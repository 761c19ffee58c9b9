"""What keeps the page safe and responsive: bounds, the queue, errors in a sentence, long work that can be stopped.

Two kinds of work wait in one queue: quick ones, such as an image that follows a slider, and long ones, such as videos.
One of each kind runs at a time, so that memory is bounded and quick work never waits for long work.
"""

from __future__ import annotations

import functools
import html
import inspect
import math
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import click
import gradio as gr

from torch_utils.errors import CommandError, UserError, one_line
from torch_utils.memory import out_of_memory

MAX_UPLOAD = 64 << 20  # bytes of one upload
MAX_REQUEST = 1 << 20  # bytes of any other request
MAX_PIXELS = 1 << 24  # of an uploaded image
MAX_FILES = 2 << 30  # bytes of all uploads and results that are kept
KEPT_SECONDS = 3600  # after which uploads and results are removed
QUEUE = 128  # requests that may wait
SESSIONS = 128  # pages whose inverted images are kept
MAX_SECONDS = 600  # that one long work may take

QUICK: dict[str, Any] = {"concurrency_id": "quick", "concurrency_limit": 1}
LONG: dict[str, Any] = {"concurrency_id": "long", "concurrency_limit": 1}

Result = TypeVar("Result")


class Stopped(Exception):
    """The page has been closed, or its Stop button pressed."""


# --- errors ---------------------------------------------------------------------------------------------------------


def guarded(function: Callable) -> Callable:
    """The function with every error as one sentence for the page, which is also logged. A bug's traceback is logged."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            raise shown(error) from None

    @functools.wraps(function)
    def generate(*args: Any) -> Iterator[Any]:
        try:
            yield from function(*args)
        except Exception as error:
            raise shown(error) from None

    return generate if inspect.isgeneratorfunction(function) else call


def shown(error: Exception) -> gr.Error:
    """The sentence that the page shows for an error."""
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, (CommandError, click.ClickException)):
        message = error.message
    elif isinstance(error, Stopped):
        message = "Stopped."
    elif out_of_memory(error):
        message = "There is not enough memory for this; take a smaller image or fewer of them."
    else:
        traceback.print_exception(error)
        message = "This is a fault of the program, not yours; the server's log has the details."
    message = one_line(without_folders(message), 400)
    print(f"error: {message}", file=sys.stderr, flush=True)
    return gr.Error(html.escape(message, quote=False), print_exception=False)  # Gradio shows messages as HTML


def without_folders(message: str) -> str:
    """A message with only the names of uploads and results, not the folders that they lie in."""
    folder = os.environ.get("GRADIO_TEMP_DIR")
    return re.sub(rf"{re.escape(folder)}/(\w+/)*", "", message) if folder else message


# --- long work ------------------------------------------------------------------------------------------------------


class Stops:
    """Tells the long work of each open page to stop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flags: dict[str, set[threading.Event]] = {}
        self._stopped: dict[str, float] = {}  # when the work of a page was last stopped

    def ask(self) -> float:
        """The moment in which work is asked for, which may have to wait; for `start`."""
        return time.monotonic()

    def start(self, request: gr.Request, asked: float | None) -> Stop:
        """A new flag for work that this page has asked for. Raises Stopped if it was stopped while it waited.

        `asked` is None where Gradio has forgotten it, as it does with all states of a page after `SESSIONS` others.
        """
        session = str(request.session_hash)
        with self._lock:
            if asked is not None and self._stopped.get(session, -math.inf) >= asked:
                raise Stopped
        return Stop(self, session)

    def stop(self, request: gr.Request) -> None:
        """Stops all work of this page, also what waits for other work."""
        session, now = str(request.session_hash), time.monotonic()
        with self._lock:
            for flag in self._flags.get(session, ()):
                flag.set()
            self._stopped = {one: then for one, then in self._stopped.items() if then > now - KEPT_SECONDS}
            self._stopped[session] = now

    def _add(self, session: str, flag: threading.Event) -> None:
        with self._lock:
            self._flags.setdefault(session, set()).add(flag)

    def _remove(self, session: str, flag: threading.Event) -> None:
        with self._lock:
            self._flags[session].discard(flag)
            if not self._flags[session]:
                del self._flags[session]


class Stop:
    """Whether one piece of work shall stop. Use it as a context, in which the work is done."""

    def __init__(self, stops: Stops, session: str):
        self._stops, self._session = stops, session
        self._flag = threading.Event()
        self._end = time.monotonic() + MAX_SECONDS

    def __enter__(self) -> Stop:
        self._stops._add(self._session, self._flag)
        return self

    def __exit__(self, *_: object) -> None:
        self._stops._remove(self._session, self._flag)

    def now(self) -> None:
        """Asks the work to stop."""
        self._flag.set()

    @property
    def asked(self) -> bool:
        """Whether the work shall stop, and what it has found so far shall be kept."""
        return self._flag.is_set() or time.monotonic() > self._end

    def check(self) -> None:
        """Raises Stopped if the work shall stop, and UserError if it takes too long."""
        if self._flag.is_set():
            raise Stopped
        if time.monotonic() > self._end:
            raise UserError(f"this takes longer than {MAX_SECONDS // 60} minutes, the limit; ask for less at a time")


def stream(work: Callable[[Callable[[Any], None]], Result], stop: Stop) -> Generator[Any, None, Result]:
    """Runs `work(report)` in a thread, yields what it reported last, and returns its result.

    When the iterator is closed, because the page has gone, the work is stopped.
    """
    reports: SimpleQueue = SimpleQueue()
    result: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work(reports.put))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.2)
            latest = None
            try:
                while True:
                    latest = reports.get_nowait()
            except Empty:
                pass
            if latest is not None and thread.is_alive():
                yield latest
    finally:
        if thread.is_alive():
            stop.now()
            thread.join()
    if errors:
        raise errors[0]
    return result[0]
