"""What the benchmarks share: times of candidates that take turns, what the hardware can do, and where it was measured.

A median is of rounds in which every candidate had its turn, so that ratios hold when the machine drifts. On a GPU a
turn is several calls that were all queued before the first one ran: the time is the GPU's, without the gaps in which it
would wait for Python. (`bench_training.py` measures these gaps.)
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from torch_utils.files import write_file
from training.cli import commit

TURN = 0.01  # seconds on a GPU that a turn takes at least
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Call = Callable[[], object]


def seconds(function: Call, device: torch.device | str) -> float:
    """The time of one call, with all that it started on the device."""
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def gpu_seconds(function: Call, calls: int, queueing: float) -> float:
    """The GPU's time for a call. It sleeps first, while Python queues the calls, `queueing` seconds for each."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(int(2e9 * min(1.5 * calls * queueing + 1e-4, 0.5)))  # in cycles, of which 2e9 are about a second
    start.record()
    for _ in range(calls):
        function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def medians(candidates: dict[str, Call], rounds: int, device: torch.device | str) -> dict[str, float]:
    """Seconds of each candidate: one round to warm up, then the median of the others."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    if torch.device(device).type != "cuda":
        for i in range(rounds + 1):
            for name, function in candidates.items():
                elapsed = seconds(function, device)
                if i:
                    times[name].append(elapsed)
        return {name: statistics.median(values) for name, values in times.items()}
    plans = {}
    for name, function in candidates.items():
        seconds(function, device)
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        queueing = time.perf_counter() - start
        plans[name] = max(min(int(TURN / seconds(function, device)), 100), 1), queueing
    for _ in range(rounds):
        for name, function in candidates.items():
            times[name].append(gpu_seconds(function, *plans[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def graphed(function: Call) -> Call:
    """The same as a CUDA graph: launched at once, on the tensors that the function has now."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def working(candidates: dict[str, Call]) -> dict[str, Call]:
    """Those that run. Of others it is said why: a variant that cannot be had should not cost all that were measured."""
    kept = {}
    for name, function in candidates.items():
        try:
            function()
            kept[name] = function
        except RuntimeError as error:
            print(f"note: {name} is left out: {' '.join(str(error).split())[:200]}", file=sys.stderr)
    return kept


def peak_gib(function: Call, device: torch.device | str) -> float | None:
    """The most memory that a call needs on a GPU, with what lies there before."""
    if torch.device(device).type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


# --- what the hardware can do ---------------------------------------------------------------------------------------


def set_precision(precision: str) -> torch.dtype:
    """Has float32 products computed as such, or with "tf32" in TF32, and returns the type of the tensors."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return DTYPES[precision]


def matmul_rate(device: torch.device | str, dtype: torch.dtype = torch.float32, size: int | None = None) -> float:
    """Multiply-adds a second of a large matrix product: the best of several."""
    on_gpu = torch.device(device).type == "cuda"
    size = size or (8192 if on_gpu else 2048)
    a = torch.randn(size, size, device=device).to(dtype)
    best = min(seconds(lambda: a @ a, device) for _ in range(6))
    return size**3 / (min(best, *(gpu_seconds(lambda: a @ a, 5, 1e-4) for _ in range(3))) if on_gpu else best)


def copy_rate(device: torch.device | str) -> float:
    """Bytes a second, read and written, of a copy that no cache holds: the best of several."""
    on_gpu = torch.device(device).type == "cuda"
    a = torch.ones(1 << (30 if on_gpu else 27), dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    times = [
        gpu_seconds(lambda: b.copy_(a), 5, 1e-4) if on_gpu else seconds(lambda: b.copy_(a), device) for _ in range(6)
    ]
    return 2 * a.numel() / min(times)


# --- records --------------------------------------------------------------------------------------------------------


def about(device: torch.device | str) -> dict[str, Any]:
    """What a record was measured on and with: machine, versions, commit."""
    found: dict[str, Any] = {"device": torch.device(device).type, "machine": f"{cpu_name()}, {os.cpu_count()} cores"}
    if torch.device(device).type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        found["machine"] = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, {gpu.multi_processor_count} SMs"
        found["cuda"], found["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    found |= {"torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads()}
    return {**found, "commit": commit(), "date": time.strftime("%Y-%m-%d")}


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, where there are several values."""
    text = f"{statistics.mean(values):.4g}"
    return f"{text} ± {statistics.stdev(values):.2g}" if len(values) > 1 else text


def name_in_record(path: str | Path) -> str:
    """A file's name with that of its folder, such as a run's: where they lie on this machine says nothing elsewhere."""
    return "/".join(Path(path).parts[-2:]) if Path(path).suffix == ".safetensors" else Path(path).name


def write_record(path: str | None, device: torch.device | str, record: dict[str, Any]) -> None:
    """Writes a record as JSON with what it was measured on, if there is a path."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps({**about(device), **record}, indent=2).encode() + b"\n")
