import copy
import io
import json
import os
import pickle
import traceback
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

from media import dataset, image_files
from media.check import check_dataset
from media.dataset import ImageDataset
from media.decode import Unusable
from media.image_files import ImageFiles
from tests.scripts import done, remedy, script_here
from torch_utils.errors import UserError

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def image(value: int = 0, side: int = 16, mode: str = "RGB") -> Image.Image:
    """An image whose pixels all differ, and differ by `value`."""
    shape = (side, side) if mode == "L" else (side, side, len(mode))
    pixels = (np.arange(np.prod(shape)).reshape(shape) * 7 + value) % 256
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def make_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def numbered(count: int, labels: object = None, **options) -> dict[str, bytes]:
    files = {f"{i // 2:05d}/img{i:08d}.png": encoded(image(i, **options)) for i in range(count)}
    return files | {"dataset.json": json.dumps({"labels": labels}).encode()}


def fails(path: Path, *parts: str, **options) -> None:
    """Asserts that the data set is refused, when it is made or read, in one line that holds the `parts`."""
    with pytest.raises(UserError) as error:
        list(ImageDataset(path, **options))
    assert "\n" not in error.value.message and error.value.exit_code == 2
    for part in (str(path), *parts):
        assert part in error.value.message


@pytest.mark.parametrize("make", [make_zip, make_folder])
def test_images_come_out_as_they_went_in(tmp_path, make):
    data = ImageDataset(make(tmp_path / "set.zip", numbered(5)))
    assert (data.name, data.resolution, data.channels, data.c_dim, data.labels, len(data)) == (
        "set" if make is make_zip else "set.zip",
        16,
        3,
        0,
        None,
        5,
    )
    for i, (pixels, label) in enumerate(data):
        assert pixels.dtype == torch.uint8 and label.dtype == torch.float32 and label.shape == (0,)
        assert np.array_equal(pixels, np.array(image(i)).transpose(2, 0, 1))


def test_kinds_of_files_and_order(tmp_path):
    path = make_folder(tmp_path / "set", {
        "b.jpg": encoded(Image.new("RGB", (16, 16), (200, 100, 50)), "JPEG"),
        "a.WEBP": encoded(image(1), "WEBP", lossless=True),
        "c/d.png": encoded(image(2)), "c.png": encoded(image(3)),
        "notes.txt": b"no image", ".hidden/e.png": b"broken", "__MACOSX/._b.jpg": b"broken",
    })  # fmt: skip
    data = ImageDataset(path)
    assert data.names == ["a.WEBP", "b.jpg", "c.png", "c/d.png"]
    assert np.array_equal(data[0][0], np.array(image(1)).transpose(2, 0, 1))
    assert (data[1][0].float().mean((1, 2)) - torch.tensor([200.0, 100, 50])).abs().max() < 3


def test_palettes_are_rgb(tmp_path):
    """A PNG with a palette is data like one without, also beside others; with a transparent colour it is RGBA."""
    exact = image(3).quantize(256)
    files = {"a.png": encoded(image(1)), "b.png": encoded(exact), "c.png": encoded(exact.convert("RGB"))}
    for name in ("both", "palette only"):
        data = ImageDataset(make_folder(tmp_path / name, files))
        assert data.channels == 3 and torch.equal(data[len(data) - 2][0], data[len(data) - 1][0])
        assert np.array_equal(data[len(data) - 2][0], np.array(exact.convert("RGB")).transpose(2, 0, 1))
        found = check_dataset(tmp_path / name)
        assert found.problems == [] and found.kind == "16x16 RGB"
        files.pop("a.png", None)
    clear = make_folder(tmp_path / "clear", {"a.png": encoded(exact, transparency=0)})
    assert ImageDataset(clear).channels == 4


def test_greyscale_has_one_channel(tmp_path):
    data = ImageDataset(make_zip(tmp_path / "grey.zip", numbered(2, mode="L")))
    assert data.channels == 1
    assert np.array_equal(data[1][0], np.array(image(1, mode="L"))[None])


def test_mirror_and_labels(tmp_path):
    names = [name for name in numbered(3) if name.endswith("png")]
    labels = [[names[2].replace("/", "\\"), 0], [names[0], 3], [names[1], 1], ["elsewhere.png", 9]]
    data = ImageDataset(make_zip(tmp_path / "set.zip", numbered(3, labels)), use_labels=True, mirror=True)
    assert (len(data), data.c_dim, data.labels.tolist()) == (6, 4, [3, 1, 0, 3, 1, 0])
    for i in range(3):
        assert torch.equal(data[i + 3][0], data[i][0].flip(2)) and not torch.equal(data[i + 3][0], data[i][0])
        assert torch.equal(data[i + 3][1], data[i][1])
    assert data[0][1].tolist() == [0, 0, 0, 1]
    with pytest.raises(IndexError):
        data[6]


def test_fingerprint(tmp_path):
    files = numbered(3)
    first = ImageDataset(make_zip(tmp_path / "a.zip", files)).fingerprint
    assert first == ImageDataset(make_zip(tmp_path / "b.zip", dict(reversed(files.items())))).fingerprint
    assert len(first) == 16 and int(first, 16) >= 0
    others = [numbered(2), numbered(3, [["a", 0]]), files | {"00000/img00000000.png": encoded(image(9))}]
    prints = {ImageDataset(make_zip(tmp_path / "c.zip", other)).fingerprint for other in others}
    assert len(prints) == 3 and first not in prints
    make_folder(tmp_path / "folder", files)
    in_folder = ImageDataset(tmp_path / "folder").fingerprint
    assert in_folder == first  # names and contents are the same
    make_folder(tmp_path / "folder", {"dataset.json": json.dumps({"labels": [["a", 0]]}).encode()})
    assert ImageDataset(tmp_path / "folder").fingerprint != in_folder


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers(tmp_path, context):
    # Large enough that workers which shared one open file would read from wherever the other one left it.
    data = ImageDataset(make_zip(tmp_path / "set.zip", numbered(600, side=32)))
    expected = torch.stack([data[i][0] for i in range(600)])  # the archive is open here when they start
    loader = DataLoader(data, 4, num_workers=2, multiprocessing_context=context)
    assert torch.equal(torch.cat([batch for batch, _ in loader]), expected)
    assert len(pickle.dumps(data)) < 100 * len(data)


def test_an_error_in_a_worker_stays_one_line(tmp_path):
    files = numbered(300) | {"00000/img00000001.png": b"broken"}
    data = ImageDataset(make_zip(tmp_path / "set.zip", files))
    batches = iter(DataLoader(Subset(data, [0, 1]), 2, num_workers=1))
    with pytest.raises(UserError) as error:
        next(batches)
    traceback.clear_frames(error.tb)  # they hold the loader, which would wait for its worker five seconds later
    del batches
    assert error.value.message.startswith(f"{tmp_path / 'set.zip'}: 00000/img00000001.png is not an image")
    assert "\n" not in error.value.message and "dataset_tool.py check" in error.value.message


def test_missing_and_wrong_files(tmp_path):
    make_zip(tmp_path / "faces32.zip", numbered(1))
    fails(tmp_path / "faces32", "did you mean", "faces32.zip?")
    fails(tmp_path / "face32.zip", "did you mean", "faces32.zip?")
    fails(tmp_path / "zebra", "dataset_tool.py faces")
    (tmp_path / "text.zip").write_text("text")
    fails(tmp_path / "text.zip", "not a ZIP file")
    (tmp_path / "cut.zip").write_bytes((tmp_path / "faces32.zip").read_bytes()[:-30])
    fails(tmp_path / "cut.zip", "not a ZIP file, or is cut off")
    fails(make_folder(tmp_path / "none", {"readme.txt": b""}), "holds no images (.png")
    fails(make_zip(tmp_path / "none.zip", {}), "holds no images")


def test_broken_images_are_named(tmp_path):
    good = encoded(image())
    fails(make_zip(tmp_path / "a.zip", {"a.png": b"text"}), "a.png is not an image", "dataset_tool.py check")
    fails(make_zip(tmp_path / "b.zip", {"a.png": good, "b.png": good[:-60]}), "b.png is a broken image")
    path = make_zip(tmp_path / "crc.zip", {"a.png": good, "b.png": encoded(image(1, 32).resize((16, 16)))})
    data = bytearray(path.read_bytes())
    data[data.rindex(b"IDAT") + 20] ^= 255
    path.write_bytes(data)
    fails(path, "b.png is not a readable image (Bad CRC-32")
    fails(make_zip(tmp_path / "line.zip", {"a\n\x1b.png": b"text"}), r"a\n\x1b.png")


@pytest.mark.parametrize("mode", ["CMYK", "I;16", "1"])
def test_other_colour_formats_are_refused(tmp_path, mode):
    odd = image().convert(mode) if mode != "I;16" else Image.fromarray(np.zeros((16, 16), np.uint16))
    file = encoded(odd, "JPEG") if mode == "CMYK" else encoded(odd)
    fails(
        make_zip(tmp_path / "a.zip", {"a.jpg": file}),
        f"a.jpg is of the kind {mode}",
        "dataset_tool.py convert",
        "--resolution 16",
    )


def test_sizes(tmp_path):
    def blank(*size: int) -> bytes:
        return encoded(Image.new("RGB", size))

    for size, resolution in (((16, 16), 16), ((2048, 2048), 2048), ((48, 48), 48), ((96, 64), (96, 64))):
        data = ImageDataset(make_zip(tmp_path / "a.zip", {"a.png": blank(*size)}))
        assert data.resolution == resolution
        assert data[0][0].shape == (3, size[1], size[0])
    for size, mend in (((50, 48), 32), ((32, 70), 32), ((8, 8), 16), ((1300, 2000), 1024)):
        fails(
            make_zip(tmp_path / "a.zip", {"a.png": blank(*size)}),
            f"a.png has {size[0]}x{size[1]} pixels",
            f"python dataset_tool.py convert --source {tmp_path / 'a.zip'} --out a-{mend}.zip --resolution {mend}",
        )
        with pytest.raises(UserError, match=r"--out a-48\.zip --resolution 48"):
            ImageDataset(tmp_path / "a.zip", model_resolution=48)
    two = {"a.png": blank(32, 32), "b.png": blank(64, 64)}
    fails(make_zip(tmp_path / "b.zip", two), "b.png is 64x64 RGB, but a.png is 32x32 RGB", "--resolution 32")
    two = {"a.png": blank(96, 64), "b.png": blank(64, 96)}
    fails(make_zip(tmp_path / "b.zip", two), "b.png is 64x96 RGB, but a.png is 96x64 RGB", "--resolution 96x64")
    fails(
        make_zip(tmp_path / "c.zip", {"a.png": blank(16, 16), "b.png": encoded(image(mode="L"))}),
        "b.png is 16x16 greyscale, but a.png is 16x16 RGB",
    )


@pytest.mark.parametrize("orientation, size", [(1, (96, 64)), (3, (96, 64)), (6, (64, 96)), (8, (64, 96))])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_turned_images_have_the_size_that_is_seen(tmp_path, kind, orientation, size):
    """As cameras write them that are held upright: the file lies on its side, and says so."""
    exif = Image.Exif()
    exif[0x112] = orientation
    suffix = f".{kind.lower()}"
    turned = encoded(Image.new("RGB", size), kind, exif=exif)
    straight = encoded(Image.new("RGB", (96, 64)), kind)
    for names in ("ab", "ba"):
        files = {names[0] + suffix: turned, names[1] + suffix: straight}
        data = ImageDataset(make_zip(tmp_path / f"{names}.zip", files))
        assert data.resolution == (96, 64) and {data[n][0].shape for n in (0, 1)} == {(3, 64, 96)}
        assert check_dataset(tmp_path / f"{names}.zip").problems == []
    if size != (96, 64):
        both = {"a" + suffix: turned, "b" + suffix: encoded(Image.new("RGB", (64, 96)), kind)}
        fails(make_zip(tmp_path / "c.zip", both), f"b{suffix} is 64x96 RGB, but a{suffix} is 96x64 RGB")


def test_a_spread_of_headers_is_checked_at_once_and_the_rest_when_read(tmp_path):
    files = numbered(300)
    odd = encoded(image(side=32))
    last, second = "00149/img00000299.png", "00000/img00000001.png"
    with pytest.raises(UserError, match=last):
        ImageDataset(make_zip(tmp_path / "a.zip", files | {last: odd}))
    data = ImageDataset(make_zip(tmp_path / "b.zip", files | {second: odd}))
    data[0]
    with pytest.raises(UserError, match=second):
        data[1]


def test_labels_that_are_not_there(tmp_path):
    files = numbered(2)
    fails(make_zip(tmp_path / "a.zip", files), "its labels are null", use_labels=True)
    fails(tmp_path / "a.zip", "in a folder SORTED", "--source SORTED", use_labels=True)
    del files["dataset.json"]
    fails(make_zip(tmp_path / "b.zip", files), "no dataset.json", "--labels folders", use_labels=True)
    files["dataset.json"] = json.dumps({"labels": [[next(iter(files)), 0]]}).encode()
    fails(make_zip(tmp_path / "c.zip", files), "1 of 2 images", "img00000001.png; add labels", use_labels=True)
    files["dataset.json"] = json.dumps({"labels": [["b.png", 0], ["a.png", 0]]}).encode()
    fails(make_zip(tmp_path / "d.zip", files), "2 of 2", "names a.png, which is not there; correct", use_labels=True)
    assert len(ImageDataset(tmp_path / "c.zip")) == 2


def test_labels_of_folders_are_made_as_the_message_says(tmp_path):
    files = {f"{name}/{i}.png": encoded(image(i, mode="L")) for i, name in enumerate(("cats", "dogs"))}
    path = make_zip(tmp_path / "two classes.zip", files)
    with pytest.raises(UserError) as error:
        ImageDataset(path, use_labels=True)
    done(script_here(*remedy(error.value.message), cwd=tmp_path))
    made = ImageDataset(tmp_path / "two classes-labels.zip", use_labels=True)
    assert made.class_names == ("cats", "dogs") and made[0][0].shape == (1, 16, 16)


@pytest.mark.parametrize("text", [
    "{", "[" * 100_000, '"text"', '{"labels": 3}', '{"labels": {"a.png": 1}}', '{"labels": [["a.png"]]}',
    '{"labels": [["a.png", "cat"]]}', '{"labels": [["a.png", true]]}',
    '{"labels": [["a.png", -1]]}', '{"labels": [["a.png", 1000000000]]}', '{"labels": [[1, 1]]}',
    b"\xff\xfe\xfa",
])  # fmt: skip
def test_malformed_labels(tmp_path, text):
    data = text if isinstance(text, bytes) else text.encode()
    path = make_zip(tmp_path / "a.zip", {"a.png": encoded(image()), "dataset.json": data})
    fails(path, "dataset.json of", use_labels=True)
    found = check_dataset(path)
    assert "dataset.json of" in found.label_problem and found.problems == []


def test_archives_that_ask_for_too_much(tmp_path, monkeypatch):
    bomb = make_zip(tmp_path / "bomb.zip", {"a.png": bytes(20 << 20)}, zipfile.ZIP_DEFLATED)
    fails(bomb, "would unpack to 20,971,520 bytes")
    bzip = make_zip(tmp_path / "bzip.zip", {"a.png": encoded(image())}, zipfile.ZIP_BZIP2)
    fails(bzip, "a.png is compressed in an unusual way")

    one = make_zip(tmp_path / "one.zip", {"a.png": encoded(image()), "dataset.json": b" " * 3000})
    monkeypatch.setattr(image_files, "MAX_LABEL_BYTES", 2999)
    fails(one, "dataset.json", "is larger than", use_labels=True)
    with monkeypatch.context() as patch:
        patch.setattr(image_files, "MAX_FILES", 1)
        fails(one, "holds 2 files; the limit is 1")
    with monkeypatch.context() as patch:
        patch.setattr(image_files, "MAX_FILE_BYTES", 100)
        fails(one, "a.png is larger than")
    with monkeypatch.context() as patch:
        patch.setattr("media.decode.MAX_PIXELS", 255)
        fails(one, "a.png has 16x16 pixels; the limit is 255")


def test_a_size_that_lies_does_not_unpack_more(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"a.png": encoded(image()) + bytes(100_000)}, zipfile.ZIP_DEFLATED)
    data = path.read_bytes()
    size = (100_000 + len(encoded(image()))).to_bytes(4, "little")
    assert data.count(size) == 2  # in the member's header and in the directory
    path.write_bytes(data.replace(size, (500).to_bytes(4, "little")))
    with pytest.raises(Unusable, match="cannot be read"):
        ImageFiles(path).read("a.png")


def test_files_of_a_folder_are_files_only(tmp_path):
    folder = make_folder(tmp_path / "set", numbered(1))
    os.mkfifo(folder / "pipe.png")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "link.png").symlink_to(folder / "00000" / "img00000000.png")
    assert ImageDataset(folder).names == ["00000/img00000000.png", "link.png"]


def test_check_names_every_problem(tmp_path):
    files = numbered(5, [[f"{i // 2:05d}/img{i:08d}.png", i % 2] for i in range(4)])
    files |= {"a.png": b"text", "b.png": encoded(image(side=32)), "c.png": encoded(image(mode="L"))}
    found = check_dataset(make_zip(tmp_path / "set.zip", files))
    assert (found.count, found.kind, found.classes) == (5, "16x16 RGB", {0: 2, 1: 2})
    assert dict(found.problems).keys() == {"a.png", "b.png", "c.png", "00002/img00000004.png"}
    assert dict(found.problems)["b.png"] == "is 32x32 RGB, unlike the 5 of 16x16 RGB"
    assert dict(found.problems)["00002/img00000004.png"] == "has no label"
    assert check_dataset(make_zip(tmp_path / "good.zip", numbered(5))).problems == []
    broken = check_dataset(make_zip(tmp_path / "bad.zip", {"a.png": b"text"}))
    assert broken.count == 0 and [name for name, _ in broken.problems] == ["a.png"]
    wrong = check_dataset(make_zip(tmp_path / "wrong.zip", {"a.png": encoded(image(side=50))}))
    assert "50x50" in dict(wrong.problems)["a.png"]


def test_a_real_data_set():
    if not (path := DATA / "cifar10-test.zip").exists():
        pytest.skip("needs the CIFAR-10 archive in shared/data beside the repository")
    data = ImageDataset(path, use_labels=True)
    assert data.name == "cifar10-test"
    assert (len(data), data.resolution, data.channels, data.c_dim) == (5000, 32, 3, 10)
    assert torch.bincount(data.labels).tolist() == [500] * 10
    means = torch.stack([data[i][0].float().mean((1, 2)) for i in range(0, 5000, 5)]).mean(0) / 255
    known = torch.tensor([0.4914, 0.4822, 0.4465])  # the channel means of CIFAR-10
    assert torch.allclose(means, known, atol=0.02)


@pytest.mark.parametrize("make", [make_zip, make_folder])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_kept_image_is_the_decoded_one(tmp_path, monkeypatch, make, workers):
    """In the first round and in the next, in this process and in others, and after someone has drawn on a result."""
    labels = [[f"{i // 2:05d}/img{i:08d}.png", i % 3] for i in range(12)]
    path = make(tmp_path / "set.zip", numbered(12, labels))
    monkeypatch.setattr(dataset, "MAX_CACHE_BYTES", 0)
    decoded = ImageDataset(path, use_labels=True, mirror=True)
    assert decoded._cache is None
    monkeypatch.undo()
    kept = ImageDataset(path, use_labels=True, mirror=True)
    for _ in range(2):
        context = "fork" if workers else None
        loader = DataLoader(kept, batch_size=5, num_workers=workers, multiprocessing_context=context)
        images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
        for i, (image, label) in enumerate(decoded):
            assert torch.equal(images[i], image) and torch.equal(labels[i], label)
            assert kept[i][0].is_contiguous()
        images.zero_(), kept[3][0].zero_()


def test_what_a_fork_has_read_is_read_no_more(tmp_path, monkeypatch):
    data = ImageDataset(make_zip(tmp_path / "set.zip", numbered(6)))
    for _ in DataLoader(data, num_workers=2, multiprocessing_context="fork"):
        pass
    monkeypatch.setattr(data, "_decode", None)
    assert np.array_equal(data[5][0], np.array(image(5)).transpose(2, 0, 1))
    assert copy.copy(data)._cache is None  # made by what pickling takes


def with_bad(count: int, bad: tuple[int, ...]) -> dict[str, bytes]:
    """Numbered images, of which some are cut off after their headers, with the classes 0, 1, 2, 0 ..."""
    files = {f"{i:04d}.png": encoded(image(i)) for i in range(count)}
    files |= {f"{i:04d}.png": files[f"{i:04d}.png"][:70] for i in bad}
    return files | {"dataset.json": json.dumps({"labels": [[name, i % 3] for i, name in enumerate(files)]}).encode()}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_image_takes_the_place_of_one_that_cannot_be_decoded(tmp_path, workers):
    path = make_zip(tmp_path / "a.zip", with_bad(300, (5, 6, 299)))
    data = ImageDataset(path, use_labels=True, mirror=True, skip_unreadable=True)
    context = "spawn" if workers else None  # as in a training of several processes
    indices = [4, 5, 6, 7, 299, 305, 599]
    loader = DataLoader(data, batch_size=1, sampler=indices, num_workers=workers, multiprocessing_context=context)
    found = [(int(pixels[0, 0, 0, 0]), int(label.argmax())) for pixels, label in loader]
    flipped = int(data[307][0][0, 0, 0])
    assert found == [(4, 1), (7, 1), (7, 1), (7, 1), (0, 0), (flipped, 1), (int(data[300][0][0, 0, 0]), 0)]
    assert data.check_unreadable(data.unreadable) == ["0005.png", "0006.png", "0299.png"]
    with pytest.raises(UserError, match=r"0005\.png is a broken image"):
        ImageDataset(path)[5]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_images_that_cannot_be_decoded_are_an_error(tmp_path, workers):
    bad = (20, 40, 60, 80)
    data = ImageDataset(make_zip(tmp_path / "a.zip", with_bad(300, bad)), skip_unreadable=True)
    with pytest.raises(
        UserError, match=r"a\.zip: 4 of 300 images cannot be decoded.*up to 1%; the first is 0020\.png"
    ) as error:
        list(DataLoader(data, batch_size=4, num_workers=workers))
    assert "\n" not in error.value.message
    with pytest.raises(UserError):  # none can be decoded
        ImageDataset(make_zip(tmp_path / "b.zip", {"0.png": b"broken"}), skip_unreadable=True)
