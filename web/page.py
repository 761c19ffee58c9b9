"""What the tabs of the page share."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from web.files import Results
from web.limits import LONG, QUICK, Stops, guarded
from web.settings import Settings
from web.shelf import Shelf


@dataclass
class Page:
    """What the tabs share."""

    shelf: Shelf
    results: Results
    stops: Stops = field(default_factory=Stops)
    settings: Settings = field(default_factory=Settings)
    shown_first: list[tuple[str, Callable, list, list]] = field(default_factory=list)
    model: Any = None
    precision: Any = None
    tab: Any = None  # the name of the tab that is shown
    tabs: dict[str, gr.Tab] = field(default_factory=dict)
    codes: Any = None  # the images that have been inverted, a list in the session
    sources: list[gr.Dropdown] = field(default_factory=list)  # which let choose one of them

    def quick(self, triggers: Sequence[Any], function: Callable, inputs: list, outputs: list, **more: Any) -> Any:
        """Calls a function when one of the triggers fires. Of many events in a row, only the last is sure to count."""
        more = {"trigger_mode": "always_last", "show_progress": "minimal", **QUICK, **more}
        return gr.on(list(triggers), guarded(function), inputs, outputs, api_visibility="private", **more)

    def long(self, button: Any, stop: Any, function: Callable, inputs: list, outputs: list) -> Any:
        """Calls a function that takes long when a button is pressed; another one stops it."""
        stop.click(self.stops.stop, None, None, queue=False, api_visibility="private")
        return button.click(guarded(function), inputs, outputs, api_visibility="private", **LONG)

    def show_first(self, tab: str, function: Callable, inputs: list, outputs: list) -> None:
        """Calls a function also when the page has been opened with this tab in its address."""
        self.shown_first.append((tab, function, inputs, outputs))


def command_line(*words: object) -> str:
    """The command line of some words, without those that are None."""
    return shlex.join(str(word) for word in words if word is not None)


def command_box(name: str) -> gr.Textbox:
    """A box with a command line, ready to copy."""
    label = "The same on the command line"
    return gr.Textbox(label=label, buttons=["copy"], interactive=False, lines=2, elem_id=name, elem_classes="command")
