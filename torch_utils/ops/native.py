"""Builds and loads the C++ and CUDA kernels, or says in one line why not.

`ADACONV_OPS=auto` (the default) takes the kernels where they can be had, `native` insists on them, `reference` does
without. They are compiled on first use, by one process of all that ask, and kept in a cache folder by a hash of all
that they are made from: sources, flags, compilers and PyTorch. A build that failed is not tried again before
something of that changes, or `make ops` asks for it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from torch_utils.cache import NotPrivate, cache_folder, check_private, make_private_folder
from torch_utils.errors import UserError, note
from torch_utils.files import atomic_write, open_own, read_regular
from torch_utils.ops.names import IN_CHANNELS_LAST

SOURCES = Path(__file__).parent / "csrc"
CPU_SOURCES = [
    "ops.cpp",
    "autograd.cpp",
    "adaconv.cpp",
    "adaconv_grad_kernel.cpp",
    "bias_act.cpp",
    "conv3x3.cpp",
    "moments.cpp",
    "upfirdn2d.cpp",
]
CUDA_SOURCES = [
    "adaconv.cu",
    "adaconv_channels.cu",
    "adaconv_grad_kernel.cu",
    "bias_act.cu",
    "moments.cu",
    "reorder.cu",
    "upfirdn2d.cu",
]

# The vector instructions that PyTorch found on this machine. GCC's -march=native would also tune, and so run into a
# wrong code bug of GCC 12 (a flag overwritten before a conditional move).
CPU_FLAGS = {
    "AVX512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mf16c"],
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
}
# Ampere, Hopper, and PTX for what comes after them.
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"

MAX_FAILURE_BYTES = 1 << 16
INTERRUPTED = re.compile("KeyboardInterrupt|interrupted by user")  # in what Python and ninja print

# Runs in a process of its own, so that what ninja and the compilers print can be kept in a file.
BUILDER = """
import json, sys
import torch
from torch.utils.cpp_extension import load
options = json.loads(sys.argv[1])
if any(flag.startswith("-fsanitize") for flag in options.get("extra_ldflags", [])):
    torch.ops.load_library = lambda path: None  # it needs the sanitizer's own libraries, which are not here
load(**options, verbose=True, is_python_module=False)
"""


class Unavailable(Exception):
    """The kernels cannot be had; the message is one line that says why and what to do."""


class Interrupted(Unavailable):
    """Compiling was stopped by a signal, such as ^C, which reaches the compiler as well."""


@dataclass(frozen=True)
class Build:
    """What a library is made from. `key` names it in the cache."""

    device: str  # cpu or cuda
    sources: tuple[str, ...]
    flags: tuple[str, ...]
    compiler: str  # with its version
    cuda_home: str | None = None
    architectures: str | None = None
    source_folder: Path | None = None  # where that is not SOURCES

    @functools.cached_property  # of the sources as they were when it was planned
    def key(self) -> str:
        made_from = [getattr(self, field.name) for field in fields(self) if field.name != "source_folder"]
        digest = hashlib.sha256(repr([torch.__version__, platform.machine(), *made_from]).encode())
        suffixes = {"cpu": (".cpp", ".h"), "cuda": (".cu", ".cuh", ".h")}.get(self.device, (".cpp", ".cuh", ".h"))
        for path in sorted((self.source_folder or SOURCES).iterdir()):
            if path.suffix in suffixes:
                digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        return digest.hexdigest()[:16]

    @property
    def folder(self) -> Path:
        return cache_folder() / f"{self.device}-{self.key}"

    @property
    def library(self) -> Path:
        return self.folder / f"adaconv_{self.device}.so"


def mode() -> str:
    """auto, native or reference, as ADACONV_OPS says."""
    value = os.environ.get("ADACONV_OPS", "auto")
    if value not in ("auto", "native", "reference"):
        raise UserError(f"ADACONV_OPS={value!r} is unknown; there are auto, native and reference")
    return value


def plan(device: str) -> Build:
    """What the library for a device would be made from here. Raises Unavailable where a compiler is missing."""
    compiler = os.environ.get("CXX") or "c++"
    version = _version(compiler, "install one (Debian, Ubuntu: apt install g++) or name it with CXX=")
    if device == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        flags = ["-O3", "-fno-math-errno", "-Wno-psabi", *CPU_FLAGS.get(capability, [])]
        if capability == "AVX512" and _converts_to_bfloat16():
            flags.append("-mavx512bf16")
        if sys.platform == "linux":
            flags.append("-fopenmp")
        return Build("cpu", tuple(CPU_SOURCES), tuple(flags), version)
    if torch.version.cuda is None:
        raise Unavailable("this PyTorch was built without CUDA; install one with it")
    home = find_cuda_home()
    nvcc = _version(str(home / "bin" / "nvcc"), "install the CUDA toolkit and name it with CUDA_HOME=")
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST") or _architectures()
    return Build(
        "cuda", tuple(CUDA_SOURCES), ("-O3", "--expt-relaxed-constexpr"), f"{nvcc}, {version}", str(home), architectures
    )


def _converts_to_bfloat16() -> bool:
    """Whether the CPU has AVX-512's instructions for bfloat16."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _version(compiler: str, remedy: str) -> str:
    try:
        run = subprocess.run(
            [*shlex.split(compiler), "--version"], capture_output=True, text=True, errors="replace", check=True
        )
        lines = [line.strip() for line in run.stdout.splitlines() if line.strip()]
    except (OSError, subprocess.CalledProcessError):
        lines = []
    if not lines:
        raise Unavailable(f"the compiler {compiler} does not run; {remedy}")
    return f"{compiler}: " + (lines[-1] if "nvcc" in compiler else lines[0])


def _architectures() -> str:
    """Those of the GPUs that are there, else a default."""
    if not torch.cuda.is_available():
        return DEFAULT_ARCHITECTURES
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return ";".join(f"{major}.{minor}" for major, minor in sorted(found))


def find_cuda_home() -> Path:
    """The CUDA toolkit: CUDA_HOME, the one that `nvcc` belongs to, the one that pip installed, or /usr/local/cuda."""
    candidates: list[str | None] = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), _toolkit_of_nvcc()]
    major = (torch.version.cuda or "").split(".")[0]
    candidates += [f"{folder}/nvidia/cu{major}" for folder in sys.path if folder.endswith("site-packages")]
    candidates += ["/usr/local/cuda"]
    for candidate in candidates:
        if candidate and (Path(candidate) / "bin" / "nvcc").exists() and _has_headers(Path(candidate)):
            return Path(candidate)
    raise Unavailable("no CUDA toolkit with nvcc and cuda_runtime.h; install it, or name its folder with CUDA_HOME=")


def _has_headers(home: Path) -> bool:
    return (home / "include" / "cuda_runtime.h").exists()


def _toolkit_of_nvcc() -> str | None:
    """nvcc may be a link or a script that calls the real one: that one says itself where it is."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    try:
        command = [nvcc, "--dryrun", "-x", "cu", os.devnull, "-o", os.devnull]
        dry = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError:
        return None
    for line in dry.stderr.splitlines():
        if line.startswith("#$ TOP="):
            return os.path.realpath(line.removeprefix("#$ TOP="))
    return None


def build(device: str | Build, again: bool = False) -> Path:
    """The library for a device, or of a plan of one's own, compiled unless it is in the cache.

    `again` tries a build that failed before once more.

    Raises:
        Unavailable: with one line that says why, and where the compiler's messages are.
    """
    try:
        import fcntl
    except ImportError:
        raise Unavailable("they are built on Linux and macOS only") from None
    made = plan(device) if isinstance(device, str) else device
    try:
        make_private_folder(made.folder)
        if not _is_built(made):
            with open_own(made.folder / "lock", "ab") as lock:  # the system lets go of it when its process dies
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _is_built(made):
                    _build_here(made, again)
    except NotPrivate as error:
        raise Unavailable(str(error)) from None
    except OSError as error:
        raise Unavailable(
            f"cannot write to {made.folder}: {error.strerror}; name a folder with ADACONV_CACHE="
        ) from None
    return made.library


def _is_built(made: Build) -> bool:
    """Whether the library is in the cache, where nobody else can have put it. Raises NotPrivate."""
    try:
        check_private(made.library)
    except FileNotFoundError:
        return False
    return True


def _build_here(made: Build, again: bool) -> None:
    """Compiles a library, unless that has failed before. Raises Unavailable."""
    failed = made.folder / "failed"
    if failed.exists() and not again:
        raise Unavailable(f"{read_failure(made)}; `make ops` tries again")
    failed.unlink(missing_ok=True)
    for left in made.folder.glob("build-*"):  # by a build that was killed
        shutil.rmtree(left, ignore_errors=True)
    note(f"compiling the {made.device} ops, once: about a minute ...")
    try:
        _compile(made)
    except Interrupted:  # says nothing about the next time
        raise
    except Unavailable as error:
        with atomic_write(failed) as file:
            file.write(str(error).encode())
        raise


def read_failure(made: Build) -> str:
    """Why compiling failed before."""
    return read_regular(made.folder / "failed", MAX_FAILURE_BYTES).decode(errors="replace")


def _compile(made: Build) -> None:
    log = made.folder / "log.txt"
    environment = dict(os.environ)
    if made.cuda_home and made.architectures:
        environment |= {"CUDA_HOME": made.cuda_home, "TORCH_CUDA_ARCH_LIST": made.architectures}
    # ninja may be installed beside this Python without being on the PATH
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    with tempfile.TemporaryDirectory(dir=made.folder, prefix="build-") as folder:
        options = {
            "name": made.library.stem,
            "sources": [str((made.source_folder or SOURCES) / name) for name in made.sources],
            "extra_cflags": ["-O3"] if made.device == "cuda" else list(made.flags),
            "extra_cuda_cflags": list(made.flags) if made.device == "cuda" else None,
            "extra_ldflags": [flag for flag in made.flags if flag.startswith(("-fopenmp", "-fsanitize"))],
            "build_directory": folder,
            "with_cuda": made.device == "cuda",
        }
        log.unlink(missing_ok=True)
        with open_own(log, "xb") as output:
            done = subprocess.run(
                [sys.executable, "-c", BUILDER, json.dumps(options)], stdout=output, stderr=output, env=environment
            )
        result = Path(folder) / made.library.name
        if done.returncode or not result.exists():
            messages = log.read_text(errors="replace")
            if done.returncode < 0 or INTERRUPTED.search(messages):
                raise Interrupted("compiling was interrupted; the next command compiles again")
            raise Unavailable(f"compiling failed: {_reason(messages)}; all messages: {log}")
        result.chmod(0o755)  # whatever the user's umask is: what others could change is not loaded
        result.replace(made.library)


def _reason(log: str) -> str:
    """The line of a build's messages that most likely says what is wrong."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for mark in ("fatal error", "error:", "Error"):
        for line in lines:
            if mark in line:
                return line[:200]
    return lines[-1][:200] if lines else "no messages"


_loaded: dict[str, bool] = {}
_loading = threading.RLock()  # held by the thread that builds and loads; those for a GPU ask for those of the CPU
_faulty: dict[str, dict[str, str]] = {}  # device → ops whose kernels are wrong on it, with what was seen


def reference_dtype(x: torch.Tensor) -> torch.dtype:
    """What the references compute in: on the CPU, half precision in float32, as the kernels do.

    Whether PyTorch adds up half precision in float32 there depends on the machine. On GPUs it always does.
    """
    half = x.dtype in (torch.float16, torch.bfloat16)
    return torch.float32 if half and x.device.type == "cpu" else x.dtype


def available(device: str, op: str | None = None) -> bool:
    """Whether the kernels for a device are loaded, and those of `op` right; builds and loads them when first asked.

    Never while a graph is exported: it is to run where there is nothing of this project.

    Raises:
        UserError: under ADACONV_OPS=native, where they cannot be had.
    """
    if torch.compiler.is_exporting():
        return False
    if device not in _loaded:
        with _loading:
            if device not in _loaded:  # no other thread has loaded them in the meantime
                _loaded[device] = _load(device)
    return _loaded[device] and op not in _faulty.get(device, {})


def readable(x: torch.Tensor, op: str) -> torch.Tensor:
    """x itself, or a copy in channels-first where an op's kernels are wrong in channels-last only."""
    return x.contiguous() if op + IN_CHANNELS_LAST in _faulty.get(x.device.type, {}) else x


def _load(device: str) -> bool:
    if mode() == "reference" or device not in ("cpu", "cuda"):
        return False
    try:
        if device == "cuda" and not available("cpu"):  # it holds the schemas
            return False
        library = build(device)
        try:
            torch.ops.load_library(library)
        except OSError:  # damaged, or made for what this machine had before
            library.unlink(missing_ok=True)  # another process may have found the same
            torch.ops.load_library(build(device))
    except (Unavailable, OSError) as error:
        reason = " ".join(str(error).split())
        if mode() == "native":
            raise UserError(f"ADACONV_OPS=native: {reason}") from None
        note(f"note: the slower reference ops for {device} are used: {reason}")
        return False
    if device == "cpu":
        register_fakes()
    _faulty[device] = _self_check(device)
    return True


def _self_check(device: str) -> dict[str, str]:
    """The ops whose kernels are wrong on this machine, with one line about each.

    Raises:
        UserError: under ADACONV_OPS=native, where there are any.
    """
    libraries = [plan(name).library for name in (("cpu",) if device == "cpu" else ("cpu", "cuda"))]
    folder = libraries[-1].parent
    try:
        from torch_utils.ops import selfcheck  # it needs a system on which kernels can be built

        found = selfcheck.faults(device, libraries, folder)
    except OSError as error:
        note(f"note: the {device} ops could not be checked: {error.strerror}: {error.filename}")
        return {}
    except selfcheck.Interrupted as error:
        note(f"note: the {device} ops are used without having been checked: {error}")
        found = error.faults
    record = selfcheck.record_path(device, folder)
    all_of_it = f"; all of it: {record}" if record.exists() else ""  # there is none of an interrupted check
    for op, fault in found.items():
        reason = (
            f"its {device} kernels are wrong here: {fault[:200]}{all_of_it}; "
            "to check again: python -m torch_utils.ops --check"
        )
        if mode() == "native":
            raise UserError(f"ADACONV_OPS=native: {op}: {reason}")
        instead = "computed in channels-first" if op.endswith(IN_CHANNELS_LAST) else "left to the slower reference"
        note(f"note: {op} is {instead}: {reason}")
    return found


def register_fakes() -> None:
    """Tells PyTorch the shapes of the kernels' results, once they are loaded."""
    for name in ("adaconv", "bias_act", "conv3x3", "moments", "upfirdn2d"):
        importlib.import_module(f"torch_utils.ops.{name}").register()


def on_gpu(x: torch.Tensor) -> bool:
    """Whether the CUDA kernels compute the ops of x. Their emulation on a CPU, in tests/, replaces this function."""
    return x.device.type == "cuda"


def fake_output(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """What a kernel gives for `like` when only shapes are asked for. Channels-last stays channels-last."""
    last = like.ndim == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last)
    order = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=order)
