"""The report is one well-formed page that needs no other file, with what the command printed before."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
from html.parser import HTMLParser
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from media.alpha import opaque
from media.dataset import ImageDataset
from media.images import save_png
from metrics.evaluator import choose
from metrics.report import figure, html_table, inline_image
from models.sampling import generate_batches
from models.snapshot import load_generator, save_snapshot
from networks.generator import Generator, GeneratorConfig
from tests.metrics.test_encoders import encoder_file  # noqa: F401 (a fixture)
from tests.metrics.test_nearest import copies  # noqa: F401 (a fixture)
from torch_utils.errors import Failure, UserError

VOID = {"meta", "img", "circle", "rect", "line", "polyline"}


class Page(HTMLParser):
    """The texts, images and tables of a page. Raises AssertionError where elements are not closed in their order."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.images: list[Image.Image] = []
        self.addresses: list[str] = []
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.addresses += [found[name] for name in ("src", "href") if name in found]
        if tag == "img":
            start, _, data = found["src"].partition(",")
            assert start == "data:image/png;base64"
            self.images.append(Image.open(io.BytesIO(base64.b64decode(data))))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def run(copies, tmp_path, monkeypatch):  # noqa: F811
    """A run with two evaluations, and its data set, which has two of the generator's images in it."""
    monkeypatch.setattr("metrics.swd.DIRECTIONS", 32)
    snapshot, data = copies
    folder = tmp_path / "runs" / "00003-a & b"
    folder.mkdir(parents=True)
    shutil.move(snapshot, folder / snapshot.name)
    about = {"images": {"swd20": {}}, "settings": {}}
    lines = [{"kimg": kimg, "swd20": value, **about} for kimg, value in ((0, 90.5), (1, 70.25))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder, data


def test_a_page_needs_no_other_file(command, run, encoder_file, tmp_path):  # noqa: F811
    folder, data = run
    arguments = ["--network", folder, "--data", data, "--gpus", 0, "--workers", 0]
    options = ["--metrics", f"swd20,pr203@{encoder_file}", "--trunc", "1,0.5"]
    code, out, err = command(
        "report", *arguments, *options, "--detector", encoder_file, "--seeds", "0-4", "--out", tmp_path / "a.html"
    )
    assert code == 0, err
    assert out == f"The report is {tmp_path / 'a.html'}.\n"
    html = (tmp_path / "a.html").read_text()
    page = Page(html)
    assert all(address.startswith("data:") for address in page.addresses) and "url(" not in html
    assert page.texts.count("00003-a & b, 1 kimg") == 2  # title and heading
    for title in ("Metrics", "Truncation", "Over training", "Images", "Nearest training images", "Settings"):
        assert title in page.texts
    generated, real, nearest = page.images
    assert generated.size == real.size == (10 * 32, 3 * 32)  # of the 22 images that there are
    assert nearest.size == (7 * 32, 5 * 32)
    assert "seed 3" in page.texts and "0021.png, flipped" in page.texts and page.texts.count("not authentic") >= 2
    values = json.loads(command(*arguments, "--metrics", "swd20", "--json")[1])
    assert f"{values['swd20']:.4g}" in page.texts
    assert values["settings"]["data_hash"] in page.texts
    assert len(re.findall("<svg", html)) == 1 + 2  # over training; precision against recall within a whole


@pytest.mark.parametrize("channels", [3, 4])
def test_a_page_of_wide_transparent_images(command, tmp_path, monkeypatch, channels):
    """Sheets show what the metrics see: images on the --background. A model may have been trained on it, in RGB."""
    monkeypatch.setattr("metrics.swd.DIRECTIONS", 32)
    torch.manual_seed(0)
    sizes = {"cbase": 256, "cmax": 8, "map_depth": 1, "z_dim": 16, "w_dim": 16, "style_channels": 8}
    snapshot = tmp_path / "snapshot-000001.safetensors"
    save_snapshot(snapshot, Generator(GeneratorConfig(resolution=(48, 32), img_channels=channels, **sizes)), {})
    fakes = torch.cat(list(generate_batches(load_generator(snapshot)[0], range(30))))
    random = torch.Generator().manual_seed(0)
    reals = torch.randint(0, 256, (30, 4, 32, 48), generator=random, dtype=torch.uint8)
    reals = torch.cat([reals[:, :3].minimum(reals[:, 3:]), reals[:, 3:]], dim=1)  # premultiplied
    copy = fakes[2:3] if channels == 4 else torch.cat([fakes[2:3], torch.full((1, 1, 32, 48), 255)], dim=1)
    reals[7] = torch.cat([copy[:, :3].minimum(copy[:, 3:]), copy[:, 3:]], dim=1).byte()
    (tmp_path / "data").mkdir()
    for number, image in enumerate(reals):
        save_png(image, tmp_path / "data" / f"{number:04}.png")

    arguments = ["--network", snapshot, "--data", tmp_path / "data", "--gpus", 0, "--workers", 0, "--metrics", "swd20"]
    code, _, err = command(
        "report", *arguments, "--background", "black", "--seeds", "0-5", "--out", tmp_path / "a.html"
    )
    assert code == 0, err
    page = Page((tmp_path / "a.html").read_text())
    generated, real, nearest = (torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in page.images)
    assert generated.shape == real.shape == (3, 5 * 32, 6 * 48)
    assert torch.equal(generated[:, 32:64, 48:96], opaque(fakes, (0, 0, 0))[7])
    shown = ImageDataset(tmp_path / "data", background=(0, 0, 0))
    assert torch.equal(real[:, 32:64, 48:96], shown[choose(30, 30, 0)[7]][0])
    assert nearest.shape == (3, 6 * 32, 7 * 48)
    row = page.texts.index("seed 2")
    assert page.texts[row + 1] == "0007.png" and page.texts[row + 4] == "not authentic"
    assert "[0, 0, 0]" in page.texts  # among the settings
    assert torch.equal(nearest[:, 64:96, 96:144], shown[7][0])


def test_without_the_default_detector_the_page_says_so(command, run, tmp_path, monkeypatch):
    folder, data = run
    monkeypatch.setattr("metrics.encoders.SHIPPED", {"tiny-imagenet": tmp_path / "absent.safetensors"})
    (folder / "metrics.jsonl").unlink()
    arguments = ["--network", folder, "--data", data, "--gpus", 0, "--workers", 0, "--metrics", "swd20"]
    code, _, err = command("report", *arguments, "--out", tmp_path / "b.html")
    assert code == 0 and "warning: nearest training images are left out: the encoder tiny-imagenet" in err
    page = Page((tmp_path / "b.html").read_text())
    assert any("the encoder tiny-imagenet is not in this copy" in text for text in page.texts)
    assert len(page.images) == 2 and "Over training" not in page.texts


def test_mistakes_of_the_last_part_come_before_the_work(command, run, faces16, tmp_path, monkeypatch):
    """What --test and --detector name is opened before anything is evaluated."""
    folder, data = run
    evaluated = Mock()
    monkeypatch.setattr("metrics.__main__.evaluate_together", evaluated)
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    for option, value, words in (
        ("--test", faces16, "they cannot be compared"),
        ("--test", tmp_path / "absent.zip", "absent.zip"),
        ("--test", data, "the same images"),
        ("--detector", tmp_path / "broken.safetensors", "broken.safetensors"),
    ):
        code, _, err = command(
            "report", "--network", folder, "--data", data, "--metrics", "swd20", "--gpus", 0, option, value,
            "--out", tmp_path / "d.html",
        )  # fmt: skip
        assert code == 2 and words in err.splitlines()[-1] and not evaluated.called, err
    assert not (tmp_path / "d.html").exists()


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("error", [UserError("wrong"), Failure("bad luck"), MemoryError("DefaultCPUAllocator")])
def test_a_late_failure_leaves_a_page_of_the_rest(command, run, encoder_file, tmp_path, monkeypatch, asked, error):  # noqa: F811
    folder, data = run
    monkeypatch.setattr("metrics.__main__.nearest_images", Mock(side_effect=error))
    arguments = ["--network", folder, "--data", data, "--gpus", 0, "--workers", 0, "--metrics", "swd20"]
    arguments += ["--detector", encoder_file] if asked else []
    code, out, err = command("report", *arguments, "--out", tmp_path / "e.html")
    assert out == f"The report is {tmp_path / 'e.html'}.\n"
    page = Page((tmp_path / "e.html").read_text())
    assert "swd20" in page.texts and any(text == f"Left out: {error}" for text in page.texts)
    if isinstance(error, MemoryError):
        assert code == 2 and err.splitlines()[-1].startswith("error: there is not enough memory")
    elif asked:
        assert code == 2 and err.splitlines()[-1] == f"error: {error}"
    else:
        assert code == 0 and err.splitlines()[-1] == f"warning: nearest training images are left out: {error}"


def test_mistakes_are_one_line(command, run, faces16, tmp_path):
    folder, data = run
    for arguments, words in [
        (["--network", folder], "--data is missing"),
        (["--network", folder, "--data", faces16], "they cannot be compared"),
        (["--network", folder, "--data", data, "--detector", "nowhere/x"], "name a file of train_encoder.py"),
        (["--network", tmp_path / "nothing", "--data", data], "there is no "),
    ]:
        code, _, err = command("report", *arguments, "--metrics", "swd20", "--gpus", 0, "--out", tmp_path / "c.html")
        assert code == 2 and words in err, err
    (folder / "metrics.jsonl").write_text("no JSON")
    code, _, err = command("report", "--network", folder, "--data", data, "--metrics", "swd20", "--gpus", 0)
    assert code == 2 and "metrics.jsonl is damaged" in err and len(err.splitlines()) == 1


def test_names_that_are_no_text_have_a_place_in_a_page():
    """Files can have such names, and a page is written after all that it shows was computed."""
    name = os.fsdecode(b"\xff<b>.png")
    for part in (
        html_table([], [[name, 1.0]]),
        figure("", name),
        inline_image(torch.zeros(3, 4, 4, dtype=torch.uint8), name),
    ):
        assert "&lt;b&gt;.png" in part
        part.encode()
