"""What the command lines share: one-line errors, grouped help, types of options."""

from __future__ import annotations

import math
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from torch_utils.errors import CommandError, UserError

MAX_NUMBERS = 10_000_000
MAX_DIGITS = 18


class Option(click.Option):
    """A click option that `--help` lists under the heading `group`."""

    def __init__(self, *args, group: str = "Options", **kwargs):
        super().__init__(*args, **kwargs)
        self.group = group


def option(group: str, *args, **kwargs):
    """`click.option` under the heading `group`."""
    return click.option(*args, cls=Option, group=group, **kwargs)


class Command(click.Command):
    """A click command whose `--help` lists its options by group, and ends with an `example`."""

    def __init__(self, *args, example: str = "", **kwargs):
        kwargs.setdefault("context_settings", {"show_default": True, "max_content_width": 110})
        super().__init__(*args, **kwargs)
        self.example = example

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list] = {}
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


class Script(Command):
    """A command that has others beside it: `script.py mix …` runs `mix`, `script.py --seeds …` the script's own.

    `@main.command("mix", …)` adds one, a Command unless `cls` says otherwise.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.commands: dict[str, click.Command] = {}

    def command(self, name: str, **kwargs):
        def add(function):
            self.commands[name] = click.command(name, **{"cls": Command, **kwargs})(function)
            return self.commands[name]

        return add

    def make_context(self, info_name, args, parent=None, **extra) -> click.Context:
        if not args or args[0].startswith("-"):
            return super().make_context(info_name, args, parent, **extra)
        if args[0] not in self.commands:
            known = ", ".join(self.commands)
            raise click.UsageError(f"there is no command {args[0]!r}; write one of {known}, or only options")
        return self.commands[args[0]].make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)

    def invoke(self, ctx: click.Context):
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        with formatter.section("Commands, each with its own --help"):
            formatter.write_dl([(name, command.get_short_help_str(80)) for name, command in self.commands.items()])


class Float(click.FloatRange):
    """A finite number: click's own types take `inf` and `nan`, which no comparison with a bound refuses."""

    def convert(self, value, param, ctx) -> float:
        value = super().convert(value, param, ctx)
        if not math.isfinite(value):
            self.fail(f"{value} is not a finite number", param, ctx)
        return value


class Device(click.ParamType):
    """`cpu`, `cuda` or `cuda:1`, if this machine has it."""

    name = "device"

    def convert(self, value, param, ctx) -> str:
        match = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", value, re.ASCII)
        if match is None:
            self.fail(f"{value!r} is no device; write cpu, cuda or cuda:1", param, ctx)
        if value != "cpu":
            import torch  # takes seconds, which --help need not wait for

            there = torch.cuda.device_count()
            if int(match[1] or 0) >= there:
                self.fail(f"{value} is not there: PyTorch finds {there} GPUs; take --device cpu", param, ctx)
        return value


class NumberRanges(click.ParamType):
    """Numbers and ranges as `0-99,200,3`: a list of integers in the order given."""

    name = "ranges"

    def convert(self, value, param, ctx) -> list[int]:
        if isinstance(value, list):
            return value
        numbers: list[int] = []
        for part in value.split(","):
            first, dash, last = (text.strip() for text in part.strip().partition("-"))
            if not (first.isascii() and first.isdigit()) or (dash and not (last.isascii() and last.isdigit())):
                self.fail(f"{part.strip()!r} is neither a number nor a range; write e.g. 0-99,200,3", param, ctx)
            if max(len(first), len(last)) > MAX_DIGITS:
                self.fail(f"a number of more than {MAX_DIGITS} digits; seeds are 64-bit numbers", param, ctx)
            low, high = int(first), int(last or first)
            if high < low:
                self.fail(f"the range {part.strip()!r} runs backwards; write {high}-{low}", param, ctx)
            if len(numbers) + high - low >= MAX_NUMBERS:
                self.fail(f"more than {MAX_NUMBERS:,} numbers; split them over several runs", param, ctx)
            numbers.extend(range(low, high + 1))
        return numbers


def writable_folder(path: str | os.PathLike, option: str = "--outdir") -> Path:
    """Makes the folder that an option names, if need be. Raises UserError where no file can be written into it."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write to {path}: {reason}; name another folder with {option}") from None
    return path


class _BrokenPipe(Exception):
    """A BrokenPipeError, its cause, that click does not see."""


def _past_click(function: Callable) -> Callable:
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except BrokenPipeError as error:
            raise _BrokenPipe from error

    return call


def _joined(message: str) -> str:
    return " ".join(message.split())


def run(command: click.Command) -> None:
    """Runs a command as a script: exit code 0 when done, 2 with one line on stderr for a user's mistake.

    A Failure gets its line with exit code 1. Everything else is a bug and keeps its traceback (exit code 1).
    """
    # click would turn a broken pipe into an exit, of which its versions differ in whether the pipe can be told
    command.make_context, command.invoke = _past_click(command.make_context), _past_click(command.invoke)
    try:
        code = command.main(standalone_mode=False)
        sys.stdout.flush()
    except CommandError as error:
        print(f"error: {_joined(error.message)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        # The processes that torchrun starts share one command line: one of them says what is wrong with it.
        if not isinstance(error, click.UsageError) or os.environ.get("LOCAL_RANK", "0") == "0":
            hint = " (see --help)" if isinstance(error, click.UsageError) else ""
            print(f"error: {_joined(error.format_message())}{hint}", file=sys.stderr)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except (BrokenPipeError, _BrokenPipe) as error:
        broken = error.__cause__ or error
        try:
            print(file=sys.__stdout__, flush=True)  # asks whether it is stdout that is broken
        except BrokenPipeError:  # the reader of stdout went away, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
            sys.exit(0)
        raise broken from None  # another pipe, to a process of our own
    sys.exit(code if isinstance(code, int) else 0)
