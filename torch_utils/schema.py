"""What values from files have to be: JSON of sensible depth, and dataclasses whose fields say their types and bounds.

A dataclass is its own schema: `build` and `check_values` read the types of its fields, with `Annotated[int,
Within(1, 64)]` where a number has bounds. All floats have to be finite, and no value is converted.
"""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from torch_utils.errors import one_line
from torch_utils.files import read_regular

MAX_JSON_BYTES = 1 << 24  # of the records of a run and of a model's description
T = TypeVar("T")


@dataclass(frozen=True)
class Within:
    """The bounds of a number, both of which it may have, or with `above` only the upper one."""

    least: float = -sys.float_info.max
    most: float = sys.float_info.max
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and not (self.above and value == self.least)

    def __str__(self) -> str:
        return f"{'above' if self.above else 'from'} {self.least:g} to {self.most:g}"


Count = Annotated[int, Within(0, 2**53)]  # of anything
Positive = Annotated[float, Within(0, above=True)]
NotNegative = Annotated[float, Within(0)]
Fraction = Annotated[float, Within(0, 1)]


# --- JSON -----------------------------------------------------------------------------------------------------------


def parse_json(data: str | bytes, nan: bool = False) -> Any:
    """The value of a JSON text. With `nan`, NaN and infinities are taken, as Python writes them. Raises ValueError."""

    def refuse(name: str) -> float:
        if nan:
            return float(name)
        raise ValueError(f"it holds {name}, which is no number")

    try:
        return json.loads(data, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is not text in UTF-8") from None


def read_json(path: str | os.PathLike, limit: int = MAX_JSON_BYTES) -> Any:
    """The value in a JSON file. Raises OSError and ValueError."""
    return parse_json(read_regular(path, limit))


# --- dataclasses ----------------------------------------------------------------------------------------------------


def build(cls: type[T], values: Any) -> T:
    """The dataclass of those values, as `dataclasses.asdict` gives them, also through JSON.

    Dataclasses in it are built as well, and lists and tuples become what is wanted of the two. Fields with a default
    may be missing. Raises ValueError for a value of a wrong type or beyond its bounds, for unknown fields, and as `cls`
    does.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"expected the fields of a {cls.__name__}, got {one_line(values, 40)}")
    check_values(cls, values)
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{name} is missing")
    hints = _types(cls)  # type: ignore[arg-type]
    return cls(**{name: _built(hints[name], value) for name, value in values.items()})


def check_values(cls: type, values: Mapping[str, Any]) -> None:
    """Raises ValueError unless each value is one that the field of its name in the dataclass may have."""
    hints = _types(cls)
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"{one_line(name, 40)} is unknown")
        if not _fits(hints[name], value):
            raise ValueError(f"{name}: expected {_described(hints[name])}, got {one_line(repr_of(value), 40)}")


def repr_of(value: Any) -> str:
    """A value as Python writes it; of one that is nested too deeply, its type."""
    try:
        return repr(value)
    except (RecursionError, ValueError):  # ValueError: a number of thousands of digits
        return f"a {type(value).__name__}"


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return _fits(float, value)


@functools.cache
def _types(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls)}


def _fits(kind: Any, value: Any) -> bool:
    """Whether a value is of a type, without being converted; whole numbers are floats as well."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _fits(arguments[0], value) and (value is None or value in arguments[1])
    if origin in (Union, types.UnionType):
        return any(_fits(argument, value) for argument in arguments)
    if origin is Literal:
        return any(type(value) is type(argument) and value == argument for argument in arguments)
    if origin is list:
        return type(value) in (list, tuple) and all(_fits(arguments[0], item) for item in value)
    if origin is tuple:
        is_sequence = type(value) in (list, tuple) and len(value) == len(arguments)
        return is_sequence and all(_fits(argument, item) for argument, item in zip(arguments, value, strict=True))
    if is_dataclass(kind):
        return isinstance(value, Mapping)  # whose fields `build` checks
    if kind is float:
        return type(value) in (int, float) and value in Within() and not math.isnan(value)
    if kind is int:
        return type(value) is int and abs(value) < 2**63
    return type(value) is kind if kind is not type(None) else value is None


def _built(kind: Any, value: Any) -> Any:
    """A value that fits, with dataclasses and tuples made of what JSON has for them."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _built(next(argument for argument in arguments if _fits(argument, value)), value)
    if origin in (list, tuple):
        return origin(value)
    return build(kind, value) if is_dataclass(kind) and isinstance(kind, type) else value


def _described(kind: Any) -> str:
    """A type in words, for a message."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return f"{_described(arguments[0])} {arguments[1]}"
    if origin in (Union, types.UnionType):
        return " or ".join(_described(argument) for argument in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is list:
        return f"a list, each {_described(arguments[0])}"
    if origin is tuple:
        return f"{len(arguments)} values"
    names = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", type(None): "none"}
    return names.get(kind, f"the fields of a {getattr(kind, '__name__', kind)}")
