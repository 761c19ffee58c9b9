"""The page in a real browser: models, mistakes, addresses, screens."""

from __future__ import annotations

import re

from PIL import Image

from models.snapshot import PRETRAINED
from tests.web.browser import (
    choose,
    command_with,
    download,
    error_sentence,
    fetch,
    fill,
    open_page,
    open_tab,
    pixels,
    results,
    run_command,
    same_as_the_command,
    same_pixels,
    upload,
)

PICTURE = PRETRAINED.parent / "docs" / "app-mix.png"


def test_the_newest_run_comes_first_with_its_metric_and_its_sheet(browser, app):
    page = open_page(browser, app)
    command_with(page, "command", "runs/00002-test")
    assert "00002-test · swd2k 40 · 8 kimg" in page.locator("#model input").input_value()
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


def test_reloading_keeps_the_settings_and_an_address_can_be_sent(browser, app, page):
    fill(page, "seed", 77)
    fill(page, "trunc", "0.5")
    choose(page, "size", "9 seeds, from this one on")
    open_tab(page, "Mix")
    fill(page, "mix-a", 9)
    command_with(page, "mix-command", "--rows 9")
    page.wait_for_function("() => location.search.includes('mix-a=9')")
    page.reload()
    command_with(page, "mix-command", "--rows 9")
    assert page.get_by_role("tab", name="Mix").get_attribute("aria-selected") == "true"
    open_tab(page, "Generate")
    command_with(page, "command", "--seeds 77-85", "--trunc 0.5")


def test_a_wrong_address_is_noted_and_the_default_used(browser, app):
    page = open_page(browser, app, "?seed=-5&psi=nan&noise=loud&tab=nowhere&model=../../etc/passwd")
    page.get_by_text("noise=loud in the address is not valid").wait_for()
    command_with(page, "command", "--seeds 0")
    page.context.close()


def test_a_narrow_screen_does_not_scroll_sideways(browser, app):
    page = open_page(browser, app, viewport={"width": 360, "height": 740}, color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    for name in ("generate", "mix", "walk", "edit", "kernels", "invert", "stylize"):
        page.goto(f"{app.url}/?tab={name}")
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


# --- controls that fit the model ------------------------------------------------------------------------------------


def choose_model(page, name: str) -> None:
    """Chooses the model whose label begins with the name."""
    page.locator("#model input").click()
    page.get_by_role("option").filter(has_text=name).first.click()


def test_noise_is_offered_only_by_a_model_that_has_some(page):
    noise = page.locator("#noise input[value=none]")
    assert noise.is_disabled() and "trained without noise" in page.locator("#noise").inner_text()
    open_tab(page, "Invert")
    assert page.locator("#invert-noise input").first.is_disabled()
    open_tab(page, "Generate")
    choose_model(page, "00002-test")
    command_with(page, "command", "runs/00002-test")
    assert noise.is_enabled() and page.locator("#invert-noise input").first.is_enabled()
    choose(page, "noise", "none")
    command_with(page, "command", "--noise-mode none")
    choose_model(page, "faces32")
    command = command_with(page, "command", "faces32")
    assert "--noise-mode" not in command and noise.is_disabled()


def test_layers_and_parts_are_those_of_the_model(page):
    open_tab(page, "Mix")
    command_with(page, "mix-command", "faces32")
    assert "7 the finest (the last ToRGB" in page.locator("#mix-layers").inner_text()
    assert page.locator("#mix-part input").evaluate_all("all => all.map(each => each.value)") == [
        "all",
        "structure",
        "channels",
    ]
    assert "predicts no bias" in page.locator("#mix-part").inner_text()
    open_tab(page, "Kernels")
    assert "6 the finest." in page.locator("#kernels-layers").inner_text()
    open_tab(page, "Mix")
    choose_model(page, "00002-test")
    command_with(page, "mix-command", "runs/00002-test")  # the tab that is open follows the model at once
    page.locator("#mix-layers").get_by_text("5 the finest").wait_for()


def test_the_class_mean_is_offered_only_with_classes(page, app):
    choose_model(page, "00002-test")
    command_with(page, "command", "runs/00002-test")
    assert not page.locator("#class-mean").is_visible() and not page.locator("#class").is_visible()
    choose_model(page, "faces32")
    page.locator("#class-mean input").check()
    assert "--trunc-class" not in command_with(page, "command", "faces32")  # nothing is truncated yet
    fill(page, "psi", 0.5)
    same_as_the_command(page, app, command_with(page, "command", "--trunc 0.5 --trunc-class"), "#image img")
    open_tab(page, "Mix")
    page.locator("#mix-class-mean input").check()
    fill(page, "mix-psi", 0.3)
    same_as_the_command(page, app, command_with(page, "mix-command", "--trunc-class"), "#mix-sheet img")


def test_transparent_images_of_two_sides_in_every_tab(page, app):
    page.goto(f"{app.url}/?model=runs/00000-test&seed=3&noise=random&psi=0.8")
    command = command_with(page, "command", "runs/00000-test", "--seeds 3", "--trunc 0.8", "--noise-mode random")
    image = pixels(fetch(page, "#image img"), "RGBA")
    assert image.shape == (16, 24, 4) and image[..., 3].min() < 255  # the download keeps the transparency
    same_as_the_command(page, app, command, "#image img")
    shown = page.locator("#image img")
    assert "conic-gradient" in shown.evaluate("image => getComputedStyle(image).backgroundImage")
    box = shown.bounding_box()
    assert abs(box["width"] / box["height"] - 24 / 16) < 0.01  # nothing but the image is on the chequerboard
    choose(page, "size", "9 seeds, from this one on")
    same_as_the_command(page, app, command_with(page, "command", "--grid 3x3"), "#image img")
    for title, name, image in (("Mix", "mix", "mix-sheet"), ("Kernels", "kernels", "kernels-sheet")):
        open_tab(page, title)
        same_as_the_command(page, app, command_with(page, f"{name}-command", "00000-test"), f"#{image} img")
    strip = pixels(fetch(page, "#mix-strip img"), "RGBA")
    assert strip.shape == (16, 7 * 24, 4) and strip[..., 3].min() == 255  # laid on a chequerboard


def test_transparent_images_are_edited_walked_and_inverted(page, app):
    page.goto(f"{app.url}/?model=runs/00000-test&tab=edit&edit-0=2")
    command = command_with(page, "edit-command", "--w edited_w.npz")
    (app.folder / "edited_w.npz").write_bytes(download(page, "edit-file"))
    same_as_the_command(page, app, command, "#edit-image img")
    open_tab(page, "Walk")
    fill(page, "walk-seconds", 0.5)
    choose(page, "walk-file", ".gif")
    command = command_with(page, "walk-command", "--seconds 0.5", "walk.gif")
    page.locator("#walk-make").click()
    page.locator("#walk-gif img").wait_for()
    assert fetch(page, "#walk-gif img") == run_command(command, app.folder).read_bytes()
    target = app.folder / "logo.png"
    Image.new("RGBA", (48, 32), (200, 30, 30, 90)).save(target)
    open_tab(page, "Invert")
    upload(page, "invert-target", target)
    fill(page, "invert-steps", 10)
    page.locator("#invert-start").click()
    command_with(page, "invert-command", "--target logo.png")
    assert pixels(fetch(page, "#invert-image img"), "RGBA").shape == (16, 24, 4)


# --- what is explained ----------------------------------------------------------------------------------------------


def test_a_command_is_there_before_the_walk_is_made(page):
    open_tab(page, "Walk")
    command_with(page, "walk-command", "--seeds 0-3 --seconds 4")
    fill(page, "walk-seeds", "3,8")
    command_with(page, "walk-command", "--seeds 3,8")


def test_marks_of_an_error_go_when_the_mistake_is_mended(page):
    open_tab(page, "Walk")
    fill(page, "walk-seeds", "3")
    page.locator("#walk-make").click()
    mark = page.locator("#walk-video").get_by_text("Error", exact=True)
    mark.wait_for()
    fill(page, "walk-seeds", "3,8")
    mark.wait_for(state="hidden")
    open_tab(page, "Stylize")
    page.locator("#stylize-start").click()
    page.get_by_text("the content is missing").wait_for()
    mark = page.locator("#stylized").get_by_text("Error", exact=True)
    mark.wait_for()
    upload(page, "content", PICTURE)
    mark.wait_for(state="hidden")


def test_waiting_work_says_for_what_it_waits_and_its_place(page, browser, app):
    open_tab(page, "Walk")
    fill(page, "walk-seconds", 30)
    other, third = (open_page(browser, app, "?tab=walk&walk-seconds=0.5&walk-file=.gif") for _ in range(2))
    for waiting in (other, third):
        command_with(waiting, "walk-command", "walk.gif")
    page.locator("#walk-make").click()
    page.get_by_text(re.compile(r"\d+/\d+ frames")).first.wait_for()
    other.locator("#walk-make").click()
    sentence = re.compile("waiting for other work of this server, yours or another page's; place 1 of 1 in the queue")
    other.get_by_text(sentence).first.wait_for()
    third.locator("#walk-make").click()
    third.get_by_text(re.compile("place 2 of 2 in the queue")).first.wait_for()
    third.locator("#walk-stop").dispatch_event("click")
    page.locator("#walk-stop").dispatch_event("click")
    other.locator("#walk-gif img").wait_for()
    third.get_by_text("Stopped.").wait_for()  # what waits can be stopped, too
    assert third.locator("#walk-gif img").count() == 0
    other.context.close()
    third.context.close()


def test_an_example_can_be_made_again_from_the_repository(page, app):
    open_tab(page, "Stylize")
    page.locator("#tabs").get_by_role("row").nth(1).click()
    page.locator("#content img").wait_for()
    page.locator("#style-1 img").wait_for()
    page.locator("#stylize-start").click()
    command = command_with(page, "stylize-command", "examples/face.png", "examples/waves.png")
    assert "Save your upload" not in page.locator("#stylize-command").inner_text()
    assert same_pixels(results(page, "stylized"), run_command(command, app.folder))


def test_a_command_says_which_uploads_it_needs(page):
    open_tab(page, "Stylize")
    upload(page, "content", PICTURE)
    page.locator("#tabs").get_by_role("row").nth(2).click()  # replaces the content, too
    page.wait_for_function("() => document.querySelector('#content img').src.includes('face.png')")
    upload(page, "style-2", PICTURE)
    page.locator("#stylize-start").click()
    command_with(page, "stylize-command", "--style app-mix.png")
    assert "Save your upload app-mix.png in the folder" in page.locator("#stylize-command").inner_text()


def test_the_text_of_upload_boxes_is_not_cut(page):
    open_tab(page, "Stylize")
    inside = """name => {
        const box = document.querySelector(`#${name} button`), room = box.getBoundingClientRect();
        const walker = document.createTreeWalker(box, NodeFilter.SHOW_TEXT), range = document.createRange(), found = [];
        while (walker.nextNode()) {
            range.selectNodeContents(walker.currentNode);
            if (walker.currentNode.data.trim()) found.push(range.getBoundingClientRect());
        }
        return found.length && found.every(text => text.left >= room.left && text.right <= room.right
            && text.top >= room.top && text.bottom <= room.bottom);
    }"""
    for width in (1200, 360):
        page.set_viewport_size({"width": width, "height": 900})
        assert [name for name in ("content", "style-1", "style-4") if not page.evaluate(inside, name)] == []
    page.set_viewport_size({"width": 1200, "height": 900})


def test_the_card_explains_its_terms(page):
    assert page.locator("#about button").first.inner_text().split("\n")[0].strip("◀▼ ") == "What is this model?"
    page.locator("#about").get_by_role("button").first.click()
    page.locator("#about").get_by_text("A thousand images shown in training").wait_for()
    text = page.locator("#about").inner_text()
    for term in ("parameters", "kimg", "metric", "cbase", "images shown"):
        assert f"{term}:" in text
    assert "740,588" in text and page.locator("#about #precision").count() == 0
