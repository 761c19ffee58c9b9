"""Messages: a command that one of them names can be pasted into a shell."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.test_docs import MODULES, ROOT, SCRIPTS, wrong_in_command

PROGRAM = rf"(?:(?:{'|'.join(SCRIPTS)})\.py|-m (?:{'|'.join(map(re.escape, MODULES))}))"
# A program with an option or with a command after it: what a reader would paste. Without `python ` a shell refuses it.
COMMAND = re.compile(
    rf"(?:python )?(?<!/){PROGRAM}(?: (?:check|convert|faces|split|report|nearest|directions))?(?: --\S+| …)[^;()`\n]*"
)
NOT_RUN = ("tests", "benchmarks", ".venv")


def texts(path: Path) -> Iterator[str]:
    """The strings of a file but its docstrings, those of an f-string joined, with … in place of its values."""
    tree = ast.parse(path.read_text())
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner | docs:
            yield node.value


def test_a_command_in_a_message_can_be_pasted():
    wrong, count = [], 0
    for path in sorted(ROOT.rglob("*.py")):
        if path.relative_to(ROOT).parts[0] in NOT_RUN:
            continue
        for text in texts(path):
            for found in COMMAND.finditer(" ".join(text.split(" "))):
                command, count = found[0], count + 1
                if not command.startswith("python "):
                    wrong.append(f"{path.name}: {command}")
                wrong += [
                    f"{path.name}: {problem}"
                    for problem in wrong_in_command([word.rstrip(",") for word in command.split()])
                ]
    assert not wrong, "\n".join(wrong)
    assert count > 30
