"""Names from files reach neither the terminal nor a model card as anything but text."""

from __future__ import annotations

import io
import json
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import adaconv
from models.snapshot import load_generator, load_stylizer
from styling.tasks import Task, Worker
from tests.hostile.attacks import is_clean, refusal, refused
from tests.hostile.test_models import read, write
from tests.scripts import script_here
from torch_utils.errors import Failure, UserError, note, one_line, printable, show
from training.runs import list_states

EVIL = {
    "escape": "\x1b[2J\x1b]0;pwned\x07",
    "carriage return": "good\rerror: none",
    "line break": "a\nerror: another line",
    "backspace": "bad\b\b\bok",
    "C1": "\x9b31mred",
    "reversed": "gpj.\u202eexe",
    "zero width": "a\u200bb\ufeff",
    "separator": "a\u2028b",
    "null": "a\0b",
}


@pytest.mark.parametrize("name", EVIL)
def test_one_place_makes_text_of_it(capsys, name):
    evil = EVIL[name]
    assert printable(evil).isprintable() and one_line(evil).isprintable()
    assert UserError(evil).message.isprintable() and Failure(evil).message.isprintable()
    note(evil)
    show(evil)
    out, err = capsys.readouterr()
    assert out[:-1].isprintable() and err[:-1].isprintable()


def test_text_stays_as_it_is():
    for text in ("größe 日本語 😀.png", "C:\\a b", "ﬁ"):
        assert printable(text) == one_line(text) == text
    assert printable("\udc80") == "\\udc80" and one_line("a" * 200, 20) == "a" * 17 + "..."
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert one_line(deep).isprintable()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("name", EVIL)
def test_the_progress_of_stylize(monkeypatch, name):
    """Beside the bar stands the name of the content, which may be of a folder of somebody else's."""
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    worker = Worker(None, [], None)
    monkeypatch.setattr(worker, "do", lambda task: None)
    worker.do_all([Task(Path(f"{EVIL[name]}{i}.png"), False, 0, Path(f"{i}.png")) for i in range(2)])
    shown = terminal.getvalue()
    assert printable(f"{EVIL[name]}1.png") in shown
    assert all(c.isprintable() or c in "\r\n" for c in shown) and (EVIL[name] not in shown)


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("where", ["key", "value", "format", "version", "tensor"])
def test_headers_of_models(place, tmp_path, name, where):
    tensors, description = read(place.model)
    evil = EVIL[name]
    match where:
        case "key":
            description["config"][evil] = 1
        case "value":
            description["config"]["modulation"] = evil
        case "tensor":
            tensors[evil.replace("\0", "")] = torch.zeros(1)
        case _:
            description[where] = evil
    bad = write(tmp_path / "a.safetensors", tensors, description)
    refusal(load_generator, bad)
    refusal(load_stylizer, bad)


@pytest.mark.parametrize("name", sorted(set(EVIL) - {"null"}))
def test_paths(place, tmp_path, name):
    bad = tmp_path / f"{EVIL[name]}.safetensors"
    bad.write_bytes(b"x")
    refused("generate.py", "--network", bad, "--seeds", 0, "--outdir", tmp_path / "out")
    shutil.copy(place.model, bad)
    result = script_here("generate.py", "--network", bad, "--seeds", 0, "--outdir", tmp_path / EVIL[name])
    assert result.returncode == 0 and is_clean(result.stdout + result.stderr)


@pytest.mark.parametrize("name", sorted(set(EVIL) - {"null"}))
def test_names_in_archives(place, tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(place.image, f"{EVIL[name]}.png")
        archive.writestr(f"{EVIL[name]}2.png", b"x")
    for command in (
        ("dataset_tool.py", "check", "--data", tmp_path / "a.zip"),
        ("train.py", "--data", tmp_path / "a.zip", "--outdir", tmp_path / "runs"),
        ("projector.py", "--network", place.model, "--target", tmp_path / "a.zip", "--steps", 1, "--candidates", 4),
    ):
        result = script_here(*command, cwd=tmp_path)
        assert result.returncode == 2 and is_clean(result.stdout + result.stderr), ascii(result.stdout + result.stderr)


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("where", ["script", "option", "state key", "state config"])
def test_names_in_runs(run, name, where):
    evil, (path,) = EVIL[name], list_states(run)
    if where.startswith("state"):
        state = torch.load(path, weights_only=True)
        (state if where == "state key" else state["config"])[evil] = 1
        torch.save(state, path)
    else:
        file = run / ("config.json" if where == "script" else "options.json")
        content = json.loads(file.read_text())
        content |= {"about": {"script": evil}} if where == "script" else {evil: 1}
        file.write_text(json.dumps(content))
    refused("train.py", "--resume", run, "--kimg", 0.024)


MARKUP = {
    "link": "[click](https://evil.example)",
    "image": "![x](https://evil.example/a.png)",
    "html": "<script>alert(1)</script>",
    "comment": "<!-- x",
    "autolink": "<https://evil.example>",
    "bare link": "https://evil.example www.evil.example",
    "code": "`rm -rf`",
    "table": "| a | b |",
    "heading": "\n# Heading\n",
    "front matter": "\n---\nlicense: mit\n---\n",
    "bold": "**bold** and _so_ on ~~not~~",
    "mention": "@somebody #1",
    "mathematics": "$\\href{x}{y}$",
    "entity": "&lt;b&gt;",
}


@pytest.mark.parametrize("name", MARKUP)
def test_cards_have_no_markup_of_others(place, tmp_path, name):
    evil = MARKUP[name]
    tensors, description = read(place.model)
    facts = {"data": evil, "init_from": evil, "metrics": {evil: 1.0}, "training": {"loss": evil}}
    bad = write(tmp_path / "a.safetensors", tensors, {**description, "info": {"kimg": 1.0, **facts}})
    card = adaconv.Generator.from_pretrained(bad).card()
    plain = " ".join(evil.split())
    if name not in ("heading", "front matter"):  # which need a line of their own
        assert plain not in card
    lines = card.splitlines()
    assert "# Heading" not in lines and lines.count("---") == 2
    live = card.replace("\\]", "").replace("\\://", "")
    assert not any(mark in live for mark in ("<script", "<!--", "](https", "://evil"))


def test_what_is_right_reads_as_it_was(place, tmp_path):
    tensors, description = read(place.model)
    good = write(tmp_path / "a.safetensors", tensors, {**description, "info": {"kimg": 1.0, "data": "faces_32 (new)"}})
    assert "| data | faces_32 (new) |" in adaconv.Generator.from_pretrained(good).card()
