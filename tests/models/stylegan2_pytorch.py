"""StyleGAN2 from tensors under the names of rosinality's stylegan2-pytorch, straight from the paper's equations: each
image by itself, each filter as a plain convolution; and checkpoints of random tensors with those names.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = dict[str, Tensor]
TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0])
BLUR = torch.outer(TAPS, TAPS) / 64


def checkpoint(resolution: int = 32, most: int = 12, last: int = 6, w: int = 8, depth: int = 3, **more: Any) -> dict:
    """What its train.py writes, with its two optimizers, or with `latent_avg` its converter."""
    torch.manual_seed(1)
    g, d = generator_tensors(resolution, most, last, w, depth), discriminator_tensors(resolution, most, last)
    g_ema = {name: tensor + 0.1 * torch.randn_like(tensor) * ("kernel" not in name) for name, tensor in g.items()}
    args = argparse.Namespace(path="data", iter=800000, batch=16, r1=10.0, augment=False, channel_multiplier=2)
    optimizers = {f"{name}_optim": optimizer(network) for name, network in (("g", g), ("d", d))}
    return {"g": g, "d": d, "g_ema": g_ema, **optimizers, "args": args, "ada_aug_p": 0.0, **more}


def optimizer(network: Tensors, first: int = 0) -> dict:
    """Adam's state. `first`: the number of its first parameter; before PyTorch 1.6 they were addresses of memory."""
    state = {
        first + 64 * i: {"step": 5, "exp_avg": torch.randn(t.shape), "exp_avg_sq": torch.rand(t.shape)}
        for i, t in enumerate(network.values())
    }
    group = {"lr": 0.002, "betas": (0.0, 0.99), "eps": 1e-8, "weight_decay": 0, "amsgrad": False, "params": [*state]}
    return {"state": state, "param_groups": [group]}


def channels(side: int, resolution: int, most: int, last: int) -> int:
    return min(last * resolution // side, most)


def generator_tensors(resolution: int, most: int, last: int, w: int, depth: int) -> Tensors:
    found: Tensors = {"input.input": torch.randn(1, most, 4, 4)}
    for i in range(1, depth + 1):
        found |= {f"style.{i}.weight": torch.randn(w, w) * 100, f"style.{i}.bias": torch.randn(w) * 10}

    def modulated(name: str, inputs: int, outputs: int, side: int) -> None:
        found[f"{name}.conv.weight"] = torch.randn(1, outputs, inputs, side, side)
        found[f"{name}.conv.modulation.weight"] = torch.randn(inputs, w)
        found[f"{name}.conv.modulation.bias"] = 1 + 0.3 * torch.randn(inputs)

    def styled(name: str, inputs: int, outputs: int, upsample: bool = False) -> None:
        modulated(name, inputs, outputs, 3)
        found[f"{name}.noise.weight"], found[f"{name}.activate.bias"] = torch.randn(1), torch.randn(outputs)
        if upsample:
            found[f"{name}.conv.blur.kernel"] = 4 * BLUR

    def to_rgb(name: str, inputs: int, upsample: bool) -> None:
        modulated(name, inputs, 3, 1)
        found[f"{name}.bias"] = torch.randn(1, 3, 1, 1)
        if upsample:
            found[f"{name}.upsample.kernel"] = 4 * BLUR

    styled("conv1", most, most)
    to_rgb("to_rgb1", most, False)
    found["noises.noise_0"] = torch.randn(1, 1, 4, 4)
    for block in range(int(math.log2(resolution)) - 2):
        side = 8 << block
        before, after = channels(side // 2, resolution, most, last), channels(side, resolution, most, last)
        styled(f"convs.{2 * block}", before, after, True)
        styled(f"convs.{2 * block + 1}", after, after)
        to_rgb(f"to_rgbs.{block}", after, True)
        found |= {f"noises.noise_{2 * block + i}": torch.randn(1, 1, side, side) for i in (1, 2)}
    return found


def discriminator_tensors(resolution: int, most: int, last: int) -> Tensors:
    found: Tensors = {"convs.0.0.weight": torch.randn(last, 3, 1, 1), "convs.0.1.bias": torch.randn(last)}
    side = resolution
    for i in range(1, int(math.log2(resolution)) - 1):
        before, after = channels(side, resolution, most, last), channels(side // 2, resolution, most, last)
        found |= {f"convs.{i}.conv1.0.weight": torch.randn(before, before, 3, 3)}
        found |= {f"convs.{i}.conv1.1.bias": torch.randn(before), f"convs.{i}.conv2.0.kernel": BLUR}
        found |= {f"convs.{i}.conv2.1.weight": torch.randn(after, before, 3, 3)}
        found |= {f"convs.{i}.conv2.2.bias": torch.randn(after), f"convs.{i}.skip.0.kernel": BLUR}
        found |= {f"convs.{i}.skip.1.weight": torch.randn(after, before, 1, 1)}
        side //= 2
    found |= {"final_conv.0.weight": torch.randn(most, most + 1, 3, 3), "final_conv.1.bias": torch.randn(most)}
    found |= {"final_linear.0.weight": torch.randn(most, most * 16), "final_linear.0.bias": torch.randn(most)}
    return found | {"final_linear.1.weight": torch.randn(1, most), "final_linear.1.bias": torch.randn(1)}


# --- the networks ---------------------------------------------------------------------------------------------------


def activation(x: Tensor) -> Tensor:
    return math.sqrt(2) * F.leaky_relu(x, 0.2)


def map_latent(g: Tensors, z: Tensor) -> Tensor:
    """z [w] → w [w], with a learning rate multiplier of 0.01."""
    x = z / z.square().mean().sqrt()
    for i in range(1, sum(name.startswith("style.") for name in g) // 2 + 1):
        x = activation(g[f"style.{i}.weight"] @ x * 0.01 / math.sqrt(len(x)) + 0.01 * g[f"style.{i}.bias"])
    return x


def modulated_weight(g: Tensors, name: str, w: Tensor, demodulate: bool) -> Tensor:
    style = g[f"{name}.modulation.weight"] @ w / math.sqrt(len(w)) + g[f"{name}.modulation.bias"]
    weight = g[f"{name}.weight"][0]
    weight = weight / math.sqrt(weight[0].numel()) * style[None, :, None, None]
    return weight / weight.square().sum(dim=(1, 2, 3), keepdim=True).add(1e-8).sqrt() if demodulate else weight


def filtered(x: Tensor, f: Tensor, pad: tuple[int, int]) -> Tensor:
    """Each channel of x [C, H, W] with the filter."""
    x = F.pad(x, (*pad, *pad))
    return F.conv2d(x[:, None], f[None, None])[:, 0]


def doubled(x: Tensor) -> Tensor:
    """Zeros between the pixels, and the filter."""
    y = torch.zeros(x.shape[0], 2 * x.shape[1], 2 * x.shape[2])
    y[:, ::2, ::2] = x
    return filtered(y, 4 * BLUR, (2, 1))


def styled_convolution(g: Tensors, name: str, x: Tensor, w: Tensor, noise: Tensor, upsample: bool) -> Tensor:
    weight = modulated_weight(g, f"{name}.conv", w, True)
    if upsample:  # by a transposed convolution
        x = filtered(F.conv_transpose2d(x[None], weight.transpose(0, 1), stride=2)[0], 4 * BLUR, (1, 1))
    else:
        x = F.conv2d(x[None], weight, padding=1)[0]
    x = x + g[f"{name}.noise.weight"] * noise[0]
    return activation(x + g[f"{name}.activate.bias"][:, None, None])


def generate(g: Tensors, z: Tensor, mean: Tensor, psi: float) -> Tensor:
    """z [w] → an image [3, R, R], with the constant noise, and truncation to the mean of w."""
    w = mean + psi * (map_latent(g, z) - mean)

    def rgb(name: str) -> Tensor:
        return F.conv2d(x[None], modulated_weight(g, f"{name}.conv", w, False))[0] + g[f"{name}.bias"][0]

    x = styled_convolution(g, "conv1", g["input.input"][0], w, g["noises.noise_0"][0], False)
    image = rgb("to_rgb1")
    for block in range(sum(name.startswith("to_rgbs.") and name.endswith("conv.weight") for name in g)):
        for i, upsample in ((0, True), (1, False)):
            noise = g[f"noises.noise_{2 * block + 1 + i}"][0]
            x = styled_convolution(g, f"convs.{2 * block + i}", x, w, noise, upsample)
        image = doubled(image) + rgb(f"to_rgbs.{block}")
    return image


def convolution(x: Tensor, weight: Tensor, **options: Any) -> Tensor:
    return F.conv2d(x[None], weight / math.sqrt(weight[0].numel()), **options)[0]


def discriminate(d: Tensors, images: Tensor) -> Tensor:
    """Four images [4, 3, R, R], which are one group → their logits [4]."""
    features = []
    for image in images:
        x = activation(convolution(image, d["convs.0.0.weight"]) + d["convs.0.1.bias"][:, None, None])
        for i in range(1, sum(name.endswith("skip.1.weight") for name in d) + 1):
            block = f"convs.{i}"
            y = convolution(x, d[f"{block}.conv1.0.weight"], padding=1) + d[f"{block}.conv1.1.bias"][:, None, None]
            y = convolution(filtered(activation(y), BLUR, (2, 2)), d[f"{block}.conv2.1.weight"], stride=2)
            y = activation(y + d[f"{block}.conv2.2.bias"][:, None, None])
            skip = convolution(filtered(x, BLUR, (1, 1)), d[f"{block}.skip.1.weight"], stride=2)
            x = (y + skip) / math.sqrt(2)
        features.append(x)
    deviation = torch.stack(features).var(dim=0, unbiased=False).add(1e-8).sqrt().mean()
    logits = []
    for x in features:
        x = torch.cat([x, deviation.expand(1, 4, 4)])
        x = activation(convolution(x, d["final_conv.0.weight"], padding=1) + d["final_conv.1.bias"][:, None, None])
        weight = d["final_linear.0.weight"]
        x = activation(weight @ x.flatten() / math.sqrt(weight.shape[1]) + d["final_linear.0.bias"])
        weight = d["final_linear.1.weight"]
        logits.append(weight @ x / math.sqrt(weight.shape[1]) + d["final_linear.1.bias"])
    return torch.cat(logits)
