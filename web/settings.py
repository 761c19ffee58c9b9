"""The settings of the page in its address, so that reloading it or sending the address keeps them."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import gradio as gr

from torch_utils.errors import one_line

MAX_TEXT = 200  # characters of one setting

# Names that Gradio gives a meaning, such as __theme, stay in the address.
SAVE = """(...values) => {
    const names = NAMES, defaults = DEFAULTS, query = new URLSearchParams();
    for (const [name, value] of new URLSearchParams(location.search))
        if (name.startsWith("__")) query.set(name, value);
    names.forEach((name, i) => {
        if (values[i] !== null && values[i] !== undefined && String(values[i]) !== String(defaults[i] ?? ""))
            query.set(name, values[i]);
    });
    const text = query.toString();
    history.replaceState(null, "", location.pathname + (text ? "?" + text : ""));
}"""


@dataclass(frozen=True)
class Setting:
    """A component whose value is kept in the address, and what checks a value that is found there."""

    name: str
    component: Any
    parse: Callable[[str], Any]  # raises ValueError


@dataclass
class Settings:
    """All settings of the page."""

    entries: list[Setting] = field(default_factory=list)

    def number(self, name: str, component: Any, bounds: tuple[float, float] | None = None) -> Any:
        """Keeps the value of a Number or Slider, within its own bounds or these."""
        low, high = bounds or (component.minimum, component.maximum)
        return self._add(name, component, lambda text: check_number(low, high, text))

    def choice(self, name: str, component: Any) -> Any:
        """Keeps the value of a Radio or Dropdown whose choices never change."""
        return self._add(name, component, lambda text: check_choice(component, text))

    def text(self, name: str, component: Any) -> Any:
        """Keeps any text, or a choice that depends on the model and is checked when it is used."""
        return self._add(name, component, check_text)

    def flag(self, name: str, component: Any) -> Any:
        """Keeps the value of a Checkbox."""
        return self._add(name, component, lambda text: {"true": True, "false": False}[text.lower()])

    def _add(self, name: str, component: Any, parse: Callable[[str], Any]) -> Any:
        self.entries.append(Setting(name, component, parse))
        return component

    @property
    def components(self) -> list[Any]:
        """The components in the order of the values that `restore` returns."""
        return [entry.component for entry in self.entries]

    def save_script(self) -> str:
        """JavaScript that writes the values of all components into the address; defaults are left out."""
        names = json.dumps([entry.name for entry in self.entries])
        defaults = json.dumps([entry.component.value for entry in self.entries])
        return SAVE.replace("NAMES", names).replace("DEFAULTS", defaults)

    def restore(self, query: str) -> list[Any]:
        """A value for each component from the query of an address. What is not valid is left as it is, with a note."""
        try:
            given = parse_qs((query or "").removeprefix("?")[:8192], max_num_fields=200)
        except ValueError:
            given = {}
            gr.Warning("The address has too many settings; the defaults are used.")
        values = []
        for entry in self.entries:
            texts = given.get(entry.name)
            try:
                values.append(gr.skip() if not texts else entry.parse(texts[-1]))
            except (ValueError, KeyError, OverflowError):
                shown = html.escape(one_line(texts[-1] if texts else "", 40), quote=False)  # a warning is HTML
                gr.Warning(f"{entry.name}={shown} in the address is not valid; the default is used.")
                values.append(gr.skip())
        return values


def check_number(low: float | None, high: float | None, text: str) -> float | int:
    """A number within bounds, as far as there are any. Raises ValueError."""
    value = float(text)
    if not (low is None or value >= low) or not (high is None or value <= high) or value != value:
        raise ValueError(text)
    return int(value) if value == int(value) else value


def check_choice(component: Any, text: str) -> str:
    """One of the choices of a component. Raises ValueError."""
    if text not in [value for _, value in component.choices]:
        raise ValueError(text)
    return text


def check_text(text: str) -> str:
    """A short text. Raises ValueError."""
    if len(text) > MAX_TEXT:
        raise ValueError(text)
    return text
