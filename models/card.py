"""Model cards: the README.md of a repository with a model, from what is known about the model and its run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.classes import class_names
from models.foreign import has_foreign_name
from networks.generator import Generator, Modulation
from networks.stylizer import Stylizer
from torch_utils.errors import listed, one_line, plural, ranges_text
from torch_utils.files import read_regular
from torch_utils.schema import MAX_JSON_BYTES, parse_json, read_json
from torch_utils.sizes import width_and_height

KINDS = {1: "1 channel", 3: "in colour", 4: "in colour and transparent (RGBA, premultiplied)"}  # by their channels
STYLES: dict[Modulation, str] = {
    "adaconv": "predicted convolution kernels (AdaConv)",
    "modconv": "scales of each channel (StyleGAN2's modulated convolution)",
    "adain": "scales and biases of each channel (AdaIN)",
}
SAMPLE_SHEET = "samples.png"
MARKUP = re.compile(r"[\\`*\[\]#!|~$@]|(?<!\w)_|_(?!\w)|://")  # what Markdown makes something of
MAX_CLASSES = 100  # whose names a card lists

# The entries of a run's config.json that a card shows. Paths are left out: they are private.
TRAINING = (
    "batch", "loss", "gamma", "glr", "dlr", "lr", "ema_kimg", "mixing", "pl_weight", "aug", "mirror", "style_weight",
    "content_weight", "identity_weight", "precision", "seed", "commit", "torch", "device",
)  # fmt: skip

GENERATOR = """\
A StyleGAN2-style generator whose styles are {styles}. It makes {images}.

![images of the seeds 0, 1, …]({samples})

## How to use

```python
from adaconv import Generator, save_png, to_uint8

G = Generator.from_pretrained({repo})
images = G(G.latents([0, 1, 2]), {c}psi=0.7)  # {shape}, -1 to 1
save_png(to_uint8(images)[0], "seed0000.png")
```

On the command line: `python generate.py --network {weights} --seeds 0-99 --trunc 0.7`.
"""

STYLIZER = """\
Style transfer by {styles}: it rebuilds a content image in the style of another image.

## How to use

```python
from adaconv import Stylizer

model = Stylizer.from_pretrained({repo})
image = model.stylize("photo.jpg", "painting.jpg")  # uint8 [3, H, W]
model.stylize_video("film.mp4", "stylized.mp4", "painting.jpg")
images = model(content, model.kernels(style))  # the network alone: all are [N, 3, H, W], -1 to 1
```

On the command line: `python stylize.py --model {weights} --content photo.jpg --style painting.jpg --out out.jpg`.
"""

REST = """
## Training

{training}

## Construction

{construction}

## Licence

{license} The images that it was trained on may have terms of their own. The code is Apache-2.0.
"""


def model_card(
    model: Generator | Stylizer,
    info: Mapping[str, Any],
    weights: str,
    repo: str | None = None,
    license: str | None = None,
) -> str:
    """The card of a model with the snapshot's `info`, in a repository `repo` with the file `weights`.

    `license` is the identifier on the Hub of the weights' licence, if their publisher has stated one. Weights that come
    from networks of someone else have the licence "other".
    """
    foreign = license is None and ("source" in info or has_foreign_name(str(info.get("init_from"))))
    data = info.get("data") or info.get("styles")
    if isinstance(model, Generator):
        kind, task, tag, body = "generator", "unconditional-image-generation", "image-generation", GENERATOR
        values = generator_values(model, info)
    else:
        kind, task, tag, body = "stylizer", "image-to-image", "style-transfer", STYLIZER
        values = {"styles": STYLES[model.config.modulation]}
    head: dict[str, Any] = {"license": license or "other"} if license or foreign else {}
    head |= {"library_name": "adaconv", "pipeline_tag": task, "tags": ["adaconv", tag]}
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items())  # JSON is YAML
    title = repo.split("/")[-1] if repo else f"AdaConv {kind}" + (f", {data}" if data else "")
    facts = {"images shown": f"{1000 * float(info.get('kimg', 0)):,.0f}"}
    facts |= {name: info[name] for name in ("data", "contents", "styles", "init_from") if name in info}
    facts |= {name: value for group in ("source", "metrics", "training") for name, value in _group(info, group).items()}
    stated = f"The licence of the weights is {_plain(license)}." if license else "No licence of the weights is stated."
    if foreign:
        stated = "The weights come from a file of somebody else, and keep the licence of whoever published it."
    count = sum(parameter.numel() for parameter in model.parameters())
    return f"---\n{front}\n---\n\n# {_plain(title)}\n\n" + (body + REST).format(
        repo=json.dumps(repo or "path/to/this/folder"),
        weights=weights,
        training=_table(facts),
        construction=_table({"parameters": f"{count:,}", **asdict(model.config)}),
        license=stated,
        **values,
    )


def generator_values(G: Generator, info: Mapping[str, Any]) -> dict[str, Any]:
    """What the card of a generator says about its images, and how it is called."""
    channels, classes = G.config.img_channels, G.config.c_dim
    width, height = width_and_height(G.config.resolution)
    images = f"{width}x{height} images, {KINDS[channels]}"
    styles = STYLES[G.config.modulation]
    if (vectors := G.mapping.labels) is not None:
        ranges = ranges_text(vectors.ranges())
        example = [float(f"{number:.4g}") for number in vectors.examples[0].tolist()]
        values = {
            "images": f"{images}, of labels of {plural(classes, 'number')} ({ranges})",
            "c": f"c={example}, ",
            "styles": styles,
        }
        return {**values, "samples": SAMPLE_SHEET, "shape": [3, channels, height, width]}
    names = class_names(info, classes)
    if classes:
        images += f", of {plural(classes, 'class', 'es')}"
    if names:
        images += f": {listed([_plain(name) for name in names], MAX_CLASSES)}"
    return {
        "images": images,
        "samples": SAMPLE_SHEET,
        "styles": styles,
        "c": f"c={json.dumps(names[0], ensure_ascii=False) if names else 0}, " if classes else "",
        "shape": [3, channels, height, width],
    }


def facts_of_run(snapshot: Path) -> dict[str, Any]:
    """What the folder of a snapshot's run records: "training", its configuration, and the snapshot's "metrics"."""
    run, facts = snapshot.parent, {}
    try:
        kimg = float(snapshot.stem.removeprefix("snapshot-"))
        config = read_json(run / "config.json")
        known = {**config, **config["about"]}
        facts["training"] = {name: known[name] for name in TRAINING if known.get(name) is not None}
        lines = [parse_json(line) for line in read_regular(run / "metrics.jsonl", MAX_JSON_BYTES).splitlines()]
        measured = [line for line in lines if line["kimg"] == kimg][-1]
        facts["metrics"] = {n: v for n, v in measured.items() if n != "kimg" and type(v) in (int, float)}
    except (OSError, ValueError, TypeError, KeyError, IndexError):
        pass  # the folder is not a run, or the snapshot was not evaluated
    return facts


def _group(info: Mapping[str, Any], name: str) -> dict[str, Any]:
    return dict(info[name]) if isinstance(info.get(name), Mapping) else {}


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {_plain(name)} | {_plain(value)} |" for name, value in rows.items())])


def _plain(value: Any) -> str:
    """Any value as text for one cell of a table."""
    text = f"{value:.6g}" if isinstance(value, float) else value
    text = MARKUP.sub(r"\\\g<0>", one_line(text, 200))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("www.", "www&#46;")
