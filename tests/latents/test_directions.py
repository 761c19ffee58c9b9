"""latents.directions: against known covariances and brute force, and what a file of them may hold."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from latents.directions import (
    check_numbers,
    factorized_directions,
    find_directions,
    generate_edits,
    load_directions,
    principal_directions,
    sample_w,
    save_directions,
)
from media.images import to_uint8
from models.sampling import latents
from tests.latents.small import VARIANTS, codes, generator
from torch_utils.errors import UserError


def test_principal_directions_of_a_known_distribution():
    torch.manual_seed(0)
    axes = torch.linalg.qr(torch.randn(4, 4))[0]
    sigma = torch.tensor([4.0, 2.0, 1.0, 0.5])
    w = torch.randn(50_000, 4) * sigma @ axes + 7
    found = principal_directions(w, 3, [0, 1])
    assert found.vectors.shape == (3, 4)
    torch.testing.assert_close((found.vectors * axes[:3]).sum(dim=1).abs(), torch.ones(3), rtol=0, atol=1e-2)
    torch.testing.assert_close(found.sigma, sigma[:3], rtol=0.02, atol=0)
    torch.testing.assert_close(found.share, sigma[:3].square() / sigma.square().sum(), rtol=0.05, atol=0)


@pytest.mark.parametrize(("modulation", "norm"), VARIANTS)
def test_factorized_directions_move_the_kernels_most(modulation, norm):
    """A step along the first moves the kernels and ToRGB's scales by √λ, more than any other step of that length."""
    G = generator(modulation, norm)
    w = torch.randn(100, 8).double()
    found = factorized_directions(G, w, 8, [0, 3])
    torch.testing.assert_close(found.vectors @ found.vectors.t(), torch.eye(8), rtol=0, atol=1e-5)
    assert float(found.share.sum()) == pytest.approx(1) and (found.share.diff() <= 0).all()

    def moved(step):
        total = 0.0
        for i in (0, 3):
            predictor = G.synthesis.layers()[i].adaconv.predictor
            a, b = predictor(w[:1]), predictor(w[:1] + step)
            pairs = [(a.depthwise, b.depthwise), (a.pointwise, b.pointwise)] + [(a.bias, b.bias)] * (a.bias is not None)
            total += sum(float((y - x).square().sum()) for x, y in pairs)
        torgb = G.synthesis.blocks[1].torgb  # its w is that of layer 3
        return total + float((torgb.scale(w[:1] + step) - torgb.scale(w[:1])).square().sum())

    powers = torch.tensor([moved(v.double()) for v in found.vectors])
    torch.testing.assert_close(powers / powers.sum(), found.share, rtol=1e-3, atol=1e-6)
    others = torch.nn.functional.normalize(torch.randn(50, 8), dim=1).double()
    assert max(moved(other) for other in others) <= powers[0] * 1.0001


def test_directions_of_a_part_move_that_part():
    G = generator()
    w = torch.randn(100, 8).double()
    parts = {part: factorized_directions(G, w, 2, [1], part) for part in ("all", "structure", "channels")}
    assert not torch.allclose(parts["structure"].vectors, parts["channels"].vectors, atol=0.1)
    predictor = G.synthesis.layers()[1].adaconv.predictor
    for part, field in (("structure", "depthwise"), ("channels", "pointwise")):

        def change(step, field=field):
            return (getattr(predictor(step[None]), field) - getattr(predictor(0 * step[None]), field)).norm()

        others = torch.nn.functional.normalize(torch.randn(50, 8), dim=1).double()
        assert max(change(other) for other in others) <= change(parts[part].vectors[0].double()) * 1.0001


def test_directions_of_the_last_torgb_are_those_of_its_scales():
    G = generator()
    found = factorized_directions(G, torch.randn(100, 8).double(), 8, [G.config.num_ws - 1])
    scale = G.synthesis.blocks[-1].torgb.scale
    changes = scale(found.vectors.double()) - scale(torch.zeros(1, 8).double())
    values = torch.linalg.svdvals(scale(torch.eye(8).double()) - scale(torch.zeros(1, 8).double()))
    torch.testing.assert_close(changes.norm(dim=1), values, rtol=1e-4, atol=1e-5)


def test_sampled_w_is_that_of_the_seeds():
    G = generator(c_dim=2).float()
    w = sample_w(G, 5, seed=3, batch=2)
    classes = torch.eye(2)[[1, 0, 1, 0, 1]]
    torch.testing.assert_close(w, G.mapping(latents([3, 4, 5, 6, 7], 8), classes))


def test_edits_add_to_w():
    G = generator()
    ws, w = codes(G, 2), torch.randn(100, 8).double()
    found = replace(find_directions(G, w, ["pca"], 3, [0, 1])["directions-pca"], layers=(1, 2))
    images = torch.cat(list(generate_edits(G, ws, found, [2, 0], [-2, 0, 3], batch=5)))
    assert images.shape == (12, 3, 16, 16)
    moved = ws.clone()
    moved[:, 1:3] += 3 * found.sigma[0] * found.vectors[0]
    for i in range(2):
        for found_one, expected in ((images[6 * i + 1], ws), (images[6 * i + 4], ws), (images[6 * i + 5], moved)):
            assert (found_one.int() - to_uint8(G.synthesis(expected[i : i + 1], "const"))[0].int()).abs().max() <= 1
    assert (images[5].int() - images[4].int()).abs().max() > 3


def test_a_file_holds_what_was_written(tmp_path):
    G = generator()
    found = factorized_directions(G, torch.randn(100, 8).double(), 3, [0, 4], "structure")
    save_directions(tmp_path / "a.npz", found)
    again = load_directions(tmp_path / "a.npz", G)
    assert (again.method, again.layers, again.part) == ("sefa", (0, 4), "structure")
    for name in ("vectors", "sigma", "share"):
        assert torch.equal(getattr(again, name), getattr(found, name))
    assert check_numbers(again, None) == [0, 1, 2] and check_numbers(again, [2]) == [2]
    with pytest.raises(UserError, match="--direction 3: there are only the directions 0 to 2"):
        check_numbers(again, [3])


def test_files_that_hold_none_are_refused_in_one_line(tmp_path):
    G = generator()
    good = {
        "method": "pca", "vectors": np.eye(2, 8), "sigma": np.ones(2), "share": np.ones(2), "layers": [0], "part": "all"
    }  # fmt: skip

    def refused(words, **changes):
        np.savez(tmp_path / "x.npz", **{**good, **changes})
        with pytest.raises(UserError) as error:
            load_directions(tmp_path / "x.npz", G)
        assert words in error.value.message and str(tmp_path / "x.npz") in error.value.message

    np.savez(tmp_path / "x.npz", **good)
    assert load_directions(tmp_path / "x.npz", G).layers == (0,)
    refused("of another model", vectors=np.eye(2, 9))
    refused("of another model", layers=[6])
    refused("holds no directions", vectors=np.array([None], dtype=object))
    refused("holds no directions", sigma=np.ones(3))
    refused("holds no directions", sigma=np.array([1, np.nan]))
    refused("holds no directions", part="colour")
    refused("holds no directions", layers=[-1])
    for content in (b"", b"no archive", b"PK\x03\x04 cut off"):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(UserError, match="holds no directions"):
            load_directions(tmp_path / "x.npz", G)
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (1 << 50,)})
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # a header that asks for any memory; what is damaged
        with zipfile.ZipFile(tmp_path / "x.npz", "w", compression) as archive:
            for name in good:
                archive.writestr(f"{name}.npy", buffer.getvalue() + bytes(10_000))
        data = bytearray((tmp_path / "x.npz").read_bytes())
        data[60:70] = b"\xff" * 10
        for content in (data, (tmp_path / "x.npz").read_bytes()):
            (tmp_path / "x.npz").write_bytes(content)
            with pytest.raises(UserError, match="holds no directions"):
                load_directions(tmp_path / "x.npz", G)
    with pytest.raises(UserError, match="there is no"):
        load_directions(tmp_path / "none.npz", G)
