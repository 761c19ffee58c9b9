"""Errors as sentences, and long work that can be stopped."""

from __future__ import annotations

import os
import shutil
import threading
import time
from types import SimpleNamespace

import pytest

gr = pytest.importorskip("gradio", reason="there is no gradio here; pip install gradio")

from torch_utils.errors import UserError  # noqa: E402
from web import limits  # noqa: E402
from web.files import Results  # noqa: E402
from web.gate import files_under  # noqa: E402
from web.limits import Stopped, Stops, guarded, stream  # noqa: E402
from web.stylize import check_video  # noqa: E402

PAGE, OTHER = SimpleNamespace(session_hash="a"), SimpleNamespace(session_hash="b")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UserError("the seed is missing; write one"), "the seed is missing; write one"),
        (Stopped(), "Stopped."),
        (MemoryError(), "There is not enough memory"),
        (ValueError("secret"), "This is a fault of the program"),
    ],
)
def test_every_error_is_a_sentence_in_the_page_and_the_log(error, sentence, capsys):
    def fail():
        raise error

    with pytest.raises(gr.Error, match=sentence) as raised:
        guarded(fail)()
    assert "secret" not in str(raised.value) and not raised.value.print_exception
    log = capsys.readouterr().err
    assert f"error: {sentence}" in log and ("Traceback" in log) == isinstance(error, ValueError)


def test_a_message_is_no_markup():
    """Gradio would show it as HTML, which can be made to ask other servers for an image."""
    assert (
        str(limits.shown(UserError("<img src=//elsewhere/x> & more"))) == "'&lt;img src=//elsewhere/x&gt; &amp; more'"
    )


def test_messages_do_not_tell_where_uploads_lie(monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/tmp/adaconv-app-x")
    assert limits.without_folders("/tmp/adaconv-app-x/0a1b/photo.png is broken") == "photo.png is broken"


def test_only_the_work_of_that_page_is_stopped():
    stops = Stops()
    with stops.start(PAGE, 0.0) as mine, stops.start(OTHER, 0.0) as theirs:
        stops.stop(PAGE)
        assert mine.asked and not theirs.asked
        with pytest.raises(Stopped):
            mine.check()
        theirs.check()
    before = stops.ask()
    stops.stop(PAGE)  # nothing is left to stop but what waits
    with pytest.raises(Stopped):
        stops.start(PAGE, before)
    with stops.start(PAGE, stops.ask()) as mine, stops.start(OTHER, before) as theirs:
        assert not mine.asked and not theirs.asked
    with stops.start(PAGE, None) as mine:  # nobody knows any more whether it was stopped
        assert not mine.asked
        stops.stop(PAGE)
        assert mine.asked


def test_work_has_an_end(monkeypatch):
    monkeypatch.setattr(limits, "MAX_SECONDS", -1)
    with Stops().start(PAGE, 0.0) as stop, pytest.raises(UserError, match="the limit"):
        stop.check()


def test_a_stream_gives_the_latest_report_and_the_result():
    seen = []

    def work(report):
        for number in range(100):
            report(number)
            time.sleep(0.005)
        return "done"

    with Stops().start(PAGE, 0.0) as stop:
        run = stream(work, stop)
        try:
            while True:
                seen.append(next(run))
        except StopIteration as end:
            assert end.value == "done"
    assert seen and seen == sorted(seen) and len(seen) < 50


def test_a_stream_passes_errors_on():
    def work(report):
        raise UserError("no")

    with Stops().start(PAGE, 0.0) as stop, pytest.raises(UserError, match="no"):
        list(stream(work, stop))


def test_closing_a_stream_ends_its_work():
    ended = threading.Event()

    with Stops().start(PAGE, 0.0) as stop:

        def work(report):
            while not stop.asked:
                report(1)
                time.sleep(0.01)
            ended.set()

        run = stream(work, stop)
        next(run)
        run.close()
    assert ended.is_set()


def test_folders_may_vanish_while_files_are_looked_for(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    found = []
    for path in files_under(tmp_path):
        found.append(path.parent.name)
        for name in {"a", "b", "c"} - {path.parent.name}:
            shutil.rmtree(tmp_path / name, ignore_errors=True)
    assert len(found) == 1


def test_a_damaged_animation_is_a_mistake(tmp_path):
    (tmp_path / "film.webp").write_bytes(b"RIFF\x24\0\0\0WEBPVP8X" + bytes(24))
    with pytest.raises(UserError, match=r"film\.webp is not"):
        check_video(tmp_path / "film.webp")


def test_results_are_bounded_in_age_and_size(tmp_path, monkeypatch):
    results = Results(tmp_path)
    example = results.path("example.png")
    example.write_bytes(bytes(10))
    results.protect()
    paths = [results.path(f"{i}.png") for i in range(4)]
    for path in paths:
        path.write_bytes(bytes(10))
        time.sleep(0.02)
    monkeypatch.setattr("web.files.MAX_FILES", 20)
    results.sweep(every=0)
    assert [path.exists() for path in paths] == [False, False, True, True] and example.exists()
    monkeypatch.setattr("web.files.KEPT_SECONDS", 0)
    results.sweep(every=0)
    assert not any(path.exists() for path in paths) and example.exists()


def test_folders_of_results_that_were_never_written_do_not_stay(tmp_path):
    results = Results(tmp_path)
    old, young, used = (results.path("a.png") for _ in range(3))
    used.write_bytes(b"example")
    results.protect()
    long_ago = time.time() - limits.KEPT_SECONDS - 60
    for folder in (old.parent, used.parent, tmp_path):
        os.utime(folder, (long_ago, long_ago))
    results.sweep(every=0)
    assert sorted(tmp_path.iterdir()) == sorted([young.parent, used.parent]) and used.exists()
