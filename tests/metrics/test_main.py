"""`python -m metrics` as a user types it, and what comes back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from PIL import Image

from media.convert import write_dataset
from media.dataset import ImageDataset
from media.faces import faces
from metrics import Evaluator, choose, dataset_source, detectors
from metrics.__main__ import describe, main
from models.sampling import Fakes
from models.snapshot import save_snapshot
from networks.generator import Generator, GeneratorConfig
from tests.metrics import archives
from tests.scripts import done, remedy, script, script_here
from torch_utils.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def few_directions(monkeypatch):
    monkeypatch.setattr("metrics.swd.DIRECTIONS", 64)


def write_images(folder: Path, count: int, size: int = 16, channels: int = 3, smooth: int = 4) -> Path:
    """Random images that are smooth over `smooth` pixels, the first half of class 0, the others of class 1."""
    rng = np.random.default_rng(count)
    folder.mkdir()
    for i in range(count):
        coarse = rng.integers(0, 256, (size // smooth, size // smooth, channels), dtype=np.uint8)
        pixels = coarse.repeat(smooth, axis=0).repeat(smooth, axis=1)
        Image.fromarray(pixels if channels == 3 else pixels[:, :, 0]).save(folder / f"{i:04d}.png")
    labels = [[f"{i:04d}.png", int(i >= count // 2)] for i in range(count)]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


def write_snapshot(path: Path, info: dict | None = None, **config) -> Generator:
    torch.manual_seed(0)
    G = Generator(GeneratorConfig(**{"resolution": 16, "cbase": 128, "cmax": 8, "map_depth": 2, **config}))
    save_snapshot(path, G, info or {})
    return G.eval()


@pytest.fixture
def snapshot(tmp_path) -> Path:
    torch.manual_seed(0)
    config = GeneratorConfig(resolution=16, cbase=256, cmax=8, map_depth=1, z_dim=16, w_dim=16, style_channels=8)
    save_snapshot(tmp_path / "snapshot-000001.safetensors", Generator(config), {"kimg": 1.0})
    return tmp_path / "snapshot-000001.safetensors"


def evaluate(*arguments) -> None:
    main.main(["--workers", "0", *map(str, arguments)], standalone_mode=False)


def mistake(*arguments) -> str:
    with pytest.raises(UserError) as error:
        evaluate(*arguments)
    return error.value.message


def test_images_against_images(tmp_path, capsys):
    real = write_images(tmp_path / "real", 24)
    fakes = write_images(tmp_path / "fakes", 25, smooth=2)
    evaluate("--data", real, "--fakes", fakes, "--metrics", "swd20, swd", "--json")
    captured = capsys.readouterr()
    assert (
        captured.err.count("\n") == 1
        and "note: there are only 24 real and 24 fake images for swd (8192);" in captured.err
    )
    values = json.loads(captured.out)
    both = {name: {"real": count, "fake": count} for name, count in (("swd20", 20), ("swd", 24))}
    assert values.pop("images") == both
    assert values.pop("settings")["fakes"] == str(fakes)
    evaluator = Evaluator(["swd20", "swd"], ImageDataset(real))
    assert values == evaluator.evaluate(dataset_source(ImageDataset(fakes), choose(25, 24, 0)))
    assert list(values) == ["swd20", "swd20_16", "swd", "swd_16"]

    evaluate("--data", real, "--fakes", fakes, "--metrics", "swd20,swd", "--batch", 7)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{name} {values[name]:.4g} (16: {values[name + '_16']:.4g})" for name in ("swd20", "swd")]

    evaluate("--data", real, "--fakes", fakes, "--metrics", "swd20", "--seed", 1, "--json")
    other = json.loads(capsys.readouterr().out)["swd20"]
    assert other != values["swd20"]
    assert other == pytest.approx(values["swd20"], rel=0.5)


def test_images_against_themselves(tmp_path, capsys):
    real = write_images(tmp_path / "real", 12, channels=1)
    evaluate("--data", real, "--fakes", real)
    assert capsys.readouterr().out == "swd 0 (16: 0)\n"


def test_fewer_fakes_than_asked_for_are_mentioned(tmp_path, capsys):
    real, fakes = write_images(tmp_path / "real", 12), write_images(tmp_path / "fakes", 10)
    evaluate("--data", real, "--fakes", fakes, "--metrics", "swd12,swd8", "--json")
    captured = capsys.readouterr()
    both = json.loads(captured.out)
    assert both["images"] == {"swd12": {"real": 12, "fake": 10}, "swd8": {"real": 8, "fake": 8}}
    assert captured.err.startswith("note: ") and "only 10 fake images" in captured.err
    assert captured.err.count("\n") == 1

    # a metric of fewer images draws them, whatever others take, as files are often in the order of their classes
    evaluate("--data", real, "--fakes", fakes, "--metrics", "swd8", "--json")
    assert json.loads(capsys.readouterr().out)["swd8"] == both["swd8"]


@pytest.mark.parametrize("c_dim", [0, 2])
def test_network(tmp_path, capsys, c_dim):
    real = write_images(tmp_path / "real", 12)
    G = write_snapshot(tmp_path / "snapshot-000001.safetensors", c_dim=c_dim)
    evaluate("--data", real, "--network", tmp_path, "--metrics", "swd10", "--seed", 2, "--json")
    captured = capsys.readouterr()
    assert f"network: {tmp_path / 'snapshot-000001.safetensors'} (0 kimg)\n" in captured.err
    values = json.loads(captured.out)
    assert values.pop("images") == {"swd10": {"real": 10, "fake": 10}} and values.pop("settings")["seed"] == 2
    dataset = ImageDataset(real, use_labels=c_dim > 0)
    fakes = Fakes(G, 10, 2, dataset.labels)
    assert values == pytest.approx(Evaluator(["swd10"], dataset, seed=2).evaluate(fakes.images), rel=1e-3)
    assert set(fakes.classes.tolist()) == set(range(max(c_dim, 1)))


def test_mistakes(tmp_path):
    real, one = write_images(tmp_path / "real", 4), write_images(tmp_path / "one", 1)
    large, grey = write_images(tmp_path / "large", 4, size=32), write_images(tmp_path / "grey", 4, channels=1)
    snapshot, classes = tmp_path / "plain.safetensors", tmp_path / "classes.safetensors"
    write_snapshot(snapshot)
    write_snapshot(classes, c_dim=3)
    assert "name --network or --fakes:" in mistake("--data", real)
    assert "name --network or --fakes, not both" in mistake("--data", real, "--fakes", one, "--network", snapshot)
    assert "no metric is called 'fid'" in mistake("--data", real, "--fakes", real, "--metrics", "fid")
    assert "32x32 with 3 channels" in mistake("--data", real, "--fakes", large)
    assert "16x16 with 1 channel," in mistake("--data", real, "--fakes", grey)
    assert "16x16 with 3 channels" in mistake("--data", large, "--network", snapshot)
    assert "with 1: they cannot be compared" in mistake("--data", grey, "--network", snapshot)
    assert "knows 3 classes" in mistake("--data", real, "--network", classes)
    (real / "dataset.json").unlink()
    assert "the model has 3 classes, and metrics draw" in mistake("--data", real, "--network", classes)
    assert "only one real image, and the metrics need at least 2; name more with --data" in mistake(
        "--data", one, "--fakes", real
    )
    assert "from 1 fake image; it needs at least 2" in mistake("--data", real, "--fakes", one)
    assert "absent" in mistake("--data", tmp_path / "absent", "--fakes", real)
    assert "absent" in mistake("--data", real, "--network", tmp_path / "absent")


def test_data_of_another_size_are_converted_to_the_models_as_the_message_says(tmp_path, monkeypatch, capsys):
    write_snapshot(tmp_path / "plain.safetensors")
    write_images(tmp_path / "large", 4, size=32)
    write_images(tmp_path / "odd", 4, size=50, smooth=5)
    monkeypatch.chdir(tmp_path)
    for data in ("large", "odd"):
        message = mistake("--data", data, "--network", "plain.safetensors", "--metrics", "swd")
        assert message.endswith(f"python dataset_tool.py convert --source {data} --out {data}-16.zip --resolution 16")
        done(script_here(*remedy(message)))
        evaluate("--data", f"{data}-16.zip", "--network", "plain.safetensors", "--metrics", "swd")
        assert "swd" in capsys.readouterr().out


@pytest.mark.parametrize("option", [("--workers", 9999), ("--seed", 10**30), ("--batch", 0), ("--batch", 10**30)])
def test_numbers_out_of_range(tmp_path, option):
    with pytest.raises(click.BadParameter, match="not in the range"):
        main.main(["--data", "real", "--fakes", "fakes", *map(str, option)], standalone_mode=False)


def test_as_a_command(tmp_path):
    real = write_images(tmp_path / "real", 4)
    result = script("-m metrics", "--data", real, "--fakes", tmp_path / "absent", cwd=ROOT)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


# --- detectors --------------------------------------------------------------------------------------------------------


def test_all_metrics_of_a_snapshot(small, few_dimensions, command, snapshot, inception, vgg16, tmp_path):
    write_dataset(tmp_path / "faces.zip", faces(40, 16, seed=0))
    names = ["fid20_full", "kid20", "pr203", "is20", "ppl2_wend20", "swd20"]
    files = ["--detector-weights", inception, "--detector-weights", vgg16]
    arguments = ["--metrics", ",".join(names), "--network", snapshot, "--data", tmp_path / "faces.zip", *files]
    arguments += ["--workers", 0, "--batch", 8, "--gpus", 0, "--mirror", "--trunc", 0.7]
    code, out, err = command(*arguments, "--json")
    assert code == 0, err
    found = json.loads(out)
    values = {key for key in found if key not in ("images", "settings")}
    assert values == {
        *("fid20_full", "kid20", "kid20_std", "pr203_precision", "pr203_recall"),
        *("is20_mean", "is20_std", "ppl2_wend20", "swd20", "swd20_16"),
    }
    assert found["images"]["fid20_full"] == {"real": 80, "fake": 20}
    assert found["images"]["pr203"] == {"real": 20, "fake": 20}
    assert found["images"]["is20"] == {"real": 0, "fake": 20}
    settings = found["settings"]
    assert {name: settings[name] for name in ("seed", "truncation", "mirror", "kimg")} == {
        "seed": 0,
        "truncation": 0.7,
        "mirror": True,
        "kimg": 1.0,
    }
    assert settings["detectors"].keys() == {"inception-v3-2015-12-05", "vgg16"}
    assert all(len(value) == 64 for value in settings["detectors"].values())
    assert settings["network"] == str(snapshot) and len(settings["data_hash"]) == 16
    assert "warning: fid20_full has 20 fake images for 2048 dimensions" in err


def test_a_line_has_a_metric_and_its_own_values():
    values = {"fid20": 1.5, "fid20_full": 2.0, "kid20": 0.1, "kid20_std": 0.01, "pr203_precision": 0.5}
    values |= {"pr203_recall": 0.25, "pr203_full_precision": 0.75, "pr203_full_recall": 1.0, "images": {}}
    assert describe("fid20", values) == "fid20 1.5"
    assert describe("fid20_full", values) == "fid20_full 2"
    assert describe("kid20", values) == "kid20 0.1 (std: 0.01)"
    assert describe("pr203", values) == "pr203 precision: 0.5, recall: 0.25"
    assert describe("pr203_full", values) == "pr203_full precision: 0.75, recall: 1"


def test_images_against_fewer_images(small, few_dimensions, command, inception, tmp_path, real_images):
    images = archives.photographs(real_images / "cifar10-test.zip", 50)
    real, fake = (
        archives.write_images(tmp_path / name, part) for name, part in (("real", images[:30]), ("fake", images[30:]))
    )
    arguments = ["--data", real, "--fakes", fake, "--gpus", 0, "--workers", 0, "--detector-weights", inception]
    code, out, err = command("--metrics", "fid2k_full,swd", *arguments, "--json")
    assert code == 0 and json.loads(out)["images"]["fid2k_full"] == {"real": 30, "fake": 20}
    assert "there are only 20 fake images for fid2k_full (2000)" in err
    code, out, err = command("--metrics", "ppl2_wend", *arguments)
    assert code == 2 and "give one with --network" in err


def test_list(small, command):
    code, out, _ = command("--list")
    assert code == 0
    for words in ("fid50k_full", "ppl2_wend", str(small), detectors.INCEPTION.url, detectors.VGG16.url):
        assert words in out
    small.mkdir(exist_ok=True)
    (small / detectors.VGG16.url.rpartition("/")[2]).touch()
    assert detectors.VGG16.url not in command("--list")[1]


def test_mistakes_are_one_line(small, command, snapshot, faces16, tmp_path, no_network):
    both = ["--network", snapshot, "--data", faces16, "--gpus", 0]
    cases = [
        (["--metrics", "fid50k_full", *both], "cannot download https"),
        (["--metrics", "fid", *both], "no metric is called 'fid'"),
        (
            ["--metrics", "fid20", "--detector-weights", tmp_path / "absent.pth", *both],
            "absent.pth; name the file with --detector-weights",
        ),
        (["--metrics", "swd", "--data", faces16], "--network or --fakes"),
        (["--metrics", "swd", "--network", snapshot], "--data is missing"),
        (["--metrics", "swd", "--trunc", "nan", *both], "not a finite number"),
        (["--metrics", "swd", "--trunc", 0.7, "--fakes", faces16, "--data", faces16], "--trunc changes"),
        (["--metrics", "swd", "--fakes", tmp_path / "nope", "--data", faces16], "name a folder or ZIP of generated"),
        (["--metrics", "fid"], "no metric is called 'fid'"),
        (["--metrics", "swd,fd20", *both], "fd20 needs a detector"),
        (["--metrics", "fd20@nowhere/encoder.safetensors", *both], "name a file of train_encoder.py"),
        (["--metrics", "swd", "--network", snapshot, "--data", faces16, "--gpus", 99], "--gpus 99"),
    ]
    for arguments, words in cases:
        code, _, err = command(*arguments)
        assert code == 2 and words in err.splitlines()[-1] and len(err.splitlines()) == 1, err


def test_without_a_detector_the_other_metrics_are_printed(small, command, snapshot, faces16, no_network):
    arguments = ["--metrics", "fid20,swd20,kid20", "--network", snapshot, "--data", faces16, "--gpus", 0]
    code, out, err = command(*arguments)
    assert code == 2 and out.startswith("swd20 ") and len(out.splitlines()) == 1
    assert err.splitlines()[-1].startswith("error: fid20, kid20: cannot download https")
    code, out, _ = command(*arguments, "--json")
    record = json.loads(out)
    assert code == 2 and "swd20" in record and "fid20" not in record and record["left_out"].keys() == {"fid20", "kid20"}


@pytest.mark.parametrize("tensor", ["synthesis.const", "w_avg"])
def test_a_broken_network_is_refused(command, faces16, tmp_path, tensor):
    config = GeneratorConfig(resolution=16, cbase=256, cmax=8, map_depth=1, z_dim=16, w_dim=16, style_channels=8)
    G = Generator(config)
    G.state_dict()[tensor].view(-1)[0] = float("nan")
    save_snapshot(tmp_path / "snapshot-000001.safetensors", G, {"kimg": 1.0})
    arguments = ["--metrics", "swd", "--network", tmp_path, "--data", faces16, "--gpus", 0]
    code, _, err = command(*arguments)
    assert code == 2 and "weights that are not finite" in err


def nearest_mistake(*arguments) -> str:
    with pytest.raises(UserError) as error:
        main.main(["nearest", *map(str, arguments)], standalone_mode=False)
    return error.value.message


def test_results_do_not_replace_what_is_compared(tmp_path):
    real, fake = write_images(tmp_path / "real", 4), write_images(tmp_path / "fake", 5)
    before = {path: path.read_bytes() for folder in (real, fake) for path in folder.iterdir()}
    for place in (real / "0000.png", fake / "0001.png"):
        assert "would be replaced" in nearest_mistake("--data", real, "--fakes", fake, "--out", place)
    assert "ends with .png" in nearest_mistake("--data", real, "--fakes", fake, "--out", tmp_path / "n.jpg")
    plot = ["--data", real, "--network", tmp_path, "--all", "--plot", real / "dataset.json"]
    assert "ends with .svg" in mistake(*plot)
    assert {path: path.read_bytes() for folder in (real, fake) for path in folder.iterdir()} == before


def test_options_that_would_change_nothing_are_refused(tmp_path):
    real, fake = write_images(tmp_path / "real", 4), write_images(tmp_path / "fake", 5)
    given = ["--data", real, "--fakes", fake]
    line = nearest_mistake(*given, "--class", "2", "--trunc", "0.3", "--seeds", "5")
    assert "--seeds and --class and --trunc would change images of --network, not --fakes" in line
    assert "--extrapolate generates images with --network" in mistake(*given, "--extrapolate")
    test = ["--test", fake, "--out", tmp_path / "n.png", "--workers", 0]
    assert "--test and --fakes are the same images" in nearest_mistake(*given, *test)


def test_a_folder_of_models_is_no_run(tmp_path):
    write_snapshot(tmp_path / "a.safetensors")
    assert "name the folder of a run" in mistake(
        "--data", write_images(tmp_path / "r", 4), "--network", tmp_path, "--all"
    )


def test_names_of_files_tell_a_terminal_nothing(tmp_path):
    real, fake = write_images(tmp_path / "real", 4), write_images(tmp_path / "fake", 2)
    (fake / "0000.png").rename(fake / "\x1b[31mred.png")
    os.rename(os.fsencode(fake / "0001.png"), os.fsencode(fake) + b"/\xff.png")
    (fake / "dataset.json").unlink()
    shown = done(script_here("metrics/__main__.py", "nearest", "--data", real, "--fakes", fake,
                             "--out", tmp_path / "n.png", "--workers", 0, "--device", "cpu"))  # fmt: skip
    assert "red.png" in shown.stdout and "\x1b" not in shown.stdout
    shown.stdout.encode("utf-8")


@pytest.mark.parametrize("name", ["evaluate", "report"])
def test_processes_belong_to_the_cpu(snapshot, faces16, command, monkeypatch, tmp_path, name):
    monkeypatch.setattr("torch_utils.distributed.count_gpus", lambda requested=None: 2)
    options = ["--network", snapshot, "--data", faces16, "--metrics", "swd20", "--procs", 3]
    code, _, err = command(name, *options, *(["--out", tmp_path / "report.html"] if name == "report" else []))
    assert code == 2 and "--procs 3 is for the CPU; add --gpus 0, or leave it out" in err
