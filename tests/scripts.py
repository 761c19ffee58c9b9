"""The scripts as a user types them: in a process of their own, or faster in this one."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import re
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import torch
from PIL import Image
from torch.distributed.launcher import api

from torch_utils import distributed

ROOT = Path(__file__).resolve().parent.parent
TINY = "--cfg demo --cbase 512 --cmax 16 --batch 8 --gpus 0 --workers 0 --procs 1 --metrics none".split()  # noqa: SIM905

# The processes of `distributed.launch` are forks of the one that launches them; the tests of that function itself start
# them as users do.
forking = partial(api.LaunchConfig, start_method="fork")

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.preload"])

Result = subprocess.CompletedProcess[str]


def free_port() -> int:
    """A port that nothing has, from below those that the system gives to connections of other tests meanwhile."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def script(name: str, *arguments: object, cwd: Path | None = None, seconds: float = 120, **variables: str) -> Result:
    """Runs a script in a process of its own, with these variables in its environment."""
    with TemporaryDirectory() as folder:
        process = start(Path(folder), name, *arguments, cwd=cwd, **variables)
        join(process, seconds)
        output = ((Path(folder) / stream).read_text() for stream in ("stdout", "stderr"))
        return subprocess.CompletedProcess([name, *arguments], process.exitcode, *output)


def start(folder: Path, name: str, *arguments: object, cwd: Path | None = None, **variables: str) -> BaseProcess:
    """Starts a script, a module (`-m name`) or a program (`-c`), whose output goes to the files `stdout` and `stderr`
    of a folder.

    Its process is a fork of one that has imported PyTorch and the project, which takes Python seconds each time. It
    leads a group of its own, so that a signal can reach it and the processes that it starts.
    """
    argv = [name if name.startswith("-") else str(ROOT / name), *map(str, arguments)]
    process = FORKS.Process(target=become, args=(argv, cwd or Path.cwd(), folder, {**os.environ, **variables}))
    process.start()
    return process


def launch(function: Callable, *args: object, processes: int) -> None:
    """`distributed.launch` in such a fork, with the processes as forks of it. The pytest process itself may not fork:
    backward passes may have started threads in it. The function runs here if it is to be a single process.
    """
    if processes == 1:
        function(*args)
        return
    process = FORKS.Process(target=launch_there, args=(dict(os.environ), function, args, processes))
    process.start()
    join(process)
    assert process.exitcode == 0


def join(process: BaseProcess, seconds: float = 120) -> None:
    """Waits for the end of such a process. Ends it, and all that it started, where it takes too long."""
    process.join(seconds)
    if process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
        raise TimeoutError(f"process {process.pid} ran for more than {seconds} seconds")


def launch_there(environment: dict[str, str], function: Callable, args: tuple, processes: int) -> None:
    prepare(environment)
    distributed.launch(function, *args, processes=processes)


def prepare(environment: dict[str, str]) -> None:
    """What a fork needs to be as if it had been started by itself, in a group of its own."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    api.LaunchConfig = forking
    multiprocessing.set_start_method(None, force=True)  # that of a process which nobody forked


def become(argv: list[str], cwd: Path, folder: Path, environment: dict[str, str]) -> None:
    """The body of a script's process."""
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), stream)
    sys.stderr.reconfigure(line_buffering=True)
    prepare(environment)
    os.chdir(cwd)
    sys.argv = argv
    if argv[0] == "-c":
        sys.argv = ["-c", *argv[2:]]
        exec(compile(argv[1], "<string>", "exec"), {"__name__": "__main__"})
    elif argv[0].startswith("-m "):
        name = argv[0].removeprefix("-m ")
        sys.modules.pop(f"{name}.__main__", None)  # it is run anew, and runpy would warn of it
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(argv[0], run_name="__main__")


def wait_until(holds: Callable[[], bool]) -> None:
    """Waits until a condition holds, for a minute at most."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "it never held"
        time.sleep(0.3)


def script_here(name: str, *arguments: object, cwd: Path | None = None) -> Result:
    """Runs a script in this process, which has everything imported already."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv = [str(ROOT / name), *map(str, arguments)]
    with ExitStack() as stack:
        for context in (redirect_stdout(out), redirect_stderr(err), mock.patch.object(sys, "argv", argv)):
            stack.enter_context(context)
        if cwd is not None:
            stack.callback(os.chdir, os.getcwd())
            os.chdir(cwd)
        try:
            runpy.run_path(argv[0], run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code or 0
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


def done(result: Result) -> Result:
    """The result of a script that must have worked."""
    assert result.returncode == 0, result.stderr
    return result


def mistake(name: str, *arguments: object, cwd: Path = ROOT) -> str:
    """The one line on stderr that a user's mistake gets, with exit code 2; notes of the model's name aside."""
    result = script_here(name, *arguments, cwd=cwd)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("network:")]
    assert result.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]


def remedy(line: str) -> list[str]:
    """The script and its arguments that a message ends with, as a shell would split them."""
    return shlex.split(re.search(r": python ([^;]*)$", line.strip())[1])


def image_zip(path: Path, sizes: list[tuple[int, int]]) -> Path:
    """A data set of black images of these sizes, without labels."""
    with zipfile.ZipFile(path, "w") as archive:
        for i, size in enumerate(sizes):
            with archive.open(f"{i}.png", "w") as file:
                Image.new("RGB", size).save(file, "PNG")
    return path
