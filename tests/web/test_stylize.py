"""The tab "Stylize": what it refuses, and that what the sentence says instead is done."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="there is no gradio here; pip install gradio")

from media.transcode import transcode
from tests.media.films import grey, make
from torch_utils.errors import UserError
from web.files import Results
from web.stylize import (
    APART,
    FILM,
    MIXED,
    check_video,
    read_look,
    stylize_film,
    stylize_upload,
)


def page_of(model, folder: Path) -> SimpleNamespace:
    """What the functions of the tab take of a page, with one model."""
    return SimpleNamespace(shelf=SimpleNamespace(stylizer=lambda name: model), results=Results(folder / "results"))


def pictures(folder: Path, count: int) -> list[str]:
    """Coloured noise as PNG files."""
    rng, files = np.random.default_rng(0), []
    for i in range(count):
        files.append(str(folder / f"{i}.png"))
        Image.fromarray(rng.integers(0, 256, (64, 72, 3), dtype=np.uint8)).save(files[-1])
    return files


def stylize(page, content: str, styles: list[str], together: str = MIXED) -> str:
    """The command of a stylized content."""
    *_, command = stylize_upload(page, lambda *_: None, "m", None, content, styles, look(together))
    return command.value


def look(together: str = MIXED):
    return read_look(together, 1, "the style's", 1, 0, 1, 1, 1, 1)


def test_kernels_are_taken_apart_only_where_a_model_predicts_some(stylizer, stylizer_adain, tmp_path):
    content, *styles = pictures(tmp_path, 3)
    page = page_of(stylizer_adain, tmp_path)
    with pytest.raises(UserError, match=f"AdaIN has none; choose “{MIXED}”, or a stylizer with AdaConv"):
        stylize(page, content, styles, APART)
    assert "--mix 0.5,0.5" in stylize(page, content, styles, MIXED)
    assert "--structure-from 1.png" in stylize(page_of(stylizer, tmp_path), content, styles, APART)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_an_animation_as_the_content_is_a_video(stylizer, tmp_path, suffix):
    """The command would make a video of all frames, where the page would show the first.

    The field for videos takes no GIF, WebP or PNG from a browser.
    """
    page, images = page_of(stylizer, tmp_path), [Image.open(file) for file in pictures(tmp_path, 3)]
    style, moving = str(tmp_path / "0.png"), tmp_path / f"moving{suffix}"
    images[0].save(moving, save_all=True, append_images=images[1:], duration=100)
    with pytest.raises(UserError, match=rf"moving{suffix} is an animation.*; save it as MP4 for “{FILM}” or one frame"):
        stylize(page, str(moving), [style])
    transcode(moving, tmp_path / "moving.mp4", lambda images: images)
    film, command = stylize_film(page, lambda *_: None, "m", str(tmp_path / "moving.mp4"), [style], look())
    assert Path(film).is_file() and "--content moving.mp4" in command.value
    Image.open(moving).convert("RGB").save(tmp_path / "frame.png")
    assert "--content frame.png" in stylize(page, str(tmp_path / "frame.png"), [style])


def test_a_film_may_last_ten_minutes(tmp_path):
    """Frames are few where each is shown for minutes, and so are bytes where the sound is silence."""
    for seconds in (500, 700):
        make(tmp_path / f"{seconds}.mkv", [grey(0), grey(1)], times=[0, seconds], base=Fraction(1), rate=1)
    check_video(tmp_path / "500.mkv")
    with pytest.raises(UserError, match=r"700\.mkv is longer than 10 minutes"):
        check_video(tmp_path / "700.mkv")
    check_video(make(tmp_path / "unknown.h264", [grey(0), grey(1)]))  # which does not say how long it is
