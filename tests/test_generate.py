"""generate.py and its commands as a user types them: one image for a seed everywhere, and mistakes in one line."""

from __future__ import annotations

import re
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import adaconv
import generate
from latents.names import image_names
from models.snapshot import save_snapshot
from networks.generator import Generator, GeneratorConfig
from tests.scripts import ROOT, done, mistake, script_here

CLASSES = 3


def snapshot(path: Path, info: dict | None = None, **options) -> Path:
    torch.manual_seed(0)
    small = {"z_dim": 8, "w_dim": 8, "map_depth": 1, "cbase": 128, "cmax": 8, "c_dim": CLASSES, "depthwise_scale": 0.5}
    G = Generator(GeneratorConfig(**{"resolution": 16} | small | options))
    G.w_avg.normal_()
    with torch.no_grad():  # as wide as the range of images
        for block in G.synthesis.blocks:
            block.torgb.weight *= 0.3
    save_snapshot(path, G, {"kimg": 1, **(info or {})})
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    return snapshot(tmp_path_factory.mktemp("models") / "snapshot-000001.safetensors")


def run(*arguments) -> list[str]:
    """The lines on stdout of a command that works."""
    return done(script_here("generate.py", *arguments)).stdout.splitlines()


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def holds(sheet: np.ndarray, image: np.ndarray, scale: int = 4) -> bool:
    """Whether the image, enlarged, is somewhere on the sheet; rounding may differ by one."""
    large = image.repeat(scale, 0).repeat(scale, 1)
    for y, x in np.argwhere((np.abs(sheet - large[0, 0]) <= 1).all(axis=2)):
        part = sheet[y : y + large.shape[0], x : x + large.shape[1]]
        if part.shape == large.shape and np.abs(part - large).max() <= 1:
            return True
    return False


def test_a_mix_takes_the_coarser_half_of_the_layers(network, tmp_path):
    """Of all layers it would be the column's image, and of --part all of them differ."""
    base = ["mix", "--rows", 2, "--cols", 4, "--network", network, "--outdir"]
    half, named = run(*base, tmp_path / "a"), run(*base, tmp_path / "b", "--layers", "0-2")
    assert np.array_equal(pixels(*half), pixels(*named))
    for layers in ("0-1", "0-3"):
        assert not np.array_equal(pixels(*half), pixels(*run(*base, tmp_path / layers, "--layers", layers)))
    part = ["--part", "channels"]
    whole, named = run(*base, tmp_path / "c", *part), run(*base, tmp_path / "d", *part, "--layers", "0-4")
    assert np.array_equal(pixels(*whole), pixels(*named))


def test_a_seed_has_one_image_in_every_command(network, tmp_path):
    base = ["--network", network, "--trunc", "0.5,0.9", "--outdir", tmp_path]
    run("--seeds", "2-4", *base)
    images = {seed: pixels(tmp_path / f"seed{seed:04d}.png") for seed in (2, 3, 4)}
    (mixes,) = run("mix", "--rows", "2,3", "--cols", 4, *base)
    assert all(holds(pixels(mixes), image) for image in images.values())
    sheet, page = run("kernels", "--seed", 3, *base)
    assert holds(pixels(sheet), images[3], 8) and not holds(pixels(sheet), images[2], 8)
    assert "<html" in Path(page).read_text()
    sheet, _ = run("kernels", "--compare", "3,2", *base)
    assert holds(pixels(sheet), images[3], 8) and holds(pixels(sheet), images[2], 8)
    for path in run("directions", "--seeds", 3, "--count", 2, *base):
        assert path.endswith(".npz") or holds(pixels(path), images[3])
    (edited,) = run("directions", "--edit", tmp_path / "directions-sefa.npz", "--seeds", 2, "--amount", "-2,0", *base)
    assert holds(pixels(edited), images[2]) and Path(edited).name == "edit-directions-sefa.png"
    run("video", "--seeds", "3,4", "--fps", 5, "--scale", 1, *base[:4], "--out", tmp_path / "walk.webp")
    with Image.open(tmp_path / "walk.webp") as walk:
        assert np.abs(np.asarray(walk.convert("RGB")).astype(int) - images[3]).mean() < 12  # it is compressed
        walk.seek(5)
        assert np.abs(np.asarray(walk.convert("RGB")).astype(int) - images[4]).mean() < 12


@pytest.mark.parametrize("name", ["walk.mp4", "walk.gif", "walk.webp"])
def test_a_video_has_the_stated_frames_size_and_rate(network, tmp_path, name):
    out = tmp_path / "new" / name
    (line,) = run("video", "--network", network, "--seeds", "0-5", "--seconds", 1.5, "--fps", 10, "--grid", "3x2",
                  "--scale", 2, "--part", "structure", "--out", out)  # fmt: skip
    assert line == f"{out}: 15 frames, 1.5 seconds"
    if name.endswith("mp4"):
        av = pytest.importorskip("av")
        with av.open(str(out)) as file:
            stream = file.streams.video[0]
            assert (stream.width, stream.height, stream.average_rate) == (96, 64, 10)
            assert stream.codec_context.name == "h264" and len(list(file.decode(stream))) == 15
        return
    with Image.open(out) as walk:
        assert walk.size == (96, 64) and walk.n_frames == 15
        total = 0
        for i in range(15):
            walk.seek(i)
            walk.load()
            total += walk.info["duration"]
    assert total == 1500


def test_mixing_everything_is_the_column_and_a_part_is_not(network, tmp_path):
    run("--seeds", "1,5", "--network", network, "--outdir", tmp_path)
    (row, column) = (pixels(tmp_path / f"seed000{seed}.png") for seed in (1, 5))
    sheets, base = {}, ["--network", network, "--outdir", tmp_path]
    for part in ("all", "structure"):
        columns = "5,5,5,5,5,5,5"  # wider than the words above, so that the last mix is in the corner
        (path,) = run("mix", "--rows", 1, "--cols", columns, "--part", part, "--layers", "0-5", *base)
        sheets[part] = pixels(path)[-68:-4, -68:-4][::4, ::4]
    assert np.abs(sheets["all"] - column).max() <= 1
    assert min(np.abs(sheets["structure"] - other).max() for other in (row, column)) > 5


def test_classes(network, tmp_path):
    base = ["--network", network, "--grid", "6x1", "--outdir", tmp_path, "--seeds"]

    def strip(*arguments):
        return pixels(run(*base, *arguments)[0]).reshape(16, -1, 16, 3).transpose(1, 0, 2, 3)

    own, each = strip("0-5"), strip("0-5", "--class", "0-2")
    assert np.abs(own - each).max() <= 1  # a seed's own is its remainder
    assert np.abs(strip("4", "--class", 1) - own[4:5]).max() <= 1
    between = strip("4,4,4,4,4", "--class", "0,0+1,1,0:3+1,2:0.5")
    zero, both, one, near, two = between
    assert np.abs(both - zero).max() > 3 and np.abs(both - one).max() > 3
    assert np.abs(near - zero).mean() < np.abs(near - one).mean()
    assert np.abs(strip("4", "--class", "2") - two).max() <= 1


def test_labels_that_no_image_gets_are_noted(network, tmp_path):
    for seeds, noted in (("4", True), ("4-6", False)):
        options = ["--network", network, "--seeds", seeds, "--class", "0-2", "--outdir", tmp_path]
        result = done(script_here("generate.py", *options))
        assert ("note: 3 labels for 1 image: the last 2 not used" in result.stderr) == noted


def test_classes_by_name(tmp_path):
    """A name is its number in every command; names of files have what was written."""
    network = snapshot(tmp_path / "named.safetensors", {"class_names": ["cat", "big dog", "eel/otter"]})
    base = ["--network", network, "--outdir", tmp_path]
    run("--seeds", "5,5,5", "--class", "0,1,2", *base)
    run("--seeds", "5,5,5,5", "--class", "Cat,big dog,eel/otter,cat:0.5+2:1.5", *base)
    for number, name in enumerate(("Cat", "big_dog", "eel_otter")):
        by_number, by_name = (pixels(tmp_path / f"seed0005-class{text}.png") for text in (number, name))
        assert np.abs(by_number - by_name).max() <= 1
    assert (tmp_path / "seed0005-classcat_0.25+2_0.75.png").exists()
    for arguments in (["mix", "--rows", 1, "--cols", 2], ["kernels", "--seed", 1], ["directions", "--method", "pca"]):
        sheets = [pixels(run(*arguments, "--class", text, *base)[0]) for text in ("big dog", 1, 0)]
        assert np.array_equal(sheets[0], sheets[1]) and not np.array_equal(sheets[0], sheets[2])
    for text, words in (("eelotter", "did you mean eel/otter?"), ("big+cat", "--class big: "), ("3", "0 to 2")):
        assert words in mistake("generate.py", "--seeds", 1, "--class", text, *base)


def test_edits_keep_what_the_file_says_but_for_what_is_given(network, tmp_path):
    base = ["--network", network, "--outdir", tmp_path]
    run("directions", "--method", "sefa", "--layers", "1-3", "--part", "structure", *base)
    asked = []

    def edits(G, ws, directions, *rest):
        asked.append((directions.layers, directions.part))
        return [torch.zeros(5, 3, 16, 16, dtype=torch.uint8)]

    edit = ["directions", "--edit", tmp_path / "directions-sefa-structure-layers1-3.npz", *base]
    with mock.patch("latents.directions.generate_edits", edits):
        for given in ([], ["--layers", "2,4,5"], ["--part", "channels"], ["--part", "all"]):
            run(*edit, *given)
    assert asked == [
        ((1, 2, 3), "structure"), ((2, 4), "structure"), ((1, 2, 3), "channels"), ((1, 2, 3), "all")
    ]  # fmt: skip
    modconv = snapshot(tmp_path / "modconv.safetensors", modulation="modconv")
    assert "predicts no spatial kernels" in mistake("generate.py", *edit[:3], "--network", modconv)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_hardly_seen(tmp_path, precision):
    """Of the shipped model; the library computes the same."""
    shipped = ROOT / "pretrained" / "faces32.safetensors"
    for name in ("fp32", precision):
        run("--network", shipped, "--seeds", "0-7", "--precision", name, "--outdir", tmp_path / name)
    exact, half = (
        np.stack([pixels(tmp_path / name / f"seed{seed:04d}.png") for seed in range(8)]).astype(float)
        for name in ("fp32", precision)
    )
    assert 0 < np.abs(exact - half).mean() <= 1
    G = adaconv.Generator.from_pretrained(shipped)
    G.synthesis.compute_in(precision)
    with torch.no_grad():
        made = adaconv.to_uint8(G(G.latents(range(8)), c=[seed % G.config.c_dim for seed in range(8)]))
    assert np.abs(made.permute(0, 2, 3, 1).numpy() - half).mean() < 0.1
    with pytest.raises(ValueError, match="fp16 can overflow in a model without a clamp"):
        Generator(GeneratorConfig(16, cbase=64, cmax=4, clamp=None)).synthesis.compute_in("fp16")
    unclamped = snapshot(tmp_path / "unclamped.safetensors", clamp=None)
    halved = ["--network", unclamped, "--seeds", "0", "--precision", "fp16"]
    assert "take bf16 or fp32" in mistake("generate.py", *halved)
    G.synthesis.compute_in("fp32")
    assert all(block.compute_dtype is None for block in G.synthesis.blocks)


def test_mistakes_are_one_line(network, tmp_path):
    plain = snapshot(tmp_path / "plain.safetensors", c_dim=0)
    modconv = snapshot(tmp_path / "modconv.safetensors", modulation="modconv")
    (tmp_path / "x.npz").write_bytes(b"x")
    at = ["--network", network, "--outdir", tmp_path / "out"]
    for words, *arguments in (
        ("no command 'mixx'", "mixx"),
        ("there are no columns; name seeds, e.g. --cols 1-4", "mix", "--rows", 1),
        ("there are no rows; name seeds, e.g. --rows 1-4, or latents with --rows-w FILE", "mix", "--cols", 1),
        ("--part bias: this model predicts no bias", "mix", "--rows", 1, "--cols", 2, "--part", "bias", *at),
        ("which predicts no spatial", "mix", "--rows", 1, "--cols", 2, "--part", "structure", "--network", modconv),
        ("bias; take --part channels or all", "mix", "--rows", 1, "--cols", 2, "--part", "bias", "--network", modconv),
        ("has the layers 0 to 5", "mix", "--rows", 1, "--cols", 2, "--layers", "0-9", *at),
        ("is too large", "mix", "--rows", "0-999", "--cols", "0-999", *at),
        ("--trunc has 7 numbers", "--seeds", 1, "--trunc", "1,1,1,1,1,1,1", *at),
        ("Invalid value for '--trunc': '' is not a valid number.", "--seeds", 1, "--trunc", "1,,1", *at),
        ("Invalid value for '--trunc': 'a' is not a valid number.", "--seeds", 1, "--trunc", "a", *at),
        ("Invalid value for '--batch': 'a' is not a valid integer.", "--seeds", 1, "--batch", "a", *at),
        ("--class 3: the model has the classes 0 to 2", "--seeds", 1, "--class", "0+3", *at),
        ("'1:' is not a class", "--seeds", 1, "--class", "1:", *at),
        ("sum to 0", "--seeds", 1, "--class", "1:0", *at),
        ("without classes", "--seeds", 1, "--class", 0, "--network", plain),
        ("a walk needs two images", "video", "--seeds", 1, *at[:2]),
        ("pass the end of an --open walk", "video", "--seeds", "0-3", "--grid", "2x1", "--open", *at[:2]),
        ("more cells than there are images to walk through (4)", "video", "--seeds", "0-3", "--grid", "3x2", *at[:2]),
        ("animations are written as", "video", "--seeds", "0-3", "--out", "a.avi", *at[:2]),
        ("up to 50 frames", "video", "--seeds", "0-3", "--out", "a.gif", "--fps", 60, *at[:2]),
        ("limited to 16,383 pixels, not 16,384", "video", "--seeds", "0-3", "--grid", "4x1", "--scale", 64,
         "--network", snapshot(tmp_path / "large.safetensors", resolution=64), "--out", tmp_path / "a.webp"),
        ("is 1 frame;", "video", "--seeds", "0-3", "--seconds", 0.1, "--fps", 10, *at[:2]),
        ("name one seed", "kernels", *at),
        ("takes two seeds, not 3", "kernels", "--compare", "1-3", *at),
        ("--layer 5 is the last ToRGB", "kernels", "--seed", 1, "--layer", 5, *at),
        ("--layer 6: the model has the layers", "kernels", "--seed", 1, "--layer", 6, *at),
        ("holds no directions", "directions", "--edit", tmp_path / "x.npz", *at),
        ("there is no", "directions", "--edit", tmp_path / "y.npz", *at),
        ("leave them out", "directions", "--edit", tmp_path / "x.npz", "--count", 3, *at),
        ("there are only the directions 0 to 7", "directions", "--direction", 8, *at),
    ):  # fmt: skip
        assert words in mistake("generate.py", *arguments), words
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_what_varies_is_in_the_names(network, tmp_path):
    """A class that varies is part of the name, so that no image takes the place of another."""
    base = ["--network", network, "--outdir"]
    for i, (arguments, names) in enumerate(
        {
            ("--seeds", "5,5,5", "--class", "0,1,2"): [f"seed0005-class{c}" for c in (0, 1, 2)],
            ("--seeds", "5-7", "--class", "0,1"): ["seed0005-class0", "seed0006-class1", "seed0007-class0"],
            ("--seeds", "5,5,5", "--class", "0,0+1,0:1+1:3"): [
                "seed0005-class0", "seed0005-class0+1", "seed0005-class0_0.25+1_0.75",
            ],
            ("--seeds", "5-6", "--class", "2"): ["seed0005", "seed0006"],
            ("--seeds", "5-6", "--class", "2,2"): ["seed0005", "seed0006"],
        }.items()
    ):  # fmt: skip
        (line,) = run(*arguments, *base, tmp_path / str(i))
        assert line.startswith(f"{len(names)} images in")
        assert {path.name for path in (tmp_path / str(i)).iterdir()} == {f"{name}.png" for name in names}
    assert [len(name) for name in image_names([5, 6], ["a" * 300, "a" * 299 + "b"])] == [120, 120]
    assert len(set(image_names([5, 5], ["a" * 300, "a" * 299 + "b"]))) == 2  # longer than a file's name may be
    (line,) = run("--seeds", 3, *base, tmp_path)
    assert line.startswith("1 image in")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [(["--seeds", "5,6,5"], "seed0005"), (["--seeds", "5,6,5", "--class", "0,1"], "seed0005-class0")],
)
def test_a_name_that_would_be_written_twice_is_refused_at_once(tmp_path, arguments, name):
    """Before the model is looked for."""
    message = mistake("generate.py", *arguments, "--network", tmp_path / "absent", "--outdir", tmp_path / "out")
    assert f"2 images would be written to {name}.png" in message


def test_every_choice_of_a_sheet_has_a_file_of_its_own(network, tmp_path):
    base = ["--network", network, "--outdir", tmp_path]
    mix, kernels = ["mix", "--rows", 1, "--cols", "2-3"], ["kernels", "--seed", 1]
    directions = ["directions", "--method", "pca", "--count", 1, "--amount", "0"]
    commands = [
        ["--seeds", "0-3", "--grid", "4x1"],
        ["--seeds", "0,1,3", "--grid", "4x1"],
        ["--seeds", "0,2,3", "--grid", "4x1"],
        ["--seeds", "0,2,3", "--grid", "4x1", "--class", "0,1"],
        mix,
        ["mix", "--rows", 1, "--cols", "2,4,3"],
        [*mix, "--layers", "0-2"],
        [*mix, "--layers", "0,2"],
        [*mix, "--part", "channels"],
        [*mix, "--part", "channels", "--layers", "0-2"],
        [*mix, "--class", "0,1"],
        kernels,
        [*kernels, "--layer", "1"],
        directions,
        [*directions, "--layers", "1-3"],
        [*directions, "--part", "structure"],
    ]
    printed = [path for command in commands for path in run(*command, *base)]
    assert len(set(printed)) == len(printed) == len(list(tmp_path.iterdir()))


def test_directions_of_another_model_are_noted(network, tmp_path):
    base = ["--amount", 0, "--outdir", tmp_path]
    run("directions", "--network", network, "--method", "pca", *base)
    edit = ["generate.py", "directions", "--edit", tmp_path / "directions-pca.npz", *base, "--network"]
    other = snapshot(tmp_path / "other.safetensors", depthwise_scale=0.4)
    assert "note:" not in done(script_here(*edit, network)).stderr
    note = f"note: {tmp_path / 'directions-pca.npz'} was made with another model than {other}"
    assert note in done(script_here(*edit, other)).stderr
    old = dict(np.load(tmp_path / "directions-pca.npz"))
    del old["fingerprint"]  # as files were written before
    np.savez(tmp_path / "directions-pca.npz", **old)
    assert "note:" not in done(script_here(*edit, other)).stderr


def test_help_names_every_command():
    help_text = CliRunner().invoke(generate.main, ["--help"]).output
    for name in ("mix", "video", "kernels", "directions"):
        assert re.search(rf"^  {name} ", help_text, re.MULTILINE)
        own = CliRunner().invoke(generate.main, [name, "--help"]).output
        assert f"python generate.py {name}" in own and "--network" in own


def test_seeds_of_stylegan2_in_every_command(tmp_path):
    """The image of a seed is that of the z of NVIDIA's programs, and another one without the option."""
    network = snapshot(tmp_path / "plain.safetensors", c_dim=0)
    base = ["--network", network, "--seeds-of", "stylegan2", "--outdir", tmp_path]
    run("--seeds", "3,4", *base)
    G = adaconv.Generator.from_pretrained(network)
    images = {seed: pixels(tmp_path / f"seed{seed:04d}.png") for seed in (3, 4)}
    for seed, image in images.items():
        z = torch.from_numpy(np.random.RandomState(seed).randn(1, G.config.z_dim))
        expected = adaconv.to_uint8(G(z.float()))[0].permute(1, 2, 0).numpy()
        assert np.abs(image - expected).max() <= 1
        assert torch.equal(G.latents([seed], of="stylegan2"), z.float())
    (mixes,) = run("mix", "--rows", 3, "--cols", 4, *base)
    assert all(holds(pixels(mixes), image) for image in images.values())
    sheets = run("kernels", "--seed", 3, *base)[:1], run("directions", "--seeds", 3, "--method", "pca", *base)[:1]
    assert holds(pixels(*sheets[0]), images[3], 8) and holds(pixels(*sheets[1]), images[3])
    run("video", "--seeds", "3,4", "--fps", 2, "--scale", 1, *base[:4], "--out", tmp_path / "walk.apng")
    with Image.open(tmp_path / "walk.apng") as walk:
        assert np.abs(np.asarray(walk.convert("RGB")).astype(int) - images[3]).max() <= 1
    run("--seeds", "3", "--network", network, "--outdir", tmp_path / "own")
    assert np.abs(pixels(tmp_path / "own" / "seed0003.png") - images[3]).max() > 5
    for command in (["--seeds"], ["mix", "--rows", 1, "--cols"], ["video", "--seeds"], ["kernels", "--seed"]):
        seeds = f"1,{2**32}" if command[0] == "video" else 2**32
        where = base[:4] if command[0] == "video" else base
        assert f"go up to 4294967295, and {2**32} is larger" in mistake("generate.py", *command, seeds, *where)
