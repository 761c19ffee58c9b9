"""torch_utils.memory: whether memory is kept, by the page faults that it costs not to."""

import subprocess
import sys
from pathlib import Path

import pytest

from torch_utils.memory import DEFAULT_FREE, free_memory

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import resource, sys, torch
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from torch_utils.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones((16 << 20) + 16).add_(1)  # 64 MiB, and 64 bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
with ThreadPoolExecutor(1) as thread:
    call = thread.submit if sys.argv[2] == "thread" else lambda f: SimpleNamespace(result=f)
    call(faults).result()  # the first ones are new to the process
    # the best of three: on a busy machine something small may take a buffer's place in between
    print(int(kept), min(call(faults).result() for _ in range(3)))
"""


@pytest.mark.parametrize("where", ["main", "thread"])
def test_kept_memory_costs_no_page_faults(where):
    kept, faults = {}, {}
    for how in ("keep", "give back"):
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM, how, where], cwd=ROOT, capture_output=True, text=True, check=True
        )
        kept[how], faults[how] = map(int, result.stdout.split())
    if not kept["keep"]:
        pytest.skip("the C library cannot be asked")
    assert faults["keep"] < faults["give back"] / 10


def system(root: Path, available: int, cgroup: str, groups: dict[str, dict[str, object]]) -> Path:
    """What Linux says in /proc and /sys: memory in MiB, the groups of a process, and files of its groups."""
    files = {"proc/meminfo": f"MemTotal: 99 kB\nMemAvailable:   {available << 10} kB", "proc/self/cgroup": cgroup}
    files |= {f"sys/fs/cgroup/{group}/{name}": text for group, of in groups.items() for name, text in of.items()}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def v2(limit: int | str, used: int, unused: int) -> dict[str, object]:
    limit = limit if isinstance(limit, str) else limit << 20
    stat = f"anon 5\ninactive_file {unused << 20}\nactive_file 7"
    return {"memory.max": limit, "memory.current": used << 20, "memory.stat": stat}


def v1(limit: int, used: int, unused: int) -> dict[str, object]:
    stat = f"inactive_file 3\ntotal_inactive_file {unused << 20}"
    return {"memory.limit_in_bytes": limit << 20, "memory.usage_in_bytes": used << 20, "memory.stat": stat}


@pytest.mark.parametrize(
    ("cgroup", "groups", "left"),
    [
        ("0::/", {}, 1000),  # no limits
        ("0::/", {"": v2(600, 300, 100)}, 400),  # a container that sees itself as the root
        ("0::/a/b", {"": v2("max", 9, 0), "a": v2(500, 100, 0), "a/b": v2("max", 50, 0)}, 400),  # of the group above
        ("0::/a/b", {"a": v2(5000, 100, 0), "a/b": v2(300, 350, 20)}, 0),  # beyond it
        ("0::/a", {"a": v2(5000, 100, 0)}, 1000),  # more than the machine has
        ("5:cpu,memory:/docker/123\n0::/", {"memory": v1(800, 300, 50)}, 550),  # in a container, of another path
        ("4:memory:/x\n3:cpu:/", {"memory": v1(8 << 40, 0, 0), "memory/x": v1(700, 300, 0)}, 400),
    ],
)  # fmt: skip
def test_free_memory_knows_the_limits_of_containers(tmp_path, cgroup, groups, left):
    assert free_memory(system(tmp_path, 1000, cgroup, groups)) == (left << 20) * 3 // 4


def test_where_nothing_tells(tmp_path):
    assert free_memory(tmp_path) == DEFAULT_FREE
