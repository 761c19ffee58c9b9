"""Reads a pickle as data: nothing that it names is imported, built or called.

A pickle is a program for a machine with a stack. `pickletools`, the standard library's disassembler, says what its
operations are; the machine here knows those that protocols 2 to 5 write for plain values, and keeps a call that the
program asks for as a `Call`, which whoever reads the pickle may interpret.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import IO, Any, cast

MAX_OPERATIONS = 1_000_000  # a network of 1024 × 1024 with its discriminator takes about 60,000
PIECE = 1 << 20  # bytes that are read at once
MAX_NAME = 256  # characters of a function's or class's name with its module's

VALUES = {  # operations that push their argument
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,  # a list has the elements of a set, and asks none of them for a hash
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
DICTS = {"collections OrderedDict", "dnnlib.util EasyDict"}
SETS = {"builtins set", "__builtin__ set"}
BYTES = {"_codecs encode", "builtins bytes", "__builtin__ bytes"}  # protocol 2 has no operation for bytes
PLAIN = DICTS | SETS | BYTES


class Refused(ValueError):
    """A pickle that asks for more than plain values and the calls that its reader knows."""

    def __init__(self, name: str):
        super().__init__(f"it asks for {name[:80]!a}")
        self.name = name


@dataclass(eq=False, slots=True)
class Global:
    """A function or class that the pickle names, as "module name"."""

    name: str


@dataclass(eq=False, slots=True)
class Call:
    """What the pickle wants called, with what, and the state that it wants set on the result."""

    name: str
    args: tuple
    state: Any = None


@dataclass(eq=False, slots=True)
class PersistentId:
    """The name of something that lies outside the pickle."""

    value: Any


def read_pickle(file: IO[bytes], known: Collection[str], limit: int = MAX_OPERATIONS) -> Any:
    """The value of the pickle that begins where `file` stands, which then stands behind it.

    Plain values are themselves (sets are lists, every kind of dict is a dict), calls of the names in `known` are
    `Call`, persistent ids `PersistentId`. All of it takes memory in proportion to the file. But a value may be in
    itself, be shared so often that a walk through all of it would never end, or be too deep to be hashed or compared.

    Raises:
        Refused: where the pickle names anything else.
        ValueError: if it is damaged, has more operations than `limit`, or copies more than it has bytes.
    """
    machine, start = _Machine(known), file.tell()
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], _InPieces(file)))):
            if count == 0 and operation.name != "PROTO":
                raise ValueError("no pickle of protocol 2 to 5")
            if count > limit:
                raise ValueError(f"more than {limit:,} operations")
            machine.step(operation.name, argument)
            if machine.copied > file.tell() - start:  # `pickle` itself writes each thing that it wants copied once
                raise ValueError("it copies the same values again and again")
        return machine.pop()
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError):
        raise ValueError("damaged: an operation that does not fit what is before it") from None


class _InPieces:
    """A file for `genops`: what claims more bytes than there are takes no memory but for those that are there."""

    def __init__(self, file: IO[bytes]):
        self.file, self.tell, self.readline = file, file.tell, file.readline

    def read(self, size: int) -> bytes:
        if size <= PIECE:
            return self.file.read(size)
        parts = []
        while size > 0 and (part := self.file.read(min(size, PIECE))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


class _Machine:
    """The stack, the marks in it and the memo. What does not fit raises one of the errors that read_pickle catches."""

    def __init__(self, known: Collection[str]):
        self.known = known
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        self.ordered: dict[int, dict] = {}  # those that a call has made, which alone have attributes, by their id
        self.copied = 0  # elements and bytes that calls have copied from other values

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        """What is above the last mark."""
        items, self.stack = self.stack, self.marked.pop()
        return items

    def step(self, operation: str, argument: Any) -> None:
        stack = self.stack
        match operation:
            case name if name in VALUES:
                stack.append(argument)
            case name if name in NEW:
                stack.append(NEW[name]())
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "MARK":
                self.marked.append(stack)
                self.stack = []
            case name if name in TUPLES:
                items = [stack.pop() for _ in range(TUPLES[name])]
                stack.append(tuple(reversed(items)))
            case "TUPLE":
                items = self.pop_mark()
                self.stack.append(tuple(items))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set_items(stack[-1], [key, value])
            case "SETITEMS":
                items = self.pop_mark()
                _set_items(self.stack[-1], items)
            case "APPEND":
                item = stack.pop()
                list.append(stack[-1], item)
            case "APPENDS" | "ADDITEMS":
                items = self.pop_mark()
                list.extend(self.stack[-1], items)
            case "GLOBAL":
                stack.append(self.named(argument))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(self.named(f"{_text(module)} {_text(name)}"))
            case "REDUCE" | "NEWOBJ":
                args, function = stack.pop(), stack.pop()
                result = _call(function, args)
                if type(result) is dict:
                    self.ordered[id(result)] = result
                elif type(result) in (list, bytes):
                    self.copied += len(result)
                stack.append(result)
            case "BUILD":
                state = stack.pop()
                # The attributes of an OrderedDict, such as versions beside a module's tensors, are not content.
                if id(stack[-1]) not in self.ordered or type(state) is not dict:
                    _set_state(stack[-1], state)
            case "BINPERSID":
                stack.append(PersistentId(stack.pop()))
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                raise ValueError(f"the operation {operation}, which protocols 2 to 5 write for no network")

    def named(self, name: str) -> Global:
        if name not in self.known and name not in PLAIN:
            raise Refused(name)
        if len(name) > MAX_NAME:  # STACK_GLOBAL makes it of two texts, which take no more of the file for many names
            raise ValueError(f"a name of more than {MAX_NAME} characters")
        return Global(name)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError
    return value


def _set_items(target: Any, items: list[Any]) -> None:
    """Keys are strings and integers up to addresses of memory, by which PyTorch once numbered an optimizer's
    parameters: their hashes take no time and do not collide on purpose.
    """
    if type(target) is not dict or len(items) % 2:
        raise TypeError
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) is not str and not (type(key) is int and abs(key) < 1 << 60):
            raise ValueError(f"a dict with a key of the type {type(key).__name__}")
        target[key] = value


def _call(function: Any, args: Any) -> Any:
    """A dict, a set's elements or bytes where the call says no more than that, else the call itself."""
    if type(function) is not Global or type(args) is not tuple:
        raise TypeError
    if function.name in DICTS and not args:
        return {}
    if function.name in SETS and (not args or (len(args) == 1 and type(args[0]) is list)):
        return list(*args)
    if function.name in BYTES:
        text, encoding = (_text(arg) for arg in args or ("", "latin1"))
        if encoding == "latin1":
            return text.encode("latin1")
    if function.name in PLAIN:
        raise ValueError(f"{function.name} with unusual arguments")
    return Call(function.name, args)


def _set_state(target: Any, state: Any) -> None:
    if type(target) is not Call:
        raise TypeError
    target.state = state
