"""What the command lines share: grouped help, types of options, options of several scripts, one-line errors."""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import click
from click.core import ParameterSource

from torch_utils.errors import CommandError, UserError, explained, plural, printable
from torch_utils.foreign_options import probably_meant

MAX_NUMBERS = 10_000_000
MAX_DIGITS = 18
CONTEXT = {"show_default": True, "max_content_width": 110}

# --- ^C before a command runs ---------------------------------------------------------------------------------------


def without_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The `sys.excepthook` of commands: ^C while modules are imported is no bug, and needs no traceback."""
    if not issubclass(kind, KeyboardInterrupt):
        _hook_before(kind, error, trace)
    elif multiprocessing.parent_process() is None:  # one of several processes says it
        print("stopped", file=sys.stderr)


# This module is what commands, and the processes that they start, import first.
_hook_before, sys.excepthook = sys.excepthook, without_traceback

# --- commands and their help ----------------------------------------------------------------------------------------


class Option(click.Option):
    """A click option that `--help` lists under the heading `group`."""

    def __init__(self, *args: Any, group: str = "Options", **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.group = group

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """The value in its type. An empty text is a mistake, such as a shell's variable that is not set: a path that
        is empty would be the current folder."""
        given = (value or ()) if self.multiple else (value,)
        is_typed = self.name is None or typed(self.name, ctx)
        if is_typed and "" in given and self.flag_value != "":  # --resume without a path
            raise click.BadParameter("is empty; write a value, or leave the option out", ctx, self)
        return super().type_cast_value(ctx, value)


def option(group: str, *args: Any, **kwargs: Any) -> Callable:
    """`click.option` under the heading `group`."""
    return click.option(*args, cls=Option, group=group, **kwargs)


class Command(click.Command):
    """A click command whose `--help` lists its options by group, and ends with an `example`."""

    def __init__(self, *args: Any, example: str = "", **kwargs: Any):
        kwargs.setdefault("context_settings", CONTEXT)
        super().__init__(*args, **kwargs)
        self.example = example

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
            above = getattr(ctx.parent and ctx.parent.command, "commands", {})
            hint = probably_meant(words, error, options, [name for name in above if name != self.name])
            if hint is None and isinstance(error, click.MissingParameter) and self.example:
                hint = f"{error.format_message().rstrip('.')}; for example: {self.example.splitlines()[0]}"
            if hint is None:
                raise
            raise click.UsageError(hint, ctx) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is not None:
                groups.setdefault(getattr(param, "group", "Other"), []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)
        if self.example:
            with formatter.section("Example"):
                for line in self.example.splitlines():
                    formatter.write_text(line)


class Group(click.Group):
    """A group of Commands with a default one: `script.py --seeds 1` runs that, and `script.py mix …` runs `mix`.

    `--help` of the group lists the options of the default command, and then the other commands.
    """

    command_class = Command

    def __init__(self, *args: Any, default: str, **kwargs: Any):
        kwargs = {"context_settings": CONTEXT, "subcommand_metavar": "or COMMAND [OPTIONS]", **kwargs}
        super().__init__(*args, **kwargs)
        self.default = default

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order in which they are defined

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple:
        if args[0] not in self.commands:
            known = ", ".join(name for name in self.commands if name != self.default)
            raise click.UsageError(f"there is no command {args[0]!r}; write one of {known}, or only options")
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.commands[self.default].format_options(ctx, formatter)
        others = [(name, command) for name, command in self.commands.items() if name != self.default]
        with formatter.section("Commands, each with its own --help"):
            formatter.write_dl([(name, command.get_short_help_str(80)) for name, command in others])


def gather(into: type, argument: str) -> Callable:
    """Gives a command those of its options that are fields of the dataclass `into` as one argument, an object of it."""
    names = [field.name for field in fields(into)]

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def command(**options: Any) -> Any:
            values = {name: options.pop(name) for name in names if name in options}
            return function(**options, **{argument: into(**values)})

        return command

    return decorate


# --- options that several scripts have ------------------------------------------------------------------------------


def network_option(group: str = "Model", **settings: Any) -> Callable:
    """`--network`, which `models.snapshot.find_snapshot` reads."""
    help_text = (
        "A generator: a snapshot, a run, a folder of runs, or StyleGAN2's networks (.pkl, .pt).  [default: the "
        "newest under runs, else the shipped one]"
    )
    return option(group, "--network", metavar="PATH", **{"help": help_text, **settings})


def device_option(group: str = "Machine", **settings: Any) -> Callable:
    """`--device`; without it a GPU if there is one."""
    help_text = "Device to compute on: cpu, cuda or cuda:1.  [default: a GPU if there is one]"
    return option(group, "--device", type=Device(), **{"help": help_text, **settings})


def inference_precision_option(group: str = "Machine", **settings: Any) -> Callable:
    """`--precision` of a trained model: float32, or half precision where a device is faster in it."""
    help_text = (
        "Precision of the layers. bf16 and fp16 are faster on GPUs and on CPUs with units for them, and change images "
        "by a level or two of 255 on average."
    )
    choice = click.Choice(["fp32", "bf16", "fp16"])
    return option(group, "--precision", type=choice, **{"default": "fp32", "help": help_text, **settings})


def outdir_option(group: str = "Output", **settings: Any) -> Callable:
    """`--outdir`, which `writable_folder` makes."""
    help_text = "Folder that the files are written into. Files of the same names there are replaced."
    return option(group, "--outdir", **{"default": "out", "help": help_text, **settings})


# --- types of options -----------------------------------------------------------------------------------------------


class Integer(click.IntRange):
    """A whole number within bounds."""

    name = "integer"  # in click's "'x' is not a valid integer"


class Float(click.FloatRange):
    """A finite number: click's own types take `inf` and `nan`, which no comparison with a bound refuses."""

    name = "number"  # in click's "'x' is not a valid number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        value = super().convert(value, param, ctx)
        if not math.isfinite(value):
            self.fail(f"{value} is not a finite number", param, ctx)
        return value


class Floats(click.ParamType):
    """Finite numbers such as `0.5,0.7,1`: a list in the order given, each within the bounds."""

    name = "numbers"

    def __init__(self, low: float, high: float):
        self.number = Float(low, high)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        if isinstance(value, list):
            return value
        return list(dict.fromkeys(self.number.convert(part.strip(), param, ctx) for part in value.split(",")))


class Integers(click.ParamType):
    """Whole numbers such as `32,32,48`: a list in the order given, each within the bounds."""

    name = "integers"

    def __init__(self, low: int, high: int):
        self.number = Integer(low, high)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        return [self.number.convert(part.strip(), param, ctx) for part in value.split(",")]


class Color(click.ParamType):
    """A colour as `white` or `#rrggbb`."""

    name = "color"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int, int]:
        if isinstance(value, tuple):
            return value
        from PIL import ImageColor

        try:
            return cast(tuple[int, int, int], ImageColor.getcolor(value, "RGB"))
        except (ValueError, AttributeError):
            self.fail(f"{value!r} is not a colour; write e.g. white or #a0b0c0", param, ctx)


class Device(click.ParamType):
    """`cpu`, `cuda` or `cuda:1`, if this machine has it."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        match = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", value, re.ASCII)
        if match is None:
            self.fail(f"{value!r} is not a device; write cpu, cuda or cuda:1", param, ctx)
        if value != "cpu":
            import torch  # takes seconds, which --help need not wait for

            there = torch.cuda.device_count()
            if int(match[1] or 0) >= there:
                found = plural(there, "GPU")
                self.fail(f"{value} does not exist: PyTorch finds {found}; take --device cpu", param, ctx)
        return value


def choose_device(name: str | None) -> str:
    """The device that --device names, or a GPU if there is one."""
    import torch  # takes seconds, which --help need not wait for

    return name or ("cuda" if torch.cuda.is_available() else "cpu")


class ResultFile(click.ParamType):
    """A file that can be written, which is found out before the work for it begins; its folder is made if need be."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        writable_file(value, param.opts[0] if param else self.name)
        return str(value)


class NumberRanges(click.ParamType):
    """Numbers and ranges such as `0-99,200,3`: a list of integers in the order given."""

    name = "ranges"

    def __init__(self, most: int | None = None):
        self.most = MAX_NUMBERS if most is None else most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        numbers: list[int] = []
        for part in value.split(","):
            first, dash, last = (text.strip() for text in part.strip().partition("-"))
            if not (first.isascii() and first.isdigit()) or (dash and not (last.isascii() and last.isdigit())):
                self.fail(f"{part.strip()!r} is neither a number nor a range; write e.g. 0-99,200,3", param, ctx)
            if max(len(first), len(last)) > MAX_DIGITS:
                self.fail(f"a number has more than {MAX_DIGITS} digits, the most that are supported", param, ctx)
            low, high = int(first), int(last or first)
            if high < low:
                self.fail(f"the range {part.strip()!r} runs backwards; write {high}-{low}", param, ctx)
            if len(numbers) + high - low >= self.most:
                self.fail(f"more than {self.most:,} numbers; split them over several runs", param, ctx)
            numbers.extend(range(low, high + 1))
        return numbers


class ClassName(click.ParamType):
    """A class by its number or its name: an int, or a str that the model knows or not."""

    name = "class"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if isinstance(value, int):
            return value
        text = value.strip()
        if text.isascii() and text.isdigit():
            return NumberRanges().convert(text, param, ctx)[0]
        return text


def writable_folder(path: str | os.PathLike, option: str = "--outdir", remedy: str = "") -> Path:
    """The folder that an option names, made if need be. Raises UserError if no file can be written into it.

    `remedy` says what to do then, where that is not to name another with the option.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        for part in (path, *path.parents):
            if os.path.exists(part) and not os.path.isdir(part):
                raise UserError(f"{part} is a file, not a folder; {remedy or f'name another with {option}'}") from None
        reason = error.strerror or error
        raise UserError(f"cannot write to {path}: {reason}; {remedy or f'name another folder with {option}'}") from None
    return path


def writable_file(path: str | os.PathLike, option: str) -> Path:
    """The file that an option names, in a folder that is made if need be. Raises UserError if it cannot be written."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a file; name another with {option}")
    writable_folder(path.parent, option)
    return path


# --- running a command ----------------------------------------------------------------------------------------------


class _BrokenPipe(Exception):
    """Carries a BrokenPipeError, as its cause, past click."""


def _past_click(function: Callable) -> Callable:
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except BrokenPipeError as error:
            raise _BrokenPipe from error

    return call


def _on_one_line(message: str) -> str:
    return printable(" ".join(message.split()))


def typed(parameter: str, context: click.Context | None = None) -> bool:
    """Whether the command line gives this parameter of the command."""
    context = context or click.get_current_context()
    return context.get_parameter_source(parameter) is ParameterSource.COMMANDLINE


def check_result(out: str, option: str, suffix: str, *images: str | None) -> None:
    """Raises UserError where a result has another extension, or would replace one of the images in a folder."""
    if Path(out).suffix.lower() != suffix:
        raise UserError(f"{option} {out}: name a file that ends with {suffix}")
    for folder in filter(None, images):
        if os.path.exists(out) and Path(out).resolve().is_relative_to(Path(folder).resolve()):
            raise UserError(f"{option} {out} is a file of {folder} and would be replaced; name another")


def end_on_signals() -> None:
    """Lets a signal that would kill the process end it like an error, so that what is temporary is removed."""
    for name in ("SIGTERM", "SIGHUP"):  # the second when a terminal is closed; Windows has none
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # which nohup has set
            signal.signal(number, lambda number, _: sys.exit(128 + number))


def run(command: click.Command) -> None:
    """Runs a command as a script: exit code 0 when done, 2 with one line on stderr for a user's mistake.

    A Failure gets its line with exit code 1. Everything else is a bug and keeps its traceback (exit code 1).
    """
    if sys.platform == "win32":
        print("error: this project runs on Linux and macOS; on Windows, use it in WSL 2", file=sys.stderr)
        sys.exit(2)
    # click would turn a broken pipe into an exit, and its versions differ in whether the cause can still be found
    for name in ("make_context", "invoke"):
        setattr(command, name, _past_click(getattr(command, name)))
    try:
        code = command.main(standalone_mode=False)
        sys.stdout.flush()
    except CommandError as error:
        print(f"error: {error.message}", file=sys.stderr)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        # The processes that torchrun starts share one command line: one of them reports what is wrong with it. The
        # others wait for that: when one of them ends, torchrun ends all.
        if isinstance(error, click.UsageError) and os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(5)
            sys.exit(2)
        hint = " (see --help)" if isinstance(error, click.UsageError) else ""
        print(f"error: {_on_one_line(error.format_message())}{hint}", file=sys.stderr)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except (BrokenPipeError, _BrokenPipe) as error:
        broken = error.__cause__ or error
        try:
            print(file=sys.__stdout__, flush=True)  # fails if it is stdout that is broken
        except BrokenPipeError:  # the reader of stdout has gone, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(0)
        raise broken from None  # another pipe, to a process of our own
    except (RuntimeError, MemoryError, OSError) as error:
        if (mistake := explained(error)) is None:
            raise
        print(f"error: {mistake.message}", file=sys.stderr)
        sys.exit(mistake.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
