"""Writes this project's modconv networks as the pickles that StyleGAN2-ADA-PyTorch and StyleGAN3 write.

The layout is theirs: the names, the calls, the order, and what each protocol and each release of numpy makes of it. The
numbers are those of a Generator or Discriminator given here, so that the reader must give the same network back.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from networks.discriminator import Discriminator, DiscriminatorConfig
from networks.generator import Generator, GeneratorConfig, SynthesisLayer
from networks.layers import Conv2d, Linear
from torch_utils.errors import UserError

HOOKS = ("_backward_hooks", "_forward_hooks", "_state_dict_hooks")  # among others, which depend on PyTorch's release


@dataclass(frozen=True, eq=False)
class Named:
    """A function or class that is written by its name and need not exist."""

    module: str
    name: str


@dataclass(eq=False)
class Called:
    """A call that is written and never made."""

    function: Named
    args: tuple
    state: Any = None


class EasyDict(dict):
    """Written as a dict of the class dnnlib.util.EasyDict."""


PERSISTENT = Named("torch_utils.persistence", "_reconstruct_persistent_obj")
EASY_DICT = Named("dnnlib.util", "EasyDict")


class Writer(pickle._Pickler):
    """Python's own pickler, which takes `Named`, `Called` and `EasyDict` too, and knows numpy's names before 2.0."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def __init__(self, file: io.BytesIO, protocol: int, old_numpy: bool = False):
        super().__init__(file, protocol)
        self.old_numpy = old_numpy

    def save_global(self, obj: Any, name: str | None = None) -> None:
        name = name or obj.__qualname__
        module = pickle.whichmodule(obj, name)
        if self.old_numpy:
            module = module.replace("numpy._core", "numpy.core")
        if self.proto < 3:
            module = module.replace("builtins", "__builtin__")
        self.write_name(Named(module, name))
        self.memoize(obj)

    def write_name(self, named: Named) -> None:
        if self.proto >= 4:
            self.save(named.module)
            self.save(named.name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{named.module}\n{named.name}\n".encode())

    def save_named(self, obj: Named) -> None:
        self.write_name(obj)
        self.memoize(obj)

    def save_called(self, obj: Called) -> None:
        self.save(obj.function)
        self.save(obj.args)
        self.write(pickle.REDUCE)
        self.memoize(obj)
        if obj.state is not None:
            self.save(obj.state)
            self.write(pickle.BUILD)

    def save_easy_dict(self, obj: EasyDict) -> None:
        self.save(EASY_DICT)
        self.save(())
        self.write(pickle.NEWOBJ)
        self.memoize(obj)
        self.write(pickle.MARK)
        for key, value in obj.items():
            self.save(key)
            self.save(value)
        self.write(pickle.SETITEMS)

    dispatch[Named] = save_named
    dispatch[Called] = save_called
    dispatch[EasyDict] = save_easy_dict


def dumps(value: Any, protocol: int = 4, old_numpy: bool = False) -> bytes:
    file = io.BytesIO()
    Writer(file, protocol, old_numpy).dump(value)
    return file.getvalue()


def module(
    class_name: str,
    parameters: dict[str, Any] | None = None,
    buffers: dict[str, Any] | None = None,
    modules: dict[str, Any] | None = None,
    source: str = "",
    **attributes: Any,
) -> Called:
    """One persistent module. `source`: the program that the peers' loader would run."""
    state = {
        "training": False,
        "_parameters": OrderedDict(parameters or {}),
        "_buffers": OrderedDict(buffers or {}),
        "_non_persistent_buffers_set": set(),
        **{name: OrderedDict() for name in HOOKS},
        "_modules": OrderedDict(modules or {}),
        **attributes,
        "_init_args": attributes.get("_init_args", ()),
    }
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": class_name, "state": state}
    return Called(PERSISTENT, (meta,))


def _kept(layer: nn.Module, *names: str) -> dict[str, nn.Parameter]:
    """Parameters with storages of their own, as pickling copies whole storages."""
    found = {name: getattr(layer, name) for name in names}
    return {name: nn.Parameter(p.detach().clone(), False) for name, p in found.items() if p is not None}


def _filter() -> torch.Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    return torch.outer(taps, taps)


def _linear(layer: Linear) -> Called:
    gains = {"weight_gain": np.float64(layer.weight_gain), "bias_gain": layer.lr_multiplier}
    return module("FullyConnectedLayer", _kept(layer, "weight", "bias"), activation=layer.act, **gains)


def _conv(layer: Conv2d) -> Called:
    return module(
        "Conv2dLayer",
        _kept(layer, "weight", "bias"),
        {"resample_filter": _filter()},
        activation=layer.act,
        down=2 if layer.down else 1,
        conv_clamp=layer.clamp,
        weight_gain=np.float64(layer.weight_gain),
        act_gain=np.sqrt(2),
    )


def _synthesis_layer(layer: SynthesisLayer) -> Called:
    buffers = {"resample_filter": _filter()}
    if layer.noise_const is not None:
        buffers["noise_const"] = layer.noise_const[0, 0].clone()
    parameters = _kept(layer, "weight", "noise_strength", "bias")
    # where half precision is used, weights are stored in the order of channels_last
    if layer.size[0] > 8:
        weight = parameters["weight"].detach().contiguous(memory_format=torch.channels_last)
        parameters["weight"] = nn.Parameter(weight, False)
    return module(
        "SynthesisLayer",
        parameters,
        buffers,
        {"affine": _linear(layer.adaconv.predictor.scale)},
        resolution=layer.size[0],
        up=2 if layer.up else 1,
        use_noise=layer.noise_const is not None,
        activation="lrelu",
        conv_clamp=layer.clamp,
        act_gain=np.sqrt(2),
    )


def _mapping(mapping: nn.Module, w_avg: torch.Tensor | None) -> Called:
    modules = {"embed": _linear(mapping.embed)} if mapping.embed is not None else {}
    modules |= {f"fc{i}": _linear(layer) for i, layer in enumerate(mapping.layers)}
    buffers = {} if w_avg is None else {"w_avg": w_avg.clone()}
    return module("MappingNetwork", {}, buffers, modules, num_layers=len(mapping.layers))


def generator(G: Generator, layout: str = "stylegan2-ada", source: str = "", **attributes: Any) -> Called:
    """`layout`: whether the channels are among `synthesis_kwargs` ("stylegan2-ada") or beside them ("stylegan3")."""
    config = G.config
    blocks = {}
    for i, block in enumerate(G.synthesis.blocks):
        modules = {} if block.conv0 is None else {"conv0": _synthesis_layer(block.conv0)}
        rgb = module(
            "ToRGBLayer",
            _kept(block.torgb, "weight", "bias"),
            modules={"affine": _linear(block.torgb.scale)},
            conv_clamp=config.clamp,
            weight_gain=np.float64(block.torgb.weight_gain),
        )
        modules |= {"conv1": _synthesis_layer(block.conv1), "torgb": rgb}
        const = {} if i else _kept(G.synthesis, "const")
        state = {"resolution": 4 << i, "architecture": "skip"}
        blocks[f"b{4 << i}"] = module("SynthesisBlock", const, {"resample_filter": _filter()}, modules, **state)
    synthesis = module("SynthesisNetwork", modules=blocks, w_dim=config.w_dim)
    sizes = {"channel_base": config.cbase, "channel_max": config.cmax, "conv_clamp": config.clamp}
    sizes = {"synthesis_kwargs": EasyDict(sizes)} if layout == "stylegan2-ada" else sizes
    state = {
        "z_dim": config.z_dim,
        "c_dim": config.c_dim,
        "w_dim": config.w_dim,
        "img_resolution": config.resolution,
        "img_channels": config.img_channels,
        "_init_kwargs": EasyDict(mapping_kwargs=EasyDict(num_layers=config.map_depth), **sizes),
        **attributes,
    }
    modules = {"synthesis": synthesis, "mapping": _mapping(G.mapping, G.w_avg)}
    return module("Generator", modules=modules, source=source, **state)


def discriminator(D: Discriminator, architecture: str = "resnet", group: Any = 0, **attributes: Any) -> Called:
    """`group`: another group of the minibatch standard deviation than D's."""
    config, modules = D.config, {}
    for i, block in enumerate(D.blocks):
        layers = {} if i else {"fromrgb": _conv(D.fromrgb)}
        layers |= {name: _conv(getattr(block, name)) for name in ("conv0", "conv1", "skip")}
        resolution = config.resolution >> i
        modules[f"b{resolution}"] = module(
            "DiscriminatorBlock", {}, {"resample_filter": _filter()}, layers, architecture=architecture
        )
    if D.mapping is not None:
        modules["mapping"] = _mapping(D.mapping, None)
    last = {
        "mbstd": module("MinibatchStdLayer", group_size=config.mbstd_group if group == 0 else group, num_channels=1),
        "conv": _conv(D.conv),
        "fc": _linear(D.fc),
        "out": _linear(D.out),
    }
    modules["b4"] = module("DiscriminatorEpilogue", modules=last, architecture=architecture)
    state = {
        "c_dim": config.c_dim,
        "img_resolution": config.resolution,
        "img_channels": config.img_channels,
        "_init_kwargs": EasyDict(channel_base=config.cbase, channel_max=config.cmax),
        **attributes,
    }
    return module("Discriminator", modules=modules, **state)


def small_networks(c_dim: int = 0, seed: int = 0, **changes: Any) -> tuple[Generator, Discriminator]:
    """Networks of 16 × 16 with random weights, of which none is 0 or 1 throughout."""
    torch.manual_seed(seed)
    noise = changes.pop("noise", True)
    common = {"resolution": 16, "cbase": 64, "cmax": 16, "c_dim": c_dim, "map_depth": 2, **changes}
    G = Generator(GeneratorConfig(**common, noise=noise, z_dim=8, w_dim=8, modulation="modconv"))
    # without classes a discriminator has no mapping, of whose depth its pickle then says nothing
    D = Discriminator(DiscriminatorConfig(**{**common, "map_depth": common["map_depth"] if c_dim else 8}))
    with torch.no_grad():
        for tensor in [*G.parameters(), *D.parameters(), G.w_avg]:
            if tensor.ndim <= 1:
                tensor.add_(0.2 * torch.randn(tensor.shape))
    return G.eval().requires_grad_(False), D.eval().requires_grad_(False)


def network_pickle(
    G: Generator, D: Discriminator | None = None, protocol: int = 4, old_numpy: bool = False, **generator_options: Any
) -> bytes:
    """All that a training of theirs writes: its data's description, D, G (zeros here) and G_ema."""
    found: dict[str, Any] = {"training_set_kwargs": EasyDict(class_name="Dataset", path="/data/x.zip", xflip=False)}
    if D is not None:
        found["D"] = discriminator(D)
    found["G_ema"] = generator(G, **generator_options)
    found["augment_pipe"] = None
    return dumps(found, protocol, old_numpy)


# --- what the tests of refusals share ---------------------------------------------------------------------------------


def refusal(load, data, names=("G_ema",)):
    """The one line that a pickle gets."""
    with pytest.raises(UserError) as caught:
        load(data, names)
    message = caught.value.message
    assert "\n" not in message and message.isprintable() and len(message) < 600
    return message


def changed(change):
    """A pickle of a generator whose layers' attributes `change` has changed."""
    G, _ = small_networks()
    network = generator(G)
    (meta,) = network.args
    change(meta["state"])
    return dumps({"G_ema": network})


def layer_state(state, *names):
    for name in names:
        state = state["_modules"][name].args[0]["state"]
    return state
