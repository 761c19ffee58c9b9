"""A browser, a server and a page that all tests of the page share."""

from __future__ import annotations

import pytest
from page_client import serve

from tests.web.browser import chromium, command_with, open_page, shipped, write_run


@pytest.fixture(scope="package")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="package")
def app(tmp_path_factory, browser):
    """A server with three runs: 2 is the newest, and 0 makes transparent images of two sides, in classes."""
    folder = tmp_path_factory.mktemp("app")
    write_run(folder, 0, 50.0, (24, 16), img_channels=4, c_dim=3)
    write_run(folder, 1, 45.0)
    write_run(folder, 2, 40.0)
    with serve(folder) as server:
        yield server
    assert server.tracebacks() == ""


@pytest.fixture(scope="package")
def opened(browser, app):
    """A page whose scripts are in the cache."""
    page = open_page(browser, app)
    yield page
    page.context.close()


@pytest.fixture
def page(opened, app):
    """The page as it is when it is opened anew, with the shipped model."""
    opened.goto(f"{app.url}/?model={shipped()}")
    command_with(opened, "command", "faces32", "--seeds 0")
    return opened
