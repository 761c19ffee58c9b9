"""Model cards: the README.md of a repository of weights, written from what a model knows of itself and of its run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.stylegan2 import is_network_pickle
from networks.generator import Generator
from networks.stylizer import Stylizer

SAMPLES = "samples.png"

# Of a run's config.json; paths are its owner's own.
TRAINING = (
    "batch", "loss", "gamma", "glr", "dlr", "lr", "ema_kimg", "mixing", "pl_weight", "aug", "mirror", "style_weight",
    "content_weight", "identity_weight", "precision", "seed", "commit", "torch", "device",
)  # fmt: skip

GENERATOR = """\
A StyleGAN-style generator whose styles are convolution kernels (AdaConv): {images}.

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
Style transfer by predicted convolution kernels (AdaConv): a content image is rebuilt in the style of another.

## How to use

```python
from adaconv import Stylizer

model = Stylizer.from_pretrained({repo})
images = model(content, model.kernels(style))  # both [N, 3, H, W], -1 to 1, and so are the images
```

On the command line: `python stylize.py --model {weights} --content photo.jpg --style painting.jpg --out out.jpg`.
"""

REST = """
## Training

{training}

## Construction

{construction}

## Licence

{license}, as its publisher states; the images that it was trained on may have terms of their own. The code is
Apache-2.0.
"""


def model_card(
    model: Generator | Stylizer,
    info: Mapping[str, Any],
    weights: str,
    repo: str | None = None,
    license: str | None = None,
) -> str:
    """The card of a model with the snapshot's `info`, in a repository `repo` with the file `weights`.

    Without a license named it is Apache-2.0, and "other" for weights that come from someone else's network pickle.
    """
    foreign = "source" in info or is_network_pickle(str(info.get("init_from")))
    license = license or ("other" if foreign else "apache-2.0")
    config = model.config
    data = info.get("data") or info.get("styles")
    if isinstance(model, Generator):
        size, channels = config.resolution, config.img_channels
        images = f"{size}x{size} images, {'in colour' if channels == 3 else f'{channels} channels'}"
        images += f", of {config.c_dim} classes" * (config.c_dim > 0)
        kind, task = "generator", "unconditional-image-generation"
        body, values = (
            GENERATOR,
            {
                "images": images,
                "samples": SAMPLES,
                "c": "c=0, " if config.c_dim else "",
                "shape": [3, channels, size, size],
            },
        )
    else:
        kind, task, body, values = "stylizer", "image-to-image", STYLIZER, {}
    head = {"license": license, "library_name": "adaconv", "pipeline_tag": task}
    head["tags"] = ["adaconv", "image-generation" if kind == "generator" else "style-transfer"]
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items())  # JSON is YAML
    title = repo.split("/")[-1] if repo else f"AdaConv {kind}" + (f", {_plain(data)}" if data else "")
    facts = {"images shown": f"{1000 * float(info.get('kimg', 0)):,.0f}"}
    facts |= {name: info[name] for name in ("data", "contents", "styles", "init_from") if name in info}
    facts |= {name: value for group in ("source", "metrics", "training") for name, value in _group(info, group).items()}
    return f"---\n{front}\n---\n\n# {_plain(title)}\n\n" + (body + REST).format(
        repo=json.dumps(repo or "path/to/this/folder"),
        weights=weights,
        training=_table(facts),
        construction=_table(asdict(config)),
        license=_plain(license),
        **values,
    )


def facts_of_run(snapshot: Path) -> dict[str, Any]:
    """What the run that a snapshot lies in says of it: "training", how it was made, and "metrics", if measured."""
    run, facts = snapshot.parent, {}
    try:
        kimg = float(snapshot.stem.removeprefix("snapshot-"))
        config = json.loads((run / "config.json").read_text())
        known = {**config, **config["about"]}
        facts["training"] = {name: known[name] for name in TRAINING if known.get(name) is not None}
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        measured = [line for line in lines if line["kimg"] == kimg][-1]
        facts["metrics"] = {n: v for n, v in measured.items() if n != "kimg" and type(v) in (int, float)}
    except (OSError, ValueError, TypeError, KeyError, IndexError):  # of no run, or one that measured nothing
        pass
    return facts


def _group(info: Mapping[str, Any], name: str) -> dict[str, Any]:
    return dict(info[name]) if isinstance(info.get(name), Mapping) else {}


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {_plain(name)} | {_plain(value)} |" for name, value in rows.items())])


def _plain(value: Any) -> str:
    """Text for one line of a table, whatever it is."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.split())[:200].replace("|", "\\|").replace("<", "&lt;")
