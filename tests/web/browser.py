"""A server of the page, and a real browser that looks at it."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from page_client import Server
from PIL import Image

from media.images import save_png
from models.snapshot import PRETRAINED, save_snapshot
from networks.generator import Generator, GeneratorConfig
from tests.scripts import done, script_here
from torch_utils.sizes import Resolution
from training.runs import sheet_path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WAIT = 60_000  # milliseconds; the cores may be busy


def write_run(folder: Path, number: int, swd: float, resolution: Resolution = 16, **config: Any) -> Path:
    """A run with a snapshot of random weights, its metric and its sheet of images."""
    run = folder / "runs" / f"{number:05d}-test"
    run.mkdir(parents=True)
    torch.manual_seed(number)
    G = Generator(GeneratorConfig(resolution, cbase=512, cmax=16, z_dim=32, w_dim=32, **config)).eval()
    save_snapshot(run / "snapshot-000008.safetensors", G, {"kimg": 8.0, "data": "test"})
    (run / "config.json").write_text(json.dumps({"batch": 8, "about": {}}))
    (run / "metrics.jsonl").write_text(json.dumps({"kimg": 8.0, "swd2k": swd}) + "\n")
    save_png(torch.zeros(3, 32, 32, dtype=torch.uint8), sheet_path(run, "fakes", 8))
    return run


@contextmanager
def chromium() -> Iterator:
    """A browser, or a skip with the reason."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium here; install it with: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="there is no playwright here; pip install playwright")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def open_page(browser, server: Server, query: str = "", **context):
    """A page whose first image is there."""
    page = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **context}).new_page()
    page.set_default_timeout(WAIT)
    page.goto(f"{server.url}/{query}")
    page.wait_for_selector("#seed input, #tabs")
    return page


def open_tab(page, title: str) -> None:
    """Clicks on a tab."""
    page.get_by_role("tab", name=title, exact=True).click()


def fill(page, name: str, value: object) -> None:
    """Writes into the field of an element."""
    field = page.locator(f"#{name} input[type=number], #{name} input[type=text], #{name} textarea").first
    field.fill(str(value))
    field.press("Tab")


def choose(page, name: str, label: str) -> None:
    """Chooses a radio button."""
    page.locator(f"#{name}").get_by_label(label, exact=True).check()


def command_with(page, name: str, *parts: str) -> str:
    """The command line of a tab, once it has all of these parts."""
    page.wait_for_function(
        "([name, parts]) => { const box = document.querySelector(`#${name} textarea`);"
        " return box && box.value && parts.every(part => box.value.includes(part)); }",
        arg=[name, list(parts)],
    )
    return page.locator(f"#{name} textarea").input_value()


def fetch(page, selector: str) -> bytes:
    """The bytes of an image or a video of the page."""
    source = page.locator(selector).first.get_attribute("src")
    assert source, selector
    response = page.request.get(source)
    assert response.ok, source
    return response.body()


def upload(page, name: str, path: Path) -> None:
    """Chooses a file for an upload, and waits until it is shown."""
    page.locator(f"#{name} input[type=file]").set_input_files(path)
    page.locator(f"#{name} img").first.wait_for()


def download(page, name: str) -> bytes:
    """The bytes of the file that an element offers."""
    link = page.locator(f"#{name} a[download]").first
    response = page.request.get(link.get_attribute("href"))
    assert response.ok
    return response.body()


def pixels(data: bytes | Path, mode: str = "RGB") -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data) if isinstance(data, bytes) else data).convert(mode))


def run_command(line: str, folder: Path) -> Path:
    """Runs a command line that the page shows, in a folder, and gives the image or video that it wrote into out/."""
    python, name, *arguments = shlex.split(line)
    assert python == "python"
    shutil.rmtree(folder / "out", ignore_errors=True)
    done(script_here(name, *arguments, cwd=folder))
    return next(path for path in (folder / "out").iterdir() if path.suffix in (".png", ".gif", ".mp4"))


def error_sentence(page) -> str:
    """The sentence of the error that the page shows."""
    return page.get_by_test_id("toast-text").first.inner_text()


def shipped() -> str:
    return str(PRETRAINED / "faces32.safetensors")


def same_as_the_command(page, server: Server, command: str, selector: str) -> None:
    """The image of the page is, pixel for pixel, what its command line writes, transparency included."""
    image, file = pixels(fetch(page, selector), "RGBA"), pixels(run_command(command, server.folder), "RGBA")
    assert image.shape == file.shape and (image == file).all()


def same_pixels(images: list[np.ndarray], file: Path) -> bool:
    """Whether one of the images is that of the file."""
    return any(image.shape == pixels(file).shape and (image == pixels(file)).all() for image in images)


def results(page, name: str) -> list[np.ndarray]:
    """The images of a before/after slider."""
    sources = [image.get_attribute("src") for image in page.locator(f"#{name} img").all()]
    return [pixels(page.request.get(source).body()) for source in sources if source]
