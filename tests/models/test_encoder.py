"""Encoders come back from their files, others are refused in one line, and a download is whole or not there."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import pickle
import re
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch

from models import encoder as module
from models.encoder import URL, load_encoder, save_encoder, torchvision_weights
from networks.vgg import VGG19
from torch_utils.errors import UserError

WIDTH = 1 / 16


def encoder(width: float = WIDTH) -> VGG19:
    torch.manual_seed(0)
    return VGG19(width)


def assert_same(loaded: VGG19, expected: VGG19) -> None:
    assert loaded.width == expected.width
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in loaded.state_dict().items())


def state_of(model: VGG19) -> dict[str, torch.Tensor]:
    """Its tensors, in the memory order that safetensors asks for."""
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def torchvision_state(model: VGG19) -> dict[str, torch.Tensor]:
    """As a state of torchvision's vgg19 looks: with more layers, and a classifier."""
    more = {"features.21.weight": torch.zeros(32, 32, 3, 3), "classifier.6.bias": torch.zeros(1000)}
    return {**model.state_dict(), **more}


# Files.


@pytest.mark.parametrize("width", [WIDTH, 0.1])
def test_an_encoder_comes_back(tmp_path, width):
    save_encoder(tmp_path / "own.safetensors", encoder(width), {"accuracy": 0.9})
    assert_same(load_encoder(tmp_path / "own.safetensors"), encoder(width))
    with safetensors.safe_open(tmp_path / "own.safetensors", framework="pt") as file:
        meta = json.loads(file.metadata()["adaconv"])
    assert meta == {"format": "adaconv-encoder", "version": 1, "config": {"width": width}, "info": {"accuracy": 0.9}}


@pytest.mark.parametrize("zipped", [True, False])  # torchvision's file is in PyTorch's format before the zipped one
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_torchvisions_layout_is_read(tmp_path, suffix, zipped):
    path = tmp_path / f"vgg{suffix}"
    torch.save(torchvision_state(encoder()), path, _use_new_zipfile_serialization=zipped)
    assert_same(load_encoder(path), encoder())


def write(path: Path, meta: object, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """An encoder's file with any metadata."""
    text = meta if isinstance(meta, str) else json.dumps(meta)
    safetensors.torch.save_file(tensors or state_of(encoder()), path, metadata={"adaconv": text})
    return path


def described(**values) -> dict:
    return {"format": "adaconv-encoder", "version": 1, "config": {"width": WIDTH}, "info": {}, **values}


@pytest.mark.parametrize(
    "meta",
    [
        "[" * 100_000,
        "{",
        "[1]",
        {},
        described(format="adaconv-generator"),
        described(version="1"),
        described(version=2),
        {"format": "adaconv-encoder", "version": 1},
        described(config={"width": 1}),
        described(config={"width": 1 / 15}),
        described(config={"width": -1}),
        described(config={"width": 1e18}),
        described(config={"width": 10**400}),
        described(config={"width": float("inf")}),
        described(config={"width": float("nan")}),
        described(config={"width": "0.0625"}),
        described(config={"width": None}),
        described(config={"width": True}),
    ],
    ids=lambda meta: str(meta)[:60],
)
def test_a_file_that_describes_another_model_is_refused(tmp_path, meta):
    with pytest.raises(UserError, match=r"a\.safetensors") as error:
        load_encoder(write(tmp_path / "a.safetensors", meta))
    assert len(error.value.message) < 500 and "\n" not in error.value.message


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_other_tensors_are_refused(tmp_path, suffix):
    state = state_of(encoder())
    path = tmp_path / f"a{suffix}"
    for name, tensor in {"features.5.weight": torch.zeros(8, 4, 1, 1), "features.19.bias": None}.items():
        others = {key: value for key, value in {**state, name: tensor}.items() if value is not None}
        if suffix == ".safetensors":
            write(path, described(), others)
        else:
            torch.save(others, path)
        with pytest.raises(UserError, match=rf"a{suffix} .*{name}"):
            load_encoder(path)
    with pytest.raises(UserError, match=r"extra is missing, unexpected"):
        load_encoder(write(tmp_path / "b.safetensors", described(), {**state, "extra": torch.zeros(1)}))


@pytest.mark.parametrize(
    "content",
    [
        [1],
        {},
        torch.zeros(3),
        {**encoder().state_dict(), "features.0.weight": 3},
        {**encoder().state_dict(), "features.0.weight": torch.tensor(3.0)},
        {**encoder().state_dict(), "features.2.weight": "4"},
        {**encoder().state_dict(), "features.2.bias": torch.zeros(4, device="meta")},
    ],
    ids=lambda content: type(content).__name__,
)
def test_a_pth_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth (is not a VGG-19|cannot be read as an encoder) .*--encoder-weights"):
        load_encoder(tmp_path / "a.pth")


class Touch:
    """What touches a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_pickle_is_executed(tmp_path, zipped):
    state = {**encoder().state_dict(), "touch": Touch(tmp_path / "touched")}
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Touch(tmp_path / "touched"), protocol=2))
    for path in (tmp_path / "a.pth", tmp_path / "b.pth"):
        with pytest.raises(
            UserError, match=r"cannot be read as an encoder \(not a PyTorch file of nothing but tensors"
        ):
            load_encoder(path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_what_is_no_file_of_weights_is_refused(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(UserError, match=rf"there is no .*{name}; name the file of an encoder with --encoder-weights"):
        load_encoder(path)
    buffer = io.BytesIO()
    torch.save(torchvision_state(encoder()), buffer)
    for data in (b"", b"\0" * 1000, buffer.getvalue()[:5000], safetensors.torch.save(state_of(encoder()))[:5000]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=rf"{name} cannot be read as an encoder") as error:
            load_encoder(path)
        assert len(error.value.message) < 600


# The download.


class Server(http.server.ThreadingHTTPServer):
    """Serves `data` under every name, of which it sends the first `sent` bytes; counts the requests."""

    data = b""
    sent: int | None = None
    requests = 0


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.data)))
        self.end_headers()
        self.wfile.write(self.server.data[: self.server.sent])

    def log_message(self, *args):
        pass


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache folder that does not exist yet."""
    monkeypatch.setenv("ADACONV_CACHE", str(tmp_path / "a" / "cache"))
    return tmp_path / "a" / "cache"


@pytest.fixture
def server():
    """A server with an encoder of torchvision's layout."""
    buffer = io.BytesIO()
    torch.save(torchvision_state(encoder()), buffer)
    server = Server(("127.0.0.1", 0), Handler)
    server.data = buffer.getvalue()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def address(server: Server, name: str = "vgg19.pth") -> str:
    return f"http://127.0.0.1:{server.server_port}/{name}"


def digest(server: Server) -> str:
    return hashlib.sha256(server.data).hexdigest()[:8]


def test_weights_are_downloaded_once(cache, server):
    for _ in range(2):
        path = torchvision_weights(address(server), digest(server))
    assert server.requests == 1
    assert path == cache / "vgg19.pth" and path.read_bytes() == server.data
    assert list(cache.iterdir()) == [path]
    assert_same(load_encoder(path), encoder())


def test_no_path_means_torchvisions(cache, server, monkeypatch):
    torchvision_weights(address(server, URL.rpartition("/")[2]), digest(server))
    monkeypatch.setattr("urllib.request.urlopen", None)  # it is there: nothing is asked for
    assert_same(load_encoder(None), encoder())


@pytest.mark.parametrize("fault", ["other bytes", "cut off", "missing", "offline"])
def test_a_download_that_fails_leaves_nothing(cache, server, fault):
    sha256, name = digest(server), "vgg19.pth"
    if fault == "other bytes":
        server.data = server.data[:-1] + bytes([server.data[-1] ^ 1])
    elif fault == "cut off":
        server.sent = len(server.data) // 2
    elif fault == "missing":
        name = "missing.pth"
    url = "http://127.0.0.1:1/vgg19.pth" if fault == "offline" else address(server, name)
    with pytest.raises(UserError, match=r"put the file .* --encoder-weights") as error:
        torchvision_weights(url, sha256)
    assert url in error.value.message and str(cache / url.rpartition("/")[2]) in error.value.message
    assert "\n" not in error.value.message
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path, server, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ADACONV_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "file"))):
        torchvision_weights(address(server), digest(server))


def test_the_address_names_its_checksum():
    assert re.search(r"vgg19-([0-9a-f]{8})\.pth$", URL)[1] == module.SHA256
