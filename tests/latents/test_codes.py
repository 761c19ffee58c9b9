import hashlib
import io
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from latents.codes import Codes, fingerprint, generate_codes, load_codes, save_codes
from media.images import to_uint8
from networks.generator import Generator, GeneratorConfig
from torch_utils.errors import UserError


@pytest.fixture(scope="module")
def G() -> Generator:
    torch.manual_seed(0)
    config = GeneratorConfig(16, cbase=128, cmax=16, map_depth=2, z_dim=16, w_dim=16, style_channels=8)
    G = Generator(config).eval().requires_grad_(False)
    for layer in G.synthesis.layers():
        layer.noise_strength.fill_(0.3)
    G.w_avg.normal_()
    return G


@pytest.fixture
def codes(G) -> Codes:
    noise = [torch.randn(3, 1, *layer.size) for layer in G.synthesis.layers()]
    return Codes(torch.randn(3, G.config.num_ws, 16), noise, {"network": "runs/x", "psnr": [30.0, 31, 32]})


def test_what_is_read_is_what_was_written(G, codes, tmp_path):
    for given in (codes, Codes(codes.ws)):
        save_codes(tmp_path / "w.npz", given)
        read = load_codes(tmp_path / "w.npz", G)
        assert torch.equal(read.ws, given.ws) and read.about == given.about
        assert (read.noise is None) == (given.noise is None)
        assert all(torch.equal(a, b) for a, b in zip(read.noise or [], given.noise or [], strict=True))


def test_images_of_codes(G, codes):
    images = torch.cat(list(generate_codes(G, codes, batch=2)))
    expected = to_uint8(G.synthesis(codes.ws, codes.noise)).int()
    assert (images.int() - expected).abs().max() <= 1
    bare = torch.cat(list(generate_codes(G, codes, batch=2, noise="none")))
    assert (bare.int() - to_uint8(G.synthesis(codes.ws, "none")).int()).abs().max() <= 1
    assert (bare.int() - expected).abs().max() > 8
    mean = torch.cat(list(generate_codes(G, codes, batch=3, psi=0.0, noise="none")))
    assert torch.equal(mean[0], mean[2])


def test_codes_of_other_programs(G, tmp_path):
    w = np.random.default_rng(0).standard_normal((2, 16))
    np.savez_compressed(tmp_path / "w.npz", w=w)
    read = load_codes(tmp_path / "w.npz", G)
    assert read.ws.shape == (2, G.config.num_ws, 16) and read.noise is None
    torch.testing.assert_close(read.ws[:, 1], torch.from_numpy(w).float())


def refused(path, G) -> str:
    with pytest.raises(UserError) as error:
        load_codes(path, G)
    return error.value.message


def test_files_that_are_no_codes_are_refused(G, codes, tmp_path):
    path = tmp_path / "w.npz"
    assert "there is no" in refused(path, G)
    path.write_bytes(b"PK nothing")
    assert "cannot be read" in refused(path, G)
    save_codes(path, codes)
    path.write_bytes(path.read_bytes()[:-500])
    assert "cannot be read" in refused(path, G)

    shape = (1, G.config.num_ws, 16)
    for arrays in (
        {"x": np.zeros(shape)},
        {"w": np.zeros(shape, int)},
        {"w": np.full(shape, np.nan)},
        {"w": np.full(shape, 1e300)},  # beyond float32
        {"w": np.array([OrderedDict()], dtype=object)},  # pickled
        {"w": np.zeros(shape), "about": np.array("[]")},
        {"w": np.zeros(shape), "about": np.array("{")},
        {"w": np.zeros(shape), "noise0": np.zeros((1, 1, 4, 4))},  # and no other
    ):
        np.savez(path, **arrays)
        assert "cannot be read" in refused(path, G)
    for other in (np.zeros((1, 3, 16)), np.zeros((1, 15)), np.zeros((0, 16)), np.zeros(16)):
        np.savez(path, w=other)
        assert "--network" in refused(path, G)
    save_codes(path, Codes(codes.ws[:2], codes.noise))
    assert "noise of shape" in refused(path, G)


def test_a_header_that_asks_for_any_memory_is_refused(G, tmp_path):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (1 << 50,)})
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("w.npy", buffer.getvalue())
    assert "cannot be read" in refused(tmp_path / "w.npz", G)


def test_codes_of_very_many_targets(G, tmp_path):
    """Their names are in the file."""
    names = [f"a folder with a long name/photograph number {i}.png" for i in range(10_000)]
    save_codes(tmp_path / "w.npz", Codes(torch.zeros(1, G.config.num_ws, 16), None, {"targets": names}))
    assert load_codes(tmp_path / "w.npz", G).about["targets"] == names


def test_a_model_that_is_replaced_has_another_fingerprint(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    first = fingerprint(tmp_path / "a")
    assert first == fingerprint(tmp_path / "a") == hashlib.sha256(b"one").hexdigest()[:16]
    (tmp_path / "a").write_bytes(b"another")
    assert fingerprint(tmp_path / "a") == hashlib.sha256(b"another").hexdigest()[:16]


@pytest.mark.parametrize(
    "content, said", [(b"# text", "it is no .npz file"), (b"", "it is no .npz file"), (None, "it holds no w;")]
)
def test_a_file_that_is_none_of_codes_is_called_so(G, tmp_path, content, said):
    if content is None:
        np.savez(tmp_path / "w.npz", other=np.zeros(3))
    else:
        (tmp_path / "w.npz").write_bytes(content)
    with pytest.raises(UserError) as refused:
        load_codes(tmp_path / "w.npz", G)
    assert said.rstrip(";") in refused.value.message and "'" not in refused.value.message
