"""The settings in the address: what is valid is restored, and nothing else."""

from __future__ import annotations

import pytest

gr = pytest.importorskip("gradio", reason="there is no gradio here; pip install gradio")

from web.fields import seed_field  # noqa: E402
from web.page import Page  # noqa: E402
from web.settings import Settings  # noqa: E402


@pytest.fixture
def settings():
    settings = Settings()
    with gr.Blocks():
        seed_field(Page(None, None, settings=settings), "Seed", 0, "seed")
        settings.number("psi", gr.Slider(-1, 2, 1))
        settings.choice("noise", gr.Radio(["const", "none"], value="const"))
        settings.text("layers", gr.Textbox())
        settings.flag("compare", gr.Checkbox())
    return settings


def restored(settings: Settings, query: str) -> list:
    """The values, None for those that stay as they are."""
    return [None if value == gr.skip() else value for value in settings.restore(query)]


def test_what_is_valid_is_restored(settings):
    query = "?seed=7&psi=-0.5&noise=none&layers=0-3%2C5&compare=true"
    assert restored(settings, query) == [7, -0.5, "none", "0-3,5", True]


@pytest.mark.parametrize(
    "query",
    [
        "", "?", "?other=1", "?seed=-1", "?seed=4294967296", "?seed=nan", "?seed=inf", "?seed=x", "?psi=1e999",
        "?psi=3", "?noise=loud", "?compare=maybe", "?layers=" + "1" * 201, "?seed=%00", "?" + "a=1&" * 150,
        "?seed=3&" + "a=1&" * 250,
    ],
)  # fmt: skip
def test_what_is_not_valid_stays_as_it_is(settings, query):
    assert restored(settings, query) == [None] * 5


def test_the_script_has_every_name_and_default(settings):
    script = settings.save_script()
    assert '["seed", "psi", "noise", "layers", "compare"]' in script
    assert '[0, 1, "const", null, false]' in script
