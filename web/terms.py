"""What the terms of a model's card mean, in one plain sentence each."""

from __future__ import annotations

import re

from metrics.names import LISTED, parse_metric
from torch_utils.errors import UserError

TERMS = {
    "parameters": "The numbers of the network that training has found.",
    "kimg": "A thousand images shown in training; 440 kimg is 440,000 images, counted each time that they are shown.",
    "metric": "A number that compares many images of the model with real ones, such as FID; each says which is better.",
    "images shown": "How many images the training has seen, counted each time.",
    "data": "The data set that the model was trained on.",
    "init_from": "The model whose weights the training started from.",
    "batch": "How many images one step of training looks at.",
    "loss": "What the two networks, generator and discriminator, compete for.",
    "gamma": "The weight of R1, which keeps the discriminator from becoming too steep.",
    "glr": "The learning rate of the generator: how far one step moves its parameters.",
    "dlr": "The learning rate of the discriminator.",
    "lr": "The learning rate: how far one step moves the parameters.",
    "style_weight": "How much training counts that the result has the style's statistics.",
    "content_weight": "How much training counts that the result shows the content.",
    "identity_weight": "How much training counts that an image in its own style stays as it is.",
    "ema_kimg": "Over how many thousand images the model's parameters are averaged.",
    "mixing": "How often training gives the fine layers the style of another image.",
    "pl_weight": "The weight of the path length penalty, which makes equal steps in w change the image equally.",
    "aug": "How the images are varied at random in training, so that a small data set is not learned by heart.",
    "mirror": "Whether every image was shown mirrored as well.",
    "precision": "With how many bits training computes.",
    "seed": "What the random numbers of the training started from.",
    "commit": "The version of the code.",
    "device": "What the training ran on.",
    "torch": "The version of PyTorch.",
    "resolution": "Width and height of the images in pixels; one number is both.",
    "img_channels": "The values of a pixel: 1 grey, 3 colour, 4 colour and transparency.",
    "c_dim": "How many classes the images have, or numbers of a label; 0 is none.",
    "cbase": "The width of the layers: one for images of side s has cbase / s channels, up to cmax.",
    "cmax": "The most channels that a layer has.",
    "map_depth": "The layers of the mapping network, which makes the style w of the random z.",
    "clamp": "The limit of all layers' outputs, so that half precision does not overflow.",
    "vector_labels": "Whether labels are numbers, such as an age, in place of classes.",
    "z_dim": "The length of z, the random numbers that a seed stands for.",
    "w_dim": "The length of w, the style that every layer gets.",
    "modulation": "What a style is: predicted kernels (adaconv), or factors of channels (modconv, adain).",
    "norm": "How the size of a layer's output is kept: by its weights (demod), or by the output itself (instance).",
    "kernel_size": "The side of the predicted kernels in pixels.",
    "style_channels": "The channels of the style map, from which a layer's kernels are predicted.",
    "depthwise_scale": "How far the depthwise kernels are from the identity before training.",
    "pointwise_scale": "How far each channel's pointwise kernel with itself is from the identity before training.",
    "mixing_scale": "How large the pointwise kernels between channels are before training.",
    "map_lr": "A factor on the learning rate of the style map.",
    "predict_bias": "Whether a style also predicts what is added to each channel.",
    "kernels_up_to": "The largest side of layers with predicted kernels; in larger ones a style scales the channels.",
    "noise": "Whether layers add random noise, for details such as hair.",
}  # fmt: skip
ALWAYS = ("parameters", "kimg", "metric")  # explained even where a table has none
ROW = re.compile(r"^\| ([^|]+) \|", re.MULTILINE)
NAME = re.compile(r"[\w.@ -]+")
KIND = re.compile("[a-z]+")
COUNT = re.compile(",? of [0-9,]+ (images|paths)")  # of the names in LISTED


def explain(card: str) -> str:
    """A list, in Markdown, of the terms in the tables of a card, with their meanings."""
    rows = [name.replace("\\", "").strip() for name in ROW.findall(card)]
    names = dict.fromkeys([*ALWAYS, *filter(NAME.fullmatch, rows)])  # what is in a file can be anything
    meanings = {name: TERMS.get(name) or metric_meaning(name) for name in names}
    return "\n".join(f"- `{name}`: {text}" for name, text in meanings.items() if text)


def metric_meaning(name: str) -> str | None:
    """What a metric is, from the name of one of its values, such as `pr50k3_full_precision`; None if it is none."""
    base, at, detector = name.partition("@")
    for known in (base, base.rpartition("_")[0]):
        try:
            parse_metric(known + at + detector)
        except UserError:
            continue
        listed = next(text for other, text in LISTED.items() if KIND.findall(other)[0] == KIND.findall(known)[0])
        return COUNT.sub("", listed[0].upper() + listed[1:]) + "."
    return None
