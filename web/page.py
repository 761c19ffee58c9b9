"""What the tabs of the page share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from web.files import Results
from web.limits import LONG, QUICK, Stops, guarded
from web.settings import Settings
from web.shelf import Shelf

Update = Callable[[str, Any], dict[str, Any]]  # of a model's name and a control's value: the control's properties


@dataclass(frozen=True)
class View:
    """What a tab shows at once, without a button: what makes it, of which controls, and where it is shown."""

    function: Callable
    inputs: list[Any]
    outputs: list[Any]


@dataclass
class Page:
    """What the tabs share."""

    shelf: Shelf
    results: Results
    stops: Stops = field(default_factory=Stops)
    settings: Settings = field(default_factory=Settings)
    model: Any = None
    precision: Any = None
    tab: Any = None  # the name of the tab that is shown
    tabs: dict[str, gr.Tab] = field(default_factory=dict)
    views: dict[str, View] = field(default_factory=dict)  # by the names of their tabs
    followers: list[tuple[Any, Update]] = field(default_factory=list)
    codes: Any = None  # the images that have been inverted, a list in the session
    sources: list[gr.Dropdown] = field(default_factory=list)  # which let choose one of them

    def follow(self, component: Any, update: Update) -> Any:
        """Updates a control whenever another model is chosen. Returns the control."""
        self.followers.append((component, update))
        return component

    def quick(self, triggers: Sequence[Any], function: Callable, inputs: list, outputs: list, **more: Any) -> Any:
        """Calls a function when one of the triggers fires. Of many events in a row, only the last is sure to count."""
        more = {"trigger_mode": "always_last", "show_progress": "minimal", **QUICK, **more}
        return gr.on(list(triggers), guarded(function), inputs, outputs, api_visibility="private", **more)

    def view(self, name: str, tab: gr.Tab, function: Callable, inputs: list, outputs: list) -> None:
        """Calls a quick function when a tab is chosen or one of its controls changes, and when the model changes."""
        self.views[name] = View(function, inputs, outputs)
        shared = [self.model, self.precision, self.codes]
        own = [each for each in inputs if not any(each is other for other in shared)]
        self.quick([tab.select, *(event for each in own for event in finished(each))], function, inputs, outputs)

    def open_view(self) -> View:
        """The view of whichever tab is open. The other tabs make theirs when they are chosen."""
        views = self.views
        outputs = [output for view in views.values() for output in view.outputs]

        def show(tab: str, *values: Any) -> list[Any]:
            left, made = iter(values), []
            for name, view in views.items():
                own = [next(left) for _ in view.inputs]
                if name != tab:
                    made += [gr.skip()] * len(view.outputs)
                else:
                    shown = view.function(*own)
                    made += shown if len(view.outputs) > 1 else [shown]
            return made

        inputs = [self.tab, *(each for view in views.values() for each in view.inputs)]
        return View(show, inputs, outputs)

    def show_after(self, event: Any) -> None:
        """Calls the view of the open tab when an event has been dealt with."""
        view, more = self.open_view(), {"show_progress": "minimal", "api_visibility": "private", **QUICK}
        event.then(guarded(view.function), view.inputs, view.outputs, **more)

    def long(self, button: Any, stop: Any, function: Callable, inputs: list, outputs: list) -> Any:
        """Calls a function that takes long when a button is pressed; another one stops it, also while it waits.

        Before the inputs the function gets the moment of the click, for `Stops.start`.
        When a control changes, the marks of an error are taken off the outputs: the mistake may be mended by now.
        """
        stop.click(self.stops.stop, None, None, queue=False, api_visibility="private")
        asked = gr.State()  # when
        clicked = button.click(
            self.stops.ask, None, asked, queue=False, show_progress="hidden", api_visibility="private"
        )
        called = clicked.then(guarded(function), [asked, *inputs], outputs, api_visibility="private", **LONG)
        gr.on(
            [event for each in inputs if each is not self.codes for event in finished(each)],
            lambda: [gr.skip()] * len(outputs), None, outputs,
            queue=False, show_progress="hidden", trigger_mode="always_last", api_visibility="private",
        )  # fmt: skip
        return called


def finished(component: Any) -> list[Any]:
    """The events after which a control has a new value. A text that is still being written would be a mistake."""
    return [component.submit, component.blur] if isinstance(component, gr.Textbox) else [component.change]


def command_box(name: str) -> gr.Textbox:
    """A box with a command line, ready to copy."""
    label = "The same on the command line"
    return gr.Textbox(label=label, buttons=["copy"], interactive=False, lines=2, elem_id=name, elem_classes="command")


def command_with(
    line: str, uploads: Sequence[str] = (), download: str | None = None, inverted: Sequence[str] = ()
) -> Any:
    """What a command box shows for a line that reads files.

    These are uploads by name, a result to be downloaded, and the latents of inverted images.
    """
    notes = []
    if names := sorted(set(uploads)):
        ending = "s" * (len(names) > 1)
        notes.append(f"Save your upload{ending} {' and '.join(names)} in the folder where you run it.")
    if len(names) < len(uploads):
        notes.append("Uploads of the same name need different names there, and in the command.")
    if download is not None:
        notes.append(f"Download {download} above into the folder where you run it.")
    if latents := sorted(set(inverted)):
        notes.append(f"Download {' and '.join(latents)} in the tab Invert into the folder where you run it.")
    if len(latents) < len(inverted):
        notes.append("Latents of the same name need different names there, and in the command.")
    return gr.Textbox(line, info=" ".join(notes))
