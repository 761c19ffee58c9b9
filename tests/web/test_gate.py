"""A server among strangers: hostile files, other routes, many clients at once. It refuses, answers, and lives."""

from __future__ import annotations

import io
import json
import random
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import httpx
import numpy as np
import pytest
import torch
from page_client import Client, Refused, serve
from PIL import GifImagePlugin, Image

from adaconv import Generator
from models.sampling import generate_batches
from models.snapshot import PRETRAINED
from tests.web.browser import pixels, shipped
from web.limits import MAX_PIXELS, MAX_UPLOAD

FILES = 200


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("gradio", reason="there is no gradio here; pip install gradio")
    folder = tmp_path_factory.mktemp("app")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        with serve(folder) as server:
            assert list(folder.glob("adaconv-app-*"))  # of uploads and results
            yield server
            assert server.process.poll() is None
    assert server.tracebacks() == ""
    assert not list(folder.glob("adaconv-app-*"))  # also after a SIGTERM


@pytest.fixture
def client(server):
    return Client(server.url)


def image_bytes(kind: str, size: tuple[int, int] = (48, 48), seed: int = 0) -> bytes:
    array = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG file whose header tells a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def long_gif(frames: int) -> bytes:
    """A GIF with very many frames of 16 × 16, each another one than the frame before."""
    buffer = io.BytesIO()
    colors = [Image.new("RGB", (16, 16), color).quantize(2) for color in ("red", "blue")]
    buffer.writelines(GifImagePlugin.getheader(colors[0].copy(), info={"loop": 0})[0])
    pair = b"".join(
        part for color in colors for part in GifImagePlugin.getdata(color, duration=20, include_color_table=True)
    )
    return buffer.getvalue() + pair * (frames // 2) + b";"


def hostile_files() -> Iterator[tuple[str, bytes]]:
    """Files that are no images, or harmful ones, under the names of images."""
    rng = random.Random(0)
    whole = {kind: image_bytes(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")}
    yield "empty.png", b""
    yield "page.png", b"<html><script>alert(1)</script></html>"
    yield "drawing.png", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
    yield "drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"
    yield "bomb.png", png_of(60_000, 60_000, zlib.compress(bytes(60_000 * 100)))
    yield "wide.png", png_of(2**31 - 1, 1)
    yield "flat.png", png_of(1_000_000, 1, zlib.compress(bytes(125_001)))
    side = int(MAX_PIXELS**0.5) + 8
    yield "large.png", png_of(side, side, zlib.compress(bytes((side // 8 + 1) * side), 9))
    yield "tiny.png", image_bytes("PNG", (1, 1))
    yield "frames.gif", long_gif(10_000)
    yield "../../escape.png", whole["PNG"][:60]
    yield "x" * 300 + ".png", whole["PNG"][:60]
    yield "línea\u202egnp.exe", whole["JPEG"][:100]
    yield "list.m3u8", b"#EXTM3U\nfile:///etc/passwd\n"
    for number in count():
        kind = rng.choice(list(whole))
        data = bytearray(whole[kind])
        if number % 2:
            data = data[: rng.randrange(1, len(data) // 2)]
        else:  # only the first bytes are those of an image
            data[rng.randrange(4, 20) :] = rng.randbytes(rng.randrange(1, 4000))
        yield f"{number}.{kind.lower()}", bytes(data)


def test_hostile_uploads_get_a_sentence_and_the_server_lives(server):
    client = Client(server.url)
    style = client.upload("style.png", image_bytes("PNG", (64, 64)))
    client.call("stylize-start", "click", content=client.upload("content.png", image_bytes("PNG")), style_1=style)
    before = server.memory

    def try_one(part: list[tuple[str, bytes]]) -> list[str]:
        client, answers = Client(server.url), []
        for name, data in part:
            try:
                content = client.upload(name, data)
                style = client.upload("style.png", image_bytes("PNG", (64, 64)))
                client.call("stylize-start", "click", content=content, style_1=style)
                answers.append("")  # an image whose end is missing can be used
            except Refused as refused:
                answers.append(str(refused))
        return answers

    files = [file for file, _ in zip(hostile_files(), range(FILES), strict=False)]
    with ThreadPoolExecutor(8) as pool:
        answers = [answer for part in pool.map(try_one, (files[i::8] for i in range(8))) for answer in part]
    assert len(answers) == FILES
    assert sum(answer != "" for answer in answers) > FILES * 0.8
    for answer in answers:
        assert len(answer) <= 420 and "/adaconv-app" not in answer and "fault of the program" not in answer, answer
    assert server.memory < 1.5 * before
    assert server.process.poll() is None


def test_a_film_of_ten_thousand_frames_is_refused(server, client):
    style = client.upload("style.png", image_bytes("PNG", (64, 64)))
    for name, data in (("frames.gif", long_gif(10_000)), ("broken.mp4", b"\0\0\0\x18ftypmp42" + bytes(100))):
        film = client.upload(name, data)
        with pytest.raises(Refused, match=name):
            client.call("film-start", "click", film={"video": film, **film}, style_1=style)


def test_an_upload_that_is_too_large_is_refused_before_it_is_read(server, client):
    with pytest.raises(Refused, match="413"):
        client.upload("large.png", bytes(MAX_UPLOAD + (2 << 20)))
    headers = {"content-type": "multipart/form-data; boundary=x"}
    response = client.http.post("/gradio_api/upload", content=iter([b"--x\r\n"]), headers=headers)
    assert response.status_code == 411  # without a length


@pytest.mark.parametrize("path", ["/login", *(f"/gradio_api/{name}" for name in ("upload", "cancel", "reset"))])
def test_a_body_in_chunks_is_refused_whatever_length_it_states(server, path):
    """It would end where it says so itself, beyond every limit."""
    address = httpx.URL(server.url)
    lines = [f"POST {path} HTTP/1.1", f"Host: {address.netloc.decode()}", "Content-Length: 5"]
    lines += ["Transfer-Encoding: chunked", "Content-Type: application/json", "", ""]
    with socket.create_connection((address.host, address.port), timeout=30) as connection:
        connection.sendall("\r\n".join(lines).encode())  # and nothing of the body, which nobody waits for
        answer = connection.makefile("rb").readline()
    assert answer.split()[1] == b"411", answer


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd", "/gradio_api/file=/proc/self/environ", "/file=/etc/passwd",
        "/gradio_api/file=../../../etc/passwd", "/gradio_api/file=%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/gradio_api/file=http://127.0.0.1:1/", "/gradio_api/proxy=http://127.0.0.1:1/",
        "/assets/../../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/gradio_api/custom_component/../../etc/passwd", "/monitoring",
        "/docs", "/openapi.json", "/gradio_api/run-history/records", "/gradio_api/vibe-code", "/..%5c..%5cetc%5cpasswd",
        "/gradio_api/file=C:\\\\windows\\\\win.ini", "/gradio_api/file=/dev/zero", "/gradio_api/stream/x",
    ],
)  # fmt: skip
def test_other_files_and_routes_are_refused(server, path):
    with httpx.Client() as http:
        request = http.build_request("GET", server.url + "/")
        request.url = httpx.URL(server.url).copy_with(raw_path=path.encode())
        response = http.send(request)
    assert response.status_code in (403, 404), response.text[:200]
    assert "root:" not in response.text


def test_the_project_and_the_models_are_not_readable(server):
    files = [PRETRAINED / "faces32.safetensors", PRETRAINED.parent / "app.py", server.folder]
    for file in files:
        assert httpx.get(f"{server.url}/gradio_api/file={file}").status_code in (403, 404)


def test_other_methods_hosts_and_bodies_are_refused(server):
    url = server.url
    assert httpx.put(f"{url}/config").status_code == 404
    assert httpx.post(f"{url}/gradio_api/api/predict", json={}).status_code == 404
    assert httpx.get(url, headers={"host": "evil.example"}).status_code == 421
    assert httpx.post(f"{url}/gradio_api/queue/join", content=b"[" * 100_000).status_code == 400
    assert httpx.post(f"{url}/gradio_api/queue/join", content=bytes(2 << 20)).status_code == 413


@pytest.mark.parametrize("path", ["/etc/passwd", "http://127.0.0.1:1/x.png", "file:///etc/passwd", "data:image/png,x"])
def test_a_file_that_was_not_uploaded_is_refused(client, path):
    style = client.upload("style.png", image_bytes("PNG", (64, 64)))
    other = {"path": path, "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(Refused, match="400: a file must be one that was uploaded"):
        client.call("stylize-start", "click", content=other, style_1=style)


def test_a_wrong_request_gets_a_sentence(client):
    for values, sentence in (
        ({"seed": None}, "a seed is a whole number"),
        ({"seed": -1}, "a seed is a whole number from 0"),
        ({"seed": 2**40}, "a seed is a whole number from 0"),
        ({"trunc": "1," * 90}, "is not a valid number"),
        ({"class_": "99", "model": shipped()}, "the model has the classes 0 to 5"),
    ):
        with pytest.raises(Refused, match=sentence):
            client.call("seed", "change", **{name.rstrip("_"): value for name, value in values.items()})


def test_a_page_whose_session_has_ended_is_told_so(server):
    """A page that stayed open while the server was started anew: a whole response and nothing in the log."""
    answer = httpx.get(f"{server.url}/gradio_api/queue/data", params={"session_hash": "ended"}, timeout=30)
    assert answer.status_code == 200
    (event,) = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line]
    assert event["session_not_found"]
    assert server.tracebacks() == ""


def test_many_clients_get_their_own_images(server):
    G = Generator.from_pretrained(shipped())
    clients, rounds = 12, 4
    before = server.memory

    def work(number: int) -> list[tuple[int, np.ndarray]]:
        client = Client(server.url)
        found = []
        for seed in range(number * 1000, number * 1000 + rounds):
            (file, *_) = client.call("seed", "change", seed=seed, model=shipped())
            found.append((seed, pixels(client.fetch(file))))
        return found

    with ThreadPoolExecutor(clients) as pool:
        found = [pair for pairs in pool.map(work, range(clients)) for pair in pairs]
    assert len(found) == clients * rounds
    for seed, image in found:
        expected = next(generate_batches(G, [seed], classes=torch.tensor([seed % 6])))[0].permute(1, 2, 0)
        assert (np.abs(image.astype(int) - expected.numpy()) <= 1).all(), seed
    assert server.memory < 1.5 * before


def test_work_ends_with_its_page(server):
    """A video whose page is closed is not made to its end: another one follows at once."""
    with httpx.Client(base_url=server.url, timeout=60) as http:
        gone = Client(server.url)
        beat = http.build_request("GET", f"/gradio_api/heartbeat/{gone.session}")
        alive = http.send(beat, stream=True)
        gone.start("walk-make", "click", walk_seconds=30, walk_fps=30)
        time.sleep(1)
        alive.close()
    Client(server.url).call("walk-make", "click", walk_seconds=0.5, walk_file=".gif")
    assert any("Stopped" in line for line in server.log)


def test_queued_work_is_not_done_beside_the_queue(server):
    """It bounds how much is computed at a time."""
    config = httpx.get(f"{server.url}/config").json()
    queued = [each["id"] for each in config["dependencies"] if each["queue"] is not False and each["backend_fn"]]
    assert queued
    for number in queued:
        for prefix in ("run", "api"):
            body = {"fn_index": number, "data": [], "session_hash": "x"}
            answer = httpx.post(f"{server.url}/gradio_api/{prefix}/predict", json=body)
            assert answer.status_code == 404, (number, answer.text)
