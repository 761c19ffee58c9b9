"""stylize.py as a user types it: images, folders and videos, and every mistake in one line."""

from __future__ import annotations

import io
import os
import runpy
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from media.files import read_image
from media.images import to_float, to_uint8
from models.snapshot import find_snapshot, load_stylizer, save_snapshot, save_stylizer
from networks.generator import Generator, GeneratorConfig
from networks.stylizer import Stylizer, StylizerConfig, mix, structure_and_statistics, weakened
from styling.styles import read_style
from torch_utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def stylize(*arguments, cwd: Path = ROOT) -> SimpleNamespace:
    """Runs the script in this process, which has everything imported already: exit code, stdout and stderr."""
    out, err, code, old = io.StringIO(), io.StringIO(), 0, os.getcwd()
    argv = [str(ROOT / "stylize.py"), *map(str, arguments)]
    try:
        os.chdir(cwd)
        with redirect_stdout(out), redirect_stderr(err), mock.patch.object(sys, "argv", argv):
            runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as stopped:
        code = stopped.code or 0
    finally:
        os.chdir(old)
    return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())


def done(*arguments, **options) -> str:
    """What a run that works prints."""
    result = stylize(*arguments, **options)
    assert result.code == 0, result.err
    return result.out


def mistake(*arguments, **options) -> str:
    """The one line that a user's mistake gets."""
    result = stylize(*arguments, **options)
    lines = [line for line in result.err.splitlines() if not line.startswith("model: ")]
    assert result.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), result.err
    return lines[0]


def save(path: Path, seed: int, height: int = 48, width: int = 64) -> Path:
    coarse = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(seed))
    image = (F.interpolate(coarse, size=(height, width), mode="bicubic")[0] * 255).clamp(0, 255).to(torch.uint8)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory, stylizer) -> Path:
    """A folder with a model, two styles, a content, and a folder of contents."""
    folder = tmp_path_factory.mktemp("stylize")
    save_stylizer(folder / "model.safetensors", stylizer, {"kimg": 3})
    save(folder / "a.png", 1, 70, 80)
    save(folder / "b.png", 2, 80, 70)
    save(folder / "photo.png", 3)
    (folder / "photos").mkdir()
    for i in range(3):
        save(folder / "photos" / f"{i}.png", 4 + i)
    return folder


@pytest.fixture
def start(place) -> list:
    """The beginning of a command line that works."""
    return ["--model", place / "model.safetensors", "--content", place / "photo.png"]


def plain(model: Stylizer, content: Path, kernels) -> torch.Tensor:
    with torch.no_grad():
        return to_uint8(model(to_float(read_image(content)[None]), kernels))[0]


def most(path: Path, expected: Path | torch.Tensor) -> int:
    """The largest difference of two images."""
    expected = read_image(expected) if isinstance(expected, Path) else expected
    return int((read_image(path).int() - expected.int()).abs().max())


# --- images -------------------------------------------------------------------------------------------------------


def test_images_are_what_the_library_gives(start, place, stylizer, tmp_path):
    a, b = (read_style(stylizer, place / name).kernels for name in ("a.png", "b.png"))
    photo, out = place / "photo.png", tmp_path / "new" / "y.png"
    style = ["--style", place / "a.png", "--style", place / "b.png"]
    x = to_float(read_image(photo)[None])
    for options, kernels in (
        (style[:2], a),
        ([*style, "--mix", "0.7,0.3"], mix([a, b], [0.7, 0.3])),
        ([*style[:2], "--strength", "0.3"], weakened(stylizer, x, a, 0.3)),
        ([*style[:2], "--strength", "0"], stylizer.kernels(x)),
        (
            ["--structure-from", place / "a.png", "--statistics-from", place / "b.png"],
            structure_and_statistics(a, b),
        ),
    ):
        assert done(*start, *options, "--out", out) == f"{out}\n"
        assert most(out, plain(stylizer, photo, kernels)) == 0
    assert most(out, plain(stylizer, photo, a)) > 5


def test_weights_of_one_and_nothing_are_the_first_style(start, place, tmp_path):
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    done(*start, "--style", place / "a.png", "--out", one)
    done(*start, "--style", place / "a.png", "--style", place / "b.png", "--mix", "1,0", "--out", two)
    assert most(one, two) == 0
    done(*start, "--structure-from", place / "a.png", "--statistics-from", place / "a.png", "--out", two)
    assert most(one, two) == 0


def test_a_saved_style_is_the_style(start, place, tmp_path):
    saved = tmp_path / "styles" / "a.safetensors"
    assert done(*start[:2], "--style", place / "a.png", "--save-style", saved) == f"{saved}\n"
    for name, style in (("image", place / "a.png"), ("kernels", saved)):
        done(*start, "--style", style, "--out", tmp_path / f"{name}.png")
    assert most(tmp_path / "image.png", tmp_path / "kernels.png") == 0
    both = ["--style", saved, "--style", place / "b.png", "--mix", "0.5,0.5"]
    done(*start, *both, "--save-style", tmp_path / "mixed.safetensors", "--out", tmp_path / "mixed.png")
    done(*start, "--style", tmp_path / "mixed.safetensors", "--out", tmp_path / "again.png")
    assert most(tmp_path / "mixed.png", tmp_path / "again.png") == 0
    assert "is there already" in mistake(*start[:2], "--style", place / "b.png", "--save-style", saved)


def test_a_grey_content_stays_grey(start, place, tmp_path):
    Image.open(place / "photo.png").convert("L").save(tmp_path / "grey.png")
    done(*start[:2], "--content", tmp_path / "grey.png", "--style", place / "a.png", "--out", tmp_path / "color.png")
    options = ["--style", place / "a.png", "--preserve-color", "luminance", "--out", tmp_path / "kept.png"]
    done(*start[:2], "--content", tmp_path / "grey.png", *options)
    spread = [np.ptp(np.asarray(Image.open(tmp_path / name)), axis=2).max() for name in ("color.png", "kept.png")]
    assert spread[0] > 10 and spread[1] == 0


def test_a_mask_divides_between_styles(start, place, tmp_path):
    mask = np.zeros((48, 64), np.uint8)
    mask[:, 32:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    styles = ["--style", place / "a.png", "--style", place / "b.png"]
    done(*start, *styles, "--out", tmp_path / "each")
    a, b = (read_image(tmp_path / "each" / f"photo-{name}.png") for name in "ab")
    done(*start, *styles, "--mask", tmp_path / "mask.png", "--out", tmp_path / "hard.png")
    assert most(tmp_path / "hard.png", torch.cat([b[..., :32], a[..., 32:]], 2)) == 0
    done(*start, *styles, "--mask", tmp_path / "mask.png", "--feather", "3", "--out", tmp_path / "soft.png")
    soft = read_image(tmp_path / "soft.png")
    assert torch.equal(soft[..., :22], b[..., :22]) and torch.equal(soft[..., 42:], a[..., 42:])
    assert not torch.equal(soft[..., 22:32], b[..., 22:32])


def test_tiles_change_nothing(start, place, tmp_path):
    save(tmp_path / "large.png", 9, 150, 203)
    style = [*start[:2], "--content", tmp_path / "large.png", "--style", place / "a.png"]
    for tile in ("none", "64", "auto"):
        done(*style, "--tile", tile, "--out", tmp_path / f"{tile}.png")
    assert most(tmp_path / "64.png", tmp_path / "none.png") <= 1
    assert most(tmp_path / "auto.png", tmp_path / "none.png") == 0


def test_kinds_of_files(start, place, tmp_path):
    for name, kind in (("a.jpg", "JPEG"), ("b.webp", "WEBP"), ("c.png", "PNG")):
        done(*start, "--style", place / "a.png", "--out", tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert image.format == kind and image.size == (64, 48)
    done(*start, "--style", place / "a.png", "--out", tmp_path, "--format", "webp")
    assert (tmp_path / "photo-a.webp").exists()


# --- folders --------------------------------------------------------------------------------------------------------


def test_a_folder_goes_on_where_it_stopped(start, place, tmp_path):
    out = tmp_path / "out"
    command = [*start[:2], "--content", place / "photos", "--style", place / "a.png", "--style", place / "b.png"]
    command += ["--out", out]
    assert done(*command) == f"6 images in {out}\n"
    names = sorted(path.name for path in out.iterdir())
    assert names == [f"{i}-{style}.png" for i in range(3) for style in "ab"]
    (out / "1-a.png").unlink()
    (out / "2-b.png").write_bytes(b"kept")
    assert done(*command) == f"1 image in {out}\n" and (out / "2-b.png").read_bytes() == b"kept"
    assert done(*command) == f"nothing new (--overwrite makes what is there anew) in {out}\n"
    assert done(*command, "--overwrite") == f"6 images in {out}\n" and (out / "2-b.png").read_bytes() != b"kept"
    one = [*start[:2], "--content", place / "photos" / "2.png", "--style", place / "b.png"]
    done(*one, "--out", tmp_path / "one.png")
    assert most(out / "2-b.png", tmp_path / "one.png") == 0


def test_a_bad_file_in_a_folder_is_named_at_the_end(start, place, tmp_path):
    shutil.copytree(place / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "0.png").write_bytes(b"no image")
    (tmp_path / "photos" / "film.mp4").write_bytes(b"no film")
    (tmp_path / "photos" / "notes.txt").write_text("not looked at")
    result = stylize(
        *start[:2], "--content", tmp_path / "photos", "--style", place / "a.png", "--out", tmp_path / "out"
    )
    assert result.code == 2 and result.out == f"2 images in {tmp_path / 'out'}\n"
    *_, first, second, last = result.err.splitlines()
    assert first.startswith("not stylized: ") and "0.png is not an image" in first
    assert second.startswith("not stylized: ") and "film.mp4" in second
    assert last == "error: 2 of 4 contents are bad: 0.png, film.mp4"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1-a.png", "2-a.png"]


def test_one_look_of_a_content_fails(start, place, tmp_path, monkeypatch):
    """The others are made, and counted as such."""
    from styling import jobs

    write = jobs.write_image

    def picky(image, path):
        if path.name == "1-b.png":
            raise UserError(f"cannot write {path}")
        write(image, path)

    monkeypatch.setattr(jobs, "write_image", picky)
    command = [*start[:2], "--content", place / "photos", *["--style", place / "a.png", "--style", place / "b.png"]]
    out = tmp_path / "out"
    c = save(tmp_path / "c.png", 9)
    result = stylize(*command, "--style", c, "--out", out)
    assert result.code == 2 and result.out == f"8 images in {out}\n"
    assert result.err.splitlines()[-2:] == [
        f"not stylized: cannot write {out / '1-b.png'}", "error: 1 of 3 contents are bad: 1.png"
    ]  # fmt: skip
    assert len(list(out.iterdir())) == 8 and (out / "1-c.png").exists()


def test_names_that_are_too_long_for_files(start, place, tmp_path):
    """Of many styles in one, cut to what a file's name may have; and each is found again."""
    folder, look = tmp_path / "styles", []
    folder.mkdir()
    for i in range(4):
        look += ["--style", save(folder / f"{i}-{'é' * 60}.png", i)]
    command = [*start, *look, "--mix", "0.25,0.25,0.25,0.25", "--out", tmp_path / "out"]
    assert done(*command) == f"1 image in {tmp_path / 'out'}\n"
    assert done(*command) == f"nothing new (--overwrite makes what is there anew) in {tmp_path / 'out'}\n"
    (name,) = os.listdir(tmp_path / "out")
    assert name.startswith("photo-0-éé") and name.endswith(".png") and len(os.fsencode(name)) <= 255
    done(*command[:-1], tmp_path / f"{'y' * 251}.png")  # and what is written beside it first
    long = "y" * 300
    style = look[:2]
    assert "name too long" in mistake(*start, *style, "--out", tmp_path / f"{long}.png")
    assert "name too long" in mistake(*start, *style, "--save-style", tmp_path / f"{long}.safetensors")
    assert "there is no" in mistake(*start[:2], "--content", tmp_path / f"{long}.png", *style)
    assert "does not exist" in mistake("--model", long, *start[2:], *style)


def test_contents_that_are_too_small_for_the_kernels(place, tmp_path):
    """Kernels of 7 × 7 reach 3 pixels of relu4_1 beyond the border, which are 24 of the content."""
    torch.manual_seed(0)
    save_stylizer(tmp_path / "wide.safetensors", Stylizer(StylizerConfig(1 / 16, "adaconv", 64, kernel_size=7)), {})
    (tmp_path / "in").mkdir()
    for side in (24, 25):
        save(tmp_path / "in" / f"{side}.png", side, side, 40)
    start = ["--model", tmp_path / "wide.safetensors", "--style", place / "a.png", "--content"]
    for tile in ("auto", "none", "16"):
        options = ["--tile", tile, "--out", tmp_path / tile]
        result = stylize(*start, tmp_path / "in", *options)
        assert result.code == 2 and result.out == f"1 image in {tmp_path / tile}\n"
        assert "24.png has 40x24 pixels; each side needs 25 or more" in result.err
    assert most(tmp_path / "16" / "25-a.png", tmp_path / "none" / "25-a.png") <= 1
    assert "24x24 pixels; each side needs 25" in mistake(*start, film(tmp_path / "film.mp4", 2, 24, 24))


# --- videos ---------------------------------------------------------------------------------------------------------


def film(path: Path, count: int = 12, height: int = 48, width: int = 64, noise: float = 4) -> Path:
    """A still image with new noise in each frame, 12 a second, and a tone."""
    av = pytest.importorskip("av")
    rng = np.random.default_rng(0)
    coarse = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    still = F.interpolate(coarse, size=(height, width), mode="bicubic")[0].permute(1, 2, 0).numpy() * 180 + 38
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=12, options={"crf": "1"})
        video.height, video.width, video.pix_fmt = height, width, "yuv420p"
        sound = out.add_stream("aac", rate=48000, layout="mono")
        for _ in range(count):
            image = (still + noise * rng.normal(size=still.shape)).round().clip(0, 255).astype(np.uint8)
            out.mux(video.encode(av.VideoFrame.from_ndarray(image)))
        out.mux(video.encode(None))
        wave = (np.sin(np.arange(4000 * count) / 17) * 9000).astype(np.int16)
        block = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
        block.sample_rate = 48000
        out.mux(sound.encode(block))
        out.mux(sound.encode(None))
    return path


def frames(path: Path) -> torch.Tensor:
    from media import video

    return torch.stack(list(video.frames(path)))


def sound(path: Path) -> list[bytes]:
    import av

    with av.open(str(path)) as file:
        return [bytes(packet) for packet in file.demux(audio=0) if packet.size]


def change(images: torch.Tensor) -> float:
    """The root mean square of what changes from frame to frame."""
    return (images[1:].float() - images[:-1].float()).square().mean().sqrt().item()


def test_a_video_keeps_what_it_has_and_is_calm(start, place, tmp_path):
    source = film(tmp_path / "film.mp4", 24)
    command = [*start[:2], "--content", source, "--style", place / "a.png"]
    for smooth in ("0", "0.8"):
        out = tmp_path / f"{smooth}.mp4"
        assert done(*command, "--smooth", smooth, "--out", out) == f"{out}\n"
    done(*command, "--out", tmp_path / "default.mkv", "--batch", "3")
    rough, calm, default = (frames(tmp_path / name) for name in ("0.mp4", "0.8.mp4", "default.mkv"))
    assert len(rough) == len(calm) == len(default) == 24 and rough.shape[1:] == (3, 48, 64)
    assert change(rough[8:]) > 5 and change(calm[8:]) < 0.5 * change(rough[8:])
    # alike as two encodings of images that differ by rounding are, which take other decisions
    assert change(default[8:]) == pytest.approx(change(calm[8:]), rel=0.1)
    assert (calm.float() - default.float()).abs().mean() < (calm.float() - rough.float()).abs().mean() / 3
    for name in ("0.mp4", "0.8.mp4", "default.mkv"):
        assert sound(tmp_path / name) == sound(source)
        from media.video import VideoReader

        with VideoReader(tmp_path / name) as reader:
            assert reader.rate == 12


def test_frames_of_a_video_are_images(start, place, stylizer, tmp_path):
    source = film(tmp_path / "film.mp4", 3)
    options = ["--style", place / "a.png", "--style", place / "b.png", "--mix", "0.5,0.5", "--strength", "0.6"]
    command = [*start[:2], "--content", source, *options, "--preserve-color", "luminance"]
    done(*command, "--smooth", "0", "--out", tmp_path / "y.mp4")
    made = frames(tmp_path / "y.mp4")
    for i, frame in enumerate(frames(source)):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(tmp_path / "frame.png")
        done(*start[:2], "--content", tmp_path / "frame.png", *command[4:], "--out", tmp_path / "expected.png")
        assert (made[i].float() - read_image(tmp_path / "expected.png").float()).abs().mean() < 8  # H.264's loss


def test_videos_in_a_folder(start, place, tmp_path):
    (tmp_path / "in").mkdir()
    film(tmp_path / "in" / "film.mkv", 2)
    shutil.copy(place / "photo.png", tmp_path / "in")
    moving = [Image.open(place / "photos" / f"{i}.png") for i in range(3)]
    moving[0].save(tmp_path / "in" / "moving.gif", save_all=True, append_images=moving[1:])
    command = [*start[:2], "--content", tmp_path / "in", "--style", place / "a.png", "--out", tmp_path / "out"]
    assert done(*command) == f"1 image and 2 videos in {tmp_path / 'out'}\n"
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["film-a.mkv", "moving-a.mp4", "photo-a.png"]
    assert len(frames(tmp_path / "out" / "moving-a.mp4")) == 3
    assert done(*command) == f"nothing new (--overwrite makes what is there anew) in {tmp_path / 'out'}\n"


# --- the model ------------------------------------------------------------------------------------------------------


def test_which_model(place, stylizer, tmp_path, monkeypatch):
    """The newest stylizer under runs, not the newest snapshot; else the shipped one; a damaged one is told of."""
    style = ["--content", place / "photo.png", "--style", place / "a.png", "--out", "y.png"]
    monkeypatch.setattr("models.snapshot.PRETRAINED", tmp_path / "pretrained")
    (tmp_path / "pretrained").mkdir()
    shipped = tmp_path / "pretrained" / "stylizer-small.safetensors"
    line = mistake(*style, cwd=tmp_path)
    assert f"no stylizer under runs, and {shipped} is not there; train one with train_stylizer.py" in line
    save_stylizer(shipped, stylizer, {}, half=True)
    result = stylize(*style, cwd=tmp_path)
    assert result.code == 0 and result.err == f"model: {shipped} (adaconv, width 0.125)\n"
    runs = [tmp_path / "runs" / f"0000{i}-x" for i in range(3)]
    for run in runs:
        run.mkdir(parents=True)
    paths = [run / "snapshot-000001.safetensors" for run in runs]
    save_stylizer(paths[0], stylizer, {})
    G = Generator(GeneratorConfig(16, cbase=128, cmax=8, map_depth=2, z_dim=8, w_dim=8, style_channels=4))
    save_snapshot(paths[1], G, {})
    for i, path in enumerate(paths[:2]):
        os.utime(path, (i, i))
    result = stylize(*style, cwd=tmp_path)
    assert result.code == 0 and result.err == "model: runs/00000-x/snapshot-000001.safetensors (adaconv, width 0.125)\n"
    assert find_snapshot(tmp_path / "runs") == paths[1]
    assert "no snapshot of a stylizer under" in mistake("--model", runs[1], *style)
    assert "but of kind 'generator'" in mistake("--model", paths[1], *style)
    paths[2].write_bytes(b"damaged")
    assert "cannot be read as a stylizer" in mistake(*style, cwd=tmp_path)
    paths[2].unlink()
    loaded, _ = load_stylizer(paths[0])
    kernels = read_style(loaded, place / "a.png").kernels
    assert most(tmp_path / "y.png", plain(loaded, place / "photo.png", kernels)) == 0


def test_where_results_go_without_out(start, place, tmp_path):
    """Into the folder out, named after content and style; a single image is made anew each time."""
    a, b = ["--style", place / "a.png"], ["--style", place / "b.png"]
    done(*start, *a, "--out", tmp_path / "expected.png")
    for _ in range(2):
        assert done(*start, *a, cwd=tmp_path) == "out/photo-a.png\n"
        assert most(tmp_path / "out" / "photo-a.png", tmp_path / "expected.png") == 0
        (tmp_path / "out" / "photo-a.png").write_bytes(b"another's")
    assert done(*start, *a, "--format", "jpg", cwd=tmp_path) == "out/photo-a.jpg\n"
    assert done(*start, *a, *b, "--mix", "0.5,0.5", cwd=tmp_path) == "out/photo-a-b.png\n"
    command = [*start[:2], "--content", place / "photos", *a, *b]
    assert done(*command, cwd=tmp_path) == f"6 images in {tmp_path / 'out'}\n"
    assert done(*command, cwd=tmp_path) == f"6 images in {tmp_path / 'out'}\n"  # anew: it could be of others
    names = {f"{i}-{style}.png" for i in range(3) for style in "ab"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {
        "photo-a.png", "photo-a.jpg", "photo-a-b.png"
    }  # fmt: skip


def test_from_a_shell(start, place, tmp_path):
    command = [sys.executable, ROOT / "stylize.py", *start, "--style", place / "a.png", "--out", "y.png"]
    result = subprocess.run(
        [*map(str, command)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0 and result.stdout == "y.png\n" and (tmp_path / "y.png").exists()
    assert result.stderr == f"model: {place / 'model.safetensors'} (adaconv, width 0.125)\n"


# --- mistakes -------------------------------------------------------------------------------------------------------


def test_options_that_contradict_each_other(start, place, tmp_path):
    a, b, out = ["--style", place / "a.png"], ["--style", place / "b.png"], ["--out", tmp_path / "y.png"]
    apart = ["--structure-from", place / "a.png", "--statistics-from", place / "b.png"]
    saved = tmp_path / "s.safetensors"
    for arguments, words in (
        ([*start, *out], "--style is missing"),
        ([*a, *out], "--content is missing"),
        ([*a], "--content is missing"),
        ([*a, "--save-style", saved, *out], "--content is missing"),
        ([*start, *a, *out, "--mix", "1"], "--mix is for several styles"),
        ([*start, *a, *b, *out, "--mix", "0.5,0.2,0.3"], "3 weights for 2 styles"),
        ([*start, *a, *b, *out, "--mix", "0.5,0.6"], "sum to 1.1; make it 1"),
        ([*start, *a, *b, *out, "--mix", "1.5,-0.5"], "a share, from 0 to 1"),
        ([*start, *a, *b, *out, "--mix", "nan,1"], "a share, from 0 to 1"),
        ([*start, *a, *b, *out, "--mix", "half"], "'half' are no numbers"),
        ([*start, *a, *b, *out], "there are 2 styles without --mix; name a folder"),
        ([*start, *apart[:2], *out], "belong together"),
        ([*start, *apart, *a, *out], "in place of --style"),
        ([*start, *apart, *out, "--mask", "m.png"], "--mask takes two --style"),
        ([*start, *a, *out, "--mask", "m.png"], "--mask takes two --style"),
        ([*start, *a, *b, "--mix", "0.5,0.5", *out, "--mask", "m.png"], "--mask takes two --style"),
        ([*start, *a, *out, "--feather", "3"], "--mask"),
        ([*start, *a, *b, "--save-style", saved], "--save-style keeps one style, but there are 2"),
        ([*start, *a, *out, "--save-style", "s.png"], "styles are written as .safetensors"),
        ([*start, *a, *out, "--format", "png"], "--format png is for folders"),
        ([*start, *a, *out, "--strength", "2"], "--strength"),
        ([*start, *a, *out, "--smooth", "-1"], "--smooth"),
        ([*start, *a, *out, "--tile", "20"], "multiple of 8"),
        ([*start, *a, *out, "--tile", "big"], "multiple of 8"),
        ([*start, *a, *out, "--batch", "0"], "--batch"),
        ([*start, *a, *out, "--device", "cuda:99"], "--device"),
        ([*start, "--style", "x.safetensors", *out, "--preserve-color", "histogram"], "x.safetensors has been"),
    ):
        assert words in mistake(*arguments), words
    assert list(tmp_path.iterdir()) == []


def test_bad_files(start, place, tmp_path):
    style, out = ["--style", place / "a.png"], ["--out", tmp_path / "new" / "y.png"]
    (tmp_path / "text.png").write_text("no image")
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    (tmp_path / "empty").mkdir()
    model = start[:2]
    for arguments, words in (
        ([*start, *style, "--out", tmp_path / "y.gif"], "y.gif"),
        ([*start, *style, "--out", tmp_path / "text.png" / "y.png"], "text.png"),
        ([*start, *style, "--out", tmp_path / "text.png" / "out"], "text.png"),
        ([*start, *style, "--out", place / "photo.png"], "would be replaced"),
        ([*start, *style, "--out", place / "a.png"], "would be replaced"),
        ([*model, "--content", place / "photos", *style, "--out", place / "photos"], "folder of the contents"),
        ([*model, "--content", place / "photos", *style, *out], "is a folder; name a folder"),
        ([*model, "--content", tmp_path / "absent.png", *style, *out], "absent.png"),
        ([*model, "--content", tmp_path / "text.png", *style, *out], "text.png is not an image"),
        ([*model, "--content", tmp_path / "one.png", *style, *out], "one.png has 1x1 pixels"),
        ([*model, "--content", tmp_path / "empty", *style, "--out", tmp_path / "y"], "no images and no videos"),
        ([*start, "--style", tmp_path / "absent.png", *out], "absent.png"),
        ([*start, "--style", tmp_path / "text.png", *out], "text.png is not an image"),
        ([*start, "--style", tmp_path / "one.png", *out], "one.png has 1x1 pixels"),
        ([*start, "--style", place / "model.safetensors", *out], "but of kind 'stylizer'"),
        (["--model", tmp_path / "absent", *start[2:], *style, *out], "absent does not exist"),
        (["--model", place / "a.png", *start[2:], *style, *out], "cannot be read as a stylizer"),
    ):
        assert words in mistake(*arguments), words
    assert not (tmp_path / "new").exists() and not (tmp_path / "y").exists()


def test_bad_masks(start, place, tmp_path):
    styles = ["--style", place / "a.png", "--style", place / "b.png"]
    out = ["--out", tmp_path / "y.png"]
    Image.new("L", (63, 48)).save(tmp_path / "small.png")
    assert "63x48 pixels, but the content 64x48" in mistake(*start, *styles, *out, "--mask", tmp_path / "small.png")
    assert "absent.png" in mistake(*start, *styles, *out, "--mask", tmp_path / "absent.png")
    folder = [*start[:2], "--content", place / "photos", *styles, "--out", tmp_path / "out"]
    assert "single image" in mistake(*folder, "--mask", tmp_path / "small.png")


def test_bad_videos(start, place, tmp_path):
    style, video = ["--style", place / "a.png"], film(tmp_path / "film.mp4", 2)
    film(tmp_path / "tiny.mp4", 2, 8, 8)
    (tmp_path / "text.mp4").write_text("no video")
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "empty.mkv"), "w") as out:
        stream = out.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        out.start_encoding()
    for source, out, words in (
        (video, "y.png", "y.png"),
        (video, "film.mp4", "would be replaced"),
        (tmp_path / "text.mp4", "y.mp4", "text.mp4 is not a video"),
        (tmp_path / "empty.mkv", "y.mp4", "empty.mkv"),
        (tmp_path / "tiny.mp4", "y.mp4", "8x8 pixels; each side needs 16"),
    ):
        line = mistake(*start[:2], "--content", source, *style, "--out", tmp_path / out)
        assert words in line
    mask = [*style, "--style", place / "b.png", "--mask", place / "photo.png"]
    assert "single image" in mistake(*start[:2], "--content", video, *mask, "--out", tmp_path / "y.mp4")
    assert not (tmp_path / "y.mp4").exists() and not list(tmp_path.glob(".*"))


def test_a_style_of_another_model(start, place, other_stylizer, tmp_path):
    save_stylizer(tmp_path / "other.safetensors", other_stylizer, {})
    style = ["--style", place / "a.png", "--save-style", tmp_path / "a.safetensors"]
    done("--model", tmp_path / "other.safetensors", *style)
    line = mistake(*start, "--style", tmp_path / "a.safetensors", "--out", tmp_path / "y.png")
    assert "a.safetensors is a style of another model" in line


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write everywhere")
def test_where_nothing_can_be_written(start, place, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    line = mistake(*start, "--style", place / "a.png", "--out", tmp_path / "locked" / "y.png")
    assert "cannot write to" in line and "--out" in line


def test_real_images(start, place, real_images, tmp_path):
    photo, painting = real_images / "photos" / "cornell.jpg", real_images / "paintings" / "mondrian_cropped.jpg"
    for options in ([], ["--preserve-color", "histogram"], ["--tile", "128", "--strength", "0.5"]):
        done(*start[:2], "--content", photo, "--style", painting, *options, "--out", tmp_path / "y.jpg")
        assert read_image(tmp_path / "y.jpg").shape == read_image(photo).shape
