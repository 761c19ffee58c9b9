"""The models that the web page offers."""

import pytest

pytest.importorskip("gradio")

from models.snapshot import GENERATOR, STYLIZER, find_snapshot
from web.shelf import Shelf


@pytest.mark.parametrize("kind", [GENERATOR, STYLIZER])
def test_without_runs_the_first_model_is_the_one_that_commands_take(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    found = Shelf().entries(kind)
    assert found[0].path == find_snapshot(None, kind)
    assert len({entry.path for entry in found}) == len(found)
