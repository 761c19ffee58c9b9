"""Hints on options that other projects have: each is true of the commands of this one."""

import click
import pytest

from tests.scripts import mistake
from tests.test_docs import all_options
from torch_utils.foreign_options import HERE, NEEDLESS, called_here


def test_what_options_are_called_here_is_an_option_and_takes_the_value():
    known = all_options()
    for there, here in HERE.items():
        name, *values = here.partition(",")[0].split()
        assert name in known, (there, here)
        for value in values:
            assert any(isinstance(o.type, click.Choice) and value in o.type.choices for o in known[name])
    assert not NEEDLESS & known.keys()


@pytest.mark.parametrize("command, said", [
    ("generate.py --projected-w w.npz", "there is no --projected-w: it is --w here"),
    ("generate.py mix --styles 0-6", "it is --layers here"),
    ("train.py --fp32=1", "it is --precision fp32 here"),
    ("train.py -n", "it is --dry-run here"),
    ("dataset_tool.py convert --source faces --out faces.zip", "Missing option '--resolution'"),
    ("train.py --mirror=1", "--mirror has no value here: write --mirror to turn it on"),
    ("train.py --cond 1 --data a.zip", "--cond has no value here"),
    ("generate.py --seeds 0 mix --rows 1 --cols 2", "the command comes first: write mix before all options"),
    ("generate.py --network a mix --rows 1 --cols 2", "the command comes first: write mix before all options"),
    ("train.py --subset=1000", "dataset_tool.py convert --max"),
    ("train.py --nhwc=1", "leave it out"),
    ("dataset_tool.py --source images/ --dest data.zip", "it is --out here"),
    ("dataset_tool.py --source images/ --out data.zip --transform=center-crop", "--crop center, the default"),
    ("projector.py --save-video=1", "it is --video, without a value here"),
    ("generate.py video --w-frames 120", "it is --seconds, the length of the whole video, here"),
    ("stylize.py --network m.safetensors", "it is --model here"),
    ("stylize.py --alpha 0.5", "it is --strength here"),
])  # fmt: skip
def test_commands_say_it(command, said):
    assert said in mistake(*command.split())


def test_a_hint_is_only_for_commands_that_have_the_option():
    assert called_here("--alpha", ["--strength"]) and called_here("--alpha", ["--out"]) is None
    assert called_here("--transform", ["--crop"]) is None  # train_encoder.py's is another
    assert called_here("--nonsense", ["--out"]) is None
