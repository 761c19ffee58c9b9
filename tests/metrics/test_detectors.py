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
import torch.nn.functional as F
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

from metrics import detectors
from metrics.detectors import INCEPTION, VGG16, Weights, given_weights, load_detector, load_lpips, published_weights
from metrics.evaluator import find_weights
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


def plain_lpips(a: torch.Tensor, b: torch.Tensor, vgg: torch.nn.Module) -> torch.Tensor:
    """Zhang et al., equation 1, with the weights that are shipped; images in −1..1."""
    linear = list(read_tensors(detectors.LPIPS_WEIGHTS).values())
    mean, std = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    a, b = ((x - mean.view(3, 1, 1)) / std.view(3, 1, 1) for x in (a, b))
    total, taps = 0.0, [3, 8, 15, 22, 29]  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
    for i, layer in enumerate(vgg.features):
        a, b = layer(a), layer(b)
        if i in taps:
            difference = F.normalize(a, dim=1, eps=1e-10) - F.normalize(b, dim=1, eps=1e-10)
            weighted = difference.square() * linear[taps.index(i)].view(-1, 1, 1)
            total = total + weighted.sum(dim=1).mean(dim=(1, 2))
    return total


@torch.no_grad()
def test_lpips_is_the_papers(small, vgg16):
    from torchvision.models import vgg16 as model  # the small one

    vgg = model()
    vgg.load_state_dict(torch.load(vgg16, weights_only=True))
    distance = load_lpips(given_weights([vgg16])[VGG16], "cpu")
    a, b = (images(4, seed=seed).float() / 127.5 - 1 for seed in (0, 1))
    b[1], b[2] = a[1], a[2] + 0.01
    found = distance(a, b)
    torch.testing.assert_close(found, plain_lpips(a, b, vgg), rtol=1e-4, atol=1e-7)
    assert found[1] == 0 and 0 < found[2] < found[0]
    large = F.interpolate(a, scale_factor=16, mode="nearest")  # of 512²: judged at 256²
    expected = distance(*(F.interpolate(x, scale_factor=8, mode="nearest") for x in (a[:1], b[:1])))
    found = distance(large[:1], F.interpolate(b, scale_factor=16, mode="nearest")[:1])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    grey = a[:, :1]
    torch.testing.assert_close(
        distance(grey, grey.flip(2)), distance(*(x.repeat(1, 3, 1, 1) for x in (grey, grey.flip(2))))
    )


def test_shipped_weights_are_lpips_0_1():
    tensors = read_tensors(detectors.LPIPS_WEIGHTS)
    assert [tensor.numel() for tensor in tensors.values()] == [64, 128, 256, 512, 512]
    assert all(tensor.min() >= 0 for tensor in tensors.values())
    sums = [6.92599, 8.85833, 17.51501, 51.52132, 47.03485]  # of lpips/weights/v0.1/vgg.pth
    assert [float(tensor.sum()) for tensor in tensors.values()] == pytest.approx(sums, rel=1e-5)


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
            load_detector(INCEPTION, Weights({**tensors, name: other}, ""), ["2048"], "cpu")
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
