"""The command line of app.py. The page is tested in tests/web."""

from __future__ import annotations

import os
import signal
import socket
from importlib.util import find_spec
from pathlib import Path

import pytest

from app import check_port
from tests.scripts import join, mistake, start, wait_until

# app.py, whose page says only where its folder is. A word after its options names a signal to ignore, as nohup does.
WITHOUT_A_PAGE = """
import signal, sys, threading, types
import app
from torch_utils import cli

def serve(*arguments):
    print(arguments[-1], flush=True)
    threading.Event().wait()

# the tests themselves may run under nohup
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[-1] == "nohup" else signal.SIG_DFL)
sys.argv = [word for word in sys.argv if word != "nohup"]
sys.modules["web.server"] = types.SimpleNamespace(serve=serve)
cli.run(app.main)
"""


def test_a_host_for_others_asks_for_a_password():
    assert "--no-password" in mistake("app.py", "--host", "0.0.0.0")


def test_models_that_do_not_exist_are_a_mistake(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    assert "there is no nowhere.safetensors" in mistake("app.py", "--network", "nowhere.safetensors")
    assert "holds no model" in mistake("app.py", "--network", tmp_path / "x.safetensors")


def test_a_port_in_use_or_an_address_of_another_machine_is_a_mistake():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        message = mistake("app.py", "--port", port)
        assert f"cannot serve at 127.0.0.1:{port}" in message and "--port, or 0 for a free one" in message
        assert check_port("127.0.0.1", 0) not in (0, port)
    assert check_port("127.0.0.1", port) == port  # as soon as nobody listens there
    assert "another --host" in mistake("app.py", "--no-password", "--host", "192.0.2.1")  # RFC 5737: nobody's
    assert "is no address" in mistake("app.py", "--no-password", "--host", "nowhere.invalid")


def test_a_password_and_none_contradict_each_other():
    assert "contradict each other" in mistake("app.py", "--password", "x", "--no-password")


def folder_of(page: Path) -> Path:
    """The folder of uploads and results of a page without a page that has been started."""
    wait_until(lambda: (page / "stdout").exists() and (page / "stdout").read_text().endswith("\n"))
    return Path((page / "stdout").read_text().strip())


@pytest.mark.skipif(find_spec("gradio") is None, reason="there is no gradio here; pip install gradio")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_uploads_are_removed_when_it_is_ended_or_its_terminal_closed(tmp_path, name):
    page = start(tmp_path, "-c", WITHOUT_A_PAGE, "--port", 0, "--no-browser")
    folder = folder_of(tmp_path)
    (folder / "upload.png").write_bytes(b"an upload")
    os.kill(page.pid, getattr(signal, name))
    join(page)
    assert page.exitcode == 128 + getattr(signal, name) and not folder.exists()


@pytest.mark.skipif(find_spec("gradio") is None, reason="there is no gradio here; pip install gradio")
def test_under_nohup_it_outlives_its_terminal(tmp_path):
    page = start(tmp_path, "-c", WITHOUT_A_PAGE, "--port", 0, "--no-browser", "nohup")
    folder = folder_of(tmp_path)
    os.kill(page.pid, signal.SIGHUP)
    page.join(1)
    assert page.is_alive() and folder.exists()
    page.terminate()
    join(page)
    assert page.exitcode == 143 and not folder.exists()
