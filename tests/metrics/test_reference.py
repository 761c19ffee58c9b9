"""Metrics without real images: of the fakes alone, and by statistics in a file, as pytorch-fid and ADM write them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from metrics.detectors import INCEPTION, Layer
from metrics.names import CLEAN, DEFAULT_DETECTOR
from metrics.reference import read_reference, write_reference
from models.snapshot import PRETRAINED
from tests.metrics.archives import write_images
from tests.metrics.test_encoders import write_encoder
from tests.metrics.test_main import write_snapshot
from torch_utils.errors import UserError

FD, DETECTOR = "fd40_full@tiny-imagenet", "tiny-imagenet/mean of relu4_1"
HERE = ["--gpus", 0, "--workers", 0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Folders of 44 and 40 images: noise of two kinds."""
    folder, generator = tmp_path_factory.mktemp("sets"), torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (84, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    images[44:] //= 2
    return write_images(folder / "real", images[:44]), write_images(folder / "fake", images[44:])


# --- metrics of the fakes alone ---------------------------------------------------------------------------------------


def test_metrics_of_the_fakes_alone_need_no_data(folders, small, command, inception):
    real, fake = folders
    options = ["--metrics", "is20", "--fakes", fake, "--detector-weights", inception, "--json", *HERE]
    code, out, err = command(*options)
    assert code == 0, err
    alone = json.loads(out)
    assert alone["images"] == {"is20": {"real": 0, "fake": 20}} and "data" not in alone["settings"]
    beside = json.loads(command(*options, "--data", real)[1])
    assert {key: alone[key] for key in ("is20_mean", "is20_std")} == {
        key: beside[key] for key in ("is20_mean", "is20_std")
    }
    assert "real image" not in err


def test_path_lengths_need_no_data(small, command, vgg16, tmp_path, faces16):
    write_snapshot(tmp_path / "plain.safetensors")
    options = ["--metrics", "ppl2_wend10", "--detector-weights", vgg16, "--json", *HERE]
    code, out, err = command(*options, "--network", tmp_path / "plain.safetensors")
    assert code == 0, err
    beside = json.loads(command(*options, "--network", tmp_path / "plain.safetensors", "--data", faces16)[1])
    assert json.loads(out)["ppl2_wend10"] == beside["ppl2_wend10"]


def test_what_needs_real_images_says_so(folders, small, command, vgg16, inception, tmp_path):
    _, fake = folders
    write_snapshot(tmp_path / "classes.safetensors", c_dim=3)
    write_snapshot(tmp_path / "tiny.safetensors", resolution=12, cbase=64)
    weights = ["--detector-weights", vgg16, "--detector-weights", inception]
    cases = [
        (["--metrics", "is20,swd20", "--fakes", fake], "--data is missing: name a folder or ZIP of real images"),
        (
            ["--metrics", "ppl2_wend10", "--network", tmp_path / "classes.safetensors"],
            "the model has 3 classes, and metrics",
        ),
        (["--metrics", "ppl2_wend10", "--network", tmp_path / "tiny.safetensors"], "these have 12x12; leave it out"),
        (["--metrics", "is20", "--fakes", fake, "--mirror"], "--mirror flips the real images"),
        (["--metrics", "is20", "--fakes", fake, "--per-class"], "--per-class takes the classes from the real images"),
    ]
    for arguments, words in cases:
        code, _, err = command(*arguments, *weights, *HERE)
        assert code == 2 and words in err.splitlines()[-1], err


# --- statistics in a file ---------------------------------------------------------------------------------------------


def test_a_file_takes_the_place_of_the_images(folders, command, tmp_path, own_cache):
    real, fake = folders
    code, out, err = command("--metrics", FD, "--data", real, "--save-stats", tmp_path / "new" / "stats.npz", *HERE)
    assert code == 0 and out == "", err
    assert err.splitlines()[-1] == f"{tmp_path / 'new' / 'stats.npz'} holds the statistics of 44 images for {FD}"
    expected = json.loads(command("--metrics", FD, "--data", real, "--fakes", fake, "--json", *HERE)[1])
    code, out, err = command(
        "--metrics", FD, "--data", tmp_path / "new" / "stats.npz", "--fakes", fake, "--json", *HERE
    )
    assert code == 0 and "resized by the program" not in err
    found = json.loads(out)
    assert found[FD] == pytest.approx(expected[FD], rel=1e-12) and found["images"] == expected["images"]
    assert found["settings"]["data"] == str(tmp_path / "new" / "stats.npz")
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "stats.npz"]


def test_a_detector_is_known_by_its_weights(folders, command, tmp_path, own_cache, monkeypatch):
    """However its path is written, and however long it is; another one is refused, and so is another layer."""
    real, fake = folders
    long = tmp_path / "e" / ("d" * 100) / "encoder.safetensors"
    long.parent.mkdir(parents=True)
    shutil.copy(PRETRAINED / "tiny-imagenet.safetensors", long)
    monkeypatch.chdir(tmp_path)
    typed = str(long.relative_to(tmp_path))
    stats, names = (
        tmp_path / "stats.npz",
        [f"fd40_full@{name}" for name in (typed, f"./{typed}", long, DEFAULT_DETECTOR)],
    )
    values = []
    for saved in (names[0], names[3]):
        code, _, err = command("--metrics", saved, "--data", real, "--save-stats", stats, *HERE)
        assert code == 0, err
        for name in names:
            code, out, err = command("--metrics", name, "--data", stats, "--fakes", fake, "--json", *HERE)
            assert code == 0, err
            values.append(json.loads(out)[name])
    assert values == [values[0]] * 8
    write_encoder(long, resolution=32)
    code, _, err = command("--metrics", names[0], "--data", stats, "--fakes", fake, *HERE)
    assert code == 2 and f"compares features of {typed}/" in err and f"is of {DETECTOR}; name a file" in err


def test_layers_of_one_detector_are_told_apart(tmp_path, moments):
    layers = [Layer(INCEPTION, name) for name in ("2048", CLEAN, "logits_unbiased")]
    for layer in layers:
        write_reference(tmp_path / "stats.npz", moments, layer, "ab" * 32, 10)
        reference = read_reference(tmp_path / "stats.npz")
        for other in layers:
            if other == layer:
                reference.check("fid5k", other, 256, "ab" * 32)
            else:
                with pytest.raises(UserError, match=f"compares features of {other}, .* is of {layer}; name"):
                    reference.check("fid5k", other, 256, "ab" * 32)


def test_what_a_file_says_of_itself_tells_a_terminal_nothing(tmp_path, moments):
    write_reference(tmp_path / "stats.npz", moments, Layer(INCEPTION, "2048"), "ab" * 32, 10)
    arrays, hostile = np.load(tmp_path / "stats.npz"), "\x1b[31m\u202e\r" + "x" * 10_000
    for what in ("layer", "weights"):
        np.savez(tmp_path / "hostile.npz", **{**arrays, what: np.array(hostile)})
        with pytest.raises(UserError) as error:
            read_reference(tmp_path / "hostile.npz").check("fid5k", Layer(INCEPTION, "2048"), 256, "ab" * 32)
        assert error.value.message.isprintable() and len(error.value.message) < 500


def pytorch_fids(path: Path, features: np.ndarray, **more) -> Path:
    """A file as pytorch-fid's save_fid_stats writes it, and the evaluations of ADM with some more arrays."""
    np.savez_compressed(path, mu=np.mean(features, axis=0), sigma=np.cov(features, rowvar=False), **more)
    return path


def test_files_of_pytorch_fid_and_adm(folders, command, tmp_path, own_cache):
    """Of a known mean and covariance, against the plain formula with eigenvalues of the product of both covariances."""
    _, fake = folders
    command("--metrics", FD, "--data", fake, "--save-stats", tmp_path / "own.npz", *HERE)
    own = np.load(tmp_path / "own.npz")
    features = np.random.default_rng(0).normal(own["mu"], 0.1, (500, 256))
    plain = pytorch_fids(tmp_path / "plain.npz", features)
    adm = pytorch_fids(
        tmp_path / "adm.npz", features.astype(np.float32), mu_s=np.zeros(5), sigma_s=np.eye(5),
        arr_0=np.random.default_rng(1).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8),
    )  # fmt: skip
    mean, covariance = features.mean(axis=0), np.cov(features, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(covariance @ own["sigma"]).astype(complex)).real.sum()
    difference = ((mean - own["mu"]) ** 2).sum()
    expected = difference + np.trace(covariance + own["sigma"]) - 2 * root
    for path in (plain, adm):
        code, out, err = command("--metrics", FD, "--data", path, "--fakes", fake, "--json", *HERE)
        assert code == 0, err
        warnings = [line for line in err.splitlines() if "resized by the program" in line]
        assert len(warnings) == 1 and warnings[0].startswith(f"warning: the images of {path} were resized")
        assert json.loads(out)[FD] == pytest.approx(expected, rel=1e-4)
        assert json.loads(out)["images"] == {FD: {"fake": 40}}


def test_a_generator_by_a_file(folders, command, tmp_path, own_cache):
    write_snapshot(tmp_path / "plain.safetensors", resolution=32)
    command("--metrics", FD, "--data", folders[0], "--save-stats", tmp_path / "stats.npz", *HERE)
    options = ["--metrics", FD, "--network", tmp_path / "plain.safetensors", "--json", *HERE]
    values = [json.loads(command(*options, "--data", data)[1])[FD] for data in (folders[0], tmp_path / "stats.npz")]
    assert values[0] == pytest.approx(values[1], rel=1e-9)


@pytest.fixture
def moments() -> dict[str, torch.Tensor]:
    return {"mean": torch.rand(256).double(), "covariance": torch.eye(256).double()}


def test_wrong_uses_are_one_line(folders, command, tmp_path, moments):
    real, fake = folders
    layer = Layer(INCEPTION, "2048")
    good, other = tmp_path / "good.npz", tmp_path / "other.npz"
    np.savez(good, mu=moments["mean"], sigma=moments["covariance"])
    np.savez(other, mu=moments["mean"][:64], sigma=moments["covariance"][:64, :64])
    write_reference(tmp_path / "fid.npz", moments, layer, "ab" * 32, 10)
    write_reference(tmp_path / "weights.npz", moments, Layer(INCEPTION, "x"), "ab" * 32, 10)
    stats = np.load(tmp_path / "weights.npz")
    np.savez(tmp_path / "weights.npz", **{**stats, "layer": np.array(DETECTOR)})
    fakes = ["--fakes", fake, *HERE]
    save = ["--save-stats", tmp_path / "out.npz", "--data"]
    cases = [
        (
            ["--metrics", f"{FD},swd20", "--data", good, *fakes],
            f"swd20: the real images themselves are needed, and {good}",
        ),
        (["--metrics", FD, "--data", other, *fakes], f"compares 256 features of {DETECTOR}, {other} is of 64;"),
        (["--metrics", FD, "--data", tmp_path / "fid.npz", *fakes], f"{tmp_path / 'fid.npz'} is of {layer};"),
        (["--metrics", FD, "--data", tmp_path / "weights.npz", *fakes], "(SHA-256 abababab…, not"),
        (["--metrics", FD, "--data", tmp_path / "absent.npz", *fakes], "absent.npz; name a file of statistics"),
        (["--metrics", FD, "--data", good, "--mirror", *fakes], "--mirror flips the real images"),
        (["--metrics", FD, "--data", good, "--per-class", *fakes], "--per-class takes the classes from"),
        (
            ["--metrics", FD, *save, real, *fakes],
            "--save-stats writes the statistics of --data alone; leave out --fakes",
        ),
        (["--metrics", "swd20", *save, real], "for one Fréchet distance, such as fid50k_full"),
        (["--metrics", f"{FD},fd20@tiny-imagenet", *save, real], "for one Fréchet distance, such as fid50k_full"),
        (["--metrics", FD, *save, good], "holds statistics already"),
        (["--metrics", FD, "--save-stats", tmp_path / "out.npy", "--data", real], "name a file that ends with .npz"),
        (["report", "--data", good, "--network", tmp_path, "--metrics", FD], "which the page shows"),
    ]
    for arguments, words in cases:
        code, out, err = command(*arguments)
        assert code == 2 and out == "" and len(err.splitlines()) == 1 and words in err, err
    assert not (tmp_path / "out.npz").exists()


def test_damaged_and_harmful_files(tmp_path, moments):
    mean, covariance = moments["mean"].numpy(), moments["covariance"].numpy()
    askew = covariance.copy()
    askew[0, 1] = 1
    cases = {
        "no_sigma": ({"mu": mean}, "it holds no sigma"),
        "pickled": ({"mu": np.array([{}], dtype=object), "sigma": covariance}, "holds something other than numbers"),
        "flat": ({"mu": mean, "sigma": covariance.ravel()}, r"sigma of shape \[65536\]"),
        "unequal": ({"mu": mean, "sigma": covariance[:9, :9]}, r"mu has 256 numbers, and sigma \[9, 9\]"),
        "askew": ({"mu": mean, "sigma": askew}, "sigma is not symmetric"),
        "nan": ({"mu": mean * np.nan, "sigma": covariance}, "mu does not hold finite numbers"),
        "whole": ({"mu": mean.astype(int), "sigma": covariance}, "mu does not hold finite numbers"),
        "huge": ({"mu": mean, "sigma": np.zeros((4097, 4096), dtype=np.float64)}, "too many of them"),
        "empty": ({"mu": mean[:0], "sigma": covariance[:0, :0]}, "mu does not hold finite numbers"),
    }
    for name, (arrays, words) in cases.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(UserError, match=f"{name}.npz cannot be read as statistics of images.*{words}"):
            read_reference(tmp_path / f"{name}.npz")
    np.savez(tmp_path / "good.npz", mu=mean, sigma=covariance)
    assert torch.equal(read_reference(tmp_path / "good.npz").moments["mean"], moments["mean"])
    data = (tmp_path / "good.npz").read_bytes()
    for cut in (0, 10, len(data) // 2, len(data) - 5):
        (tmp_path / "cut.npz").write_bytes(data[:cut])
        with pytest.raises(UserError, match=r"cut\.npz cannot be read as statistics"):
            read_reference(tmp_path / "cut.npz")
