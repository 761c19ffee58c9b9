"""Snapshots of a run and truncations, beside each other: tables, the best one, its link, and curves."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from metrics import NotFinite
from metrics.request import find_snapshots
from metrics.series import best_record, link_best, precision_against_recall, ranked_values, table
from models.sampling import generate_batches
from models.snapshot import load_generator, save_snapshot
from networks.generator import Generator, GeneratorConfig
from tests.metrics.archives import write_images
from tests.models.stylegan2_pickles import network_pickle, small_networks
from torch_utils.errors import UserError


def record(kimg: float, **values: float) -> dict:
    return {"settings": {"kimg": kimg, "truncation": kimg / 10, "network": f"snapshot-{kimg:g}"}, **values}


RECORDS = [
    record(1, swd20=5.0, swd20_16=1.0, pr203_precision=0.5, pr203_recall=0.4),
    record(2, swd20=3.0, pr203_precision=0.25, pr203_recall=0.75),
    record(3, pr203_precision=0.125, pr203_recall=0.5),
]


def test_values_that_models_are_ranked_by():
    assert ranked_values(RECORDS, ["swd20", "pr203", "fid20"]) == {
        "swd20": False,
        "pr203_precision": True,
        "pr203_recall": True,
    }


def test_the_best_is_the_lowest_or_the_highest():
    assert best_record(RECORDS, "swd20", False) == 1
    assert best_record(RECORDS, "pr203_precision", True) == 0
    assert best_record(RECORDS, "pr203_recall", True) == 1
    with pytest.raises(UserError, match="no snapshot has a value of fid20"):
        best_record(RECORDS, "fid20", False)


def test_table():
    assert table(RECORDS, "kimg", ["swd20", "pr203"], 1).splitlines() == [
        "|     kimg | swd20 | pr203_precision | pr203_recall |",
        "|---------:|------:|----------------:|-------------:|",
        "|        1 |     5 |             0.5 |          0.4 |",
        "| 2 (best) |     3 |            0.25 |         0.75 |",
        "|        3 |     – |           0.125 |          0.5 |",
    ]


def test_precision_against_recall():
    (chart,) = precision_against_recall(RECORDS, ["swd20", "pr203"])
    root = ElementTree.fromstring(chart)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"precision", "recall", "ψ 0.1", "ψ 0.2", "ψ 0.3"} <= set(texts)
    assert precision_against_recall(RECORDS, ["swd20"]) == []


def test_a_link_is_replaced_and_a_model_is_not(tmp_path):
    first, second = tmp_path / "snapshot-1.safetensors", tmp_path / "snapshot-2.safetensors"
    first.write_text("one")
    second.write_text("two")
    assert link_best(first).read_text() == "one"
    assert link_best(second).read_text() == "two" and (tmp_path / "best.safetensors").is_symlink()
    (tmp_path / "best.safetensors").unlink()
    (tmp_path / "best.safetensors").write_text("kept")
    with pytest.raises(UserError, match=r"best\.safetensors is no link but a model.* --keep-best"):
        link_best(first)
    assert (tmp_path / "best.safetensors").read_text() == "kept" and len(list(tmp_path.iterdir())) == 3


@pytest.fixture(autouse=True)
def few_directions(monkeypatch):
    monkeypatch.setattr("metrics.swd.DIRECTIONS", 32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three snapshots, of which the second one made the data set, and a diverged one."""
    folder = tmp_path_factory.mktemp("runs") / "00000-run"
    folder.mkdir()
    config = GeneratorConfig(resolution=16, cbase=128, cmax=8, map_depth=1, z_dim=16, w_dim=16, style_channels=8)
    for kimg in (1, 2, 10, 11):
        torch.manual_seed(kimg)
        G = Generator(config)
        G.synthesis.blocks[-1].torgb.bias.data += 0.3 * kimg
        if kimg == 11:
            G.w_avg.fill_(torch.nan)
        save_snapshot(folder / f"snapshot-{kimg:06}.safetensors", G, {"kimg": float(kimg)})
    G = load_generator(folder / "snapshot-000002.safetensors")[0]
    images = torch.cat(list(generate_batches(G, range(1000, 1040), noise="none")))
    return folder, write_images(folder.parent / "data", images)


def test_all_snapshots_of_a_run(command, run, tmp_path):
    folder, data = run
    arguments = ["--network", folder, "--all", "--data", data, "--metrics", "swd40", "--gpus", 0, "--workers", 0]
    arguments += ["--plot", tmp_path / "curve.svg"]
    code, out, err = command(*arguments)
    assert code == 0, err
    rows = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")]
    assert rows == ["kimg", rows[1], "1", "2 (best)", "10"]
    assert "snapshot-000011.safetensors has weights that are not finite" in err
    assert (folder / "best.safetensors").resolve().name == "snapshot-000002.safetensors"
    ElementTree.parse(tmp_path / "curve.svg")

    found = json.loads(command(*arguments, "--json")[1])
    assert found["best"].endswith("snapshot-000002.safetensors") and len(found["records"]) == 3
    alone = ["--network", folder / "snapshot-000010.safetensors", *arguments[3:], "--json"]
    assert json.loads(command(*alone)[1])["swd40"] == pytest.approx(found["records"][2]["swd40"], rel=1e-6)


def test_all_snapshots_without_the_detector_of_the_first_metric(command, run, tmp_path, no_network):
    """The other metrics are printed, and mark the best; one that --best asks for and nothing has is told."""
    folder, data = run
    arguments = ["--network", folder, "--all", "--data", data, "--metrics", "fid40,swd40", "--gpus", 0, "--workers", 0]
    arguments += ["--plot", tmp_path / "made" / "deeper" / "curve.svg"]
    code, out, err = command(*arguments)
    assert code == 2 and err.splitlines()[-1].startswith("error: fid40: cannot download https")
    assert "| 2 (best) |" in out and "The best snapshot by swd40 is snapshot-000002" in out
    ElementTree.parse(tmp_path / "made" / "deeper" / "curve.svg")
    code, out, err = command(*arguments, "--best", "fid40")
    assert code == 2 and "fid40: cannot download" in err and "no snapshot has a value of fid40" in err
    assert "(best)" not in out and len([line for line in out.splitlines() if line.startswith("|")]) == 5


def test_snapshots_without_a_single_value_are_told(command, run, tmp_path, monkeypatch):
    settings = {"kimg": 1.0, "network": str(run[0] / "snapshot-000001.safetensors"), "truncation": 1.0}
    monkeypatch.setattr("metrics.__main__.evaluate_together", lambda *args: [{"settings": settings}])
    arguments = ["--network", run[0], "--all", "--data", run[1], "--metrics", "swd40,pr403", "--gpus", 0]
    code, _, err = command(*arguments, "--plot", tmp_path / "curve.svg")
    assert code == 2 and "no snapshot has a value of swd40" in err


def test_copies_of_snapshots_are_snapshots_too(run, tmp_path):
    for name in ("snapshot-000010", "snapshot-000002.5", "snapshot-000002", "snapshot-000002-copy"):
        shutil.copy(run[0] / "snapshot-000001.safetensors", tmp_path / f"{name}.safetensors")
    found = [path.stem.removeprefix("snapshot-") for path in find_snapshots(str(tmp_path), True)]
    assert found == ["000002", "000002-copy", "000002.5", "000010"]


def test_all_pickles_in_a_folder(command, tmp_path):
    """Of StyleGAN2's, by the numbers in their names; others that do not fit are left out, and a link is none."""
    folder = tmp_path / "pickles"
    folder.mkdir()
    for seed, kimg in enumerate((200, 1000, 400)):
        G, _ = small_networks(seed=seed)
        (folder / f"network-snapshot-{kimg}.pkl").write_bytes(network_pickle(G))
    (folder / "network-snapshot-100.pkl").write_bytes(network_pickle(small_networks(c_dim=3)[0]))
    (folder / "network-snapshot-600.pkl").write_bytes(b"no pickle")
    images = torch.cat(list(generate_batches(small_networks(seed=2)[0], range(1000, 1040))))
    arguments = ["--network", folder, "--all", "--data", write_images(tmp_path / "data", images), "--metrics", "swd40"]
    arguments += ["--gpus", 0, "--workers", 0, "--plot", tmp_path / "curve.svg"]
    for _ in range(2):  # the second time with the link of the first
        code, out, err = command(*arguments)
        assert code == 0, err
        rows = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")]
        assert rows == ["kimg", rows[1], "200", "400 (best)", "1000"]
        assert "network-snapshot-600.pkl" in err
        assert err.count("it is left out") == 2
    (folder / "latest.pkl").symlink_to("network-snapshot-200.pkl")  # no further model
    assert len(find_snapshots(str(folder), True)) == 5
    G = small_networks(seed=2)[0]
    save_snapshot(folder / "snapshot-000001.safetensors", G, {"kimg": 1})
    assert [path.name for path in find_snapshots(str(folder), True)] == ["snapshot-000001.safetensors"]
    link = folder / "best.pkl"
    assert link.is_symlink() and link.resolve().name == "network-snapshot-400.pkl"
    assert load_generator(link)[0].config == small_networks(seed=2)[0].config
    assert f"The best snapshot by swd40 is network-snapshot-400.pkl, linked as {link}." in out
    code, _, err = command(*arguments, "--per-class")
    assert code == 2 and "--per-class is of one snapshot" in err


def test_files_without_a_number_are_told_apart_by_their_names():
    records = [record(0, swd20=2.0), record(0, swd20=1.0)]
    records[1]["settings"]["network"] = "published/cats.pkl"
    lines = table(records, "kimg", ["swd20"], 1).splitlines()
    assert [line.split("|")[1].strip() for line in (lines[0], *lines[2:])] == [
        "network",
        "snapshot-0",
        "cats.pkl (best)",
    ]


def test_truncations(command, run, tmp_path):
    folder, data = run
    arguments = ["--network", folder / "snapshot-000002.safetensors", "--data", data, "--metrics", "swd40"]
    arguments += ["--gpus", 0, "--workers", 0, "--plot", tmp_path / "curve.svg"]
    code, out, err = command(*arguments, "--trunc", "0,0.5,1")
    assert code == 0, err
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows[2:]] == ["0", "0.5", "1"]
    assert float(rows[2][1]) > float(rows[3][1]) > float(rows[4][1])  # fewer kinds of images are further away
    one = json.loads(command(*arguments, "--trunc", "0.5", "--json")[1])
    assert one["swd40"] == pytest.approx(float(rows[3][1]), rel=1e-3) and one["settings"]["truncation"] == 0.5


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--trunc", "0.5,x"], "not a valid number"),
        (["--trunc", "0.5,nan"], "not a finite number"),
        (["--all", "--trunc", "0.5,1"], "--all and several values of --trunc do not go together"),
        (["--best", "swd40"], "add --all"),
        (["--all", "--best", "swd40_16"], "--metrics gives swd40"),
        (["--all", "--plot", "."], "is a folder, not a file; name another with --plot"),
        (["--all", "--plot", "/dev/null/x.svg"], "/dev/null is a file, not a folder; name another with --plot"),
        (["--all", "--fakes", "x"], "name --network or --fakes, not both"),
    ],
)
def test_mistakes_are_one_line(command, run, arguments, words):
    folder, data = run
    code, _, err = command("--network", folder, "--data", data, "--metrics", "swd40", "--gpus", 0, *arguments)
    assert code == 2 and words in err and len(err.splitlines()) == 1, err


def test_all_is_of_a_run(command, run):
    folder, data = run
    file = folder / "snapshot-000002.safetensors"
    code, _, err = command("--network", file, "--data", data, "--metrics", "swd40", "--gpus", 0, "--all")
    assert code == 2 and "is a file; name the run's folder" in err


def test_an_evaluation_without_a_number_does_not_cost_the_others(command, faces16, tmp_path, monkeypatch):
    results = iter([NotFinite("swd20 came out as no number"), {"swd20": 3.0}])

    def evaluate(self, fakes, paths=None):
        if isinstance(result := next(results), Exception):
            raise result
        return result

    monkeypatch.setattr("metrics.request.Evaluator.evaluate", evaluate)
    save_snapshot(tmp_path / "a.safetensors", Generator(GeneratorConfig(16, cbase=128, cmax=8)), {"kimg": 1.0})
    options = ["--network", tmp_path / "a.safetensors", "--data", faces16, "--gpus", 0, "--plot", tmp_path / "a.svg"]
    code, out, err = command("--metrics", "swd20", "--trunc", "0.5,1", *options)
    assert code == 0 and [line.split() for line in out.splitlines()[2:4]] == [
        ["|", "0.5", "|", "–", "|"],
        ["|", "1", "|", "3", "|"],
    ]
    assert err.count("swd20 came out as no number") == 1
