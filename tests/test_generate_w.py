"""generate.py with latents of files: the image of a file's latents is the same in every command, and can be named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latents.codes import Codes, fingerprint, save_codes
from models.snapshot import load_generator, save_snapshot
from tests.scripts import done, mistake, script_here
from tests.test_generate import holds, pixels, run, snapshot


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a model of noise, and latents for each layer (w+) of three targets in two files."""
    folder = tmp_path_factory.mktemp("codes")
    model = snapshot(folder / "model.safetensors", c_dim=0, noise=True)
    G, _ = load_generator(model)
    for layer in G.synthesis.layers():
        layer.noise_strength.fill_(0.3)
    save_snapshot(model, G, {"kimg": 1})
    torch.manual_seed(3)
    ws = torch.randn(3, G.config.num_ws, 8)
    noise = [torch.randn(3, 1, *layer.size) for layer in G.synthesis.layers()]
    for name, part, targets in (("one", slice(1), ["anna.jpg"]), ("two", slice(1, 3), ["bob.png", "sub/carl.png"])):
        about = {"targets": targets, "fingerprint": fingerprint(model)}
        save_codes(folder / f"projected-{name}.npz", Codes(ws[part], [maps[part] for maps in noise], about))
    save_codes(folder / "plain.npz", Codes(ws[:1]))  # without noise maps, and it does not say of what
    np.savez(folder / "w.npz", w=np.random.default_rng(0).standard_normal((1, 8)).astype(np.float32))  # one w
    return folder


def images_of(place: Path, out: Path, *more: object) -> dict[str, np.ndarray]:
    """The images of all targets and of the seeds 4 and 5, by name."""
    base = ["--network", place / "model.safetensors", "--outdir", out, *more]
    run("--w", place / "projected-*.npz", *base)
    run("--seeds", "4,5", *base)
    return {path.stem: pixels(path) for path in out.glob("*.png")}


def test_latents_have_one_image_in_every_command(place, tmp_path):
    images = images_of(place, tmp_path / "images", "--trunc", 0.8)
    assert set(images) == {"w-anna", "w-bob", "w-sub_carl", "seed0004", "seed0005"}
    base = ["--network", place / "model.safetensors", "--trunc", 0.8]
    one, two = place / "projected-one.npz", place / "projected-two.npz"
    (mixes,) = run("mix", "--rows-w", one, "--rows", 4, "--cols-w", two, "--cols", 5, *base, "--outdir", tmp_path)
    assert Path(mixes).name == "mix-anna_0004-bob_sub_carl_0005.png"
    assert all(holds(pixels(mixes), image) for image in images.values())
    sheets = run("directions", "--w", one, "--count", 2, *base, "--outdir", tmp_path)
    assert [Path(path).name for path in sheets[::2]] == ["directions-pca-anna.png", "directions-sefa-anna.png"]
    for path in sheets[::2]:
        assert holds(pixels(path), images["w-anna"]) and not holds(pixels(path), images["seed0004"])
    edit = ["directions", "--edit", sheets[1], "--w", two, "--seeds", 4, "--amount", "0,2", *base]
    (edited,) = run(*edit, "--outdir", tmp_path)
    assert Path(edited).name == "edit-directions-pca-bob_sub_carl_0004.png"
    assert all(holds(pixels(edited), images[name]) for name in ("w-bob", "w-sub_carl", "seed0004"))


@pytest.mark.parametrize("way", [[], ["--open"]])
@pytest.mark.parametrize("interpolation", ["spline", "slerp", "linear"])
def test_a_walk_passes_the_images_of_files_and_then_those_of_seeds(place, tmp_path, way, interpolation):
    images = images_of(place, tmp_path)
    out = tmp_path / "walk.apng"
    files = ["--w", place / "projected-one.npz", "--w", place / "projected-two.npz", "--seeds", "4,5"]
    (line,) = run("video", "--network", place / "model.safetensors", *files, "--interp", interpolation, *way,
                  "--fps", 2, "--scale", 1, *(["--seconds", 4.5] if way else []), "--out", out)  # fmt: skip
    assert line == f"{out}: 10 frames, 5 seconds" if not way else line == f"{out}: 9 frames, 4.5 seconds"
    with Image.open(out) as walk:
        for i, name in enumerate(("w-anna", "w-bob", "w-sub_carl", "seed0004", "seed0005")):
            walk.seek(2 * i)
            assert np.abs(np.asarray(walk.convert("RGB")).astype(int) - images[name]).max() <= 1, name
        assert walk.n_frames == (9 if way else 10)


def test_an_open_walk_of_seeds_ends_at_the_last_one(place, tmp_path):
    images = images_of(place, tmp_path)
    for space in ("w", "z"):
        out = tmp_path / f"{space}.apng"
        (line,) = run("video", "--network", place / "model.safetensors", "--seeds", "4,5", "--open", "--space", space,
                      "--fps", 6, "--scale", 1, "--out", out)  # fmt: skip
        assert line.endswith("6 frames, 1 second")  # from one image to the next
        with Image.open(out) as walk:
            for number, name in ((0, "seed0004"), (5, "seed0005")):
                walk.seek(number)
                assert np.abs(np.asarray(walk.convert("RGB")).astype(int) - images[name]).max() <= 1


def test_all_of_a_column_of_a_model_without_noise_is_its_image(tmp_path):
    network = snapshot(tmp_path / "model.safetensors", c_dim=0)
    torch.manual_seed(3)
    save_codes(tmp_path / "a.npz", Codes(torch.randn(1, 6, 8)))
    base = ["--network", network, "--outdir", tmp_path]
    run("--w", tmp_path / "a.npz", *base)
    columns = ["--cols-w", tmp_path / "a.npz"] * 7  # wider than the words above, so that the last mix is in the corner
    (path,) = run("mix", "--rows", 1, *columns, "--layers", "0-5", *base)
    assert np.abs(pixels(path)[-68:-4, -68:-4][::4, ::4] - pixels(tmp_path / "w0000.png")).max() <= 1


def test_files_that_do_not_name_targets_are_numbered_and_one_w_is_enough(place, tmp_path):
    base = ["--network", place / "model.safetensors", "--outdir", tmp_path]
    files = ["--w", place / "plain.npz", "--w", place / "projected-one.npz", "--w", place / "w.npz"]
    run(*files, *base)
    assert {path.name for path in tmp_path.iterdir()} == {"w0000.png", "w-anna.png", "w0002.png"}
    (sheet,) = run(*files, "--grid", "3x1", *base)
    assert Path(sheet).name == "w-w0000_anna_w0002.png"
    for i, name in enumerate(("w0000", "w-anna", "w0002")):
        assert np.abs(pixels(sheet)[:, 16 * i : 16 * i + 16] - pixels(tmp_path / f"{name}.png")).max() <= 1


def test_classes_apply_to_the_seeds_beside_latents(tmp_path):
    network = snapshot(tmp_path / "classes.safetensors")
    save_codes(tmp_path / "a.npz", Codes(torch.randn(1, 6, 8)))
    base = ["--network", network, "--outdir", tmp_path]
    run("--seeds", 4, "--class", 2, *base)
    (mixes,) = run("mix", "--rows-w", tmp_path / "a.npz", "--cols", 4, "--class", 2, *base)
    assert holds(pixels(mixes), pixels(tmp_path / "seed0004.png"))
    (both,) = run("mix", "--rows-w", tmp_path / "a.npz", "--cols-w", tmp_path / "a.npz", *base)  # no seed at all
    assert Path(both).name == "mix-w0000-w0000.png"
    run(
        "video",
        "--w",
        tmp_path / "a.npz",
        "--w",
        tmp_path / "a.npz",
        "--fps",
        2,
        *base[:2],
        "--out",
        tmp_path / "a.gif",
    )


def test_another_model_is_noted_in_every_command(place, tmp_path):
    other = snapshot(tmp_path / "other.safetensors", c_dim=0, noise=True)
    file = place / "projected-one.npz"
    for command in (["--w", file], ["mix", "--rows-w", file, "--cols", 1], ["directions", "--w", file],
                    ["video", "--w", file, "--seeds", 1, "--fps", 2]):  # fmt: skip
        where = ["--out", tmp_path / "a.gif"] if command[0] == "video" else ["--outdir", tmp_path]
        result = done(script_here("generate.py", *command, "--network", other, *where))
        assert result.stderr.count(f"note: {file} was made with another model than {other}") == 1


def test_mistakes_with_latents_are_one_line(place, tmp_path):
    classes = snapshot(tmp_path / "classes.safetensors")
    (tmp_path / "x.npz").write_bytes(b"x")
    file = place / "projected-one.npz"
    at = ["--network", place / "model.safetensors"]
    for words, *arguments in (
        ("a walk needs two images", "video", "--w", file, *at),
        ("--space z walks between the z of seeds", "video", "--w", file, "--seeds", 1, "--space", "z", *at),
        ("there is no", "video", "--w", tmp_path / "none.npz", *at),
        ("cannot be read as latents", "mix", "--rows-w", tmp_path / "x.npz", "--cols", 1, *at),
        ("cannot be read as latents", "directions", "--w", tmp_path / "x.npz", *at),
        ("no file fits", "--w", tmp_path / "none-*.npz", *at),
        ("--seeds-of says what seeds draw", "--w", file, "--seeds-of", "stylegan2", *at),
        ("--class applies to seeds", "directions", "--w", file, "--class", 1, "--network", classes),
        ("--class applies to seeds", "mix", "--rows-w", file, "--cols-w", file, "--class", 1, "--network", classes),
        ("the class of the latents of --cols-w is not known", "mix", "--rows", 1, "--cols-w", file, "--trunc-class",
         "--trunc", 0.5, "--network", classes),
        ("has more cells than there are images to walk through (3)", "video", "--w", file, "--w",
         place / "projected-two.npz", "--grid", "2x2", *at),
        ("is too large", "mix", "--rows-w", file, "--rows", "0-9999", "--cols", "0-9999", *at),
    ):  # fmt: skip
        assert words in mistake("generate.py", *arguments), words
