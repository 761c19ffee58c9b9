"""What is compared are images of the data set, with their own classes."""

import json
import sys
from pathlib import Path

import pytest
import torch

from media.convert import write_dataset
from media.dataset import ImageDataset
from media.faces import faces
from metrics import Evaluator
from metrics.features import tensor_source
from tests.metrics.test_encoders import encoder_file  # noqa: F401 (a fixture)
from torch_utils.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from compare_damages import LEVELS, damages, main, memorization, overview, read, shuffled


@pytest.mark.parametrize("labelled", [True, False])
def test_read(tmp_path, labelled):
    path = tmp_path / "faces.zip"
    write_dataset(path, ((image, label if labelled else None) for image, label in faces(60, 16, seed=0)))
    images, labels = read(str(path), 40, seed=0)
    assert images.shape == (40, 3, 16, 16)
    assert (labels is not None) == labelled
    dataset = ImageDataset(path, use_labels=labelled)
    own = [dataset[i][0] for i in range(len(dataset))]
    places = [next(i for i, image in enumerate(own) if torch.equal(image, drawn)) for drawn in images]
    assert len(set(places)) == 40
    if labels is not None:
        assert torch.equal(labels, dataset.required_labels[places])


def test_fewer_modes_leave_fewer_classes(faces16):
    images, labels = read(str(faces16), 100, seed=0)
    damage = damages(images, labels, images, images)
    assert list(damage) == list(LEVELS)
    left = damage["modes left"](0.5)
    kept = labels.unique()[: round(0.5 * len(labels.unique()))]
    allowed = images[torch.isin(labels, kept)]
    assert left.shape == images.shape
    assert all(any(torch.equal(image, one) for one in allowed) for image in left)


def test_metrics_of_the_first_images_see_the_same_share_of_a_damage():
    images, others = torch.zeros(400, 3, 8, 8, dtype=torch.uint8), torch.ones(400, 3, 8, 8, dtype=torch.uint8)
    mixed = damages(images, None, others, images)["images of another kind"](0.2)
    assert mixed.float().mean() == pytest.approx(0.2)
    first = shuffled(mixed)[:100]
    assert 0.1 < first.float().mean() < 0.3
    assert torch.equal(shuffled(mixed).sort(dim=0).values, mixed.sort(dim=0).values)


def test_the_overview_has_a_row_for_each_level():
    rows = [{"swd": 10.0 + n, "of no rank": 0.0} for n in range(4)]
    assert overview({"modes left": rows, "images of another kind": rows}, {"swd": False}).splitlines() == [
        "| images | swd |",
        "|---|---|",
        "| undamaged | 10 |",
        "| modes left: 0.5 | 11 |",
        "| modes left: 0.2 | 12 |",
        "| modes left: 0.1 | 13 |",
        "| images of another kind: 0.05 | 11 |",
        "| images of another kind: 0.2 | 12 |",
        "| images of another kind: 0.5 | 13 |",
    ]


def test_copies_are_caught_and_no_distance_sees_them(faces16, encoder_file):  # noqa: F811
    """The more images are copied from the real side, the better is the distance, and the fewer are authentic."""
    images, _ = read(str(faces16), 360, seed=0)
    real, fake, test = images.split(120)
    name = f"fd120@{encoder_file}"
    evaluator = Evaluator([name], torch.utils.data.TensorDataset(real))
    figures = memorization(str(encoder_file), (), real, test, "cpu")
    copies = damages(fake, None, fake, real)["copies of the real side"]
    found = [{**evaluator.evaluate(tensor_source(part)), **figures(part)} for part in (fake, copies(0.5), copies(1.0))]
    for better in (name, "authentic", "c_t"):
        values = [values[better] for values in found]
        assert values[0] > values[1] > values[2], (better, values)
    assert found[2]["fld"] > found[0]["fld"] + 10
    assert found[2]["authentic"] == 0 and found[2]["c_t"] < -5 and abs(found[0]["c_t"]) < 3


def test_a_measurement_in_parts_gives_the_record_of_one(faces16, encoder_file, tmp_path, capsys):  # noqa: F811
    def measure(name: str, damages: str, count: int = 20) -> dict:
        arguments = ["--data", faces16, "--other", faces16, "--count", count, "--metrics", f"kd20@{encoder_file}"]
        arguments += ["--no-memorization", "--damages", damages, "--json", tmp_path / name]
        main([*map(str, arguments)], standalone_mode=False)
        return json.loads((tmp_path / name).read_text())

    whole = measure("whole.json", "blur,modes")
    assert whole["data"] == whole["other"] == faces16.name
    table = capsys.readouterr().out.split("\n\n")[-1]
    measure("parts.json", "blur")
    assert measure("parts.json", "modes") == whole and [*whole["values"]] == ["blur, σ in pixels", "modes left"]
    assert capsys.readouterr().out.split("\n\n")[-1] == table
    assert all(
        row.keys() == {f"kd20@{encoder_file}", f"kd20_std@{encoder_file}"} for row in whole["values"]["modes left"]
    )
    with pytest.raises(UserError, match=r"parts\.json was measured with other options; repeat those, or name another"):
        measure("parts.json", "noise", count=30)
    (tmp_path / "no.json").write_text("[1]")
    with pytest.raises(UserError, match=r"no\.json is no record of this script; name another file"):
        measure("no.json", "noise")
