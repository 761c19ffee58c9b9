"""The command line of app.py. The page is tested in tests/web."""

from __future__ import annotations

import socket

from app import check_port
from tests.scripts import mistake


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
