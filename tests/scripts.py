"""The scripts as a user types them: in a process of their own, or faster in this one."""

from __future__ import annotations

import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import zipfile
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
TINY = "--cfg demo --cbase 512 --cmax 16 --batch 8 --gpus 0 --workers 0 --procs 1 --metrics none".split()  # noqa: SIM905

Result = subprocess.CompletedProcess[str]


def script(name: str, *arguments: object, cwd: Path | None = None) -> Result:
    """Runs a script in a process of its own."""
    command = [sys.executable, str(ROOT / name), *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=env, timeout=120)


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
