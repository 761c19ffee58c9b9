"""The import contract of pyproject.toml: which package may import which. It must fail where an import breaks it.
And the sizes that CONTRIBUTING.md allows files and functions.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter import api

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = api.read_configuration(str(ROOT / "pyproject.toml"))


MOST = re.compile(r"A file has at most (\d+) lines, a function at most (\d+)")


def functions(tree: ast.AST) -> dict[str, int]:
    """The number of lines of each function, by its name."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {n.name: (n.end_lineno or n.lineno) - n.lineno + 1 for n in ast.walk(tree) if isinstance(n, kinds)}


def test_files_and_functions_are_short():
    of_file, of_function = map(int, MOST.search((ROOT / "CONTRIBUTING.md").read_text()).groups())
    packages = CONTRACT["session_options"]["root_packages"]
    files = [
        *ROOT.glob("*.py"),
        *(p for name in (*packages, "benchmarks", "tests") for p in (ROOT / name).rglob("*.py")),
    ]
    assert len(files) > 150
    for path in files:
        text = path.read_text()
        assert text.count("\n") <= of_file, path
        too_long = {name: lines for name, lines in functions(ast.parse(text)).items() if lines > of_function}
        assert not too_long, (path, too_long)


@pytest.fixture
def copy(tmp_path) -> Path:
    """The packages and the contract, without the tests."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in CONTRACT["session_options"]["root_packages"]:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "csrc"))
    return tmp_path


def lint_imports(folder: Path) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_the_code_keeps_the_contract(copy):
    result = lint_imports(copy)
    assert result.returncode == 0, result.stdout


def test_each_kind_of_wrong_import_is_found(copy):
    wrong = [
        ("metrics/swd.py", "training.loop"),  # a layer above
        ("networks/vgg.py", "media.images"),  # the same layer
        ("latents/codes.py", "styling.color"),  # the same layer
        ("training/loss.py", "styling.color"),  # training may import metrics, but not styling
        ("models/card.py", "generate"),  # a script
        ("torch_utils/errors.py", "torch_utils.cli"),  # cli imports errors
    ]
    for file, module in wrong:
        with (copy / file).open("a") as stream:
            stream.write(f"\nimport {module}\n")
    result = lint_imports(copy)
    assert result.returncode == 1
    for file, module in wrong[:-1]:
        importer = file.removesuffix(".py").replace("/", ".")
        assert f"{importer} -> {module}" in result.stdout
    assert "0 kept, 4 broken" in result.stdout


def test_the_contract_knows_every_package_and_script():
    packages = {file.parent.name for file in ROOT.glob("*/__init__.py")} - {"tests"}
    assert set(CONTRACT["session_options"]["root_packages"]) == packages
    contracts = {contract["name"]: contract for contract in CONTRACT["contracts_options"]}
    about_scripts = contracts["No package imports a script"]
    assert set(about_scripts["source_modules"]) == packages
    assert set(about_scripts["forbidden_modules"]) == {file.stem for file in ROOT.glob("*.py")}
    layers = " | ".join(contracts["Packages import only from the layers below them"]["layers"])
    assert set(layers.split(" | ")) == packages
