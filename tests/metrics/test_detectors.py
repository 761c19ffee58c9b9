"""Detectors are torch-fidelity's networks, of weights that are checked and never executed."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch_fidelity.feature_extractor_clip import MODEL_URLS, FeatureExtractorCLIP
from torch_fidelity.feature_extractor_dinov2 import MODEL_METADATA, FeatureExtractorDinoV2
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

from metrics import detectors
from metrics.detectors import (
    INCEPTION,
    PUBLISHED,
    VGG16,
    PublishedWeights,
    find_weights,
    given_weights,
    load_detector,
    published_weights,
)
from metrics.names import CLEAN
from models.inert_torchscript import read_torchscript
from torch_utils.download import read_tensors
from torch_utils.errors import UserError


def images(count: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def test_published_addresses_name_their_checksums():
    assert INCEPTION.url == URL_INCEPTION_V3
    for name, detector in PUBLISHED.items():
        if detector.family == "clip":
            assert (detector.url, f"clip-{detector.file_name.lower()}") == (MODEL_URLS[name], f"{name}.pt")
            assert detector.sha256 == detector.url.split("/")[-2]
        elif detector.family == "dinov2":
            assert name in MODEL_METADATA and f"{MODEL_METADATA[name]}_pretrain.pth" == detector.file_name
            assert len(detector.sha256) == 64
        else:
            assert re.search(r"-([0-9a-f]{8})\.pth$", detector.url)[1] == detector.sha256
    assert len({detector.sha256 for detector in PUBLISHED.values()}) == len(PUBLISHED)


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


def test_clip_is_torch_fidelitys(clip):
    """Of OpenAI's layout of a TorchScript archive, which torch-fidelity executes."""
    detector = PUBLISHED["clip-vit-b-32"]
    ours = load_detector(detector, given_weights([clip])[detector], ["clip"], "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = FeatureExtractorCLIP(detector.name, ["clip"], feature_extractor_weights_path=clip)
    (a,), (b,) = ours(images(5)), theirs(images(5))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert ours.dimensions == a.shape[1] == 64 and b.std(dim=0).mean() > 0.01


def test_dinov2_is_torch_fidelitys(dinov2, monkeypatch):
    """Whose program for the network comes from the internet: here the plain network of the next test."""
    detector = PUBLISHED["dinov2-vit-s-14"]
    weights = given_weights([dinov2])[detector]
    ours = load_detector(detector, weights, ["dinov2"], "cpu")
    monkeypatch.setattr(torch.hub, "load", lambda *args: PlainDINOv2(weights.tensors))
    theirs = FeatureExtractorDinoV2(detector.name, ["dinov2"])
    (a,), (b,) = ours(images(5)), theirs(images(5))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert ours.dimensions == a.shape[1] == 384 and b.std(dim=0).mean() > 0.1


class PlainDINOv2(torch.nn.Module):
    """The same network of torchvision's layers: LayerScale is a factor of the rows of the weights before it."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        super().__init__()
        self.tensors, width = tensors, tensors["cls_token"].shape[2]
        self.depth = len([name for name in tensors if name.endswith("ls1.gamma")])
        blocks = [
            torchvision.models.vision_transformer.EncoderBlock(width // 64, width, 4 * width, 0, 0, self.norm)
            for _ in range(self.depth)
        ]
        self.blocks = torch.nn.Sequential(*blocks)
        names = {
            "ln_1": "norm1",
            "ln_2": "norm2",
            "self_attention.in_proj_": "attn.qkv.",
            "self_attention.out_proj": "attn.proj",
            "mlp.0": "mlp.fc1",
            "mlp.3": "mlp.fc2",
        }
        state = {}
        for name in self.blocks.state_dict():
            index, rest = name.split(".", 1)
            start = next(start for start in names if rest.startswith(start))
            value = tensors[f"blocks.{index}.{rest.replace(start, names[start])}"]
            scale = {"self_attention.out_proj": "ls1", "mlp.3": "ls2"}.get(start)
            gamma = tensors[f"blocks.{index}.{scale}.gamma"] if scale else torch.ones(len(value))
            state[name] = value * gamma.view(-1, *[1] * (value.ndim - 1))
        self.blocks.load_state_dict(state)
        self.eval()

    @staticmethod
    def norm(width: int) -> torch.nn.LayerNorm:
        return torch.nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t = self.tensors
        x = F.conv2d(x, t["patch_embed.proj.weight"], t["patch_embed.proj.bias"], stride=14).flatten(2).transpose(1, 2)
        token, patches = t["pos_embed"][:, :1], t["pos_embed"][:, 1:]
        # 16 patches of a grid of 37, a little further apart than 37 / 16: PyTorch scales the coordinates by 37 / 16.1
        scale, side = 37 / 16.1, 16
        where = ((torch.arange(side) + 0.5) * scale - 0.5).double()
        patches = cubic(cubic(patches.double().view(37, 37, -1), where).transpose(0, 1), where).transpose(0, 1)
        x = torch.cat([t["cls_token"].expand(len(x), -1, -1) + token, x + patches.reshape(1, side**2, -1).float()], 1)
        return self.norm_last(self.blocks(x)[:, 0])

    def norm_last(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[1:], self.tensors["norm.weight"], self.tensors["norm.bias"], 1e-6)


def cubic(values: torch.Tensor, where: torch.Tensor, a: float = -0.75) -> torch.Tensor:
    """Values [n, …] at positions [m] by Keys' cubic convolution, borders repeated: [m, …]."""
    found = 0
    for offset in (-1, 0, 1, 2):
        at = where.floor() + offset
        d = (where - at).abs()
        near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        weight = torch.where(d <= 1, near, far).view(-1, *[1] * (values.ndim - 1))
        found = found + weight * values[at.long().clamp(0, len(values) - 1)]
    return found


def test_positions_of_the_size_it_was_trained_with_stay(dinov2):
    detector = PUBLISHED["dinov2-vit-s-14"]
    network = load_detector(detector, given_weights([dinov2])[detector], ["dinov2"], "cpu").model
    assert network.position_embeddings(37, 37) is network.pos_embed
    assert network.position_embeddings(16, 20).shape == (1, 1 + 16 * 20, 384)


@pytest.mark.parametrize("size", [32, 75, 130])
def test_clean_resizing_is_pils(size):
    """As clean-fid does it: each channel in floating point, smaller and larger images."""
    from metrics.extractors import resize_clean

    def resize(channel: torch.Tensor) -> torch.Tensor:
        image = Image.fromarray(channel.float().numpy()).resize((75, 75), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image)).clip(0, 255)

    expected = torch.stack([torch.stack([resize(channel) for channel in image]) for image in images(3, size)])
    torch.testing.assert_close(resize_clean(images(3, size), 75), expected, rtol=0, atol=0.01)


def test_clean_features_are_inceptions(small, inception):
    """Where there is nothing to resize, both layers are one; elsewhere they differ, and each is as if alone."""
    both = load_detector(INCEPTION, given_weights([inception])[INCEPTION], ["logits_unbiased", CLEAN, "2048"], "cpu")
    logits, clean, plain = both(images(3, 75))
    torch.testing.assert_close(clean, plain, rtol=1e-5, atol=1e-5)
    assert logits.shape == (3, 1008)
    small_ones = images(3, 24)
    alone = load_detector(INCEPTION, given_weights([inception])[INCEPTION], [CLEAN], "cpu")(small_ones)
    assert len(alone) == 1 and torch.equal(alone[0], both(small_ones)[1])
    assert (both(small_ones)[1] - both(small_ones)[2]).abs().mean() > 1e-3


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


def test_transformers_are_known_by_their_size(dinov2, clip, tmp_path):
    safetensors.torch.save_file(read_torchscript(clip), tmp_path / "clip.safetensors")
    found = given_weights([dinov2, tmp_path / "clip.safetensors"])
    assert found.keys() == {PUBLISHED["dinov2-vit-s-14"], PUBLISHED["clip-vit-b-32"]}
    tensors = read_tensors(dinov2)
    torch.save({**tensors, "cls_token": torch.zeros(1, 1, 100)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth holds the weights of none .*dinov2_vitl14_pretrain\.pth"):
        given_weights([tmp_path / "other.pth"])


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


@pytest.mark.parametrize("name", ["dinov2-vit-s-14", "clip-vit-b-32"])
def test_transformers_that_do_not_fit_are_refused(name, dinov2, clip):
    detector = PUBLISHED[name]
    tensors = given_weights([dinov2, clip])[detector].tensors
    layer = next(key for key in tensors if key.endswith(("attn.proj.weight", "mlp.c_fc.weight")))
    for change in ({layer: torch.zeros(3, 3)}, {"visual.extra": torch.zeros(1), "blocks.extra": torch.zeros(1)}):
        with pytest.raises(UserError, match=f"do not fit {name}") as error:
            load_detector(detector, PublishedWeights({**tensors, **change}, ""), [detector.layer], "cpu")
        assert "\n" not in error.value.message
    less = {key: tensor for key, tensor in tensors.items() if key != layer}
    with pytest.raises(UserError, match=f"do not fit {name}"):
        load_detector(detector, PublishedWeights(less, ""), [detector.layer], "cpu")


def test_what_is_in_the_cache_is_checked(small, inception, monkeypatch):
    path = small / INCEPTION.url.rpartition("/")[2]
    small.mkdir(exist_ok=True)
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
