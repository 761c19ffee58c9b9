"""Detectors are torch-fidelity's networks, of weights that are checked and never executed."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

from metrics import detectors
from metrics.detectors import (
    INCEPTION,
    VGG16,
    PublishedWeights,
    find_weights,
    given_weights,
    load_detector,
    published_weights,
)
from torch_utils.download import read_tensors
from torch_utils.errors import UserError


def images(count: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def test_published_addresses_name_their_checksums():
    assert INCEPTION.url == URL_INCEPTION_V3
    for detector in (INCEPTION, VGG16):
        assert re.search(r"-([0-9a-f]{8})\.pth$", detector.url)[1] == detector.sha256


@pytest.mark.slow
def test_features_are_torch_fidelitys_at_full_size(smooth_inception):
    layers = ["2048", "logits_unbiased"]
    ours = load_detector(INCEPTION, given_weights([smooth_inception])[INCEPTION], layers, "cpu")
    theirs = FeatureExtractorInceptionV3("inception", layers, feature_extractor_weights_path=smooth_inception)
    for a, b in zip(ours(images(3)), theirs(images(3)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert b.std(dim=0).mean() > 0.001  # the images differ by more


def test_vgg16_is_torch_fidelitys(small, vgg16):
    ours = load_detector(VGG16, given_weights([vgg16])[VGG16], ["fc2_relu"], "cpu")
    theirs = FeatureExtractorVGG16("vgg16", ["fc2_relu"], feature_extractor_weights_path=vgg16)
    (a,), (b,) = ours(images(5)), theirs(images(5))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_grey_images_are_three_times_the_same():
    grey = images(2)[:, :1]
    assert torch.equal(detectors.rgb(grey), grey.repeat(1, 3, 1, 1))


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_file_is_known_by_its_tensors(inception, vgg16, tmp_path):
    tensors = read_tensors(inception)
    safetensors.torch.save_file(tensors, tmp_path / "inception.safetensors")
    found = given_weights([vgg16, tmp_path / "inception.safetensors"])
    assert found.keys() == {VGG16, INCEPTION}
    assert all(torch.equal(tensor, found[INCEPTION].tensors[name]) for name, tensor in tensors.items())
    assert found[VGG16].sha256 == hashlib.sha256(vgg16.read_bytes()).hexdigest()


def test_files_are_read_once(small, inception, vgg16, monkeypatch):
    read = []
    monkeypatch.setattr(detectors, "_read", lambda path, _read=detectors._read: read.append(path) or _read(path))
    found = find_weights([INCEPTION, VGG16], [inception, vgg16])
    assert found.keys() == {INCEPTION, VGG16} and read == [inception, vgg16]
    assert find_weights([], [inception]) == {} and len(read) == 2


class Touch:
    """What touches a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_file_is_executed(tmp_path):
    torch.save({"Mixed_7c.branch_pool.conv.weight": Touch(tmp_path / "touched")}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth cannot be read as a detector's weights \(not a PyTorch file"):
        given_weights([tmp_path / "a.pth"])
    assert not (tmp_path / "touched").exists()


def test_other_files_are_refused(small, tmp_path, inception):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth holds the weights of none of the detectors"):
        given_weights([tmp_path / "other.pth"])
    with pytest.raises(UserError, match=r"absent\.pth cannot be read .*No such file.*--detector-weights"):
        given_weights([tmp_path / "absent.pth"])
    tensors = read_tensors(inception)
    for name, other in {"fc.weight": torch.zeros(10, 2048), "fc.bias": "text", "extra": torch.zeros(1)}.items():
        with pytest.raises(UserError, match=r"do not fit inception-v3") as error:
            load_detector(INCEPTION, PublishedWeights({**tensors, name: other}, ""), ["2048"], "cpu")
        assert "\n" not in error.value.message and len(error.value.message) < 400


def test_what_is_in_the_cache_is_checked(small, inception, monkeypatch):
    path = small / INCEPTION.url.rpartition("/")[2]
    small.mkdir()
    path.write_bytes(inception.read_bytes())
    with pytest.raises(UserError, match=r"is not what https.* was .*remove it"):
        published_weights(INCEPTION)
    own = dataclasses.replace(INCEPTION, sha256=hashlib.sha256(inception.read_bytes()).hexdigest()[:8])
    assert published_weights(own).tensors.keys() == read_tensors(inception).keys()


def test_offline_one_line_says_where_to_put_the_file(small):
    offline = dataclasses.replace(INCEPTION, url="http://127.0.0.1:1/inception-6726825d.pth")
    line = find_weights([offline], [])[offline]
    assert offline.url in line and str(small / "inception-6726825d.pth") in line and "--detector-weights" in line
    assert "\n" not in line


def test_without_torch_fidelity_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    assert "pip install" in find_weights([INCEPTION], [])[INCEPTION]
