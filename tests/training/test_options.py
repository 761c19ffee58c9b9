"""training.options: presets by their published values, and options that do not go together."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import asdict, fields, replace

import pytest
import torch

from models.encoder import save_encoder
from networks.stylizer import StylizerConfig
from networks.vgg import VGG19
from tests.training.test_loop import tiny
from torch_utils.errors import UserError
from training.config import ClassifierConfig, StylizerTrainConfig, TrainConfig, differences
from training.options import (
    configure_classifier,
    configure_gan,
    configure_stylizer,
    convolution_seconds,
    resolve,
    resolve_classifier,
)
from training.presets import PRESETS
from training.resume import check_gpus, check_resumable, config_of, continuation, kept_fields, options_to_resume


def test_presets_have_the_published_values():
    """StyleGAN2-ADA, appendix D, table of hyperparameters; cbase 32768 is 1 ×, 16384 0.5 × the channels."""
    table = {  # batch, cbase, learning rate, gamma, EMA, mapping, minibatch std, GPUs
        "stylegan2": (32, 32768, 0.002, 10, 10, 8, 4, 8),
        "paper256": (64, 16384, 0.0025, 1, 20, 8, 8, 8),
        "paper512": (64, 32768, 0.0025, 0.5, 20, 8, 8, 8),
        "paper1024": (32, 32768, 0.002, 2, 10, 8, 4, 8),
        "cifar": (64, 32768, 0.0025, 0.01, 500, 2, 32, 2),
    }
    assert set(PRESETS) == {"auto", "demo", "r3gan", *table}
    for cfg, values in table.items():
        c = resolve({"cfg": cfg, "data": "x"}, 32, 3, 0, 0)
        assert (c.batch, c.generator.cbase, c.glr, c.gamma, c.ema_kimg) == values[:5]
        assert (c.generator.map_depth, c.discriminator.mbstd_group) == values[5:7]
        assert c.batch_gpu == c.batch // values[7]  # as on so many GPUs, though here is none
        assert resolve({"cfg": cfg, "data": "x"}, 32, 3, 0, values[7]).batch_gpu == c.batch_gpu
        assert (c.discriminator.map_depth, c.aug, c.augpipe, c.target) == (8, "ada", "bgc", 0.6)
        assert c.dlr == c.glr
    assert resolve({"cfg": "cifar", "data": "x", "gamma": 1.0}, 32, 3, 0, 0).gamma == 1.0


@pytest.mark.parametrize(
    "options, words",
    [
        ({"batch_gpu": 3}, "--batch-gpu 3 does not divide the 8 images"),
        ({"p": 0.5}, "--p without augmentation; add --aug ada or --aug fixed"),
        ({"cbase": 8}, "^--cbase 8 leaves no channels at resolution 16; take 16 or more"),
        ({"target": 0.5}, "--target without augmentation; add --aug ada"),
        ({"loss": "relativistic", "p": 0.5}, "--p without augmentation; add --aug fixed"),
        ({"aug": "fixed"}, "--aug fixed needs --p"),
        ({"freezed": 3}, "--freezed without --init-from"),
    ],
)
def test_options_that_do_not_go_together(faces16, options, words):
    with pytest.raises(UserError, match=words):
        tiny(faces16, **options)


@pytest.mark.parametrize("options, gpus", [({"procs": 4}, 1), ({"procs": 2}, 4)])
def test_processes_belong_to_the_cpu(options, gpus):
    with pytest.raises(UserError, match=r"--procs \d is for the CPU; add --gpus 0, or leave it out"):
        resolve({**options, "data": "x"}, 32, 3, 0, gpus)
    with pytest.raises(UserError, match=r"--procs \d is for the CPU; add --gpus 0, or leave it out"):
        resolve_classifier(options, gpus)


@pytest.mark.parametrize(
    "begun, recorded, here, words",
    [
        (0, {}, 1, "trained on the CPU, and would .* on 1 GPU; add --gpus 0, or go on here, .*, by adding --gpus 1$"),
        (0, {"procs": 1}, 1, "trained on the CPU, and would .* on 1 GPU; add --gpus 0, or go on here, .* --gpus 1$"),
        (2, {}, 4, "trained on 2 GPUs, and would .* on 4 GPUs; add --gpus 2, or go on here, .*, by adding --gpus 4$"),
        (2, {}, 3, "trained on 2 GPUs, and would .* on 3 GPUs; add --gpus 2, or go on here, .*, by adding --gpus 1$"),
        (2, {"gpus": 2}, 1, "on 2 GPUs, and .* on 1 GPU; resume it on such a machine, or .* by adding --gpus 1$"),
        (8, {"gpus": 8}, 3, "on 8 GPUs, and .* on 3 GPUs; resume it on such a machine, or .* by adding --gpus 2$"),
        (2, {"gpus": 2}, 0, "on 2 GPUs, and .* on the CPU; resume it on such a machine, or .* by adding --gpus 0$"),
        (2, {"batch": 64, "batch_gpu": 32}, 4, "add --gpus 2, or go on here, .*, by adding --gpus 4 --batch-gpu 16$"),
        (2, {"batch": 64, "batch_gpu": 16}, 4, "add --gpus 2, or go on here, .*, by adding --gpus 4$"),
        (4, {"batch": 24, "batch_gpu": 6}, 3, "resume it on such a machine, or go on here, .*, by adding --gpus 2$"),
        (2, {"batch": 12}, 1, "on such a machine, or go on here, .*, by adding --gpus 1 --batch-gpu 6$"),
        (4, {"batch": 24, "cfg": "paper256"}, 1, "or go on here, .*, by adding --gpus 1 --batch-gpu 12$"),
        (1, {"batch": 15, "cfg": "demo"}, 0, "on 1 GPU, and .* on the CPU; resume it on such a machine$"),
        (1, {"batch": 48, "cfg": "demo"}, 0, "on 1 GPU, and .* on the CPU; .* by adding --gpus 0$"),
        (1, {"batch": 48, "batch_gpu": 48, "cfg": "demo"}, 0, "on the CPU; .* by adding --gpus 0 --batch-gpu 24$"),
    ],
)
def test_a_run_on_other_gpus_says_how_it_goes_on(monkeypatch, tmp_path, begun, recorded, here, words):
    """--cfg auto takes larger batches on more GPUs; a run keeps its own. The remedy works, where there is one."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: here)
    options = {"cfg": "auto", "data": "x", **recorded}
    old = resolve({**options, "precision": "fp32"}, 64, 3, 0, begun)
    with pytest.raises(UserError, match=words) as caught:
        check_gpus(tmp_path, old, recorded, recorded, False)
    _, separator, remedy = caught.value.message.partition("by adding --gpus ")
    if separator:
        gpus, _, batch_gpu = remedy.partition(" --batch-gpu ")
        typed = {"gpus": int(gpus)} | ({"batch_gpu": int(batch_gpu)} if batch_gpu else {})
        check_gpus(tmp_path, old, recorded, {**recorded, **typed}, True)
        given = options_to_resume(old, options, typed)
        new = resolve({**kept_fields(old, given), **given}, 64, 3, 0, typed["gpus"])
        check_resumable(old, tmp_path, new)
        assert differences(old, new) == [] and new.gpus == typed["gpus"] != old.gpus
        assert continuation(old, new).startswith("this run goes on with ") and continuation(old, old) == ""
    same = options_to_resume(old, options, {"gpus": begun}) if begun <= here else None
    if same is not None:  # as the message says, exactly
        assert continuation(old, resolve({**kept_fields(old, same), **same}, 64, 3, 0, begun)) == ""


def test_a_remedy_goes_together_with_what_is_typed(monkeypatch, tmp_path):
    """--procs is for the CPU, and a typed --batch-gpu goes before the recorded one."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    old = resolve({"cfg": "auto", "data": "x", "batch": 64}, 64, 3, 0, 0)
    for typed, end in (
        ({"procs": 4}, "$"),
        ({"procs": 2}, ", or go on here, .*, by adding --gpus 2$"),
        ({"batch_gpu": 16}, ", or go on here, .*, by adding --gpus 2$"),
        ({"batch_gpu": 64}, ", or go on here, .*, by adding --gpus 2 --batch-gpu 32$"),
    ):
        with pytest.raises(UserError, match=f"trained on the CPU, and .* on 2 GPUs; add --gpus 0{end}"):
            check_gpus(tmp_path, old, {"batch_gpu": 32}, typed, False)


def test_a_run_goes_on_where_it_was_without_a_word(monkeypatch, tmp_path):
    for begun, here, recorded in ((0, 0, {}), (2, 2, {}), (0, 3, {"gpus": 0}), (2, 4, {"gpus": 2})):
        monkeypatch.setattr(torch.cuda, "device_count", lambda here=here: here)
        check_gpus(tmp_path, resolve({"cfg": "auto", "data": "x"}, 64, 3, 0, begun), recorded, recorded, False)


def test_torchrun_changes_the_number_of_gpus_but_not_the_kind_of_machine(monkeypatch, tmp_path):
    monkeypatch.setattr("torch_utils.distributed.under_torchrun", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    on_gpus, on_cpu = (resolve({"cfg": "auto", "data": "x"}, 64, 3, 0, gpus) for gpus in (8, 0))
    check_gpus(tmp_path, on_gpus, {}, {"gpus": 4, "procs": 4}, False)
    check_gpus(tmp_path, on_cpu, {}, {"gpus": 4, "procs": 4}, True)
    with pytest.raises(UserError, match=r"was trained on 8 GPUs, .* on the CPU; resume it on such a machine$"):
        check_gpus(tmp_path, on_gpus, {}, {"gpus": 0, "procs": 4}, False)
    with pytest.raises(UserError, match=r"was trained on the CPU, .* on 4 GPUs; add --gpus 0$"):
        check_gpus(tmp_path, on_cpu, {}, {"gpus": 4, "procs": 4}, False)


@pytest.mark.parametrize(
    "begun, here, recorded, typed, expected",
    [
        (0, 0, {"gpus": 0, "procs": 2, "gamma": 1}, {}, {"gpus": 0, "procs": 2, "gamma": 1}),
        (0, 0, {"procs": 2}, {"procs": 4}, {"procs": 4}),
        (0, 1, {"procs": 4}, {"gpus": 0}, {"procs": 4, "gpus": 0}),
        (0, 1, {"gpus": 0, "procs": 2}, {"gpus": 1}, {"gpus": 1}),
        (8, 2, {"gpus": 8, "procs": 8}, {"gpus": 2}, {"gpus": 2}),  # as a run of torchrun has it
        (8, 0, {"gpus": 8, "procs": 8}, {"gpus": 0}, {"gpus": 0}),
    ],
)
def test_what_is_typed_goes_before_what_was_recorded(monkeypatch, begun, here, recorded, typed, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: here)
    old = resolve({"cfg": "auto", "data": "x"}, 64, 3, 0, begun)
    assert options_to_resume(old, recorded, typed) == expected


def test_a_run_keeps_its_precision_and_its_processes(faces16):
    """Where its record has no options for them, as those of earlier versions, or `auto` would find others."""
    old = replace(tiny(faces16, procs=4), precision="bf16")
    assert {"precision": "bf16", "procs": 4}.items() <= kept_fields(old, {}).items()
    for config in (ClassifierConfig, StylizerTrainConfig):
        more = {"stylizer": StylizerConfig(), "style": "y"} if config is StylizerTrainConfig else {}
        assert kept_fields(config(data="x", procs=2, **more), {}) == {"precision": "fp32", "procs": 2}


@pytest.mark.parametrize(
    "before, now, words",
    [
        ((8, 1, 8), {"procs": 4}, "groups of 4 images, which do not fit into microbatches of 2; take fewer processes"),
        ((8, 1, 8), {"batch_gpu": 2}, "do not fit into microbatches of 2; add --batch-gpu 4"),
        ((64, 1, 64), {"batch_gpu": 2}, "do not fit into microbatches of 2; add --batch-gpu 4"),
        ((64, 1, 64), {"procs": 2, "batch_gpu": 1}, "do not fit into microbatches of 1; add --batch-gpu 4"),
        ((36, 1, 36), {"batch_gpu": 6}, "do not fit into microbatches of 6; add --batch-gpu 12"),
        ((36, 1, 36), {"batch_gpu": 18}, "do not fit into microbatches of 18; add --batch-gpu 36"),
        ((12, 2, 6), {"procs": 1}, "groups of 3 images, .* microbatches of 12; add --batch-gpu 6"),
        ((12, 2, 6), {"procs": 4}, None),  # three images, and all are in the group
        ((24, 1, 24), {"procs": 4}, "groups of 4 images, .* microbatches of 6; take fewer processes"),
        ((20, 1, 20), {"procs": 4}, "groups of 4 images, .* microbatches of 5; take fewer processes"),
        ((48, 1, 48), {"procs": 4, "batch_gpu": 6}, "groups of 4 images, .* microbatches of 6; add --batch-gpu 12"),
        ((8, 4, 2), {"procs": 1}, None),  # groups of two fit into all others
        ((24, 1, 24), {"procs": 2}, None),
        ((24, 1, 24), {"procs": 3, "batch_gpu": 4}, None),
    ],
)
def test_groups_of_the_discriminator_have_to_fit_into_microbatches(faces16, tmp_path, before, now, words):
    """A run would otherwise go on with another discriminator. `before`: its batch, processes and microbatches."""
    batch, procs, batch_gpu = before
    old = tiny(faces16, batch=batch, procs=procs)
    assert old.batch_gpu == batch_gpu
    new = tiny(faces16, **{**kept_fields(old, now), **now})
    if words is None:
        return check_resumable(old, tmp_path, new)
    with pytest.raises(UserError, match=words) as caught:
        check_resumable(old, tmp_path, new)
    if "add --batch-gpu" in words:
        mended = {**now, "batch_gpu": int(caught.value.message.split()[-1])}
        check_resumable(old, tmp_path, tiny(faces16, **{**kept_fields(old, mended), **mended}))


def test_the_order_of_shards_depends_on_the_processes(tmp_path):
    old, new = (resolve({"cfg": "demo", "data": "x-{0..3}.tar", "procs": n}, 32, 3, 0, 0) for n in (1, 2))
    with pytest.raises(
        UserError, match=r"has its data in shards, .*; go on with 1 process, by --procs 1 or by torchrun"
    ):
        check_resumable(old, tmp_path, new)
    with pytest.raises(UserError, match=r"trained on 8 GPUs, .* on the CPU; resume it on such a machine$"):
        check_gpus(tmp_path, replace(old, gpus=8, procs=8), {}, {}, False)


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"background": (255, 0, 0)}, "--background is for transparent images, and .* has none; leave it out"),
        ({"cfg": "r3gan", "loss": "nonsaturating"}, "--cfg r3gan is for the relativistic loss; leave --loss out"),
        ({"aug": "fixed", "p": 0.5, "target": 0.5}, "--aug fixed keeps p; leave --target out"),
        ({"cfg": "r3gan", "target": 0.5}, "--cfg r3gan raises p by a schedule; leave --target out"),
        ({"cfg": "r3gan", "pl_weight": 2.0}, "--pl-weight is for StyleGAN2's recipe.* leave it out"),
        ({"cfg": "r3gan", "mixing": 0.0}, "--mixing is for StyleGAN2's recipe.* leave it out"),
        ({"tf32": True}, "--tf32 is for GPUs, and this run has none; leave it out"),
    ],
)
def test_what_would_change_nothing_is_refused_but_for_runs_that_were_begun_with_it(faces16, changed, words):
    options = {"cfg": "demo", "data": str(faces16), "gpus": 0, "metrics": "swd20", **changed}
    with pytest.raises(UserError, match=words):
        configure_gan(options)
    configure_gan(options, resuming=True)


def test_options_that_may_be_given_again_do_not_keep_a_run_from_being_resumed(faces16, tmp_path):
    """A command line has them in a tuple, which the state of a run keeps."""
    (tmp_path / "weights.pth").touch()
    given = {"detector_weights": (str(tmp_path / "weights.pth"),), "background": (255, 0, 0)}
    config = configure_gan({"cfg": "demo", "data": str(faces16), "gpus": 0, "metrics": "none", **given}, resuming=True)
    assert config.detector_weights == [str(tmp_path / "weights.pth")]
    for kept in (asdict(config), json.loads(json.dumps(asdict(config))), {**asdict(config), **given}):
        assert TrainConfig.from_dict(kept) == config
        check_resumable(config_of({"config": kept}, tmp_path, "train.py"), tmp_path, config)


@pytest.mark.parametrize(
    "script, config", [("train_stylizer", StylizerTrainConfig), ("train_encoder", ClassifierConfig)]
)
def test_help_says_the_defaults(script, config):
    """Those that are a number."""
    told = {
        option.name: float(default[1])
        for option in importlib.import_module(script).main.params
        if (default := re.search(r"\[default: ([\d.]+)\]", option.help or ""))
    }
    known = {field.name: field.default for field in fields(config)}
    if script == "train_stylizer":
        known |= {field.name: field.default for field in fields(StylizerConfig)}
    compared = told.keys() & known.keys()
    assert {"kimg", "tick", "snap", "workers", "lr"} <= compared
    assert {name: told[name] for name in compared} == {name: float(known[name]) for name in compared}


@pytest.mark.parametrize("kind", ["encoder", "stylizer"])
def test_tf32_is_for_gpus(faces16, tmp_path, kind):
    save_encoder(tmp_path / "encoder.safetensors", VGG19(1 / 16), {})
    configure, options = {
        "encoder": (configure_classifier, {"data": str(faces16)}),
        "stylizer": (
            configure_stylizer,
            {"content": str(faces16), "style": str(faces16), "encoder_weights": str(tmp_path / "encoder.safetensors")},
        ),
    }[kind]
    options |= {"gpus": 0, "tf32": True, "precision": "fp32"}
    with pytest.raises(UserError, match="--tf32 is for GPUs, and this run has none; leave it out"):
        configure(options)
    assert configure(options, resuming=True).tf32


def test_no_best_model_is_kept_any_more_where_that_is_asked(faces16):
    options = {"cfg": "demo", "data": str(faces16), "gpus": 0, "metrics": "none", "keep_best": "swd20"}
    with pytest.raises(UserError, match="--keep-best none keeps none"):
        configure_gan(options, resuming=True)
    assert configure_gan({**options, "keep_best": "none"}, resuming=True).keep_best == ""


def test_a_stylizers_options_are_checked_before_an_encoder_is_looked_for(faces16, monkeypatch):
    monkeypatch.setattr("training.options.load_encoder", lambda path: pytest.fail("the encoder was looked for"))
    for name, value, words in (("style_size", 100, "a multiple of 64"), ("kernel_size", 2, "an odd number")):
        with pytest.raises(UserError, match=words):
            configure_stylizer({"content": str(faces16), "style": str(faces16), "gpus": 0, name: value})


def test_a_run_goes_on_in_the_precision_that_was_measured_for_it(faces16, monkeypatch):
    for measured in ("bf16", "fp32"):
        monkeypatch.setattr("training.options.cpu_precision", lambda measured=measured: measured)
        config = resolve_classifier({"data": str(faces16)}, 0)
        monkeypatch.setattr("training.options.cpu_precision", lambda: pytest.fail("measured again"))
        again = resolve_classifier(config.recorded_options({"data": str(faces16)}), 0)
        assert again.precision == config.precision == measured


def test_clamping_belongs_to_half_precision():
    for precision, clamp in (("fp32", None), ("bf16", 256.0), ("fp16", 256.0)):
        c = resolve({"cfg": "demo", "data": "x", "precision": precision}, 32, 3, 0, 0)
        assert (c.generator.clamp, c.discriminator.clamp) == (clamp, clamp)


def test_augmentation_is_the_default_of_all_but_the_demo():
    assert resolve({"data": "x"}, 32, 3, 0, 0).aug == "ada"
    assert resolve({"cfg": "demo", "data": "x"}, 32, 3, 0, 0).aug == "noaug"
    assert resolve({"data": "x", "aug": "noaug"}, 32, 3, 0, 0).aug == "noaug"
    assert resolve({"data": "x", "loss": "relativistic"}, 32, 3, 0, 0).aug == "noaug"
    assert resolve({"data": "x", "augpipe": "bg"}, 32, 3, 0, 0).augpipe == "bg"


@pytest.mark.parametrize("gain, precision", [(8.0, "bf16"), (1.6, "bf16"), (1.4, "fp32"), (0.5, "fp32")])
def test_half_precision_is_taken_where_the_processor_is_faster_with_it(monkeypatch, gain, precision):
    seconds = {torch.float32: 1.0, torch.bfloat16: 1 / gain}
    monkeypatch.setattr("training.options.convolution_seconds", seconds.get)
    assert resolve_classifier({"data": "x", "precision": "auto"}, gpus=0).precision == precision
    assert resolve_classifier({"data": "x"}, gpus=0).precision == precision
    for asked in ("fp32", "bf16", "fp16"):
        assert resolve_classifier({"data": "x", "precision": asked}, gpus=0).precision == asked


def test_the_time_of_a_convolution_is_that_of_its_arithmetic():
    """1.2 GFLOP: no processor takes less than 0.05 ms or, in float32, more than a second."""
    assert 5e-5 < convolution_seconds(torch.float32) < 1 and 5e-6 < convolution_seconds(torch.bfloat16) < 10


def test_gamma_of_auto_is_the_published_heuristic():
    for resolution, batch in ((32, 32), (256, 16), (1024, 4)):
        c = resolve({"data": "x", "batch": batch}, resolution, 3, 0, 0)
        assert c.gamma == pytest.approx(0.0002 * resolution**2 / batch)


def test_new_stylizers_reflect_at_borders(tmp_path):
    save_encoder(tmp_path / "encoder.safetensors", VGG19(0.125), {})
    options = {"content": "a", "style": "b", "encoder_weights": str(tmp_path / "encoder.safetensors")}
    config = configure_stylizer(options)
    assert config.stylizer.border == "reflect" and config.stylizer.width == 0.125
    recorded = config.recorded_options(options)
    assert configure_stylizer({**recorded, "encoder_weights": "gone"}, resuming=True) == replace(
        config, encoder_weights="gone"
    )
    assert configure_stylizer({**recorded, "border": "zeros"}, resuming=True).stylizer.border == "zeros"


@pytest.mark.parametrize("cfg, resolution, noted", [
    ("paper256", 256, False),
    ("paper256", 64, True),
    ("paper1024", (512, 1024), True),
    ("cifar", 32, False),
    ("demo", 64, False),
])  # fmt: skip
def test_a_preset_at_another_resolution_than_published_is_noted(cfg, resolution, noted):
    note = resolve({"cfg": cfg, "data": "x.zip"}, resolution, 3, 0, 0).note
    assert (f"--cfg {cfg} was published for" in note) == noted
