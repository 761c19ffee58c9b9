"""The metrics agree with torch-fidelity's command, move as they should, and are the same for two processes."""

from __future__ import annotations

import itertools
import json
import shutil
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch_fidelity
from torch_fidelity.feature_extractor_clip import FeatureExtractorCLIP

from media.dataset import ImageDataset
from metrics import PPL_EPSILON, Evaluator, NotFinite, choose
from metrics.detectors import INCEPTION, PUBLISHED, given_weights
from metrics.features import dataset_source, tensor_source
from metrics.swd import VALUES, cut_patches, laplacian_pyramid, random_directions, sliced_wasserstein
from models.sampling import Fakes
from networks.generator import Generator, GeneratorConfig
from tests.metrics import weights as random_weights
from tests.metrics.archives import photographs, write_images
from tests.metrics.evaluating import ALL, compare_and_write, evaluate, evaluate_and_write
from tests.metrics.test_swd import blobs, blur
from tests.scripts import launch
from torch_utils.errors import UserError


@pytest.mark.slow  # torch-fidelity's FID takes the eigenvalues of a matrix that is not symmetric, 2048 × 2048
def test_it_agrees_with_torch_fidelitys_command(evaluated, slices, small, inception, vgg16):
    real, fake = slices
    found = {name: value for name, value in evaluated[0].items() if not name.startswith(("swd", "dc"))}
    common = {"input1": str(fake), "input2": str(real), "cuda": False, "cache": False, "verbose": False}
    common |= {"save_cpu_ram": True, "batch_size": 16}
    reference = torch_fidelity.calculate_metrics(
        isc=True, fid=True, kid=True, kid_subset_size=20, feature_extractor_weights_path=inception, **common
    )
    reference |= torch_fidelity.calculate_metrics(
        prc=True, feature_extractor="vgg16", feature_extractor_weights_path=vgg16, **common
    )
    names = {
        "fid60_full": "frechet_inception_distance",
        "kid60_full": "kernel_inception_distance_mean",
        "kid60_full_std": "kernel_inception_distance_std",
        "is60_mean": "inception_score_mean",
        "is60_std": "inception_score_std",
        "pr603_full_precision": "precision",
        "pr603_full_recall": "recall",
    }
    assert found.keys() == names.keys()
    for ours, theirs in names.items():
        assert found[ours] == pytest.approx(reference[theirs], rel=1e-4), ours
    assert found["fid60_full"] > 1e-3 and 0 < found["pr603_full_precision"] < 1


TRANSFORMERS = ["fd60_full@{}", "kd60_full@{}", "pr603_full@{}"]


@pytest.mark.parametrize("name", ["dinov2-vit-s-14", "clip-vit-b-32"])
def test_transformers_agree_with_torch_fidelitys_command(slices, dinov2, clip, tmp_path, monkeypatch, name):
    from tests.metrics.test_detectors import PlainDINOv2

    monkeypatch.setenv("ADACONV_CACHE", str(tmp_path))
    monkeypatch.setattr("metrics.scores.KID_SUBSET_SIZE", 20)
    real, fake = slices
    files = [dinov2, clip]
    found = evaluate([metric.format(name) for metric in TRANSFORMERS], real, fake, files)
    options = {"input1": str(fake), "input2": str(real), "cuda": False, "cache": False, "verbose": False}
    options |= {"save_cpu_ram": True, "batch_size": 16, "feature_extractor": name, "kid_subset_size": 20}
    if name.startswith("clip"):
        options["feature_extractor_weights_path"] = str(clip)
    tensors = given_weights([dinov2])[PUBLISHED["dinov2-vit-s-14"]].tensors
    monkeypatch.setattr(torch.hub, "load", lambda *args: PlainDINOv2(tensors))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = torch_fidelity.calculate_metrics(fid=True, kid=True, prc=True, **options)
    names = {
        "fd60_full": "frechet_inception_distance",
        "kd60_full": "kernel_inception_distance_mean",
        "kd60_full_std": "kernel_inception_distance_std",
        "pr603_full_precision": "precision",
        "pr603_full_recall": "recall",
    }
    assert found.keys() == {f"{ours}@{name}" for ours in names}
    for ours, theirs in names.items():
        assert found[f"{ours}@{name}"] == pytest.approx(reference[theirs], rel=1e-4), ours
    assert 0 < found[f"pr603_full_precision@{name}"] < 1


def test_cmmd_is_the_papers(slices, clip, tmp_path, monkeypatch):
    """A plain version in NumPy, of all pairs at once, of the features that torch-fidelity's network gives."""
    monkeypatch.setenv("ADACONV_CACHE", str(tmp_path))
    found = evaluate(["cmmd60_full@clip-vit-b-32"], *slices, [clip])["cmmd60_full@clip-vit-b-32"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = FeatureExtractorCLIP("clip-vit-b-32", ["clip"], feature_extractor_weights_path=clip)
    sides = []
    for folder in slices:
        dataset = ImageDataset(folder)
        features = network(torch.stack([dataset[i][0] for i in range(len(dataset))]))[0].double().numpy()
        sides.append(features / np.linalg.norm(features, axis=1, keepdims=True))
    x, y = sides

    def kernel(a, b):
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(axis=2) / (2 * 10**2))

    expected = 1000 * (kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean())
    assert found == pytest.approx(expected, rel=1e-4) and expected > 1e-3


def test_a_set_against_itself(evaluated, slices, small, inception, vgg16):
    real, _ = slices
    shutil.copytree(evaluated[1], small, dirs_exist_ok=True)
    found = evaluate(["fid66_full", "kid66_full", "pr663_full", "swd66"], real, real, [inception, vgg16])
    assert abs(found["fid66_full"]) < 1e-3 and found["swd66"] == 0
    assert found["pr663_full_precision"] == found["pr663_full_recall"] == 1
    assert found["kid66_full"] < 1e-6


@pytest.mark.slow
def test_metrics_grow_with_the_change(small, few_dimensions, smooth_inception, real_images):
    """Blur, noise, and the mixing in of images of another kind."""
    images = photographs(real_images / "cifar10-train.zip", 120)
    real, fake, other = images[:60], images[60:], torch.randint(0, 255, (60, 3, 1, 1), dtype=torch.uint8)
    noise = torch.randn(fake.shape, generator=torch.Generator().manual_seed(0))
    changed = {
        "blurred": [blur(fake, times) for times in (1, 4)],
        "noisy": [(fake + level * noise).clamp(0, 255).byte() for level in (20, 60)],
        "mixed": [torch.cat([fake[n:], other[:n].expand(-1, -1, 32, 32)]) for n in (20, 50)],
    }
    evaluator = Evaluator(["fid60", "kid60", "swd60"], torch.utils.data.TensorDataset(real), weights=[smooth_inception])
    unchanged = evaluator.evaluate(tensor_source(fake))
    for what, sets in changed.items():
        found = [unchanged, *(evaluator.evaluate(tensor_source(images)) for images in sets)]
        for name in ("fid60", "kid60", "swd60"):
            values = [values[name] for values in found]
            assert all(b > a for a, b in itertools.pairwise(values)), (what, name, values)


@pytest.mark.slow
def test_two_processes_come_to_the_same(evaluated, slices, small, inception, vgg16, tmp_path):
    """Of 66 and 60 images in batches of 16, with nothing kept."""
    launch(evaluate_and_write, ALL, *slices, [inception, vgg16], tmp_path / "result", processes=2)
    one, (two, other) = evaluated[0], (json.loads((tmp_path / f"result.{rank}").read_text()) for rank in (0, 1))
    assert other == {}
    assert one.keys() == two.keys() and len(one) == 12
    for name, value in one.items():
        # a deviation is as exact as the scores that it is of, which are larger
        size = max(abs(value), one.get(name.replace("_std", "_mean"), 0.0))
        assert two[name] == pytest.approx(value, abs=max(1e-6 * size, 1e-9)), name


def counts_of_all_patches(images: torch.Tensor) -> dict[int, torch.Tensor]:
    """What a single process that has all patches counts, with plain moments in float64 and by search."""
    found = {}
    for level in laplacian_pyramid(images.float()):
        size, channels = min(level.shape[2:]), level.shape[1]
        patches = cut_patches(level, np.random.default_rng([0, size, 0])).half().float()
        std, mean = torch.std_mean(patches.double(), dim=(0, 2, 3), correction=0, keepdim=True)
        directions = (
            random_directions(49 * channels, np.random.default_rng([0, size, 1])).view(-1, channels, 7, 7) / std
        )
        offsets = -(directions * mean).sum(dim=(1, 2, 3))[:, None].float()
        projections = torch.addmm(offsets, directions.flatten(1).float(), patches.flatten(1).T).half()
        places = torch.searchsorted(VALUES.float(), projections.float())
        found[size] = torch.stack([row.bincount(minlength=len(VALUES)) for row in places])
    return found


@pytest.mark.parametrize("processes, channels", [(1, 3), (2, 3), (3, 3), (2, 1)])
def test_swd_is_exactly_that_of_one_process_with_all_patches(tmp_path, monkeypatch, processes, channels):
    """Also where there are images for some of them only, as the 10 of one batch, and the 14 that complete 40."""
    monkeypatch.setattr("metrics.swd.DIRECTIONS", 64)
    real, fake = blobs(110, 32, channels, seed=1), blobs(100, 32, channels, seed=2, radius=4)
    torch.save((real, fake), tmp_path / "images.pt")
    launch(
        compare_and_write,
        ["swd100", "swd40", "swd10"],
        *map(tmp_path.joinpath, ("images.pt", "result")),
        processes=processes,
    )
    found, *others = (json.loads((tmp_path / f"result.{rank}").read_text()) for rank in range(processes))
    assert others == [{}] * (processes - 1) and len(found) == 9
    for count in (100, 40, 10):
        sets = real[choose(110, count, 0)], fake[:count]
        expected = sliced_wasserstein(*map(counts_of_all_patches, sets))
        assert [found[f"swd{count}{part}"] for part in ("", "_32", "_16")] == list(expected.values())


def test_a_detector_sees_no_more_than_it_needs(small, inception):
    evaluator = Evaluator(["swd40", "kid20", "is13"], Images(50), weights=[inception], batch=8)
    seen = []
    evaluator.networks[INCEPTION].register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    evaluator.evaluate(tensor_source(torch.randint(0, 255, (40, 3, 32, 32), dtype=torch.uint8)))
    assert sum(seen) == 20 + 20  # of the 40 fakes, the others are for SWD alone


def test_extrapolation_is_a_further_value(small, few_dimensions, slices, smooth_inception):
    """Of all features of the fakes; the distance itself stays as it is."""
    plain = evaluate(["fid60_full"], *slices, [smooth_inception])
    found = evaluate(["fid60_full", "kid60"], *slices, [smooth_inception], extrapolate=True)
    assert found.keys() == {"fid60_full", "fid60_full_inf", "kid60", "kid60_std"}
    assert found["fid60_full"] == pytest.approx(plain["fid60_full"], rel=1e-6)
    assert found["fid60_full_inf"] != found["fid60_full"]


# --- the cache ------------------------------------------------------------------------------------------------------


def test_summaries_of_real_images_are_computed_once(evaluated, slices, small, inception, vgg16, tmp_path, monkeypatch):
    monkeypatch.setattr("metrics.scores.KID_SUBSET_SIZE", 20)
    monkeypatch.setattr("metrics.evaluator.MIN_CACHED_IMAGES", 20)
    first, files = evaluated[0], [inception, vgg16]
    real, fake = tmp_path / "elsewhere", slices[1]
    shutil.copytree(slices[0], real)
    shutil.copytree(evaluated[1], small, dirs_exist_ok=True)
    kept = sorted((small / "statistics").iterdir())
    assert [path.name.partition("-")[0] for path in kept] == ["features", "features", "moments", "patches"]
    times = [path.stat().st_mtime_ns for path in kept]

    def refuse(self, wanted, source, title, summarize=Evaluator._summarize):
        assert title == "fake images" or not wanted
        return summarize(self, wanted, source, title)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "_summarize", refuse)
        assert evaluate(ALL, real, fake, files) == first
    assert [path.stat().st_mtime_ns for path in kept] == times

    names = ["kid60_full", "pr603_full"]
    kept[0].write_bytes(kept[0].read_bytes()[:-1])  # damaged features: made again
    assert evaluate(names, real, fake, files).items() <= first.items()
    assert kept[0].stat().st_mtime_ns != times[0] and sorted((small / "statistics").iterdir()) == kept

    (real / "0000.png").write_bytes((real / "0001.png").read_bytes())  # other content
    assert evaluate(["kid60_full"], real, fake, files)["kid60_full"] != first["kid60_full"]
    assert len(list((small / "statistics").iterdir())) == 5


def test_patches_are_kept_by_all_that_they_depend_on(small, slices, monkeypatch):
    monkeypatch.setattr("metrics.swd.DIRECTIONS", 64)

    def kept() -> int:
        return len(list((small / "statistics").glob("patches-*")))

    few = evaluate(["swd60"], *slices, [])
    assert kept() == 0  # cutting them again is faster
    monkeypatch.setattr("metrics.evaluator.MIN_CACHED_IMAGES", 20)
    for options, expected in (({}, 1), ({}, 1), ({"seed": 1}, 2)):
        assert (evaluate(["swd60"], *slices, [], **options) == few) == (not options) and kept() == expected
    monkeypatch.setattr("metrics.swd.DIRECTIONS", 32)
    assert evaluate(["swd60"], *slices, []) != few and kept() == 3


def test_mirrored_images_count_twice(small, slices, inception, tmp_path):
    images, fakes = (torch.stack([image for image, _ in ImageDataset(folder)]) for folder in slices)
    real = write_images(tmp_path / "real", images[:20])
    flipped = [ImageDataset(real, mirror=True)[i][0] for i in range(40)]
    source = tensor_source(fakes[:20])
    expected = Evaluator(["kid20_full"], flipped, weights=[inception], batch=16).evaluate(source)
    evaluator = Evaluator(["kid20_full"], ImageDataset(real, mirror=True), weights=[inception], batch=16)
    assert evaluator.counts == {"kid20_full": {"real": 40, "fake": 20}}
    found = evaluator.evaluate(source)["kid20_full"]
    assert found == pytest.approx(expected["kid20_full"], rel=1e-9)
    plain = Evaluator(["kid20_full"], ImageDataset(real), weights=[inception], batch=16).evaluate(source)
    assert found != plain["kid20_full"]


# --- notes and errors -------------------------------------------------------------------------------------------------


class Images(torch.utils.data.Dataset):
    def __init__(self, count: int, fill: int = 0):
        self.count, self.fill = count, fill

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((3, 32, 32), index % 256, dtype=torch.uint8)


def test_fewer_images_than_dimensions_are_warned_of(small, inception):
    notes = Evaluator(["fid500_full", "fid3k_full"], Images(5000), weights=[inception]).notes
    warned = [note for note in notes if note.startswith("warning")]
    assert len(warned) == 1 and "fid500_full has 500 fake images for 2048 dimensions" in warned[0]
    notes = Evaluator(["fid3k_full"], Images(100), weights=[inception]).notes
    assert any("fid3k_full has 100 real images for 2048 dimensions" in note for note in notes)
    assert any("not the published ones" in note for note in notes)


def test_features_of_all_fakes_keep_their_order_beside_a_metric_of_fewer(small, inception, faces16):
    """On which the subsets of KID and the splits of IS depend."""
    images = ImageDataset(faces16)

    def value(names: str) -> float:
        evaluator = Evaluator(names.split(","), images, fakes=30, weights=[inception])
        return evaluator.evaluate(dataset_source(images, evaluator.choose_fakes(30)))["is30_std"]

    assert value("is30,is10") == pytest.approx(value("is30"), rel=1e-3)


def test_a_note_says_that_there_are_fewer_images(small, inception):
    assert "only 100 real and 100 fake images for swd2k" in Evaluator(["swd2k"], Images(100)).notes[0]
    notes = Evaluator(["kid2k"], Images(100), fakes=50, weights=[inception]).notes
    assert "only 100 real and 50 fake images for kid2k (2000)" in notes[-1]
    assert Evaluator(["swd50"], Images(100)).notes == []


def test_weights_that_no_metric_needs_are_noted(small, tmp_path):
    (tmp_path / "weights.pth").touch()
    notes = Evaluator(["swd10"], Images(20), weights=[tmp_path / "weights.pth"]).notes
    assert notes == ["note: --detector-weights is not used: none of the metrics has a published detector"]


def test_nan_is_an_error(small, inception, tmp_path, monkeypatch):
    """As of a network that overflows: weights that are no numbers would be refused."""
    monkeypatch.setattr("metrics.detectors.is_finite", lambda tensor: True)
    state = torch.load(inception, weights_only=True)
    state["Mixed_7c.branch1x1.bn.bias"][0] = float("nan")
    torch.save(state, tmp_path / "broken.pth")
    images = torch.randint(0, 255, (20, 3, 32, 32), dtype=torch.uint8)
    for name in ("fid20", "kid20", "is20"):
        evaluator = Evaluator([name], Images(20), weights=[tmp_path / "broken.pth"])
        with pytest.raises(NotFinite, match=f"{name} is no number"):
            evaluator.evaluate(tensor_source(images))


def test_a_metric_that_is_no_number_does_not_cost_the_others(small, inception, tmp_path, command, monkeypatch, faces16):
    monkeypatch.setattr("metrics.detectors.is_finite", lambda tensor: True)
    state = torch.load(inception, weights_only=True)
    state["Mixed_7c.branch1x1.bn.bias"][0] = float("nan")
    torch.save(state, tmp_path / "broken.pth")
    options = ["--data", faces16, "--fakes", faces16, "--detector-weights", tmp_path / "broken.pth", "--gpus", 0]
    code, out, err = command("--metrics", "fid20,swd20", *options)
    assert code == 1 and out.splitlines()[-1].startswith("swd20 ") and "fid20" not in out
    assert "error: fid20 is no number" in err.splitlines()[-1]
    code, out, err = command("--metrics", "fid20,swd20", *options, "--json")
    assert code == 1 and json.loads(out)["failed"].startswith("fid20 is no number") and json.loads(out)["swd20"] >= 0
    code, out, err = command("--metrics", "fid20", *options)
    assert code == 1 and out == "" and "error: fid20 is no number" in err.splitlines()[-1]


def test_without_a_detector_the_others_go_on(small, no_network):
    with pytest.raises(UserError, match=r"fid10, kid10: cannot download https.*--detector-weights"):
        Evaluator(["swd10", "fid10", "kid10"], Images(20))
    evaluator = Evaluator(["swd10", "fid10", "pr103", "kid10"], Images(20), optional=True)
    assert [metric.name for metric in evaluator.metrics] == ["swd10"]
    first, second = [note for note in evaluator.notes if note.startswith("warning")]
    assert first.startswith("warning: going on without fid10, kid10: cannot download https")
    assert second.startswith("warning: going on without pr103: cannot download https")
    values = evaluator.evaluate(tensor_source(torch.zeros(10, 3, 32, 32).byte()))
    assert set(values) == {"swd10", "swd10_32", "swd10_16"}


# --- perceptual path length -----------------------------------------------------------------------------------------


def generator(c_dim: int = 0) -> Generator:
    torch.manual_seed(0)
    config = GeneratorConfig(
        resolution=32, cbase=256, cmax=16, map_depth=2, z_dim=16, w_dim=16, style_channels=8, c_dim=c_dim
    )
    return Generator(config).eval().requires_grad_(False)


@pytest.mark.parametrize("epsilon, tolerance", [(PPL_EPSILON, 0.02), (0.05, 1e-3)])
def test_path_length_is_the_papers(small, vgg16, monkeypatch, epsilon, tolerance):
    """Karras et al. 2019, equation 3 in W, at t = 0, with plain LPIPS in float64."""
    from tests.metrics.test_lpips import plain_lpips

    G = generator()
    monkeypatch.setattr("metrics.evaluator.PPL_EPSILON", epsilon)
    fakes = Fakes(G, 23, seed=3)
    evaluator = Evaluator(["ppl2_wend23"], Images(10), weights=[vgg16], batch=16)
    found = evaluator.evaluate(fakes.images, partial(fakes.path_ends, epsilon=epsilon))["ppl2_wend23"]

    vgg = random_weights.small_vgg16().double()
    vgg.load_state_dict(given_weights([vgg16]).popitem()[1].tensors)
    vgg.requires_grad_(False)
    a, b = torch.cat([x.view(2, -1, 3, 32, 32) for x in fakes.path_ends([range(23)], epsilon)]).double()
    lengths = (plain_lpips(a, b, vgg) / epsilon**2).numpy()
    assert found == pytest.approx(lengths.mean(), rel=tolerance)  # of 23 paths, no per cent is left out


def test_ends_of_a_path_lie_epsilon_apart():
    G = generator(c_dim=3)
    fakes = Fakes(G, 8, seed=1, labels=torch.tensor([0, 1, 2, 2]))
    starts = torch.cat([x.chunk(2)[0] for x in fakes.path_ends([range(3), range(3, 8)], 0.5)])
    whole = next(fakes.path_ends([range(8)], 0.0))
    torch.testing.assert_close(whole[:8], whole[8:], rtol=0, atol=1e-5)
    torch.testing.assert_close(starts, whole[:8], rtol=0, atol=1e-4)
    all_the_way, halfway = (next(fakes.path_ends([range(8)], epsilon))[8:] for epsilon in (1.0, 0.5))
    assert (all_the_way - starts).abs().mean() > (halfway - starts).abs().mean() > 0.01


def test_half_precision_comes_back_after_each_batch():
    G = generator()
    for block in G.synthesis.blocks:
        block.compute_dtype = torch.bfloat16
    batches = Fakes(G, 4).path_ends([range(2), range(2, 4)], 0.5)
    assert next(batches).dtype == torch.float32
    assert all(block.compute_dtype == torch.bfloat16 for block in G.synthesis.blocks)


def test_path_length_is_of_a_generator(small, vgg16):
    evaluator = Evaluator(["ppl2_wend10"], Images(10), weights=[vgg16])
    with pytest.raises(UserError, match="name one with --network"):
        evaluator.evaluate(tensor_source(torch.zeros(10, 3, 32, 32).byte()))


def test_fakes_by_number_are_the_same_in_any_batch():
    G = generator(c_dim=3)
    fakes = Fakes(G, 30, seed=1, labels=torch.tensor([0, 1, 2, 2]))
    whole = torch.cat(list(fakes.images([range(30)])))
    parts = torch.cat(list(fakes.images([range(20, 30), range(0, 20)])))
    assert (whole.int() - torch.cat([parts[10:], parts[:10]]).int()).abs().max() <= 1
    assert torch.equal(Fakes(G, 10, seed=1, labels=fakes.labels).classes, fakes.classes[:10])
    assert not any(torch.equal(a, b) for a in whole for b in next(Fakes(G, 30, seed=2).images([range(30)])))
    first, other = (next(Fakes(G, 20, seed=seed).path_ends([range(20)], 0.0))[:20] for seed in (1, 2))
    assert not any(torch.equal(a, b) for a in first for b in other)


def test_fakes_have_random_noise_of_their_own():
    """Images of one w and the published metrics' noise: as different from each other as noise makes them."""
    G = generator()
    for parameter in G.mapping.parameters():
        parameter.data.zero_()  # one w for every z
    assert len(torch.cat(list(Fakes(G, 9).images([range(9)]))).unique(dim=0)) == 1  # strengths are 0 at first
    for layer in G.synthesis.layers():
        layer.noise_strength.data.fill_(0.5)
    whole = torch.cat(list(Fakes(G, 9).images([range(9)])))
    assert len(whole.unique(dim=0)) == 9
    parts = torch.cat(list(Fakes(G, 9).images([range(5, 9), range(0, 5)])))
    assert (whole.int() - torch.cat([parts[4:], parts[:4]]).int()).abs().max() <= 1
    starts, ends = next(Fakes(G, 9).path_ends([range(9)], 1.0)).chunk(2)
    assert torch.equal(starts, ends)  # path lengths are of w alone: the model's noise is at both ends


def test_images_that_are_too_small_for_lpips_are_told(small, vgg16):
    tiny = torch.utils.data.TensorDataset(torch.zeros(4, 3, 12, 24, dtype=torch.uint8))
    with pytest.raises(UserError, match="ppl2_wend4 compares images of 16 pixels a side or more, and these have 24x12"):
        Evaluator(["ppl2_wend4"], tiny, weights=[vgg16])
