"""The CUDA kernels, executed on the CPU: the tests of the ops, and bugs that they must find (tests/emulation)."""

import json
import os
import re
from pathlib import Path

import kernel_cost
import pytest

from tests.emulation import bugs, emulate, rewrite
from tests.scripts import Result, script
from torch_utils.ops import native

ROOT = Path(__file__).resolve().parents[3]
ORDERS = "3"  # of threads and blocks, that each op is run in
# Those of test_half_precision.py and test_kernels.py take minutes: `make emulate` runs them as well.
TESTS = ("test_adaconv.py", "test_bias_act.py", "test_upfirdn2d.py")

pytestmark = pytest.mark.emulated


@pytest.fixture(scope="module")
def library() -> Path:
    """The emulated ops with the bugs of bugs.py built in, none of which is turned on."""
    if not hasattr(os, "fork"):
        pytest.skip("the kernels are built on Linux and macOS only")
    try:
        native.build("cpu")
        return emulate.build()
    except native.Unavailable as error:
        if "compiling failed" in str(error):
            raise
        pytest.skip(f"nothing can be compiled here: {error}")


def run(library: Path, *arguments: object, **variables: str) -> Result:
    """A process of its own: the emulated kernels take the place of the CPU's."""
    given = {"EMULATED_LIBRARY": str(library), "ADACONV_OPS": "auto", **variables}
    return script(*arguments, cwd=ROOT, seconds=3600, **given)


@pytest.mark.parametrize("file", TESTS)
def test_the_tests_of_the_ops(file, library):
    """Unchanged; in several orders of threads and blocks, every op gives the same bits."""
    choice = ["-m", "not gpu", "-k", "not reference", "-p", "no:cacheprovider", "-x"]
    done = run(
        library,
        "-m pytest",
        "-p",
        "tests.emulation.emulate",
        f"tests/torch_utils/ops/{file}",
        *choice,
        EMULATED_ORDERS=ORDERS,
        EMULATED_FAST_GRADCHECK="1",
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "the emulated kernels were launched" in done.stdout


def test_planted_bugs_are_found(library):
    """One of each file; `make emulate` plants all of them, and uses sanitizers."""
    done = run(library, "-m tests.emulation.find_bugs", "sample")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert done.stdout.count("found: ") == len({bug.file for bug in bugs.BUGS}) == 9


@pytest.mark.parametrize("file, op", [("adaconv.cu", "adaconv"), ("adaconv_channels.cu", "adaconv in channels-last")])
def test_the_self_check_finds_a_planted_bug(library, tmp_path, file, op):
    """In a process of its own, as on first use; the ops without the bug are right, and so is the other order."""
    number = next(n for n, bug in enumerate(bugs.BUGS, start=1) if bug.file == file and bug.by == "values")
    program = (
        "import sys, json; from pathlib import Path; from torch_utils.ops import native, selfcheck\n"
        "libraries = [native.build('cpu'), Path(sys.argv[1])]\n"
        "print(json.dumps(selfcheck.faults('cpu', libraries, Path(sys.argv[2]))))"
    )
    done = run(library, "-c", program, str(library), str(tmp_path), EMULATED_BUG=str(number))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == [op]
    assert "wrong in" in found[op] or "depends on the order of threads" in found[op]


@pytest.mark.parametrize("faulty", ["", "adaconv"])
def test_a_training_equals_that_of_the_references(faulty, library):
    """Also where the self-check has left an op to its reference. `make emulate` trains for 200 steps."""
    done = run(library, "-m tests.emulation.train", "12", EMULATED_FAULTY=faulty)
    assert done.returncode == 0, done.stderr
    difference = float(done.stdout.split("largest relative difference in")[1].split(":")[1])
    assert difference < 1e-9, done.stdout


def test_loops_are_run_as_often_as_the_cost_of_the_kernels_is_counted_with(library):
    done = run(library, "-m tests.emulation.trips")
    assert done.returncode == 0, done.stderr
    expected = {case.what: [loop.trips for loop in case.loops] for case in kernel_cost.CASES if case.loops}
    assert json.loads(done.stdout) == expected


def test_every_loop_that_is_not_unrolled_counts_its_trips():
    for name in rewrite.FILES:
        before = ""
        for line in rewrite.count_trips((native.SOURCES / name).read_text(), name).splitlines():
            text = line.lstrip()
            loop = re.match(r"for \([^:]*;", text) or re.match(r"while \(.*\{$", text)
            assert ("emulated::trip(" in line) == bool(loop and before != "#pragma unroll"), line
            before = line.strip()


def test_sources_keep_their_lines(tmp_path):
    """An error names the line of the CUDA source."""
    for name in rewrite.write_sources(tmp_path):
        original = (native.SOURCES / name.removesuffix(".cpp")).read_text().splitlines()
        written = (tmp_path / name).read_text().splitlines()
        assert written[0] == f'#line 1 "{name.removesuffix(".cpp")}"'
        for number, line in enumerate(original):
            if "TORCH_LIBRARY_IMPL" in line or "__syncthreads" in line:
                assert written[1 + number].split("(")[0].split() == line.split("(")[0].split()
        assert "<<<" not in "\n".join(written)


def test_the_documentation_names_every_bug_and_what_finds_it():
    text = (ROOT / "docs" / "ops.md").read_text()
    for bug in bugs.BUGS:
        assert f"| {bug.what} | {bugs.BY[bug.by]} |" in text


def test_every_bug_fits_its_source():
    """The texts that the bugs replace are in the kernels as they are now."""
    for bug in bugs.BUGS:
        assert (native.SOURCES / bug.file).read_text().count(bug.old) == 1, bug.what
        assert "BUG" in bug.new
        assert bug.new.count("\n") == bug.old.count("\n"), "the loops would be counted for other lines"
    assert len(bugs.BUGS) >= 17
