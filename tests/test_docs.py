"""The documentation against the code: links, paths, commands, quoted messages, and the tables of configurations."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from training.options import resolve
from training.presets import PRESETS

ROOT = Path(__file__).resolve().parent.parent
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "pretrained" / "README.md"]
DOCS += sorted((ROOT / "docs").glob("*.md"))
SCRIPTS = (
    "train", "train_stylizer", "train_encoder", "generate", "projector", "stylize", "export", "dataset_tool", "app",
)  # fmt: skip
MODULES = ("metrics", "torch_utils.ops")  # with a command line of their own: python -m …
FOREIGN = {"--nnodes", "--node-rank", "--nproc-per-node", "--master-addr", "--master-port", "--check", "--help"}
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)

every_document = pytest.mark.parametrize("document", DOCS, ids=lambda path: str(path.relative_to(ROOT)))


# --- reading documents and code -------------------------------------------------------------------------------------


def prose(document: Path) -> str:
    """The text without fenced blocks and comments."""
    text = FENCE.sub("", document.read_text())
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def code_spans(text: str) -> list[str]:
    return [span.strip() for _, span in re.findall(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", text)]


def command_lines(document: Path) -> Iterator[list[str]]:
    """The words of each command in fenced blocks and code spans, without comments; `a && b` are two."""
    blocks = [block for _, language, block in FENCE.findall(document.read_text()) if not language]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *code_spans(prose(document))]:
        if re.search(r"\b(python|torchrun|make)\b|\.py\b", line):
            for part in re.split(r"&&|\|", line):
                try:
                    yield shlex.split(part, comments=True)
                except ValueError:
                    continue  # an apostrophe: no command


def load(name: str, path: Path):
    """The module of a file that is no part of a package."""
    spec = importlib.util.spec_from_file_location(f"documented_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def command_of(program: str) -> click.Command:
    """The click command behind `train.py`, `benchmarks/report.py` or `-m metrics`."""
    if program.startswith("-m "):
        return importlib.import_module(f"{program.removeprefix('-m ')}.__main__").main
    path = ROOT / program
    if (folder := str(path.parent)) not in sys.path:  # the benchmarks import each other
        sys.path.append(folder)
    return load(path.stem, path).main


def subcommands(command: click.Command) -> dict[str, click.Command]:
    return dict(getattr(command, "commands", {}))


def options_of(command: click.Command) -> dict[str, click.Option]:
    options = [p for p in command.params if isinstance(p, click.Option)]
    return {name: option for option in options for name in (*option.opts, *option.secondary_opts)}


@cache
def all_options() -> dict[str, list[click.Option]]:
    """Every option of every command line of the project, by name."""
    commands = [command_of(f"{name}.py") for name in SCRIPTS] + [command_of(f"-m {name}") for name in MODULES]
    commands += [command_of(f"benchmarks/{path.name}") for path in (ROOT / "benchmarks").glob("*.py") if has_main(path)]
    found: dict[str, list[click.Option]] = {}
    for command in commands:
        for part in (command, *subcommands(command).values()):
            for name, parameter in options_of(part).items():
                found.setdefault(name, []).append(parameter)
    return found


def has_main(path: Path) -> bool:
    return "\ndef main(" in path.read_text()


def accepts(parameter: click.Option, value: str) -> bool:
    """Whether an option takes the value. Placeholders as RUN and … count, and so do files that are not there."""
    if "…" in value or value.isupper() or parameter.is_flag or isinstance(parameter.type, click.Path):
        return True
    try:
        parameter.type.convert(value, parameter, None)
        return True
    except click.ClickException:
        return False


def wrong_options(words: list[str], options: dict[str, click.Option]) -> Iterator[str]:
    """The options among a command's words that do not exist, or do not take the value beside them."""
    for position, word in enumerate(words):
        if not re.match(r"--?[a-zA-Z]", word) or word in FOREIGN:
            continue
        name, _, value = word.partition("=")
        if name not in options:
            yield f"{name} does not exist"
            continue
        following = words[position + 1] if position + 1 < len(words) else ""
        if (value or (following and not following.startswith("--"))) and not accepts(options[name], value or following):
            yield f"{name} does not take {value or following}"


def wrong_in_command(words: list[str]) -> list[str]:
    """What is wrong in a command line of this project's programs."""
    start = next((i for i, word in enumerate(words) if word.endswith(".py") or word == "-m"), None)
    if start is None or (start > 0 and "torchrun" not in words and not words[start - 1].endswith("python")):
        return []
    if words[start] == "-m":
        program, rest = f"-m {words[start + 1]}", words[start + 2 :]
        if program.removeprefix("-m ") not in MODULES:
            return []
    else:
        program, rest = words[start], words[start + 1 :]
        if not (ROOT / program).exists():
            return [f"{program} does not exist"] * (start > 0)
        if not has_main(ROOT / program):
            return []  # a module that is spoken of
    command = command_of(program)
    if rest and rest[0] in subcommands(command):
        command = subcommands(command)[rest.pop(0)]
    elif default := getattr(command, "default", None):
        command = subcommands(command)[default]
    return [f"{program}: {problem}" for problem in wrong_options(rest, options_of(command))]


# --- links and paths ------------------------------------------------------------------------------------------------


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@every_document
def test_every_relative_link_leads_somewhere(document):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE) if anchor and path.exists() else []
        if not path.exists() or (anchor and anchor not in map(slug, headings)):
            broken.append(target)
    assert not broken


@every_document
def test_every_path_that_is_named_exists(document):
    """`training/loop.py`, `benchmarks/results/x-*.json`, `docs/`, and `loop.py` alone."""
    files = {path.name for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"runs", "out", "demo"}
    missing = []
    for span in code_spans(prose(document)):
        if not re.fullmatch(r"[\w.*/-]+", span):
            continue
        first, *rest = span.split("/")
        named = rest and first in folders and first != "metrics.jsonl"
        if (named and not list(ROOT.glob(span.rstrip("/")))) or (
            not rest and span.endswith(".py") and "*" not in span and span not in files
        ):
            missing.append(span)
    assert not missing


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@every_document
def test_lines_of_prose_are_short(document):
    """Those of tables, commands and links cannot be wrapped; what benchmarks/report.py writes is not prose."""
    prose = FENCE.sub("", document.read_text().split("<!-- figures: written")[0]).splitlines()
    assert not [line for line in prose if len(line) > 120 and not line.startswith("|") and "https://" not in line]


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"^\| \[[\w.]+\]\(([\w.]+)\)", index, re.MULTILINE))


# --- commands -------------------------------------------------------------------------------------------------------


def test_gpu_check_runs_all_tests_that_need_a_gpu():
    (folders,) = re.findall(r"^GPU_TESTS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    mark = "pytest.mark." + "gpu"
    marked = [path for path in (ROOT / "tests").rglob("*.py") if mark in path.read_text()]
    assert len(marked) >= 4
    assert all(any(ROOT / folder in path.parents for folder in folders.split()) for path in marked), marked


@every_document
def test_every_command_has_the_options_that_it_is_given(document):
    wrong = []
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in command_lines(document):
        if words[:1] == ["make"]:
            wrong += [f"make {word}" for word in words[1:2] if word.islower() and word not in targets]
            continue
        wrong += wrong_in_command(words)
    assert not wrong


@pytest.mark.parametrize("program", [*(f"{name}.py" for name in SCRIPTS), *(f"-m {name}" for name in MODULES)])
def test_no_summary_of_a_command_is_cut_off(program):
    command = command_of(program)
    text = command.get_help(click.Context(command, info_name=program, max_content_width=110, terminal_width=80))
    assert "..." not in text.partition("\n")[2]
    assert subcommands(command) == {} or all(name in text for name in subcommands(command) if name != "images")


def test_help_gives_the_default_of_an_option_once():
    """By click from the value, or in the words of the help where there is no value or it depends on others."""
    twice = set()
    for name, parameters in all_options().items():
        for parameter in parameters:
            record = parameter.get_help_record(click.Context(click.Command("any"), show_default=True))
            if record is not None and record[1].count("[default: ") > 1:
                twice.add(f"{name}: {record[1]}")
    assert not twice


@every_document
def test_every_option_that_is_named_alone_exists(document):
    """`--aug ada` in the text is an option of some command, which takes that value."""
    known, wrong = all_options(), []
    for span in code_spans(prose(document)):
        if not span.startswith("--") or not (words := shlex.split(span)):
            continue
        for position, word in enumerate(words):
            name = word.rstrip(",").partition("=")[0]
            if not name.startswith("--") or name in FOREIGN:
                continue
            following = words[position + 1] if position + 1 < len(words) else ""
            values = following.split("|") if following and not following.startswith("--") else []
            parameters = known.get(name, [])
            if not parameters or not all(any(accepts(p, value) for p in parameters) for value in values):
                wrong.append(f"{name} {following}".strip())
    assert not wrong


# --- messages -------------------------------------------------------------------------------------------------------


@cache
def strings_of_the_code() -> str:
    """Every string of the project's code, a line each, with … for what is filled in."""
    texts = [(ROOT / "Makefile").read_text()]
    sources = [p for p in ROOT.rglob("*.py") if not {".venv", "tests", "benchmarks"} & set(p.relative_to(ROOT).parts)]
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(" ".join(text.split()) for text in texts)


def test_every_message_that_is_quoted_is_one_of_the_code():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    symptoms = [row.split(" | ")[0].removeprefix("| ") for row in page.splitlines() if row.startswith("| ")]
    quoted = [span for symptom in symptoms for span in code_spans(symptom) if len(span) > 12 and " " in span]
    assert len(quoted) > 30
    unknown = []
    for message in quoted:
        pieces = re.sub(r"^(error|note|warning): (?!the slower)", "", message).split("…")
        unknown += [message for piece in pieces if len(piece.strip(" ,;:")) > 3 and not said(piece.strip())]
    assert not unknown


def said(piece: str) -> bool:
    """Whether some string of the code has this piece of a message."""
    return piece in strings_of_the_code()


# --- configurations -------------------------------------------------------------------------------------------------


def table(mark: str) -> list[list[str]]:
    """The rows, without their header, of the table that follows a comment in docs/configs.md."""
    text = (ROOT / "docs" / "configs.md").read_text().split(f"<!-- checked by tests/test_docs.py: {mark} -->\n\n")[1]
    rows = text.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in rows]


def configuration(cfg: str, resolution: int, gpus: int):
    return resolve({"data": "x", "cfg": cfg, "precision": "fp32"}, resolution, 3, 0, gpus)


def test_the_table_of_auto():
    for row in table("auto"):
        resolution, gpus = int(row[0]), int(row[1])
        config = configuration("auto", resolution, gpus)
        values = [config.batch, config.batch_gpu, config.gamma, config.glr, config.generator.cbase, config.ema_kimg]
        assert [float(cell) for cell in row[2:]] == pytest.approx(values, rel=1e-9), row
        assert config.dlr == config.glr and config.generator.map_depth == 2


def test_the_table_of_presets():
    rows = {row[0]: row[1:] for row in table("presets")}
    assert set(rows) == {*PRESETS} - {"auto"}
    for cfg, row in rows.items():
        c = configuration(cfg, 32, 0)
        values = [c.batch, c.gamma, c.glr, c.generator.cbase, c.generator.cmax, c.generator.map_depth]
        values += [c.ema_kimg, c.pl_weight, c.mixing, c.kimg]
        assert [float(cell) for cell in row] == pytest.approx(values), cfg
        assert c.dlr == c.glr
