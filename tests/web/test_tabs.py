"""The page in a real browser: each tab does its work, and its command line makes the same image again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adaconv import Generator
from media.animation import write_animation
from media.images import save_png
from media.video import VideoReader
from models.sampling import generate_batches
from tests.scripts import wait_until
from tests.web.browser import (
    choose,
    command_with,
    download,
    error_sentence,
    fetch,
    fill,
    open_tab,
    pixels,
    results,
    run_command,
    same_as_the_command,
    same_pixels,
    shipped,
    upload,
)


def test_generate_makes_the_images_of_generate_py(page, app):
    fill(page, "seed", 5)
    same_as_the_command(page, app, command_with(page, "command", "--seeds 5"), "#image img")
    fill(page, "trunc", "0.5,0.7,1")
    page.locator("#class input").click()
    page.get_by_role("option", name="2: blond hair", exact=True).click()
    command = command_with(page, "command", "--trunc 0.5,0.7,1", "--class 2")
    same_as_the_command(page, app, command, "#image img")
    choose(page, "size", "9 seeds, from this one on")
    command = command_with(page, "command", "--seeds 5-13 --grid 3x3")
    same_as_the_command(page, app, command, "#image img")


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


def test_mix_makes_the_sheet_of_generate_py(page, app):
    open_tab(page, "Mix")
    command_with(page, "mix-command", "--rows 1 --cols 2")
    fill(page, "mix-layers", "1-3")
    choose(page, "mix-part", "structure")
    command = command_with(page, "mix-command", "--layers 1-3", "--part structure")
    same_as_the_command(page, app, command, "#mix-sheet img")
    strip = pixels(fetch(page, "#mix-strip img"))
    fill(page, "mix-b", 1)  # a seed mixed with itself
    command_with(page, "mix-command", "--cols 1")
    still = pixels(fetch(page, "#mix-strip img"))
    first = still[:, :32]
    assert (still == first.repeat(1, 0).reshape(32, 1, 32, 3).repeat(7, 1).reshape(32, 224, 3)).all()
    assert (strip[:, :32] == first).all() and (strip[:, -32:] != first).any()


def test_walk_makes_the_video_of_generate_py(page, app):
    open_tab(page, "Walk")
    fill(page, "walk-seeds", "3,8")
    page.locator("#walk-seconds input[type=number]").fill("0.5")
    choose(page, "walk-file", ".gif")
    page.locator("#walk-make").click()
    page.locator("#walk-gif img").wait_for()
    command = command_with(page, "walk-command", "--seeds 3,8 --seconds 0.5", "walk.gif")
    data = fetch(page, "#walk-gif img")
    assert data == run_command(command, app.folder).read_bytes()


def test_a_walk_can_be_stopped(page):
    open_tab(page, "Walk")
    page.locator("#walk-seconds input[type=number]").fill("30")
    page.locator("#walk-make").click()
    page.get_by_text(re.compile(r"\d+/\d+ frames")).first.wait_for()
    page.locator("#walk-stop").dispatch_event("click")  # while the progress moves, the page never comes to rest
    assert error_sentence(page) == "Stopped."


def test_edit_moves_along_several_directions_and_its_latents_make_the_image(page, app):
    open_tab(page, "Edit")
    command_with(page, "edit-command", "--w edited_w.npz")
    before = pixels(fetch(page, "#edit-image img"))
    for name, amount in (("edit-0", "3"), ("edit-2", "-2")):
        fill(page, name, amount)
    page.wait_for_function("() => location.search.includes('edit-2=-2')")
    path = app.folder / "edited_w.npz"
    wait_until(lambda: (pixels(fetch(page, "#edit-image img")) != before).any())
    page.wait_for_timeout(1000)  # until the last of several images in a row
    path.write_bytes(download(page, "edit-file"))
    same_as_the_command(page, app, command_with(page, "edit-command", "--w"), "#edit-image img")
    with np.load(path) as file:
        assert json.loads(str(file["about"]))["amounts"] == [3, 0, -2, 0, 0, 0]


def test_kernels_makes_the_sheet_of_generate_py(page, app):
    open_tab(page, "Kernels")
    command = command_with(page, "kernels-command", "--seed 1")
    fill(page, "kernels-layers", "2-3")
    command = command_with(page, "kernels-command", "--layer 2-3")
    same_as_the_command(page, app, command, "#kernels-sheet img")
    page.get_by_label("Compare with another one").check()
    command = command_with(page, "kernels-command", "--compare 1,2")
    same_as_the_command(page, app, command, "#kernels-sheet img")


def test_an_upload_is_inverted_as_by_projector_py_and_can_be_mixed_and_edited(page, app):
    target = app.folder / "target.png"
    save_png(next(generate_batches(Generator.from_pretrained(shipped()), [123]))[0], target)
    open_tab(page, "Invert")
    upload(page, "invert-target", target)
    fill(page, "invert-steps", 20)
    page.locator("#invert-start").click()
    command = command_with(page, "invert-command", "--target target.png", "--steps 20")
    latents = app.folder / "projected-target.npz"
    latents.write_bytes(download(page, "invert-file"))
    with np.load(latents) as ours:
        run_command(command, app.folder)
        with np.load(app.folder / "out" / "projected-target.npz") as theirs:
            assert np.allclose(ours["w"], theirs["w"], atol=1e-3)
    found = pixels(fetch(page, "#invert-image img"))
    for title, tab in (("Edit", "edit-seed"), ("Mix", "mix-a")):
        open_tab(page, title)
        page.locator(f"#{tab}-from input").click()
        page.get_by_role("option", name="target.png").click()
    command = command_with(page, "mix-command", "--rows-w projected-target.npz --cols 2")
    same_as_the_command(page, app, command, "#mix-sheet img")
    assert "Download projected-target.npz in the tab Invert" in page.locator("#mix-command").inner_text()
    open_tab(page, "Edit")
    wait_until(lambda: (pixels(fetch(page, "#edit-image img")) == found).all())


def test_an_inversion_can_be_stopped_and_keeps_what_it_has_found(page, app):
    target = app.folder / "target.png"
    Image.new("RGB", (32, 32), "navy").save(target)
    open_tab(page, "Invert")
    upload(page, "invert-target", target)
    fill(page, "invert-steps", 2000)
    page.locator("#invert-start").click()
    page.get_by_text(re.compile(r"Step \d+ of 2000")).wait_for()
    page.locator("#invert-stop").dispatch_event("click")
    page.get_by_text("Stopped; this is what was found so far").wait_for()
    assert download(page, "invert-file").startswith(b"PK")


def test_stylize_makes_the_image_of_stylize_py(page, app):
    content, styles = write_pictures(app.folder)
    open_tab(page, "Stylize")
    upload(page, "content", content)
    upload(page, "style-1", styles[0])
    page.locator("#stylize-start").click()
    command = command_with(page, "stylize-command", "--content content.png --style style1.png")
    assert same_pixels(results(page, "stylized"), run_command(command, app.folder))
    upload(page, "style-2", styles[1])
    fill(page, "strength", 0.5)
    choose(page, "color", "the content's (luminance)")
    page.locator("#stylize-start").click()
    command = command_with(page, "stylize-command", "--mix 0.5,0.5", "--strength 0.5", "--preserve-color luminance")
    assert same_pixels(results(page, "stylized"), run_command(command, app.folder))
    choose(page, "together", "structure of 1, statistics of 2")
    page.locator("#stylize-start").click()
    command = command_with(page, "stylize-command", "--structure-from style1.png --statistics-from style2.png")
    assert same_pixels(results(page, "stylized"), run_command(command, app.folder))


def test_a_mask_can_be_painted(page, app):
    content, styles = write_pictures(app.folder)
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
    (app.folder / "mask.png").write_bytes(download(page, "mask-file"))
    mask = pixels(app.folder / "mask.png")
    assert mask.shape[:2] == (64, 96) and 0 < (mask > 0).mean() <= 1
    assert same_pixels(results(page, "stylized"), run_command(command, app.folder))


def test_a_video_is_stylized_as_by_stylize_py(page, app):
    pytest.importorskip("av")
    content, styles = write_pictures(app.folder)
    # Not of one colour, whose features have no deviation: normalized, they would be rounding errors alone.
    pixels = torch.from_numpy(np.array(Image.open(content).resize((64, 48)))).permute(2, 0, 1)
    frames = (pixels.roll(3 * i, 2) for i in range(6))
    write_animation(app.folder / "film.mp4", frames, 6, 10)
    open_tab(page, "Stylize")
    upload(page, "style-1", styles[0])
    page.locator("#filming").get_by_role("button").first.click()
    page.locator("#film input[type=file]").set_input_files(app.folder / "film.mp4")
    page.locator("#film video").wait_for()
    page.locator("#film-start").click()
    command = command_with(page, "stylize-command", "--content film.mp4", "--out out/film-stylized.mp4")
    (app.folder / "filmed.mp4").write_bytes(fetch(page, "#filmed video"))
    ours, theirs = frames_of(app.folder / "filmed.mp4"), frames_of(run_command(command, app.folder))
    assert ours.shape == theirs.shape == (6, 3, 48, 64)
    # x264 with several threads makes one of two files of the same frames, which differ by 1.6 after the first frame.
    assert (ours - theirs).abs().mean() < 3 and (ours[0] - theirs[0]).abs().mean() < 1
    assert (ours - frames_of(app.folder / "film.mp4")).abs().mean() > 12  # so that this says something


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
