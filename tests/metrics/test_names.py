"""What the metrics' names mean."""

from __future__ import annotations

import pytest

from metrics import higher_is_better, parse_metric
from metrics.detectors import PUBLISHED
from metrics.names import CLIP, DINOV2, LISTED, Metric, nearest_names
from torch_utils.errors import UserError


@pytest.mark.parametrize(
    "name, kind, count, full",
    [
        ("fid50k_full", "fid", 50_000, True),
        ("fid50k", "fid", 50_000, False),
        ("cleanfid50k_full", "cleanfid", 50_000, True),
        ("fid5k_full", "fid", 5000, True),
        ("fid777", "fid", 777, False),
        ("kid50k_full", "kid", 50_000, True),
        ("dc10k5_full", "dc", 10_000, True),
        ("dc605", "dc", 60, False),
        ("pr50k3_full", "pr", 50_000, True),
        ("pr10k3", "pr", 10_000, False),
        ("pr5003", "pr", 500, False),
        ("is50k", "is", 50_000, False),
        ("ppl2_wend", "ppl", 50_000, False),
        ("ppl2_wend2k", "ppl", 2000, False),
        ("swd", "swd", 8192, False),
        ("swd2k", "swd", 2000, False),
        ("swd500", "swd", 500, False),
    ],
)
def test_names(name, kind, count, full):
    assert parse_metric(name) == Metric(name, kind, count, full)


@pytest.mark.parametrize(
    "name",
    [
        "fid",
        "kid",
        "fid_full",
        "fid0",
        "fid05k",
        "FID50k",
        "fid50K",
        "fid50k_full_",
        "swd²",
        "swd-1",
        "pr50k",
        "pr3",
        "pr50k4",
        "is50k_full",
        "ppl_wend",
        "ppl2",
        "swdk",
        "swd2k_full",
        "fid９",
        "",
        "fid 50k",
    ],
)
def test_what_is_no_name(name):
    with pytest.raises(UserError, match=r"no metric is called .* python -m metrics --list shows all$"):
        parse_metric(name)


@pytest.mark.parametrize(
    "wrong, meant",
    [
        ("swd2kk", "swd2k"),
        ("fdi", "fid50k_full"),
        ("FID50K_FULL", "fid50k_full"),
        ("pr5k_full", "pr5k3_full"),
        ("is2k_full", "is2k"),
        ("kid_full", "kid50k_full"),
    ],
)
def test_the_nearest_names_are_proposed_and_are_names(wrong, meant):
    assert meant in nearest_names(wrong) and all(parse_metric(name) for name in nearest_names(wrong))
    with pytest.raises(UserError, match=rf"did you mean .*{meant}"):
        parse_metric(wrong)


@pytest.mark.parametrize(
    "name, kind, count, detector",
    [
        ("fd5k_full@tiny-imagenet", "fd", 5000, "tiny-imagenet"),
        ("dc5k5@encoder.safetensors", "dc", 5000, "encoder.safetensors"),
        ("kd2k@runs/00000-a/snapshot-000400.safetensors", "kd", 2000, "runs/00000-a/snapshot-000400.safetensors"),
        ("pr5k3_full@a@b", "pr", 5000, "a@b"),
        ("dc1005@x", "dc", 100, "x"),
        ("fdd50k_full", "fd", 50_000, "dinov2-vit-l-14"),
        ("kdd5k", "kd", 5000, "dinov2-vit-l-14"),
        ("cmmd30k", "cmmd", 30_000, "clip-vit-l-14-336px"),
        ("cmmd2k_full@clip-vit-b-32", "cmmd", 2000, "clip-vit-b-32"),
        ("pr50k3_full@dinov2-vit-l-14", "pr", 50_000, "dinov2-vit-l-14"),
    ],
)
def test_detector_of_a_name(name, kind, count, detector):
    assert parse_metric(name) == Metric(name, kind, count, "_full" in name, detector)


@pytest.mark.parametrize(
    "name, message",
    [
        ("fid50k@other", "write fd50k@other for another detector"),
        ("kid50k_full@other", "write kd50k_full@other"),
        ("swd2k@tiny-imagenet", "takes no detector; write swd2k"),
        ("is50k@", "takes no detector; write is50k"),
        ("fd5k", "fd5k@tiny-imagenet, or @ and the file of an encoder or a stylizer"),
        ("kd5k_full@", "kd5k_full@tiny-imagenet"),
        ("fdd5k@dinov2-vit-s-14", "write fd5k@dinov2-vit-s-14 for another detector"),
        ("cmmd5k@dinov2-vit-s-14", "write kd5k@dinov2-vit-s-14"),
        ("cleanfid5k@x", "takes no detector; write cleanfid5k"),
        ("pr5k3@", "name or the file of an encoder is missing; write @tiny-imagenet"),
    ],
)
def test_wrong_detectors(name, message):
    with pytest.raises(UserError, match=message):
        parse_metric(name)


def test_values_are_called_as_their_metric():
    assert parse_metric("pr5k3_full@a_b").value_name("_recall") == "pr5k3_full_recall@a_b"
    assert parse_metric("swd").value_name("_32") == "swd_32"


@pytest.mark.parametrize("name, least", [("swd1", 2), ("fid1_full", 2), ("pr33", 4), ("dc55", 6), ("is9", 10)])
def test_too_few_images(name, least):
    with pytest.raises(UserError, match=f"{name}: a set of at least {least} images"):
        parse_metric(name)


@pytest.mark.parametrize("name, most", [("fid1001k", "1,000,000"), ("swd999999999k", ""), ("ppl2_wend501k", "500,000")])
def test_too_many_images(name, most):
    with pytest.raises(UserError, match=f"{name}: at most {most}"):
        parse_metric(name)
    assert parse_metric("fid1000k").count == 10**6


def test_all_that_is_listed_is_known():
    for name in LISTED:
        assert parse_metric(name).name == name
    assert {"fdd50k_full", "kdd50k_full", "cmmd30k", "cleanfid50k_full"} <= set(LISTED)
    assert {DINOV2, CLIP} <= set(PUBLISHED)


@pytest.mark.parametrize(
    "name, reals, fakes",
    [
        ("fid50k_full", 70_000, 50_000),
        ("fid50k", 50_000, 50_000),
        ("fid100k", 70_000, 100_000),
        ("swd100k", 70_000, 70_000),  # SWD compares sets of one size
        ("is50k", 0, 50_000),
        ("ppl2_wend", 0, 50_000),
    ],
)
def test_how_many_images_of_70_000(name, reals, fakes):
    metric = parse_metric(name)
    assert (metric.reals(70_000), metric.fakes(70_000)) == (reals, fakes)
    assert metric.fakes(70_000, 600) == 600


def test_published_limits_of_the_real_side():
    assert parse_metric("kid50k_full").reals(10**7) == 10**6
    assert parse_metric("pr50k3_full").reals(10**7) == 200_000
    assert parse_metric("fid50k_full").reals(10**7) == 10**7


def test_what_models_are_ranked_by():
    names = ["swd2k", "pr5k3@a", "is50k", "kid2k"]
    assert not higher_is_better("swd2k", names) and not higher_is_better("kid2k", names)
    for value in ("pr5k3_precision@a", "pr5k3_recall@a", "is50k_mean"):
        assert higher_is_better(value, names)
    for value in ("kid2k_std", "swd2k_32", "pr5k3@a", "fid50k"):
        with pytest.raises(UserError, match=f"{value}.* --metrics gives swd2k, pr5k3_precision@a"):
            higher_is_better(value, names)
