"""networks.stylizer: samples, sizes and styles apart, AdaIN as an independent reference, and computing with styles."""

import copy

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image

from networks.adaconv import AdaConvKernels
from networks.stylizer import (
    CHANNELS,
    ENCODER_HALO,
    HALO,
    Stylizer,
    StylizerConfig,
    apply_strength,
    from_tensors,
    mix_styles,
    own_kernels,
    pad_to_stride,
    reduce_style_channels,
    resize_square,
    structure_and_statistics,
    to_tensors,
)
from torch_utils.ops import moments


def tiny(**options) -> Stylizer:
    """In float64, with random biases, as after some training, and an encoder whose features depend on the image."""
    torch.manual_seed(0)
    model = Stylizer(StylizerConfig(**{"width": 1 / 16, "style_size": 64, **options})).double().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        elif name.startswith("encoder."):
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    return model


def images(n, height, width, seed=1):
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.rand(n, 3, height // 4 + 2, width // 4 + 2, generator=generator, dtype=torch.float64) * 2 - 1
    return F.interpolate(smooth, [height, width], mode="bilinear")


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def adain():
    return tiny(modulation="adain")


@pytest.mark.parametrize("size", [(9, 9), (16, 24), (17, 41), (50, 33)])
def test_any_size(model, size):
    content = images(2, *size)
    y = model(content, model.kernels(images(1, 70, 90)))
    assert y.shape == content.shape and y.std() > 0.1


def test_too_small(model):
    with pytest.raises(ValueError, match="at least 9x9 pixels, got 12x8"):
        model(images(1, 8, 12), model.kernels(images(1, 64, 64)))


def test_padding_reflects_at_the_right_and_the_bottom():
    x = torch.arange(3 * 9 * 16.0).view(1, 3, 9, 16)
    expected = torch.from_numpy(np.pad(x.numpy(), [(0, 0), (0, 0), (0, 7), (0, 0)], mode="reflect"))
    assert torch.equal(pad_to_stride(x), expected)


def test_a_multiple_of_8_needs_no_padding(model):
    content, kernels = images(1, 24, 32), model.kernels(images(1, 64, 64))
    assert torch.equal(model(content, kernels), model.decoder(model.encode(content), kernels))


@pytest.mark.parametrize("modulation", ["adaconv", "adain"])
def test_a_batch_is_its_samples(modulation):
    model, content, styles = tiny(modulation=modulation), images(3, 24, 33), images(3, 64, 64, seed=2)
    together = model(content, model.kernels(styles))
    for i in range(3):
        alone = model(content[i : i + 1], model.kernels(styles[i : i + 1]))
        close(together[i : i + 1], alone)
    assert (together[0] - model(content[:1], model.kernels(styles[1:2]))[0]).abs().max() > 1e-3  # styles differ


@pytest.mark.parametrize("modulation", ["adaconv", "adain"])
def test_one_style_for_a_batch(modulation):
    model, content = tiny(modulation=modulation), images(3, 24, 24)
    kernels = model.kernels(images(1, 64, 64))
    repeated = model.kernels(images(1, 64, 64).expand(3, -1, -1, -1))
    close(model(content, kernels), model(content, repeated))


def test_kernels_have_the_shapes_of_the_paper():
    model = Stylizer(StylizerConfig(width=1 / 8))
    kernels = model.kernels(images(2, 300, 256).float())
    values = set()
    for i, (k, group) in enumerate(zip(kernels, (1, 2, 4, 8), strict=True)):
        c = CHANNELS[i] // 8
        assert (
            k.depthwise.shape == (2, c, group, 3, 3) and k.pointwise.shape == (2, c, group) and k.bias.shape == (2, c)
        )
        values.add(k.depthwise[0].numel())
    assert len(values) == 1  # as many in each stage


def test_the_style_is_the_square_in_the_middle():
    x = images(1, 100, 64)
    close(resize_square(x, 64), x[:, :, 18:82])
    assert resize_square(x, 128).shape == (1, 3, 128, 128)
    # pixel by pixel means, where one size divides the other
    y = resize_square(x.float().expand(1, 3, 100, 64), 32)
    assert abs(float(y.mean() - x[:, :, 18:82].mean())) < 0.01


# --- AdaIN ----------------------------------------------------------------------------------------------------------


def plain_decoder(model, x):
    """The decoder's learned part alone, written out layer by layer."""
    names = [(0, 1), (1, 4), (2, 2), (3, 2)]
    for stage, count in names:
        if stage:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        for i in range(count):
            conv = model.decoder.stages[stage].convs[i]
            x = F.conv2d(F.pad(x, [1] * 4, mode="reflect"), conv.weight, conv.bias)
            if (stage, i) != (3, 1):
                x = torch.relu(x)
    return x


def plain_adain(content, style):
    """Equation 8 of Huang and Belongie (2017), of features [N, C, h, w]."""

    def mean_std(x):
        values = x.flatten(2)
        return values.mean(2)[..., None, None], (values.var(2, correction=0) + 1e-5).sqrt()[..., None, None]

    (mean, std), (style_mean, style_std) = mean_std(content), mean_std(style)
    return style_std * (content - mean) / std + style_mean


def test_modulation_adain_is_adain(adain):
    content, style = images(2, 40, 32), images(2, 64, 64, seed=2)
    expected = plain_decoder(adain, plain_adain(adain.encode(content), adain.encode(style)))
    close(adain(content, adain.kernels(style)), expected)


def test_adaconv_with_1x1_kernels_and_groups_of_one_is_adain_in_every_stage(model):
    """Kernels that say AdaIN, in groups of any size, against AdaIN's formula before every stage."""
    torch.manual_seed(0)
    content = images(2, 24, 24)
    targets = [torch.randn(2, model.config.channels(i), 30, dtype=torch.float64) for i in range(4)]
    kernels = []
    for t in targets:
        std, mean = (t.var(2, correction=0) + 1e-5).sqrt(), t.mean(2)
        kernels.append(AdaConvKernels(torch.ones(*std.shape, 1, 1, 1, dtype=std.dtype), std[..., None], mean))
    x = model.encode(content)
    for i, t in enumerate(targets):
        if i:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        x = plain_adain(x, t[..., None])
        for j, conv in enumerate(model.decoder.stages[i].convs):
            x = F.conv2d(F.pad(x, [1] * 4, mode="reflect"), conv.weight, conv.bias)
            x = torch.relu(x) if (i, j) != (3, 1) else x
    close(model(content, kernels), x)


def test_adain_of_the_content_itself_changes_nothing(adain):
    content = images(1, 40, 64)
    features = adain.encode(content)
    close(adain.decoder(features, adain.kernels_of(features)), plain_decoder(adain, features))


# --- computing with styles ------------------------------------------------------------------------------------------


def same(a, b):
    for x, y in zip(a, b, strict=True):
        close(x.depthwise, y.depthwise)
        close(x.pointwise, y.pointwise)
        close(x.bias, y.bias)


def test_mixing(model):
    a, b = (model.kernels(images(1, 64, 64, seed=i)) for i in (2, 3))
    same(mix_styles([a, b], [1, 0]), a)
    same(mix_styles([a, b], [0, 5]), b)
    same(mix_styles([a, a, a], [0.2, 0.3, 7]), a)
    half = mix_styles([a, b], [3, 1])
    for k, x, y in zip(half, a, b, strict=True):
        close(k.depthwise, 0.75 * x.depthwise + 0.25 * y.depthwise)
        close(k.pointwise, 0.75 * x.pointwise + 0.25 * y.pointwise)
        close(k.bias, 0.75 * x.bias + 0.25 * y.bias)
    for weights in ([1], [1, -1], [float("nan"), 1], [float("inf"), 1]):
        with pytest.raises(ValueError, match="weights"):
            mix_styles([a, b], weights)


def test_adain_mixes_features(adain):
    """Mixing kernels is the interpolation of features that AdaIN's authors define."""
    content = images(1, 24, 24)
    features = adain.encode(content)
    styles = [adain.encode(images(1, 64, 64, seed=i)) for i in (2, 3)]
    mixed = 0.3 * plain_adain(features, styles[0]) + 0.7 * plain_adain(features, styles[1])
    kernels = mix_styles([adain.kernels_of(s) for s in styles], [0.3, 0.7])
    close(adain(content, kernels), plain_decoder(adain, mixed))


def test_structure_of_one_and_statistics_of_another(model):
    a, b = (model.kernels(images(1, 64, 64, seed=i)) for i in (2, 3))
    swapped = structure_and_statistics(a, b)
    for k, x, y in zip(swapped, a, b, strict=True):
        assert k.depthwise is x.depthwise and k.pointwise is y.pointwise and k.bias is y.bias
    same(structure_and_statistics(a, a), a)
    content = images(1, 24, 24)
    results = [model(content, k) for k in (a, b, swapped)]
    assert all((results[2] - r).abs().max() > 1e-4 for r in results[:2])


def test_strength(model, adain):
    content, style = images(1, 40, 25), images(1, 64, 64, seed=2)
    for m in (model, adain):
        same(apply_strength(own_kernels(m, content), m.kernels(style), 1), m.kernels(style))
    same(apply_strength(own_kernels(model, content), model.kernels(style), 0), model.kernels(content))
    # AdaIN's own definition, equation 14: features between the content's and the stylized ones
    features = adain.encode(pad_to_stride(content))
    between = 0.6 * features + 0.4 * plain_adain(features, adain.encode(style))
    y = adain(content, apply_strength(own_kernels(adain, content), adain.kernels(style), 0.4))
    close(y, plain_decoder(adain, between)[:, :, :40, :25])


@pytest.mark.parametrize("modulation", ["adaconv", "adain"])
def test_kernels_survive_a_file(modulation, tmp_path):
    kernels = tiny(modulation=modulation).kernels(images(2, 64, 64))
    safetensors.torch.save_file(to_tensors(kernels), tmp_path / "style.safetensors")
    loaded = from_tensors(safetensors.torch.load_file(tmp_path / "style.safetensors"))
    for a, b in zip(kernels, loaded, strict=True):
        assert torch.equal(a.depthwise, b.depthwise)
        assert torch.equal(a.pointwise, b.pointwise) and torch.equal(a.bias, b.bias)


def test_other_tensors_are_no_kernels(model):
    tensors = to_tensors(model.kernels(images(1, 64, 64)))
    for wrong in (
        {},
        {"weight": torch.zeros(1)},
        {k: v for k, v in tensors.items() if k != "1.bias"},
        {**tensors, "0.bias": torch.zeros(1, 7)},
        {**tensors, "0.depthwise": torch.zeros(7)},
    ):
        with pytest.raises(ValueError, match="kernels"):
            from_tensors(wrong)


def test_kernels_of_another_model(model, adain):
    with pytest.raises(ValueError, match="expected those of 4 stages, got 1"):
        model(images(1, 16, 16), adain.kernels(images(1, 64, 64)))
    with pytest.raises(ValueError, match="one style or of 3, got 2"):
        model(images(3, 16, 16), model.kernels(images(2, 64, 64)))


# --- parts of images ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", range(4))
def test_a_part_with_its_halo_is_a_part_of_the_whole(model, stage):
    """With the statistics of the whole, and a halo that is as large as it needs to be and no larger."""
    torch.manual_seed(0)
    x = torch.randn(1, model.config.channels(stage), 20, 21, dtype=torch.float64)
    kernels = model.kernels(images(1, 64, 64))[stage]
    scale = 2 if stage else 1
    whole = model.decoder.stage(stage, x, kernels)
    for halo, enough in [(HALO[stage], True), (HALO[stage] - 1, False)]:
        part = model.decoder.stage(stage, x[:, :, 8 - halo : 13 + halo], kernels, moments(x))
        difference = part[:, :, scale * halo : scale * (halo + 5)] - whole[:, :, scale * 8 : scale * 13]
        assert (float(difference.abs().max()) < 1e-10) == enough
    alone = model.decoder.stage(stage, x[:, :, 3:18], kernels)
    assert (alone[:, :, scale * 5 : scale * 10] - whole[:, :, scale * 8 : scale * 13]).abs().max() > 1e-3


def test_the_encoders_halo(model):
    x = images(1, 152, 16)
    for halo, enough in [(32, True), (24, False)]:
        part = model.encode(x[:, :, 64 - halo : 80 + halo])[:, :, halo // 8 : halo // 8 + 2]
        assert (float((part - model.encode(x)[:, :, 8:10]).abs().max()) < 1e-10) == enough
    assert 24 < ENCODER_HALO <= 32


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modulation", ["adaconv", "adain"])
def test_what_is_trained(modulation):
    model = Stylizer(StylizerConfig(1 / 16, modulation, 64))
    y = model(images(2, 32, 32).float(), model.kernels(images(2, 64, 64).float()))
    y.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith("encoder."))
        assert (parameter.grad is not None and parameter.grad.any()) == parameter.requires_grad, name


def test_gradient(gradient_equals_finite_differences):
    model = tiny().requires_grad_(True)
    model.encoder.requires_grad_(False)
    content, style = images(1, 16, 16), images(1, 64, 64)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradient_equals_finite_differences(lambda: model(content, model.kernels(style)).sin().sum(), parameters)


@pytest.mark.parametrize("modulation", ["adaconv", "adain"])
def test_training_starts_sanely(modulation):
    """Images of a size that fits −1..1, none of whose stages dies or explodes, though VGG's scale is far from 1."""
    torch.manual_seed(0)
    model = Stylizer(StylizerConfig(1 / 4, modulation))
    x = 30 * torch.rand(2, 128, 16, 16)
    kernels = model.kernels_of(30 * torch.rand(2, 128, 32, 32))
    with torch.no_grad():
        for i, k in enumerate(model.decoder.kernels_by_stage(kernels)):
            x = model.decoder.stage(i, x, k)
            if i < 3 and modulation == "adaconv":
                assert 0.3 < float(x.square().mean()) < 10
    if modulation == "adaconv":
        assert 0.2 < float(x.std()) < 2


def test_fast_convolutions_do_not_keep_old_weights():
    """In float32, where inference takes another algorithm than training, before and after the weights change."""
    torch.manual_seed(0)
    model = Stylizer(StylizerConfig(1 / 4, style_size=64))
    content, style = images(1, 40, 24).float(), images(1, 64, 64).float()
    for _ in range(2):
        with torch.no_grad():
            fast = model(content, model.kernels(style))
        slow = model(content, model.kernels(style)).detach()
        exact = copy.deepcopy(model).double()
        exact = exact(content.double(), exact.kernels(style.double())).detach().float()
        assert float((fast - exact).abs().max()) < 1e-3 * float(exact.abs().max())
        assert float((slow - exact).abs().max()) < 1e-3 * float(exact.abs().max())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn_like(parameter)


def test_real_images(real_images):
    """Of photographs in the statistics of paintings: AdaIN of features has those of the style."""
    torch.manual_seed(0)
    model = Stylizer(StylizerConfig(1 / 8, "adain"))

    def read(path):
        image = Image.open(path).convert("RGB")
        image.thumbnail((160, 160))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1

    content = read(sorted((real_images / "photos").glob("*.jpg"))[0])
    style = read(sorted((real_images / "paintings").glob("*.jpg"))[0])
    with torch.no_grad():
        kernels = model.kernels(style)
        features = model.decoder.stages[0].adaconv(model.encode(pad_to_stride(content)), kernels[0])
        mean, var = moments(features)
        torch.testing.assert_close(mean, kernels[0].bias, rtol=1e-3, atol=1e-4)
        assert model(content, kernels).shape == content.shape
    assert var.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width"),
        ({"width": float("nan")}, "width"),
        ({"modulation": "modconv"}, "modulation"),
        ({"style_size": 100}, "style_size"),
        ({"style_size": 0}, "style_size"),
        ({"style_channels": 0}, "style_channels"),
        ({"kernel_size": 2}, "kernel_size"),
        ({"kernel_size": -1}, "kernel_size"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        StylizerConfig(**options)


@pytest.mark.parametrize("channels", [32, 18])
@torch.no_grad()
def test_fewer_style_channels_give_the_same_kernels_where_the_maps_need_no_more(model, channels):
    """Two maps of 3 × 3 positions span at most 18 of 32 directions; a third style is out of their span."""
    features = model.encode(images(2, 64, 64))
    new = reduce_style_channels(model, model.style_encoder(features), channels * 16)
    assert new.config.map_channels == channels and new.style_encoder.linear.weight.shape[0] == channels * 9
    for before, after in zip(model.kernels_of(features), new.kernels_of(features), strict=True):
        for name in ("depthwise", "pointwise", "bias"):
            close(getattr(before, name), getattr(after, name), 1e-6)
    other = model.encode(images(1, 64, 64, seed=7))
    differences = [
        float((before.pointwise - after.pointwise).abs().max())
        for before, after in zip(model.kernels_of(other), new.kernels_of(other), strict=True)
    ]
    assert max(differences) < 1e-8 if channels == 32 else max(differences) > 1e-4


@pytest.mark.parametrize("border", ["zeros", "reflect"])
def test_reflected_borders_draw_no_frame(border):
    """The features of a flat image, which instance normalization enlarges, are flat up to the border."""
    torch.manual_seed(3)
    model = Stylizer(StylizerConfig(1 / 8, style_size=64, border=border)).eval().requires_grad_(False)
    for tap in model.encoder(torch.full([1, 3, 64, 64], 0.3)):
        frame = float((tap - tap[:, :, 3:4, 3:4]).abs().max() / tap.abs().max())
        assert (frame < 1e-5) == (border == "reflect"), frame
