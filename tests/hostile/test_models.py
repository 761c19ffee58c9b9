"""Models, styles, codes and directions that claim too much, or hold nonsense: refused before it costs anything."""

from __future__ import annotations

import io
import json
import resource
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from latents.codes import load_codes
from latents.directions import load_directions
from models.encoder import load_encoder, read_encoder
from models.snapshot import load_generator, load_stylizer
from styling.styles import load_kernels
from tests.hostile.attacks import no_hang, refusal

MIB = 1 << 20
NAN, INF = float("nan"), float("inf")
DEEP = "[" * 100_000 + "]" * 100_000


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["adaconv"])


def write(path: Path, tensors: dict[str, torch.Tensor], description: object) -> Path:
    text = description if isinstance(description, str) else json.dumps(description)
    path.write_bytes(save(tensors, metadata={"adaconv": text}))
    return path


LOADERS = {"model": load_generator, "stylizer": load_stylizer, "encoder": read_encoder}

CONFIG = {  # of generators: numbers that cost, and values that are none
    "large primes": {"cmax": 999_999_999_989, "cbase": 999_999_999_989},
    "many channels": {"cbase": 2**40, "cmax": 2**40},
    "10^400 channels": {"cmax": 10**400},
    "deep mapping": {"map_depth": 10**9},
    "no mapping": {"map_depth": 0},
    "less than no mapping": {"map_depth": -1},
    "wide z": {"z_dim": 10**12},
    "wide w": {"w_dim": 2**31},
    "no w": {"w_dim": 0},
    "classes": {"c_dim": 10**12},
    "less than no classes": {"c_dim": -3},
    "large kernels": {"kernel_size": 10**6},
    "style channels": {"style_channels": 10**12},
    "large images": {"resolution": 2**40},
    "images of no size": {"resolution": 0},
    "images of three sides": {"resolution": [16, 16, 16]},
    "channels": {"img_channels": 10**9},
    "NaN": {"depthwise_scale": NAN},
    "infinity": {"map_lr": INF},
    "10^400": {"pointwise_scale": 10**400},
    "text for a number": {"cmax": "8"},
    "true for a number": {"cmax": True},
    "a fraction of a channel": {"cmax": 8.5},
    "1 for true": {"noise": 1},
    "none": {"z_dim": None},
    "a list": {"w_dim": [8]},
    "unknown": {"no such field": 1},
    "another modulation": {"modulation": "eval"},
    "a negative clamp": {"clamp": -1.0},
}


@pytest.mark.parametrize("name", CONFIG)
def test_configurations_of_generators(place, tmp_path, name):
    tensors, description = read(place.model)
    description["config"] |= CONFIG[name]
    refusal(load_generator, write(tmp_path / "a.safetensors", tensors, description))


STYLIZER = {
    "wide": {"width": 1e9},
    "NaN": {"width": NAN},
    "10^400": {"width": 10**400},
    "large styles": {"style_size": 2**40},
    "kernels": {"kernel_size": 10**9 + 1},
    "style channels": {"style_channels": 10**12},
    "another border": {"border": "wrap"},
    "true": {"style_channels": True},
}


@pytest.mark.parametrize("name", STYLIZER)
def test_configurations_of_stylizers(place, tmp_path, name):
    tensors, description = read(place.stylizer)
    description["config"] |= STYLIZER[name]
    refusal(load_stylizer, write(tmp_path / "a.safetensors", tensors, description))


@pytest.mark.parametrize(
    "config", [{"width": NAN}, {"width": 10**400}, {"width": "1"}, {}, {"width": 1, "a": 1}, [], 3]
)
def test_configurations_of_encoders(place, tmp_path, config):
    tensors, description = read(place.encoder)
    refusal(read_encoder, write(tmp_path / "a.safetensors", tensors, {**description, "config": config}))


DESCRIPTIONS = {
    "version 0": {"version": 0},
    "version -1": {"version": -1},
    "version 1.0": {"version": 1.0},
    "version true": {"version": True},
    "version text": {"version": "1"},
    "version 99": {"version": 99},
    "version 10^400": {"version": 10**400},
    "no version": {"version": None},
    "kind": {"format": "adaconv-other"},
    "kind list": {"format": ["adaconv-generator"]},
    "config list": {"config": [1]},
    "config none": {"config": None},
    "info list": {"info": [1]},
    "kimg NaN": {"info": {"kimg": NAN}},
    "kimg text": {"info": {"kimg": "1"}},
    "kimg 10^400": {"info": {"kimg": 10**400}},
    "kimg negative": {"info": {"kimg": -1}},
    "source text": {"info": {"source": "x"}},
    "source list": {"info": {"source": {"file": ["x"]}}},
    "source without file": {"info": {"source": {}}},
    "data list": {"info": {"data": [1]}},
}


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_descriptions(place, tmp_path, kind, name):
    tensors, description = read(getattr(place, kind))
    refusal(LOADERS[kind], write(tmp_path / "a.safetensors", tensors, description | DESCRIPTIONS[name]))


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("text", [DEEP, "{", "", "null", "1", '"' + "a" * MIB, "{" + '"a":1,' * 1000, "9" * 5000])
def test_descriptions_that_are_no_objects(place, tmp_path, kind, text):
    tensors, _ = read(getattr(place, kind))
    refusal(LOADERS[kind], write(tmp_path / "a.safetensors", tensors, text))


WEIGHTS = {
    "NaN": lambda t: t * NAN,
    "infinity": lambda t: t + INF,
    "minus infinity": lambda t: t - INF,
    "infinities that cancel": lambda t: torch.where(torch.arange(t.numel()).view(t.shape) % 2 == 0, INF, -INF),
    "int64": lambda t: t.long(),
    "int8": lambda t: t.to(torch.int8),
    "uint8": lambda t: t.to(torch.uint8),
    "bool": lambda t: t > 0,
    "complex": lambda t: t.to(torch.complex64),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "float64": lambda t: t.double() + 1e300,
    "another shape": lambda t: t[None],
    "empty": lambda t: t.flatten()[:0],
}


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(place, tmp_path, kind, name):
    tensors, description = read(getattr(place, kind))
    last = sorted(name for name in tensors if tensors[name].ndim)[-1]
    tensors[last] = WEIGHTS[name](tensors[last]).contiguous()
    refusal(LOADERS[kind], write(tmp_path / "a.safetensors", tensors, description))


@pytest.mark.parametrize("name", WEIGHTS)
def test_saved_styles(place, tmp_path, name):
    model, _ = load_stylizer(place.stylizer)
    tensors, description = read(place.style)
    last = sorted(tensors)[-1]
    bad = write(tmp_path / "a.safetensors", {**tensors, last: WEIGHTS[name](tensors[last]).contiguous()}, description)
    refusal(load_kernels, model, bad)


@pytest.mark.parametrize("version", [0, 2, -1, True, "1", None, 1.0])
def test_versions_of_styles(place, tmp_path, version):
    model, _ = load_stylizer(place.stylizer)
    tensors, description = read(place.style)
    refusal(load_kernels, model, write(tmp_path / "a.safetensors", tensors, {**description, "version": version}))


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_torchvision(tmp_path, name):
    """Names and shapes are right, and the numbers are none."""
    from networks.vgg import VGG19

    state = VGG19(1 / 16).state_dict()
    torch.save(state, tmp_path / "good.pth")
    load_encoder(tmp_path / "good.pth")
    last = sorted(state)[-1]
    torch.save({**state, last: WEIGHTS[name](state[last])}, tmp_path / "a.pth")
    refusal(load_encoder, tmp_path / "a.pth")


# --- arrays ---------------------------------------------------------------------------------------------------------


def npz(path: Path, arrays: dict[str, object], compressed: bool = True) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def claimed(shape: tuple[int, ...], data: bytes = b"", kind: str = "<f4") -> bytes:
    """A .npy file whose header claims a shape."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue() + data


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return path


def with_arrays(good: Path, **changes: object) -> dict[str, object]:
    with np.load(good) as file:
        return {**{name: file[name] for name in file.files}, **changes}


ARRAYS = {
    "NaN": lambda a: a * NAN,
    "infinity": lambda a: a + INF,
    "beyond float32": lambda a: a.astype(np.float64) + 1e300,
    "integers": lambda a: a.astype(np.int64),
    "complex": lambda a: a.astype(np.complex64),
    "bool": lambda a: a > 0,
    "text": lambda a: a.astype(str),
    "objects": lambda a: a.astype(object),
    "one more axis": lambda a: a[None],
    "none": lambda a: a[:0],
    "one number": lambda a: a.flatten()[0],
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("field", ["w", "noise0"])
def test_codes(place, tmp_path, field, name):
    G, _ = load_generator(place.model)
    arrays = with_arrays(place.codes)
    refusal(load_codes, npz(tmp_path / "a.npz", {**arrays, field: ARRAYS[name](arrays[field])}), G)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("field", ["vectors", "sigma", "share"])
def test_directions(place, tmp_path, field, name):
    G, _ = load_generator(place.model)
    arrays = with_arrays(place.directions)
    refusal(load_directions, npz(tmp_path / "a.npz", {**arrays, field: ARRAYS[name](arrays[field])}), G)


@pytest.mark.parametrize("layers", [[-1], [10**6], [0.5], [NAN], [], "all", [[0]], 3])
def test_layers_of_directions(place, tmp_path, layers):
    G, _ = load_generator(place.model)
    refusal(load_directions, npz(tmp_path / "a.npz", with_arrays(place.directions, layers=np.array(layers))), G)


@pytest.mark.parametrize("name", ["w", "noise0", "about", "vectors"])
def test_arrays_that_unpack_to_gigabytes(place, tmp_path, name):
    """128 MiB of zeros in 128 KiB, 4 GiB where it is only claimed: nothing of it is unpacked."""
    G, _ = load_generator(place.model)
    zeros, load = bytes(128 * MIB), load_directions if name == "vectors" else load_codes
    good = {"w": claimed((1, G.config.w_dim), bytes(4 * G.config.w_dim))} if name != "w" else {}
    bad = archive(tmp_path / "a.npz", {**good, name: claimed((2**20, 16, 8), zeros)})
    del zeros
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusal(load, bad, G)
    refusal(load, archive(tmp_path / "b.npz", {**good, name: claimed((2**30,))}), G)
    refusal(load, archive(tmp_path / "c.npz", {**good, name: claimed((2**62, 2**62))}), G)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


@pytest.mark.parametrize("about", [DEEP, "[]", "{", "NaN", '{"a": NaN}'])
def test_notes_in_codes(place, tmp_path, about):
    G, _ = load_generator(place.model)
    refusal(load_codes, npz(tmp_path / "a.npz", with_arrays(place.codes, about=np.array(about))), G)


# --- what is right --------------------------------------------------------------------------------------------------


def test_what_is_right_is_loaded(place):
    G, _ = load_generator(place.model)
    model, _ = load_stylizer(place.stylizer)
    read_encoder(place.encoder)
    assert (
        load_codes(place.codes, G).noise and load_directions(place.directions, G) and load_kernels(model, place.style)
    )


def test_half_precision_is_right_too(place, tmp_path):
    tensors, description = read(place.model)
    for dtype in (torch.float16, torch.bfloat16):
        halves = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        load_generator(write(tmp_path / "a.safetensors", halves, description))


def test_large_finite_weights_are_no_infinities(place, tmp_path):
    """Whose sum is infinite in float32."""
    tensors, description = read(place.model)
    tensors["synthesis.const"] = torch.full_like(tensors["synthesis.const"], 3e38)
    load_generator(write(tmp_path / "a.safetensors", tensors, description))


def test_groups_of_the_largest_models_are_found_at_once():
    from networks.generator import GeneratorConfig

    start = time.process_time()
    with no_hang():
        for channels in (1, 8191, 8192):
            config = GeneratorConfig(16, cmax=8192, cbase=2**20)
            assert channels % config.group(channels) == 0
    assert time.process_time() - start < 1
