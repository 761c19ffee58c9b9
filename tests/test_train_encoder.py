"""train_encoder.py as a user types it: an encoder from images with classes, and mistakes in one line."""

from __future__ import annotations

import json

from PIL import Image

from media.convert import write_dataset
from models.encoder import load_encoder
from tests.scripts import done, image_zip, mistake, script


def test_an_encoder_from_images_with_classes(faces16, tmp_path):
    tiny = ["--width", 1 / 16, "--batch", 16, "--gpus", 0, "--workers", 0, "--tick", 0.016, "--snap", 1]
    options = ["--data", faces16, "--test", faces16, "--outdir", tmp_path, "--no-mirror", *tiny]
    done(script("train_encoder.py", *options, "--kimg", 0.032))
    (run,) = tmp_path.iterdir()
    assert run.name == "00000-faces16-encoder-cpu"
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "stats.jsonl", "confusion000000.png", "confusion000000.032.png"} <= names
    assert load_encoder(run / "snapshot-000000.032.safetensors").width == 1 / 16
    assert [set(values) for values in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())] == [
        {"kimg", "accuracy", "images"}
    ] * 3
    config = json.loads((run / "config.json").read_text())
    assert not config["mirror"] and config["about"]["script"] == "train_encoder.py"

    result = script("train_encoder.py", "--resume", run)
    assert (
        result.returncode == 0
        and result.stderr == f"{run} is complete: it has reached kimg 0.032 of the 0.032 that were asked for\n"
    )
    message = mistake("train_encoder.py", "--resume", run, "--kimg", 1)  # the learning rates would have been others
    assert "kimg: 0.032 in the run, 1.0 asked" in message
    assert f"resume it with: python train_encoder.py --resume {run}" in mistake("train.py", "--resume", run)


def test_bad_data_for_an_encoder(faces16, tmp_path):
    train = ["train_encoder.py", "--outdir", tmp_path / "runs", "--gpus", 0, "--data"]
    assert "--data is missing" in mistake("train_encoder.py")
    plain = image_zip(tmp_path / "plain.zip", [(16, 16)] * 3)
    assert "plain.zip has no labels" in mistake(*train, plain)
    assert "plain.zip has no labels" in mistake(*train, faces16, "--test", plain)
    assert "absent.zip" in mistake(*train, faces16, "--test", tmp_path / "absent.zip")
    write_dataset(tmp_path / "tiny.zip", [(Image.new("RGB", (12, 12)), n % 2) for n in range(6)])
    message = mistake(*train, tmp_path / "tiny.zip")
    assert "tiny.zip has images of 12x12, and the classifier needs 16 pixels a side; enlarge them with: " in message
    assert "--resolution 16" in message
    for name, side, label in (("one", 16, 1), ("large", 32, 1), ("more", 16, 6)):
        write_dataset(tmp_path / f"{name}.zip", [(Image.new("RGB", (side, side)), label)] * 3)
    write_dataset(tmp_path / "classes.zip", [(Image.new("RGB", (32, 32)), label) for label in range(3)])
    assert "one.zip has one class only" in mistake(*train, tmp_path / "one.zip")
    assert "large.zip has images of 32x32" in mistake(*train, faces16, "--test", tmp_path / "large.zip")
    assert "more.zip has classes up to 6, but" in mistake(*train, faces16, "--test", tmp_path / "more.zip")
    tests = {
        "grey": ([(Image.new("L", (16, 16)), n) for n in (0, 1)], "grey.zip has images of 1 channel, but"),
        "clear": ([(Image.new("RGBA", (16, 16)), n) for n in (0, 1)], "clear.zip has images of 4 channels, but"),
        "vectors": ([(Image.new("RGB", (16, 16)), [n, 0.5]) for n in (0, 1)], "the labels of"),
    }
    for name, (images, words) in tests.items():
        write_dataset(tmp_path / f"{name}.zip", images)
        assert words in mistake(*train, faces16, "--test", tmp_path / f"{name}.zip")
    for name, classes in (("all", ("ant", "bee", "cat")), ("some", ("bee", "cat"))):
        images = [(Image.new("RGB", (16, 16)), number) for number in range(len(classes))]
        write_dataset(tmp_path / f"{name}.zip", images, class_names=classes)
    message = mistake(*train, tmp_path / "all.zip", "--test", tmp_path / "some.zip")
    assert f"class 0 of {tmp_path / 'some.zip'} is 'bee', but of {tmp_path / 'all.zip'} 'ant'; number" in message
    for option, value in (("--width", 0), ("--width", 5), ("--lr", "nan"), ("--shift", 1), ("--smoothing", 1)):
        assert option in mistake(*train, faces16, option, value)
    assert "--batch 9 cannot be split" in mistake(*train, faces16, "--batch", 9, "--procs", 2)
    for options in (["--batch", 1], ["--batch", 4, "--batch-gpu", 1]):
        assert "1 image of 16² at a time is too little for batch normal" in mistake(*train, faces16, *options)
    large = ["--sizes", "16,32", "--batch", 2, "--batch-gpu", 1]
    for sizes in ("15", "16,33"):
        message = mistake(*train, tmp_path / "classes.zip", "--sizes", sizes)
        assert f"--sizes {sizes}: take sides from 16, the classifier's stride, to 32, that of the images" in message
    assert "'16-32' is not a valid integer" in mistake(*train, tmp_path / "classes.zip", "--sizes", "16-32")
    assert "1 image of 16² at a time is too little" in mistake(*train, tmp_path / "classes.zip", *large)
    assert not (tmp_path / "runs").exists()
