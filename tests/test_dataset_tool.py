import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import dataset_tool
from torch_utils.cli import run
from training.dataset import ImageDataset

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
    assert done.stderr.startswith(f"error: there is no {tmp_path / 'nowhere.zip'}; make a data set")


def test_faces_and_check(tool, tmp_path):
    path = tmp_path / "faces.zip"
    made = tool("faces", "--out", path, "--count", 30, "--resolution", 16, "--seed", 5)
    assert made.returncode == 0 and made.stderr == ""
    assert "30 faces of 16x16" in made.stdout and "5 blue" in made.stdout
    data = ImageDataset(path, use_labels=True)
    assert (len(data), data.resolution, data.channels) == (30, 16, 3)
    checked = tool("check", "--data", path)
    assert checked.returncode == 0 and checked.stderr == ""
    counts = ", ".join(f"{i}: {n}" for i, n in enumerate(data.labels.bincount().tolist()) if n)
    assert "30 pictures, 16x16 RGB" in checked.stdout
    assert f"classes with pictures: {counts}\n" in checked.stdout


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
    assert "3 pictures of 32x32 pixels, 3 channels" in done.stdout and "0 cats, 1 dogs" in done.stdout
    assert "skipped: cats/broken.jpg is not a picture" in done.stderr and "1 were smaller" in done.stderr
    data = ImageDataset(tmp_path / "out.zip", use_labels=True)
    assert data.labels.tolist() == [0, 1, 1] and data[2][0][:, 0, 0].tolist() == [16, 32, 48]

    checked = tool("check", "--data", tmp_path / "in")
    assert checked.returncode == 2 and checked.stderr.count("\n") == 1
    assert "cats/broken.jpg is not a picture" in checked.stdout and "50x40" in checked.stdout


def test_a_terminal_is_not_told_what_to_do_by_an_archive(tool, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("\x1b[2J\n.png", b"text")
    checked = tool("check", "--data", tmp_path / "a.zip")
    assert checked.returncode == 2 and "\x1b" not in checked.stdout + checked.stderr


@pytest.mark.parametrize("args, message", [
    ([], "name a command"),
    (["check", "--data", "nowhere.zip"], "there is no nowhere.zip"),
    (["faces", "--out", "a.zip", "--resolution", "48"], "'48' is not one of '16', '32'"),
    (["convert", "--source", ".", "--out", "a.zip", "--resolution", "16", "--background", "whit"],
     "write e.g. white or #a0b0c0"),
])  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(tool, args, message):
    done = tool(*args)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ") and message in done.stderr
