"""styling.apply, styling.styles and styling.tasks: the result is that of the library's parts put together."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from media.files import write_image
from media.images import to_float, to_uint8
from models.snapshot import load_stylizer, save_stylizer
from networks.stylizer import (
    apply_strength,
    mix_styles,
    own_kernels,
    resize_square,
    structure_and_statistics,
    to_tensors,
)
from styling import apply
from styling.apply import (
    FrameStylizer,
    Settings,
    continued,
    own_kernels_tiled,
    stylize_image,
    stylize_masked,
    tile_side,
)
from styling.color import keep_colors, luma, match_colors
from styling.mask import soften
from styling.smooth import MovingAverage
from styling.styles import CombinedStyle, Style, identity, load_kernels, read_style, resize_style, save_style
from styling.tasks import names_folder, plan_folder
from tests.stylize import running
from torch_utils.errors import UserError
from torch_utils.ops import moments

ROOT = Path(__file__).resolve().parents[2]
PLAIN = Settings(tile="none")


def scene(seed: int = 0, height: int = 56, width: int = 72) -> torch.Tensor:
    """A smooth image uint8 [3, H, W]."""
    coarse = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(coarse, size=(height, width), mode="bicubic")[0] * 255).clamp(0, 255).to(torch.uint8)


def style(model, seed: int) -> Style:
    image = resize_square(to_float(scene(seed, 80, 100)[None]), model.config.style_size)
    return Style(Path(f"style{seed}.png"), model.kernels(image), image)


@pytest.fixture(params=["adaconv", "adain"])
def model(request, stylizer, stylizer_adain):
    return {"adaconv": stylizer, "adain": stylizer_adain}[request.param]


def beyond(x: torch.Tensor, margin: int = 48) -> torch.Tensor:
    """Images [N, 3, H, W] continued by reflection on all sides."""
    return F.pad(x, [margin] * 4, mode="reflect")


def plainly(model, content: torch.Tensor, kernels) -> torch.Tensor:
    return running.plainly(model, to_float(content[None]), kernels)


def most(a: torch.Tensor, b: torch.Tensor) -> int:
    """The largest difference of two images."""
    return int((a.int() - b.int()).abs().max())


# --- images -------------------------------------------------------------------------------------------------------


def test_an_image_is_what_the_model_gives(model):
    combined, content = CombinedStyle((style(model, 1),)), scene()
    expected = plainly(model, content, combined.styles[0].kernels)
    assert torch.equal(stylize_image(model, content, combined, PLAIN), expected)
    assert expected.float().std() > 20 and most(expected, plainly(model, content, style(model, 2).kernels)) > 5


def test_mixed_and_taken_apart(stylizer):
    a, b, content = style(stylizer, 1), style(stylizer, 2), scene()

    def made(combined):
        return stylize_image(stylizer, content, combined, PLAIN)

    assert torch.equal(made(CombinedStyle((a, b), (1.0, 0.0))), made(CombinedStyle((a,))))
    assert torch.equal(made(CombinedStyle((a, b), (0.0, 1.0))), made(CombinedStyle((b,))))
    half = plainly(stylizer, content, mix_styles([a.kernels, b.kernels], [0.5, 0.5]))
    assert torch.equal(made(CombinedStyle((a, b), (0.5, 0.5))), half)
    assert torch.equal(made(CombinedStyle((a, a))), made(CombinedStyle((a,))))
    both = made(CombinedStyle((a, b)))
    assert torch.equal(both, plainly(stylizer, content, structure_and_statistics(a.kernels, b.kernels)))
    assert all(most(both, made(CombinedStyle((one,)))) > 5 for one in (a, b))


def test_strength(model):
    combined, content = CombinedStyle((style(model, 1),)), scene()
    x, kernels = to_float(content[None]), combined.kernels()
    for strength in (0, 0.4):
        expected = plainly(model, content, apply_strength(own_kernels(model, x), kernels, strength))
        assert torch.equal(stylize_image(model, content, combined, Settings(strength, tile="none")), expected)
    own = CombinedStyle((Style(Path("own"), own_kernels_tiled(model, content, 32)),))
    assert most(stylize_image(model, content, combined, Settings(0)), stylize_image(model, content, own, PLAIN)) <= 1


def test_colors_are_kept(stylizer):
    combined, content = CombinedStyle((style(stylizer, 1),)), scene()
    plain = stylize_image(stylizer, content, combined, PLAIN)
    kept = stylize_image(stylizer, content, combined, Settings(color="luminance"))
    assert torch.equal(kept, to_uint8(keep_colors(to_float(plain), to_float(content))))
    assert (luma(kept.float()) - luma(plain.float())).abs().max() <= 1.5  # rounded twice
    matched = stylizer.kernels(match_colors(combined.styles[0].image, to_float(content[None])))
    assert torch.equal(
        stylize_image(stylizer, content, combined, Settings(color="histogram")), plainly(stylizer, content, matched)
    )


def test_colors_of_a_large_content_are_sampled(stylizer):
    one = style(stylizer, 1)
    content = scene(0, 1500, 1400)
    whole = stylizer.kernels(match_colors(one.image, to_float(content[None])))
    for a, b in zip(one.kernels_in_colors_of(stylizer, content), whole, strict=True):
        assert (a.composed - b.composed).abs().max() < 0.02 * b.composed.abs().max()


@pytest.mark.parametrize(
    "settings", [{}, {"strength": 0.3}, {"color": "luminance"}, {"color": "histogram"}], ids=lambda s: str(s)
)
def test_tiled_is_untiled(model, settings):
    combined, content = CombinedStyle((style(model, 1),)), scene(0, 203, 181)
    calls = []
    tiled = stylize_image(model, content, combined, Settings(tile=64, **settings), lambda *done: calls.append(done))
    whole = stylize_image(model, content, combined, Settings(tile="none", **settings))
    assert most(tiled, whole) <= 1 and (tiled != whole).float().mean() < 0.02
    assert calls[-1] == (125, 125)  # 5 × 5 tiles of the continued content, encoded once and decoded in four stages


def test_what_is_small_is_not_tiled(stylizer, monkeypatch):
    assert tile_side(stylizer, 1080, 1920, "none") == 0 and tile_side(stylizer, 100, 100, 64) == 64
    monkeypatch.setattr(apply, "free_memory", lambda: 8 << 30)
    frame = continued(torch.zeros(3, 1080, 1920, dtype=torch.uint8))
    assert tile_side(stylizer, *frame.shape[1:], "auto") == 0  # as it is stylized, with its margins
    assert tile_side(stylizer, 4000, 6000, "auto") == 1024
    monkeypatch.setattr(apply, "free_memory", lambda: 100 << 20)
    assert 64 <= tile_side(stylizer, 1080, 1920, "auto") < 1024
    monkeypatch.setattr(apply, "free_memory", lambda: 1 << 20)
    remedy = "make the content smaller, or end other programs that take memory$"  # no option, as the page has none
    with pytest.raises(UserError, match=rf"1920x1080 pixels need .* GiB, 0.0 are free; {remedy}"):
        tile_side(stylizer, 1080, 1920, "auto")


def test_what_is_still_stays_calm_beside_what_moves():
    """The shipped model, and a patch that crosses: what is far from it changes by the statistics of the whole."""
    model = load_stylizer(ROOT / "pretrained" / "stylizer-small.safetensors")[0]
    frames = scene(1, 192, 192)[None].repeat(5, 1, 1, 1)
    for i in range(5):
        frames[i, :, 140:172, 8 + 32 * i : 48 + 32 * i] = scene(2, 32, 40)
    for smooth in (0.8, 0.0):
        made = FrameStylizer(model, CombinedStyle((style(model, 1),)), Settings(smooth=smooth))(frames).float()
        changes = made.diff(dim=0).abs().mean(dim=(0, 1))
        assert changes[:96].mean() < 2.5 < 5 < changes[140:172].mean(), changes.mean(dim=1)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_hardly_seen(precision):
    model = load_stylizer(ROOT / "pretrained" / "stylizer-small.safetensors")[0]
    content = scene(1, 128, 160)
    exact = stylize_image(model, content, CombinedStyle((style(model, 1),)), PLAIN).float()
    combined = CombinedStyle((style(model, 1),))
    half, tiled = (
        stylize_image(model, content, combined, Settings(tile=tile, precision=precision)).float()
        for tile in ("none", 64)
    )
    frame = FrameStylizer(model, combined, Settings(smooth=0, precision=precision))(content[None])[0].float()
    assert torch.equal(stylize_image(model, content, combined, PLAIN).float(), exact)  # also after half precision
    for image in (half, tiled, frame):
        assert 0 < (image - exact).abs().mean() <= 2, (image - exact).abs().mean()
    for image in (tiled, frame):
        assert (image - half).abs().mean() <= 0.5, (image - half).abs().mean()


def test_a_mask_divides(stylizer):
    styles, content = [CombinedStyle((style(stylizer, i),)) for i in (1, 2)], scene(0, 64, 300)
    mask = torch.zeros(1, 64, 300)
    mask[..., 150:] = 1
    a, b = (stylize_image(stylizer, content, combined, PLAIN) for combined in styles)
    assert torch.equal(
        stylize_masked(stylizer, content, *styles, mask, PLAIN), torch.cat([b[..., :150], a[..., 150:]], 2)
    )
    soft = stylize_masked(stylizer, content, *styles, soften(mask, 4), PLAIN)
    assert torch.equal(soft[..., :138], b[..., :138]) and torch.equal(soft[..., 162:], a[..., 162:])
    middle = soft[..., 148:152].float() - (a[..., 148:152].float() + b[..., 148:152].float()) / 2
    assert middle.abs().max() < 0.2 * (a[..., 148:152].float() - b[..., 148:152].float()).abs().max() + 1


# --- styles ---------------------------------------------------------------------------------------------------------


def test_a_saved_style_is_the_style(model, tmp_path):
    write_image(scene(1, 80, 100), tmp_path / "a.png")
    read = read_style(model, tmp_path / "a.png")
    save_style(tmp_path / "new" / "a.safetensors", model, read.kernels)
    again = read_style(model, tmp_path / "new" / "a.safetensors")
    for a, b in zip(read.kernels, again.kernels, strict=True):
        assert torch.equal(a.depthwise, b.depthwise)
        assert torch.equal(a.pointwise, b.pointwise) and torch.equal(a.bias, b.bias)
    with pytest.raises(ValueError, match="colours cannot be changed"):
        again.kernels_in_colors_of(model, scene())


@pytest.mark.parametrize("scale", [0.5, 0.8, 1, 1.25, 2, 4])
def test_strokes_are_scaled(scale):
    """Stripes, of which the square has 12, are 12 / scale in the result."""
    x = torch.arange(192 + 64) - 127.5
    stripes = torch.cos(x * 2 * torch.pi / 16).expand(1, 3, 192, -1)
    resized = resize_style(stripes, 128, scale)
    assert resized.shape == (1, 3, 128, 128)
    spectrum = torch.fft.rfft(resized[0, 0, 64] * torch.hann_window(128)).abs()
    assert spectrum[1:].argmax() + 1 == pytest.approx(12 / scale, abs=0.6)


def test_strokes_that_are_not_scaled():
    image = to_float(scene()[None])
    assert torch.equal(resize_style(image, 64), resize_square(image, 64))
    with pytest.raises(ValueError, match=r"scale: expected 0\.5 or more"):
        resize_style(image, 64, 0.4)


def test_identity_is_of_weights_and_construction(stylizer, stylizer_adain, other_stylizer, tmp_path):
    assert len({identity(m) for m in (stylizer, stylizer_adain, other_stylizer)}) == 3
    save_stylizer(tmp_path / "renamed.safetensors", stylizer, {"kimg": 7})
    assert identity(load_stylizer(tmp_path / "renamed.safetensors")[0]) == identity(stylizer)
    changed = copy.deepcopy(stylizer)
    changed.config.depthwise_scale /= 2
    assert identity(changed) != identity(stylizer)


def test_styles_that_are_none(stylizer, other_stylizer, tmp_path):
    path = tmp_path / "a.safetensors"

    def refused() -> str:
        with pytest.raises(UserError) as error:
            load_kernels(stylizer, path)
        assert str(path) in error.value.message and "\n" not in error.value.message
        return error.value.message

    def write(tensors: dict, **meta) -> None:
        safetensors.torch.save_file(tensors, path, metadata={"adaconv": json.dumps(meta)})

    assert "cannot be read as a style" in refused()
    path.write_bytes(b"nothing")
    assert "cannot be read as a style" in refused()
    kernels = style(stylizer, 1).kernels
    save_style(path, other_stylizer, kernels)
    assert "is a style of another model; name that model with --model" in refused()
    write({"a": torch.zeros(1)})
    assert "holds no style" in refused()
    write({"a": torch.zeros(1)}, format="adaconv-generator")
    assert "of kind 'generator'" in refused()
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, metadata={"adaconv": "[" * 100_000})
    assert "cannot be read" in refused()
    meta = {"format": "adaconv-style", "version": 1, "model": identity(stylizer)}
    good = to_tensors(kernels)
    for wrong, words in (
        ({"a": torch.zeros(1)}, "expected depthwise"),
        ({k: v for k, v in good.items() if not k.startswith("3")}, "kernels of 3 stages, expected 4"),
        ({k: torch.cat([v, v]) for k, v in good.items()}, "kernels of shape [2, "),
        ({**good, "1.bias": good["1.bias"] * float("nan")}, "not finite numbers"),
        ({**good, "1.bias": good["1.bias"].long()}, "not finite numbers of 32 bits in stage 1"),
        ({**good, "0.bias": torch.zeros(1, 7)}, "do not match"),
    ):
        write(wrong, **meta)
        assert words in refused()


# --- videos ---------------------------------------------------------------------------------------------------------


def film(count: int = 12, seed: int = 0, sigma: float = 4) -> torch.Tensor:
    """A still image with new noise in each frame, uint8 [N, 3, H, W]; sigma in steps of 255."""
    noise = torch.randn(count, 3, 56, 72, generator=torch.Generator().manual_seed(seed + 100))
    return (scene(seed).float() * 0.7 + 38 + sigma * noise).round().clamp(0, 255).to(torch.uint8)


def change(frames: torch.Tensor) -> float:
    """The root mean square of what changes from frame to frame."""
    return (frames[1:].float() - frames[:-1].float()).square().mean().sqrt().item()


@pytest.mark.parametrize("settings", [{}, {"strength": 0.3}, {"color": "luminance"}, {"color": "histogram"}], ids=str)
def test_frames_without_smoothing_are_images(model, settings):
    combined, frames = CombinedStyle((style(model, 1),)), film(3)
    made = FrameStylizer(model, combined, Settings(smooth=0, **settings))(frames)
    for i, (frame, y) in enumerate(zip(frames, made, strict=True)):
        if i and settings.get("color") == "histogram":
            break  # those of the first frame
        assert most(y, stylize_image(model, frame, combined, Settings(**settings))) <= 1


@pytest.mark.parametrize("settings", [{}, {"strength": 0.3}, {"color": "luminance"}, {"color": "histogram"}], ids=str)
def test_noise_does_not_flicker(model, settings):
    combined, frames = CombinedStyle((style(model, 1),)), film(30)
    rough, calm = (
        change(FrameStylizer(model, combined, Settings(smooth=smooth, **settings))(frames)[8:]) for smooth in (0, 0.8)
    )
    assert rough > 0.8 and calm < 0.5 * rough, (calm, rough)


def test_statistics_are_averages_over_frames(model):
    """Stage by stage, by hand."""
    combined, content = CombinedStyle((style(model, 1),)), to_float(film(5))
    cuts = [True, False, False, False, False]
    x = model.encode(beyond(content))
    for i, k in enumerate(model.decoder.kernels_by_stage(combined.kernels())):
        statistics = MovingAverage(0.95 * 0.6)(moments(x.contiguous()), cuts)
        x = model.decoder.stage(i, x, k, statistics)
    made = FrameStylizer(model, combined, Settings(smooth=0.6)).stylize_scene(content, cuts)
    assert most(made, to_uint8(x)[..., 48:-48, 48:-48]) <= 1
    assert not torch.equal(made, FrameStylizer(model, combined, Settings(smooth=0)).stylize_scene(content, cuts))


def test_the_contents_own_kernels_are_averages_over_frames(model):
    combined, content, cuts = CombinedStyle((style(model, 1),)), to_float(film(4)), [True, False, False, False]
    stylizer = FrameStylizer(model, combined, Settings(0.3, smooth=0.6))
    weak = stylizer.scene_kernels(content, cuts)
    for i, own in enumerate(own_kernels(model, content)):
        average = MovingAverage(0.95 * 0.6)([own.depthwise, own.pointwise, own.bias], cuts)
        style_kernels = combined.kernels()[i]
        for name, expected in zip(("depthwise", "pointwise", "bias"), average, strict=True):
            found, of_style = getattr(weak[i], name), getattr(style_kernels, name)
            torch.testing.assert_close(found, 0.7 * expected + 0.3 * of_style)
    assert not torch.equal(weak[0].bias, stylizer.scene_kernels(content, [True] * 4)[0].bias)


def test_colors_are_those_of_the_scenes_first_frame(stylizer):
    combined = CombinedStyle((style(stylizer, 1),))
    frames = torch.stack([scene(), (scene().float() * 0.8).to(torch.uint8)])  # darker, but no cut
    made = FrameStylizer(stylizer, combined, Settings(color="histogram", smooth=0))
    results = [made(frame[None])[0] for frame in frames]
    first, second = (combined.kernels_in_colors_of(stylizer, frame) for frame in frames)
    assert most(results[1], plainly(stylizer, frames[1], first)) <= 1
    assert most(results[1], plainly(stylizer, frames[1], second)) > 1


def test_frames_do_not_depend_on_batches(model):
    combined = CombinedStyle((style(model, 1),))
    frames = torch.cat([film(5), film(4, seed=7), film(3, seed=3)])
    for settings in (Settings(), Settings(0.5, "histogram"), Settings(0.5, "luminance", smooth=0)):
        whole = FrameStylizer(model, combined, settings)(frames)
        for size in (1, 4):
            stylizer = FrameStylizer(model, combined, settings)
            parts = torch.cat([stylizer(part) for part in frames.split(size)])
            assert most(parts, whole) <= 1


def test_a_cut_begins_anew(model):
    combined, settings = CombinedStyle((style(model, 1),)), Settings(0.6, "histogram")
    first, second = film(5), film(4, seed=7)
    assert FrameStylizer(model, combined, settings).find_cuts(to_float(torch.cat([first, second])))[5]
    both = FrameStylizer(model, combined, settings)(torch.cat([first, second]))
    alone = FrameStylizer(model, combined, settings)(second)
    assert most(both[5], alone[0]) <= 1
    assert (both[5:].float() - alone.float()).abs().mean() < 1  # what stays is how much noise there is


@pytest.mark.parametrize("settings", [{}, {"strength": 0.3}, {"color": "luminance"}], ids=str)
def test_tiled_frames_are_whole_frames(model, settings):
    combined, frames = CombinedStyle((style(model, 1),)), film(6)
    whole, tiled = (
        FrameStylizer(model, combined, Settings(tile=tile, smooth=0.0, **settings))(frames) for tile in ("none", 32)
    )
    assert most(whole, tiled) <= 1
    content, cuts = to_float(frames), [i == 0 for i in range(6)]  # not filtered, which does not end in 8 bits
    with torch.no_grad():
        whole, tiled = (
            FrameStylizer(model, combined, Settings(tile=tile, **settings)).stylize_scene(content, cuts)
            for tile in ("none", 32)
        )
    assert most(whole, tiled) <= 1


# --- tasks ----------------------------------------------------------------------------------------------------------


def test_what_names_a_folder(tmp_path):
    (tmp_path / "a.png").mkdir()
    for name, expected in {
        "out": True,
        "out/": True,
        "out.png": False,
        "a.b/": True,
        str(tmp_path / "a.png"): True,
    }.items():
        assert names_folder(name) == expected


def test_names_of_results(tmp_path):
    contents = [tmp_path / name for name in ("a.jpg", "b.png", "b.jpg", "film.avi", "film.mp4", "clip.mkv")]
    styles = [[Path("x/s.jpg")], [Path("t.png"), Path("u.png")]]
    tasks = plan_folder(contents, styles, Path("out"), ".webp")
    names = [task.out.name for task in tasks]
    assert names[:4] == ["a-s.webp", "a-t-u.webp", "b.png-s.webp", "b.png-t-u.webp"]
    assert names[6::2] == ["film.avi-s.mp4", "film.mp4-s.mp4", "clip-s.mkv"]
    assert [task.style for task in tasks] == [0, 1] * 6 and [task.video for task in tasks[::2]] == [False] * 3 + [
        True
    ] * 3
    with pytest.raises(UserError, match=r"two results would be written to out/a-s.png"):
        plan_folder([Path("a.jpg")], [[Path("x/s.jpg")], [Path("y/s.jpg")]], Path("out"), ".png")
