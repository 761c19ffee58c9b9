"""adaconv.py: models from files, runs and a Hub that is played by a folder, and README's example."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import adaconv
from media.files import read_image
from models.snapshot import load_generator, save_snapshot, save_stylizer
from networks.generator import Generator as Network
from networks.generator import GeneratorConfig
from tests.scripts import done, mistake, script_here
from torch_utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with two snapshots of a model with classes, its configuration and its metrics."""
    folder = tmp_path_factory.mktemp("demo") / "runs" / "00000-faces-adaconv-demo"
    folder.mkdir(parents=True)
    for kimg in (1, 2):
        torch.manual_seed(kimg)
        G = Network(GeneratorConfig(16, cbase=128, cmax=8, map_depth=2, z_dim=8, w_dim=8, style_channels=4, c_dim=3))
        G.w_avg.normal_()
        save_snapshot(folder / f"snapshot-00000{kimg}.safetensors", G, {"kimg": kimg, "data": "faces16"})
    config = {"batch": 16, "gamma": 1.0, "data": "/home/someone/faces16.zip", "about": {"commit": "abc123"}}
    (folder / "config.json").write_text(json.dumps(config))
    lines = [{"kimg": kimg, "swd2k": 50.0 / kimg, "images": {"swd2k": 500}} for kimg in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def generate(*arguments: object) -> None:
    with mock.patch.object(sys, "argv", ["generate.py", *map(str, arguments)]), pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "generate.py"), run_name="__main__")
    assert stopped.value.code == 0


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_the_example_of_the_readme(tmp_path, monkeypatch):
    """The very lines, beside generate.py on the same seeds, with what a fresh clone has."""
    (example,) = re.findall(r"```python\n(from adaconv .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(example.strip().splitlines()) <= 10
    (model,) = re.findall(r'from_pretrained\("(.*?)"\)', example)
    monkeypatch.chdir(tmp_path)
    Path("pretrained").symlink_to(ROOT / "pretrained")
    exec(compile(example, "README.md", "exec"), {})
    generate("--network", model, "--seeds", "0-2", "--class", 2, "--trunc", 0.7)
    made = sorted(path.name for path in tmp_path.glob("seed*.png"))
    assert made == ["seed0000.png", "seed0001.png", "seed0002.png"]
    for name in made:
        assert np.array_equal(pixels(tmp_path / name), pixels(tmp_path / "out" / name))


def test_the_same_images_as_generate(run, tmp_path):
    G = adaconv.Generator.from_pretrained(run.parent)
    assert G.info["kimg"] == 2 and not G.training
    for noise in ("const", "none"):
        generate("--network", run, "--seeds", "3-6", "--class", 2, "--noise-mode", noise, "--outdir", tmp_path / noise)
        images = adaconv.to_uint8(G(G.latents(range(3, 7)), 2, noise=noise))
        for seed, image in zip(range(3, 7), images, strict=True):
            assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels(tmp_path / noise / f"seed000{seed}.png"))


def test_classes_by_number_and_between(run):
    G = adaconv.Generator.from_pretrained(run)
    z = G.latents([0, 1])
    assert torch.equal(G(z, [0, 2]), G(z, torch.tensor([[1.0, 0, 0], [0, 0, 1]])))
    assert torch.equal(G(z, 1), G(z, torch.tensor([1, 1])))
    for c in (None, 3, -1, [0, 1, 2], torch.zeros(2, 2)):
        with pytest.raises(ValueError, match="a class from 0 to 2"):
            G(z, c)


def test_inputs_of_another_shape_are_refused_in_words(run):
    G = adaconv.Generator.from_pretrained(run)
    z, count = G.latents([0, 1]), G.config.c_dim
    for c, message in (
        (None, f"c: expected a class from 0 to {count - 1} for each of 2 images, such as c=0"),
        ([0, 1, 2], "or one for all; got [3]"),
        (torch.zeros(2, count + 1), f"or floats [2, {count}]; got floats [2, {count + 1}]"),
        (count, f"such as c=0; got {count}"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            G(z, c)
    for wrong in (torch.randn(2, G.config.z_dim + 1), z[0]):
        with pytest.raises(ValueError, match=rf"z: expected \[N, {G.config.z_dim}\].*got \[{wrong.shape[0]}"):
            G(wrong, 0)
    for psi in ([0.5] * (G.config.num_ws - 1), torch.ones(2, G.config.num_ws)):
        with pytest.raises(ValueError, match=f"psi: expected a number, or one for each of {G.config.num_ws} layers"):
            G(z, 0, psi=psi)
    with pytest.raises(ValueError, match="c: expected a class"):
        G(z, c=True)
    with pytest.raises(TypeError):
        G.latents([0.5])
    assert G(z, 0).shape[0] == 2


def test_inputs_in_other_forms_are_the_same(run):
    G = adaconv.Generator.from_pretrained(run)
    z = G.latents([0, 1])
    for seeds in (np.arange(2), torch.arange(2), range(2)):
        assert torch.equal(G.latents(seeds), z)
    assert G.latents([]).shape == (0, G.config.z_dim)
    expected = G(z, 1, psi=0.5)
    for psi in ([0.5] * G.config.num_ws, torch.full([G.config.num_ws], 0.5), torch.tensor(0.5)):
        torch.testing.assert_close(G(z, 1, psi=psi), expected)
    assert torch.equal(G(z.double(), 1, psi=0.5), expected)


def test_labels_in_other_types_are_the_same(run):
    G = adaconv.Generator.from_pretrained(run)
    z, one, mixed = G.latents([0, 1]), G(G.latents([0, 1]), 1), [[0.5, 0.5, 0.0], [0.0, 0.2, 0.8]]
    for kind in (np.int8, np.int16, np.int32, np.int64, np.uint8):
        assert torch.equal(G(z, kind(1)), one) and torch.equal(G(z, np.array([1, 1], kind)), one)
    expected = G(z, torch.tensor(mixed))
    for c in (np.array(mixed), torch.tensor(mixed, dtype=torch.float64), np.array(mixed, np.float32), mixed):
        assert torch.equal(G(z, c), expected)
    with torch.no_grad():
        assert G.bfloat16()(z, 1).isfinite().all()


def test_a_label_of_one_number_may_be_a_number():
    torch.manual_seed(0)
    G = adaconv.Generator(GeneratorConfig(16, c_dim=1, vector_labels=True, cbase=128, cmax=8, z_dim=8, w_dim=8)).eval()
    z = G.latents([0, 1])
    expected = G(z, [0.5])
    assert all(torch.equal(G(z, c), expected) for c in (0.5, np.float64(0.5), [[0.5], [0.5]], torch.tensor(0.5)))
    assert torch.equal(G(z, 1), G(z, [1.0]))
    for c, got in ((None, "none"), ([1, 2, 3], "[3]")):
        with pytest.raises(ValueError, match=re.escape(f"a label of 1 number, or [2, 1] for 2 images, got {got}")):
            G(z, c)


@pytest.mark.parametrize(("modulation", "norm"), [("adaconv", "demod"), ("modconv", "demod"), ("adain", "instance")])
def test_the_card_says_what_the_styles_are(modulation, norm):
    config = GeneratorConfig(16, modulation=modulation, norm=norm, cbase=128, cmax=8, z_dim=8, w_dim=8)
    text = adaconv.Generator(config).card()
    names = {"adaconv": "(AdaConv)", "modconv": "StyleGAN2's modulated convolution", "adain": "(AdaIN)"}
    assert [name for name in names if names[name] in text] == [modulation]


def test_classes_by_name(run):
    G = adaconv.Generator.from_pretrained(run)
    z = G.latents([0, 1])
    with pytest.raises(ValueError, match="does not know its classes by name"):
        G(z, "cat")
    G.info["class_names"] = ["cat", "dog", "eel"]
    assert G.class_names == ("cat", "dog", "eel")
    assert torch.equal(G(z, "dog"), G(z, 1)) and torch.equal(G(z, ["eel", 0]), G(z, [2, 0]))
    with pytest.raises(ValueError, match=r"did you mean dog\?"):
        G(z, ["cat", "dgo"])
    assert 'c="cat", psi=0.7' in G.card() and "of 3 classes: cat, dog, eel." in G.card()


def test_saved_and_loaded(run, tmp_path, stylizer):
    G = adaconv.Generator.from_pretrained(run / "snapshot-000001.safetensors")
    G.save_pretrained(tmp_path / "a")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {"model.safetensors", "README.md", "config.json", "samples.png"}
    again = adaconv.Generator.from_pretrained(tmp_path / "a")
    assert again.info == G.info and again.info["metrics"] == {"swd2k": 50.0}
    z = G.latents([0, 1])
    assert torch.equal(again(z, 0), G(z, 0))
    assert load_generator(tmp_path / "a" / "model.safetensors")[1]["kimg"] == 1
    generate("--network", tmp_path / "a", "--seeds", "0", "--outdir", tmp_path / "out")
    sample, alone = pixels(tmp_path / "a" / "samples.png")[:16, :16], pixels(tmp_path / "out" / "seed0000.png")
    assert np.abs(sample.astype(int) - alone).max() <= 1

    save_stylizer(tmp_path / "b.safetensors", stylizer, {"kimg": 3})
    model = adaconv.Stylizer.from_pretrained(tmp_path / "b.safetensors")
    model.save_pretrained(tmp_path / "b")
    again = adaconv.Stylizer.from_pretrained(tmp_path / "b")
    content, style = torch.rand(2, 1, 3, 64, 64) * 2 - 1
    assert torch.equal(again(content, again.kernels(style)), stylizer(content, stylizer.kernels(style)))
    assert "from adaconv import Stylizer" in (tmp_path / "b" / "README.md").read_text()
    with pytest.raises(UserError, match=r"no snapshot of a generator .* use the class of the other kind") as error:
        adaconv.Generator.from_pretrained(tmp_path / "b")
    assert "--" not in error.value.message  # the library has no options


def test_the_card_says_what_the_run_was(run, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    adaconv.Generator.from_pretrained(run).save_pretrained(tmp_path, model_card_kwargs={"license": "cc-by-4.0"})
    card = hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.library_name == "adaconv"
    for row in (
        "images shown | 2,000",
        "data | faces16",
        "swd2k | 25",
        "batch | 16",
        "commit | abc123",
        "cbase | 128",
    ):
        assert f"| {row} |" in card.text
    assert "/home/someone" not in card.text + (tmp_path / "config.json").read_text()
    assert "c=0, psi=0.7" in card.text


def test_the_card_states_a_licence_only_if_one_is_given(run, tmp_path):
    G = adaconv.Generator.from_pretrained(run)
    front, text = G.card().split("---\n", 2)[1:]
    assert "license" not in front and "No licence of the weights is stated." in text
    front, text = G.card(license="cc-by-4.0").split("---\n", 2)[1:]
    assert 'license: "cc-by-4.0"' in front and "The licence of the weights is cc-by-4.0." in text
    G.info["source"] = {"file": "ffhq.pkl"}
    front, text = G.card().split("---\n", 2)[1:]
    assert 'license: "other"' in front and "keep the licence of whoever published it" in text


def test_the_version_stands_once():
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert adaconv.__version__ == "0.2.0" and "version" not in config["project"]
    assert config["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "adaconv.__version__"}
    assert f"version: {adaconv.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{adaconv.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_an_installed_library_has_every_package_and_the_shipped_models():
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    names = subprocess.run(["git", "ls-files", "*/__init__.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    packages = {".".join(Path(name).parent.parts) for name in names.stdout.split()}
    apart = {package for package in packages if package.startswith(("tests", "benchmarks"))}
    assert set(listed) == {*(packages - apart), "pretrained"} and len(listed) == len(set(listed))


class FakeHub:
    """Repositories in a folder, behind the two seams of huggingface_hub's mixin."""

    def __init__(self, folder: Path):
        self.folder, self.asked = folder, []

    def __call__(self, token=None) -> FakeHub:
        return self

    def create_repo(self, repo_id, private, exist_ok) -> mock.Mock:
        return mock.Mock(repo_id=repo_id)

    def upload_folder(self, *, repo_id, folder_path, **_) -> str:
        shutil.copytree(folder_path, self.folder / repo_id)
        return f"commit of {repo_id}"

    def hf_hub_download(self, *, repo_id, filename, **options) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        self.asked.append((repo_id, filename, options["revision"]))
        path = self.folder / repo_id / filename
        if not path.exists():
            raise LocalEntryNotFoundError("cannot be found")
        return str(path)


def test_to_the_hub_and_back(run, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    fake = FakeHub(tmp_path)
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", fake)
    monkeypatch.setattr(hub, "hf_hub_download", fake.hf_hub_download)
    G = adaconv.Generator.from_pretrained(run)
    assert G.push_to_hub("someone/faces", model_card_kwargs={"license": "mit"}) == "commit of someone/faces"
    card = (tmp_path / "someone" / "faces" / "README.md").read_text()
    assert 'from_pretrained("someone/faces")' in card and "license: mit" in card
    again = adaconv.Generator.from_pretrained("someone/faces", revision="v1")
    assert torch.equal(again(G.latents([5]), 1), G(G.latents([5]), 1)) and again.info == G.info
    assert fake.asked == [("someone/faces", "model.safetensors", "v1")]
    with pytest.raises(UserError, match=r"the Hub has no model\.safetensors of it: cannot be found"):
        adaconv.Generator.from_pretrained("someone/else")

    def refused_by_a_proxy(**options):
        raise type("ProxyError", (Exception,), {})("403 Forbidden")  # of the library that transfers the file

    with monkeypatch.context() as patch:
        patch.setattr(hub, "hf_hub_download", refused_by_a_proxy)
        with pytest.raises(UserError, match=r"the Hub has no model\.safetensors of it: 403 Forbidden"):
            adaconv.Generator.from_pretrained("someone/faces")
    (tmp_path / "someone" / "faces" / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="cannot be read as a generator"):
        adaconv.Generator.from_pretrained("someone/faces")
    with pytest.raises(UserError, match="cannot be read as a stylizer"):
        adaconv.Stylizer.from_pretrained("someone/faces")


def test_commands_take_an_address_of_the_hub(run, tmp_path, monkeypatch):
    """By the library's code: the same image, and one line for what is not there."""
    hub = pytest.importorskip("huggingface_hub")
    fake = FakeHub(tmp_path / "there")
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", fake)
    monkeypatch.setattr(hub, "hf_hub_download", lambda **options: fake.hf_hub_download(revision=None, **options))
    G = adaconv.Generator.from_pretrained(run)
    G.push_to_hub("someone/faces")
    monkeypatch.chdir(tmp_path)
    base = ["--network", "someone/faces", "--outdir", tmp_path / "out"]
    done(script_here("generate.py", "--seeds", 5, "--class", 1, *base))
    image = read_image(tmp_path / "out" / "seed0005.png")
    assert (image.int() - adaconv.to_uint8(G(G.latents([5]), 1))[0].int()).abs().max() <= 1
    for command in (["mix", "--rows", 1, "--cols", 2], ["directions", "--method", "pca"], ["kernels", "--seed", 1]):
        done(script_here("generate.py", *command, *base))
    done(script_here("generate.py", "video", "--seeds", "1,2", "--fps", 2, *base[:2], "--out", tmp_path / "a.gif"))
    search = ["--target", tmp_path / "out" / "seed0005.png", "--steps", 1, "--candidates", 4]
    done(script_here("projector.py", *search, *base))
    assert {asked[:2] for asked in fake.asked} == {("someone/faces", "model.safetensors")}
    message = mistake("generate.py", "--seeds", 1, "--network", "someone/else", cwd=tmp_path)
    assert "the Hub has no model.safetensors of it: cannot be found" in message
    asked = list(fake.asked)
    (tmp_path / "runs" / "00000-x").mkdir(parents=True)
    for name, words in (("rums/00000-x", "did you mean runs/00000-x?"), ("typo", "there is no typo")):
        assert words in mistake("generate.py", "--seeds", 1, "--network", name, cwd=tmp_path)
    assert fake.asked == asked


@pytest.mark.parametrize(
    "name",
    [
        "typo",
        "runs/typo",
        "typo.pkl",
        "a/b.pkl",
        "./typo",
        "runs",
        "a/b/c",
        "/absent",
        "../absent",
        "runs/snapshot-000001.safetensors",
        "a/b?",
        "",
    ],
)
def test_what_is_neither_a_path_nor_a_repository(name, tmp_path, monkeypatch):
    """It is answered at once, without asking the Hub, and in words that fit the library."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(adaconv.Generator, "_from_pretrained", lambda **_: pytest.fail("the Hub was asked"))
    with pytest.raises(UserError, match=r"there is no |no snapshot"):
        adaconv.Generator.from_pretrained(name)


WITHOUT_HUB = """
import sys
sys.modules["huggingface_hub"] = None
from adaconv import Generator, UserError
G = Generator.from_pretrained(sys.argv[1])
G.save_pretrained("saved")
assert Generator.from_pretrained("saved").info == G.info
for attempt in (lambda: Generator.from_pretrained("someone/faces"), lambda: G.push_to_hub("someone/faces")):
    try:
        attempt()
    except UserError as error:
        print(error.message)
"""


def test_without_huggingface_hub(run, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WITHOUT_HUB, str(run)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all("pip install huggingface_hub" in line for line in lines)
    assert {p.name for p in (tmp_path / "saved").iterdir()} == {"model.safetensors", "README.md", "samples.png"}
