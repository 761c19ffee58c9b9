"""app.py in a real browser: each tab does its work, and its command line makes the same image again."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from page_client import Server, serve
from PIL import Image

from adaconv import Generator
from media.animation import write_animation
from media.images import save_png
from media.video import VideoReader
from models.sampling import generate_batches
from models.snapshot import PRETRAINED
from tests.scripts import mistake
from tests.web.browser import (
    choose,
    chromium,
    command_with,
    download,
    error_sentence,
    fetch,
    fill,
    open_page,
    open_tab,
    pixels,
    run_command,
    upload,
    wait_until,
    write_run,
)


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory, browser):
    folder = tmp_path_factory.mktemp("app")
    write_run(folder, 0, 50.0)
    write_run(folder, 1, 40.0)
    with serve(folder) as server:
        yield server
    assert server.tracebacks() == ""


@pytest.fixture
def page(browser, server):
    page = open_page(browser, server, "?model=" + shipped())
    command_with(page, "command", "faces32")
    yield page
    page.context.close()


def shipped() -> str:
    return str(PRETRAINED / "faces32.safetensors")


def same_as_the_command(page, server: Server, command: str, selector: str) -> None:
    """The image of the page is, pixel for pixel, what its command line writes."""
    image = pixels(fetch(page, selector))
    file = run_command(command, server.folder)
    assert image.shape == pixels(file).shape and (image == pixels(file)).all()


# --- the command line -----------------------------------------------------------------------------------------------


def test_a_host_for_others_asks_for_a_password():
    assert "--no-password" in mistake("app.py", "--host", "0.0.0.0")


def test_models_that_do_not_exist_are_a_mistake(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    assert "does not exist" in mistake("app.py", "--network", "nowhere.safetensors")
    assert "holds no model" in mistake("app.py", "--network", tmp_path / "x.safetensors")


# --- tabs -----------------------------------------------------------------------------------------------------------


def test_generate_makes_the_images_of_generate_py(page, server):
    fill(page, "seed", 5)
    same_as_the_command(page, server, command_with(page, "command", "--seeds 5"), "#image img")
    fill(page, "trunc", "0.5,0.7,1")
    choose(page, "noise", "none")
    page.locator("#class input").click()
    page.get_by_role("option", name="2: blond hair", exact=True).click()
    command = command_with(page, "command", "--trunc 0.5,0.7,1", "--class 2", "--noise-mode none")
    same_as_the_command(page, server, command, "#image img")
    choose(page, "size", "3 × 3 neighbours")
    command = command_with(page, "command", "--seeds 5-13 --grid 3x3")
    same_as_the_command(page, server, command, "#image img")


def test_the_seed_goes_on_back_and_anywhere(page):
    page.get_by_role("button", name="Next").click()
    command_with(page, "command", "--seeds 1")
    page.get_by_role("button", name="Previous").click()
    command_with(page, "command", "--seeds 0")
    page.get_by_role("button", name="Random").click()
    page.wait_for_function("() => Number(document.querySelector('#seed input').value) > 1000")
    number = page.locator("#seed input").input_value()
    command_with(page, "command", f"--seeds {number}")


def test_the_image_follows_the_slider(page):
    before = fetch(page, "#image img")
    slider = page.locator("#psi input[type=range]")
    slider.focus()
    for _ in range(30):
        page.keyboard.press("ArrowLeft")
    command_with(page, "command", "--trunc 0.7")
    assert (pixels(fetch(page, "#image img")) != pixels(before)).any()


def test_mix_makes_the_sheet_of_generate_py(page, server):
    open_tab(page, "Mix")
    command_with(page, "mix-command", "--rows 1 --cols 2")
    fill(page, "mix-layers", "1-3")
    choose(page, "mix-part", "structure")
    command = command_with(page, "mix-command", "--layers 1-3", "--part structure")
    same_as_the_command(page, server, command, "#mix-sheet img")
    strip = pixels(fetch(page, "#mix-strip img"))
    fill(page, "mix-b", 1)  # a seed mixed with itself
    command_with(page, "mix-command", "--cols 1")
    still = pixels(fetch(page, "#mix-strip img"))
    first = still[:, :32]
    assert (still == first.repeat(1, 0).reshape(32, 1, 32, 3).repeat(7, 1).reshape(32, 224, 3)).all()
    assert (strip[:, :32] == first).all() and (strip[:, -32:] != first).any()


def test_walk_makes_the_video_of_generate_py(page, server):
    open_tab(page, "Walk")
    fill(page, "walk-seeds", "3,8")
    page.locator("#walk-seconds input[type=number]").fill("0.5")
    choose(page, "walk-file", ".gif")
    page.locator("#walk-make").click()
    command = command_with(page, "walk-command", "--seeds 3,8 --seconds 0.5", "walk.gif")
    data = fetch(page, "#walk-gif img")
    assert data == run_command(command, server.folder).read_bytes()


def test_a_walk_can_be_stopped(page):
    open_tab(page, "Walk")
    page.locator("#walk-seconds input[type=number]").fill("30")
    page.locator("#walk-make").click()
    page.get_by_text(re.compile(r"\d+/\d+ frames")).first.wait_for()
    page.locator("#walk-stop").dispatch_event("click")  # while the progress moves, the page never comes to rest
    assert error_sentence(page) == "Stopped."


def test_edit_moves_along_several_directions_and_its_latents_make_the_image(page, server):
    open_tab(page, "Edit")
    command_with(page, "edit-command", "--w edited_w.npz")
    before = pixels(fetch(page, "#edit-image img"))
    for name, amount in (("edit-0", "3"), ("edit-2", "-2")):
        fill(page, name, amount)
    page.wait_for_function("() => location.search.includes('edit-2=-2')")
    path = server.folder / "edited_w.npz"
    wait_until(lambda: (pixels(fetch(page, "#edit-image img")) != before).any())
    page.wait_for_timeout(1000)  # until the last of several images in a row
    path.write_bytes(download(page, "edit-file"))
    same_as_the_command(page, server, command_with(page, "edit-command", "--w"), "#edit-image img")
    with np.load(path) as file:
        assert json.loads(str(file["about"]))["amounts"] == [3, 0, -2, 0, 0, 0]


def test_kernels_makes_the_sheet_of_generate_py(page, server):
    open_tab(page, "Kernels")
    command = command_with(page, "kernels-command", "--seed 1")
    fill(page, "kernels-layers", "2-3")
    command = command_with(page, "kernels-command", "--layer 2-3")
    same_as_the_command(page, server, command, "#kernels-sheet img")
    page.get_by_label("Compare with another one").check()
    command = command_with(page, "kernels-command", "--compare 1,2")
    same_as_the_command(page, server, command, "#kernels-sheet img")


def test_an_upload_is_inverted_as_by_projector_py_and_can_be_mixed_and_edited(page, server):
    target = server.folder / "target.png"
    save_png(next(generate_batches(Generator.from_pretrained(shipped()), [123]))[0], target)
    open_tab(page, "Invert")
    upload(page, "invert-target", target)
    fill(page, "invert-steps", 20)
    page.locator("#invert-start").click()
    command = command_with(page, "invert-command", "--target target.png", "--steps 20")
    with np.load(io.BytesIO(download(page, "invert-file"))) as ours:
        run_command(command, server.folder)
        with np.load(server.folder / "out" / "projected_w.npz") as theirs:
            assert np.allclose(ours["w"], theirs["w"], atol=1e-3)
    found = pixels(fetch(page, "#invert-image img"))
    for title, tab in (("Edit", "edit-seed"), ("Mix", "mix-a")):
        open_tab(page, title)
        page.locator(f"#{tab}-from input").click()
        page.get_by_role("option", name="target.png").click()
    command_with(page, "mix-command", "not inverted images")
    open_tab(page, "Edit")
    wait_until(lambda: (pixels(fetch(page, "#edit-image img")) == found).all())


def test_an_inversion_can_be_stopped_and_keeps_what_it_has_found(page, server):
    target = server.folder / "target.png"
    Image.new("RGB", (32, 32), "navy").save(target)
    open_tab(page, "Invert")
    upload(page, "invert-target", target)
    fill(page, "invert-steps", 2000)
    page.locator("#invert-start").click()
    page.get_by_text(re.compile(r"Step \d+ of 2000")).wait_for()
    page.locator("#invert-stop").dispatch_event("click")
    page.get_by_text("Stopped; this is what was found so far").wait_for()
    assert download(page, "invert-file").startswith(b"PK")


def test_stylize_makes_the_image_of_stylize_py(page, server):
    content, styles = write_pictures(server.folder)
    open_tab(page, "Stylize")
    upload(page, "content", content)
    upload(page, "style-1", styles[0])
    page.locator("#stylize-start").click()
    command = command_with(page, "stylize-command", "--content content.png --style style1.png")
    assert same_pixels(results(page, "stylized"), run_command(command, server.folder))
    upload(page, "style-2", styles[1])
    fill(page, "strength", 0.5)
    choose(page, "color", "the content's (luminance)")
    page.locator("#stylize-start").click()
    command = command_with(page, "stylize-command", "--mix 0.5,0.5", "--strength 0.5", "--preserve-color luminance")
    assert same_pixels(results(page, "stylized"), run_command(command, server.folder))
    choose(page, "together", "structure of 1, statistics of 2")
    page.locator("#stylize-start").click()
    command = command_with(page, "stylize-command", "--structure-from style1.png --statistics-from style2.png")
    assert same_pixels(results(page, "stylized"), run_command(command, server.folder))


def test_a_mask_can_be_painted(page, server):
    content, styles = write_pictures(server.folder)
    open_tab(page, "Stylize")
    upload(page, "content", content)
    upload(page, "style-1", styles[0])
    upload(page, "style-2", styles[1])
    choose(page, "together", "1 where the mask is painted, 2 elsewhere")
    page.locator("#masking").get_by_role("button").first.click()
    canvas = page.locator("#mask canvas").first
    canvas.wait_for()
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(1500)
    box = canvas.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(middle[0] - 20, middle[1])
    page.mouse.down()
    page.mouse.move(middle[0] + 20, middle[1], steps=5)
    page.mouse.up()
    page.wait_for_timeout(1000)
    page.locator("#stylize-start").click()
    command = command_with(page, "stylize-command", "--mask mask.png")
    (server.folder / "mask.png").write_bytes(download(page, "mask-file"))
    mask = pixels(server.folder / "mask.png")
    assert mask.shape[:2] == (64, 96) and 0 < (mask > 0).mean() <= 1
    assert same_pixels(results(page, "stylized"), run_command(command, server.folder))


def test_a_video_is_stylized_as_by_stylize_py(page, server):
    pytest.importorskip("av")
    _, styles = write_pictures(server.folder)
    frames = (torch.full((3, 48, 64), 20 * i, dtype=torch.uint8) for i in range(6))
    write_animation(server.folder / "film.mp4", frames, 6, 10)
    open_tab(page, "Stylize")
    upload(page, "style-1", styles[0])
    page.locator("#filming").get_by_role("button").first.click()
    page.locator("#film input[type=file]").set_input_files(server.folder / "film.mp4")
    page.locator("#film video").wait_for()
    page.locator("#film-start").click()
    command = command_with(page, "stylize-command", "--content film.mp4", "--out out/film-stylized.mp4")
    (server.folder / "filmed.mp4").write_bytes(fetch(page, "#filmed video"))
    ours, theirs = frames_of(server.folder / "filmed.mp4"), frames_of(run_command(command, server.folder))
    # x264's threads do not always find the same bits
    assert ours.shape == theirs.shape == (6, 3, 48, 64) and (ours - theirs).abs().mean() < 1


def frames_of(path: Path) -> torch.Tensor:
    """The frames of a video."""
    with VideoReader(path) as reader:
        return torch.stack([frame.float() for frame in reader])


def write_pictures(folder: Path) -> tuple[Path, list[Path]]:
    """A content and two styles."""
    rng = np.random.default_rng(0)
    paths = [folder / name for name in ("content.png", "style1.png", "style2.png")]
    for path in paths:
        coarse = Image.fromarray(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8))
        coarse.resize((96, 64), Image.Resampling.BICUBIC).save(path)
    return paths[0], paths[1:]


def same_pixels(images: list[np.ndarray], file: Path) -> bool:
    """Whether one of the images is that of the file."""
    return any(image.shape == pixels(file).shape and (image == pixels(file)).all() for image in images)


def results(page, name: str) -> list[np.ndarray]:
    """The images of a before/after slider."""
    sources = [image.get_attribute("src") for image in page.locator(f"#{name} img").all()]
    return [pixels(page.request.get(source).body()) for source in sources if source]


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_newest_run_comes_first_with_its_metric_and_its_sheet(browser, server):
    page = open_page(browser, server)
    command_with(page, "command", "runs/00001-test")
    assert "00001-test · swd2k 40 · 8 kimg" in page.locator("#model input").input_value()
    page.get_by_text("What is this model?").click()
    page.locator("#about img").wait_for()
    assert "swd2k" in page.locator("#about").inner_text()
    page.context.close()


def test_a_mistake_gets_its_sentence(page):
    fill(page, "trunc", "a lot")
    assert "'a lot' is not a valid number" in error_sentence(page)
    open_tab(page, "Mix")
    fill(page, "mix-layers", "99")
    page.get_by_text("the model has the layers 0 to 7").wait_for()


def test_reloading_keeps_the_settings_and_an_address_can_be_sent(browser, server, page):
    fill(page, "seed", 77)
    fill(page, "trunc", "0.5")
    choose(page, "noise", "none")
    open_tab(page, "Mix")
    fill(page, "mix-a", 9)
    command_with(page, "mix-command", "--rows 9")
    page.wait_for_function("() => location.search.includes('mix-a=9')")
    page.reload()
    command_with(page, "mix-command", "--rows 9")
    assert page.get_by_role("tab", name="Mix").get_attribute("aria-selected") == "true"
    open_tab(page, "Generate")
    command_with(page, "command", "--seeds 77", "--trunc 0.5", "--noise-mode none")


def test_a_wrong_address_is_noted_and_the_default_used(browser, server):
    page = open_page(browser, server, "?seed=-5&psi=nan&noise=loud&tab=nowhere&model=../../etc/passwd")
    page.get_by_text("noise=loud in the address is not valid").wait_for()
    command_with(page, "command", "--seeds 0")
    page.context.close()


def test_a_narrow_screen_does_not_scroll_sideways(browser, server):
    page = open_page(browser, server, viewport={"width": 360, "height": 740}, color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    for name in ("generate", "mix", "walk", "edit", "kernels", "invert", "stylize"):
        page.goto(f"{server.url}/?tab={name}")
        page.locator("[role=tabpanel]:visible").get_by_text("The same on the command line").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
    page.context.close()


def test_every_control_has_a_label(page):
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('input, textarea, button, select, [role=slider]')].filter(control =>
            !(control.labels?.length || control.getAttribute('aria-label') || control.getAttribute('aria-labelledby')
              || control.title || control.querySelector('img') || control.innerText?.trim()
              || ['file', 'hidden'].includes(control.type)))
            .map(control => control.outerHTML.slice(0, 200))"""
    )
    assert unnamed == []
