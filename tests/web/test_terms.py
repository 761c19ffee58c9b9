"""The words of a model's card are explained: all of them, and metrics by what they are."""

from __future__ import annotations

from dataclasses import fields

import pytest

from models.card import TRAINING
from networks.generator import GeneratorConfig
from web.terms import TERMS, explain, metric_meaning


@pytest.mark.parametrize("name", [*TRAINING, *(field.name for field in fields(GeneratorConfig))])
def test_every_term_of_a_card_is_explained_in_a_sentence(name):
    assert TERMS[name].endswith(".") and TERMS[name][0].isupper()


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("swd2k", "Sliced Wasserstein distance; lower is better; needs no download."),
        ("fid5k_full", "Fréchet inception distance; lower is better."),
        (
            "pr50k3_full_recall",
            "Precision and recall with the 3rd nearest neighbour in VGG-16's features; higher is better.",
        ),
        ("fd5k_full@faces", "Fréchet distance of an encoder's features, shipped or a file's; lower is better."),
        ("batch", None),
    ],
)
def test_metrics_are_explained_by_what_they_are(name, meaning):
    assert metric_meaning(name) == meaning


def test_only_the_terms_of_the_card_are_explained():
    text = explain("| | |\n|---|---|\n| c\\_dim | 6 |\n| swd2k\\_32 | 9 |\n| something | 1 |\n")
    assert [line.split("`")[1] for line in text.splitlines()] == ["parameters", "kimg", "metric", "c_dim", "swd2k_32"]


def test_names_from_a_file_are_no_markup():
    name = "fd5k\\_full@x` ![i](http://evil.example/i.png) `y"
    text = explain(f"| | |\n|---|---|\n| {name} | 9 |\n")
    assert "evil" not in text and "`kimg`" in text
