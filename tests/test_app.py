"""The command line of app.py. The page is tested in tests/web."""

from __future__ import annotations

from tests.scripts import mistake


def test_a_host_for_others_asks_for_a_password():
    assert "--no-password" in mistake("app.py", "--host", "0.0.0.0")


def test_models_that_do_not_exist_are_a_mistake(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    assert "does not exist" in mistake("app.py", "--network", "nowhere.safetensors")
    assert "holds no model" in mistake("app.py", "--network", tmp_path / "x.safetensors")
