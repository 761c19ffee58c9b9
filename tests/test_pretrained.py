"""The models that come with the project do what their README says."""

import torch

from networks.stylizer import resized
from styling.pictures import list_pictures, read_picture
from training.checkpoint import PRETRAINED, load_stylizer
from training.images import to_float
from training.stylizer import content_loss, statistics, style_loss

STYLIZER = PRETRAINED / "stylizer-small.safetensors"


def pictures(folder, count):
    return torch.cat([resized(to_float(read_picture(file)[None]), 256) for file in list_pictures(folder)[:count]])


def test_the_stylizer_is_small():
    model, info = load_stylizer(STYLIZER)
    assert STYLIZER.stat().st_size <= 16e6
    assert model.config.modulation == "adaconv" and model.config.width == 0.5 and info["kimg"] > 0


@torch.no_grad()
def test_the_stylizer_keeps_contents_and_moves_styles(real_pictures):
    """Three photos in four styles: each is told by its content, and nearest to its style."""
    model, _ = load_stylizer(STYLIZER)
    contents, styles = pictures(real_pictures / "photos", 3), pictures(real_pictures / "paintings", 4)
    kernels = [model.kernels(style) for style in styles.split(1)]
    content_features, style_taps = model.encode(contents), [model.encoder(style) for style in styles.split(1)]
    for i, content in enumerate(contents.split(1)):
        for j in range(len(styles)):
            taps = model.encoder(model(content, kernels[j]).clamp(-1, 1))
            kept = [float(content_loss(taps[-1], features, normalize=True)) for features in content_features.split(1)]
            assert kept[i] == min(kept) and kept[i] < 0.6 * sorted(kept)[1], (i, j, kept)
            moved = [float(style_loss(taps, [statistics(tap) for tap in style])) for style in style_taps]
            before = float(style_loss(model.encoder(content), [statistics(tap) for tap in style_taps[j]]))
            assert moved[j] == min(moved) and moved[j] < before / 2, (i, j, moved, before)


def test_the_readme_names_every_model():
    text = (PRETRAINED / "README.md").read_text()
    models = {file.name for file in PRETRAINED.glob("*.safetensors")}
    assert models and all(name in text for name in models)
    for name in models:
        assert f"{(PRETRAINED / name).stat().st_size / 1e6:.1f} MB" in text, name
