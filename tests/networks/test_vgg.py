"""VGG-19 against torchvision's; a trained classifier's encoder against the one with its normalizations folded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from networks.vgg import MEAN, STD, TAPS, VGG19, Classifier


def test_features_are_torchvisions():
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    ours = VGG19()
    for layer in ours.features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.normal_(layer.bias)
    with torch.device("meta"):  # most of its weights belong to layers that are not of interest
        theirs = models.vgg19(weights=None).eval()
    assert not theirs.load_state_dict(ours.state_dict(), strict=False, assign=True).unexpected_keys
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    x = (images / 2 + 0.5 - mean) / std
    taps = {}
    with torch.no_grad():
        for i, layer in enumerate(theirs.features[: TAPS[-1] + 1]):
            x = layer(x)
            taps[i] = x.clone()  # the next layer may work in place
        features = ours(images)
    assert [tuple(f.shape) for f in features] == [(2, 64, 32, 48), (2, 128, 16, 24), (2, 256, 8, 12), (2, 512, 4, 6)]
    for i, feature in zip(TAPS, features, strict=True):
        assert isinstance(theirs.features[i], nn.ReLU) and feature.std() > 0.1
        torch.testing.assert_close(feature, taps[i], rtol=1e-4, atol=5e-5)


def trained(width: float = 0.125) -> Classifier:
    """A classifier whose normalizations have statistics, gains and biases of all sizes."""
    torch.manual_seed(1)
    model = Classifier(width, 5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.01  # not too small to be missed
            nn.init.normal_(module.weight, 1, 0.5)
            nn.init.normal_(module.bias, 0, 0.5)
    model.train()
    for _ in range(3):
        model(torch.rand(8, 3, 16, 16) * 2 - 1)
    return model.eval()


@torch.no_grad()
def test_folding_keeps_the_features():
    model = trained()
    plain = model.fold()
    assert type(plain) is VGG19 and not plain.training
    assert not any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    assert plain.state_dict().keys() == VGG19(0.125).state_dict().keys()
    images = torch.rand(4, 3, 24, 16) * 2 - 1
    for feature, expected in zip(plain(images), model.encoder(images), strict=True):
        assert expected.std() > 0.1
        torch.testing.assert_close(feature, expected, rtol=1e-5, atol=1e-5)


def test_folding_leaves_the_classifier_as_it_was():
    model = trained().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.fold()
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_the_first_convolution_folded_by_hand():
    model = Classifier(1 / 64, 2).eval()  # one channel
    conv, norm = model.encoder.features[0]
    conv.weight.fill_(2.0)
    norm.running_mean.fill_(3.0)
    norm.running_var.fill_(4.0)
    norm.eps = 0.0
    norm.weight.fill_(5.0)
    norm.bias.fill_(7.0)
    folded = model.fold().features[0]
    assert torch.equal(folded.weight, torch.full([1, 3, 3, 3], 5.0))  # 2 · 5 / √4
    assert folded.bias.item() == -0.5  # 7 − 3 · 5 / √4


def test_every_layer_learns():
    model = Classifier(0.125, 5).train()
    logits = model(torch.rand(4, 3, 32, 32) * 2 - 1)
    assert logits.shape == (4, 5)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
