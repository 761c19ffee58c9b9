import io
import json
import os
import shlex
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import dataset_tool
from media.dataset import ImageDataset
from media.faces import HAIR_COLORS
from media.files import list_images
from tests.scripts import remedy, start, wait_until
from torch_utils.cli import run

SCRIPT = Path(__file__).parents[1] / "dataset_tool.py"


@pytest.fixture
def tool(monkeypatch, capsys):
    """Runs the script in this process, as a shell would see it."""

    def call(*args: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, args)])
        with pytest.raises(SystemExit) as end:
            run(dataset_tool.main)
        stdout, stderr = capsys.readouterr()
        return SimpleNamespace(returncode=end.value.code, stdout=stdout, stderr=stderr)

    return call


def test_the_script_itself(tmp_path):
    command = [sys.executable, SCRIPT, "check", "--data", tmp_path / "nowhere.zip"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: there is no {tmp_path / 'nowhere.zip'}; name a folder or ZIP of images")


def test_faces_and_check(tool, tmp_path):
    path = tmp_path / "faces.zip"
    made = tool("faces", "--out", path, "--count", 30, "--resolution", 16, "--seed", 5)
    assert made.returncode == 0 and made.stderr == ""
    assert "30 faces of 16x16" in made.stdout and "5 blue" in made.stdout
    data = ImageDataset(path, use_labels=True)
    assert (len(data), data.resolution, data.channels) == (30, 16, 3)
    checked = tool("check", "--data", path)
    assert checked.returncode == 0 and checked.stderr == ""
    counts = ", ".join(f"{i} {HAIR_COLORS[i]}: {n}" for i, n in enumerate(data.labels.bincount().tolist()) if n)
    assert "30 images, 16x16 RGB" in checked.stdout
    assert f"classes with images: {counts}\n" in checked.stdout


def test_convert_to_other_formats(tool, tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (50, 40), "red").save(tmp_path / "in/a.png")
    arguments = ["convert", "--source", tmp_path / "in", "--resolution", 32, "--format"]
    done = tool(*arguments, "webp", "--quality", 80, "--out", tmp_path / "webp")
    assert done.returncode == 0 and (tmp_path / "webp/00000/img00000000.webp").exists()
    refused = tool(*arguments, "png", "--quality", 80, "--out", tmp_path / "png")
    assert refused.returncode == 2 and "leave --quality out" in refused.stderr and not (tmp_path / "png").exists()


def test_convert_and_check(tool, tmp_path):
    for name, color in (("cats/a.png", "red"), ("dogs/b.png", "blue")):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        Image.new("RGB", (50, 40), color).save(tmp_path / "in" / name)
    Image.new("RGBA", (16, 16)).save(tmp_path / "in/dogs/c.png")
    (tmp_path / "in/cats/broken.jpg").write_bytes(b"text")
    done = tool(
        "convert",
        "--source",
        tmp_path / "in",
        "--out",
        tmp_path / "out.zip",
        "--resolution",
        32,
        "--labels",
        "folders",
        "--background",
        "#102030",
    )
    assert done.returncode == 0
    assert "3 images of 32x32 pixels, 3 channels" in done.stdout and "0 cats, 1 dogs" in done.stdout
    assert "skipped: cats/broken.jpg is not an image" in done.stderr and "smaller than 32 pixels: 1\n" in done.stderr
    data = ImageDataset(tmp_path / "out.zip", use_labels=True)
    assert data.labels.tolist() == [0, 1, 1] and data[2][0][:, 0, 0].tolist() == [16, 32, 48]

    checked = tool("check", "--data", tmp_path / "in")
    assert checked.returncode == 2 and checked.stderr.count("\n") == 1
    assert "cats/broken.jpg is not an image" in checked.stdout and "50x40" in checked.stdout


def test_a_zip_that_is_there_is_kept(tool, tmp_path):
    path = tmp_path / "a.zip"
    tool("faces", "--out", path, "--count", 3, "--resolution", 16)
    before = path.read_bytes()
    (tmp_path / "in").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "in/a.png")
    for command in (["faces", "--count", 2], ["convert", "--source", tmp_path / "in"]):
        command += ["--out", path, "--resolution", 16]
        refused = tool(*command)
        assert refused.returncode == 2 and refused.stdout == "" and path.read_bytes() == before
        assert refused.stderr == f"error: {path} exists; name another file with --out, or replace it with --overwrite\n"
    assert tool("faces", "--out", path, "--count", 2, "--resolution", 16, "--overwrite").returncode == 0
    assert tool("convert", "--source", path, "--out", path, "--resolution", 32, "--overwrite").returncode == 2
    assert (len(data := ImageDataset(path)), data.resolution) == (2, 16)
    assert (
        tool("convert", "--source", tmp_path / "in", "--out", path, "--resolution", 32, "--overwrite").returncode == 0
    )
    assert (len(data := ImageDataset(path)), data.resolution) == (1, 32)


def test_a_link_to_a_folder_is_a_class_and_a_cycle_is_told(tool, tmp_path):
    for name in ("in/cats/a.png", "store/dogs/b.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    (tmp_path / "in/dogs").symlink_to("../store/dogs")
    (tmp_path / "in/dogs/loop").symlink_to("../dogs")
    out = tmp_path / "out.zip"
    done = tool("convert", "--source", tmp_path / "in", "--out", out, "--resolution", 16, "--labels", "folders")
    assert done.returncode == 0 and "2 images" in done.stdout and "0 cats, 1 dogs" in done.stdout
    note = "note: left out links that lead back to a folder above them: 1, first dogs/loop\n"
    assert note in done.stderr
    checked = tool("check", "--data", tmp_path / "in")
    assert checked.returncode == 0 and checked.stderr == note


def test_images_that_only_convert_reads_are_told(tool, tmp_path):
    """A data set has PNG, JPEG and WebP. Others beside those are noted; alone, the message's command mends it."""
    (source := tmp_path / "in").mkdir()
    for name in ("a.png", "b.bmp", "c.TIFF"):
        Image.new("RGB", (256, 256)).save(source / name)
    (source / "notes.txt").touch()
    checked = tool("check", "--data", source)
    assert checked.returncode == 0 and "1 image, 256x256 RGB" in checked.stdout
    assert checked.stderr == "note: left out images that only dataset_tool.py convert reads: 2, first b.bmp\n"
    (source / "a.png").unlink()
    error = tool("check", "--data", source)
    assert error.returncode == 2 and "but others such as b.bmp; convert them with: python " in error.stderr
    command = remedy(error.stderr)[1:]
    command[command.index("--out") + 1] = str(tmp_path / "in.zip")
    assert tool(*command).returncode == 0
    assert len(ImageDataset(tmp_path / "in.zip")) == 2


@pytest.mark.parametrize("count", [10, 11, 25])
def test_of_many_bad_files_ten_are_named(tool, tmp_path, count):
    Image.new("RGB", (16, 16)).save(tmp_path / "good.png")
    for i in range(count):
        (tmp_path / f"bad{i:02d}.png").touch()
    rest = [f"... and {count - 10} more"] if count > 10 else []
    found = tool("check", "--data", tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in found[:10]] == [f"bad{i:02d}.png" for i in range(10)]
    assert found[10:-2] == rest
    skipped = tool(
        "convert", "--source", tmp_path, "--out", tmp_path / "out.zip", "--resolution", 16
    ).stderr.splitlines()
    assert len(skipped) == 11 + len(rest) and skipped[-1] == f"skipped files that cannot be used: {count}"


def test_bad_labels_get_the_advice_that_helps(tool, tmp_path, monkeypatch):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "dataset.json").write_text('{"labels": [["a.png", "cat"]]}')
    only = tool("check", "--data", tmp_path)
    assert only.returncode == 2 and "it should read" in only.stdout
    assert "correct dataset.json" in only.stderr and "convert" not in only.stderr
    Image.new("RGB", (50, 40)).save(tmp_path / "b.png")
    advice = tool("check", "--data", tmp_path).stderr
    assert "--resolution 16 --labels none\n" in advice
    monkeypatch.chdir(tmp_path.parent)
    script, *command = remedy(advice)
    assert script == "dataset_tool.py" and tool(*command).returncode == 0
    assert ImageDataset(f"{tmp_path.name}-16.zip").resolution == 16


def test_images_that_are_refused_do_not_count_and_can_be_converted_as_the_message_says(tool, tmp_path, monkeypatch):
    (tmp_path / "my images").mkdir()
    Image.new("L", (101, 77)).save(tmp_path / "my images" / "a.png")
    monkeypatch.chdir(tmp_path)
    found = tool("check", "--data", "my images")
    assert found.returncode == 2 and "my images: 0 images, none can be used\n" in found.stdout
    assert "my images: 1 file cannot be used" in found.stderr
    assert tool(*remedy(found.stderr)[1:]).returncode == 0
    checked = tool("check", "--data", "my images-64.zip")
    assert checked.returncode == 0 and "my images-64.zip: 1 image, 64x64 greyscale\n" in checked.stdout


def test_a_size_that_is_refused_comes_with_those_that_are_taken(tool, tmp_path):
    refused = tool("faces", "--out", tmp_path / "a.zip", "--count", 1, "--resolution", 34)
    assert "34x34 is no size for a model; 32 and 36 are nearest (see docs/data.md#sizes)" in refused.stderr
    assert tool("faces", "--out", tmp_path / "a.zip", "--count", 1, "--resolution", 36).returncode == 0


def test_a_terminal_is_not_told_what_to_do_by_an_archive(tool, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("\x1b[2J\n.png", b"text")
    checked = tool("check", "--data", tmp_path / "a.zip")
    assert checked.returncode == 2 and "\x1b" not in checked.stdout + checked.stderr


@pytest.mark.parametrize("args, message", [
    ([], "Missing option '--source'"),
    (["--source", "a", "--dest", "b"], "there is no --dest: it is --out here"),
    (["check", "--data", "nowhere.zip"], "there is no nowhere.zip"),
    (["faces", "--out", "a.zip", "--resolution", "50"], "50x50 is no size for a model"),
    (["convert", "--source", ".", "--out", "a.zip", "--resolution", "16", "--background", "whit"],
     "write e.g. white or #a0b0c0"),
])  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(tool, args, message):
    done = tool(*args)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ") and message in done.stderr


def test_a_folder_without_a_usable_image_gets_no_number(tool, tmp_path):
    for name in ("ants/Thumbs.db", "bees/broken.png", "cats/a.png", "dogs/b.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        (tmp_path / "in" / name).write_bytes(b"no image")
    for name in ("cats/a.png", "dogs/b.png"):
        Image.new("RGB", (16, 16)).save(tmp_path / "in" / name)
    done = tool(
        "convert", "--source", tmp_path / "in", "--out", tmp_path / "a.zip", "--resolution", 16, "--labels", "folders"
    )
    assert done.returncode == 0 and "classes: 0 cats, 1 dogs\n" in done.stdout
    assert "note: folders without a usable image, which are no classes: ants, bees\n" in done.stderr
    assert ImageDataset(tmp_path / "a.zip", use_labels=True).labels.tolist() == [0, 1]


def test_a_part_of_a_set_is_spread_over_its_classes_by_the_seed(tool, tmp_path):
    for i in range(12):
        folder = tmp_path / "in" / "abc"[i // 4]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (20 * i, 0, 0)).save(folder / f"{i:02d}.png")
    chosen = set()
    for seed in range(5):
        out = tmp_path / f"{seed}.zip"
        command = ["convert", "--source", tmp_path / "in", "--out", out, "--resolution", 16, "--labels", "folders"]
        assert tool(*command, "--max", 6, "--seed", seed).returncode == 0
        data = ImageDataset(out, use_labels=True)
        assert data.labels.bincount().tolist() == [2, 2, 2]
        values = tuple(sorted(int(pixels[0, 0, 0]) for pixels, _ in data))
        assert len(set(values)) == 6
        chosen.add(values)
    assert len(chosen) > 1


def test_check_names_classes_without_images(tool, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in (1, 3):
            buffer = io.BytesIO()
            Image.new("RGB", (16, 16)).save(buffer, "PNG")
            archive.writestr(f"{i}.png", buffer.getvalue())
        archive.writestr("dataset.json", '{"labels": [["1.png", 1], ["3.png", 3]]}')
    done = tool("check", "--data", tmp_path / "a.zip")
    assert done.returncode == 0 and "classes without images: 0, 2\n" in done.stdout


def test_labels_that_do_not_fit_get_the_advice_that_helps(tool, tmp_path):
    """Of images that only lack a label, the labels are to be mended; converted ones would lack them as well."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (16, 16), (i * 60, 0, 0)).save(folder / f"{i}.png")
    (folder / "dataset.json").write_text(json.dumps({"labels": [[f"{i}.PNG", i % 2] for i in range(4)]}))
    checked = tool("check", "--data", folder)
    assert checked.returncode == 2 and "0 classes with images\n" in checked.stdout
    assert "4 of 4 images without a label; add labels to dataset.json, or train without --cond" in checked.stderr
    Image.new("RGB", (20, 20)).save(folder / "larger.png")
    checked = tool("check", "--data", folder)
    command = shlex.split(checked.stderr.split("python dataset_tool.py ")[1])
    assert command[-2:] == ["--labels", "none"]
    command[command.index("--out") + 1] = str(tmp_path / "out.zip")
    assert tool(*command).returncode == 0 and len(ImageDataset(tmp_path / "out.zip")) == 5


def test_folders_that_cannot_be_made_are_told_before_the_work(tool, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    made = ["faces", "--count", 2, "--resolution", 16, "--out"]
    for out, words in ((".", "the current folder"), ("a.tar", "the name of a shard"), ("a.parquet", "of a shard")):
        refused = tool(*made, out)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and words in refused.stderr
    assert list((tmp_path / "here").iterdir()) == []
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert tool(*made, tmp_path / "link").returncode == 0
    assert (tmp_path / "link").is_symlink() and len(ImageDataset(tmp_path / "empty")) == 2


def test_links_that_lead_nowhere_are_named(tool, tmp_path):
    (tmp_path / "odd.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    refused = tool("convert", "--source", tmp_path / "odd.png", "--out", tmp_path / "z.zip", "--resolution", 32)
    assert "odd.png is a link that leads nowhere" in refused.stderr and refused.stderr.count("\n") == 1
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    assert [path.name for path in list_images(tmp_path)] == ["a.png"]


def test_one_image_cannot_be_split(tool, tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "in" / "a.png")
    outs = ["--train", tmp_path / "a.zip", "--held-out", tmp_path / "b.zip"]
    assert "two parts need at least 2" in tool("split", "--source", tmp_path / "in", *outs, "--every", 2).stderr


@pytest.mark.parametrize("crop", ["center", "pad"])
def test_a_background_is_refused_where_there_is_none(tool, tmp_path, crop):
    (tmp_path / "in").mkdir()
    Image.new("RGBA", (50, 40)).save(tmp_path / "in/a.png")
    arguments = ["convert", "--source", tmp_path / "in", "--out", tmp_path / "a.zip", "--resolution", 32]
    arguments += ["--crop", crop, "--channels", 4]
    refused = tool(*arguments, "--background", "black")
    assert refused.returncode == 2 and "leave it or --background out" in refused.stderr
    assert (
        tool(*arguments).returncode == 0
        and tool(*arguments[:-2], "--background", "black", "--overwrite").returncode == 0
    )


LONG = {  # commands that write for long, with what they write
    "archive": ("faces", ["--count", 1_000_000, "--out", "out.zip"]),
    "folder": ("faces", ["--count", 1_000_000, "--out", "new/out"]),
    "shards": ("convert", ["--source", "in", "--out", "out", "--resolution", 512, "--shards", "1MB"]),
    "split": ("split", ["--source", "in", "--train", "train.zip", "--held-out", "held.zip", "--every", 2]),
}


@pytest.mark.parametrize("name", LONG)
def test_ended_by_a_signal_it_leaves_nothing(tmp_path, name):
    """As a job scheduler ends it."""
    command, options = LONG[name]
    place, said = tmp_path / "place", tmp_path / "said"
    (place / "in").mkdir(parents=True)
    said.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    Image.fromarray(pixels).save(place / "in" / "0.png")
    for i in range(1, 3000):
        os.link(place / "in" / "0.png", place / "in" / f"{i}.png")
    process = start(said, "dataset_tool.py", command, *options, cwd=place)
    wait_until(lambda: any(place.rglob(".*.tmp")) or not process.is_alive())
    os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    assert process.exitcode == 143
    left = [path for path in place.rglob("*") if path.parent != place / "in"]
    assert sorted(path.name for path in left) == ["in", *["new"] * (name == "folder")]
    assert "Traceback" not in (said / "stderr").read_text()
