"""Compares the kernels of a device with the references in float64: on small inputs of every op, dtype and path.

The values are compared one by one, forward and gradients. It takes a few seconds, in a process of its own: a kernel
that crashes takes that process with it, and nothing else.

    python -m torch_utils.ops.check cuda "adaconv,adaconv in channels-last" libraries...    # what is wrong, in lines

An op and its memory order are checked apart: where kernels are wrong in channels-last alone, others take their place.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_utils.memory import out_of_memory
from torch_utils.ops.adaconv import adaconv_reference
from torch_utils.ops.bias_act import ACTIVATIONS, bias_act_reference
from torch_utils.ops.conv3x3 import conv3x3_reference, prepare
from torch_utils.ops.moments import moments_reference
from torch_utils.ops.names import IN_CHANNELS_LAST, OUT_OF_MEMORY
from torch_utils.ops.upfirdn2d import upfirdn2d_reference

# What a value may be off by, as a part of the largest value beside it.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 4e-3}
ORDERS = (torch.contiguous_format, torch.channels_last)

Function = Callable[..., "Tensor | tuple[Tensor, ...]"]


@dataclass(frozen=True)
class Case:
    """An op with arguments: as the kernel computes it, as the reference does, and the tensors for both, in float64."""

    op: str
    what: str
    kernel: Function
    reference: Function
    inputs: Sequence[Tensor]
    order: torch.memory_format = torch.contiguous_format
    dtypes: Sequence[torch.dtype] = tuple(TOLERANCE)
    gradients: bool = True


def cases(name: str) -> Iterator[Case]:
    """Small inputs that take every path of an op's kernels, and end within a tile, a vector and a warp.

    `name` is that of an op, or of an op in channels-last.
    """
    torch.manual_seed(0)
    of_op = {
        "adaconv": _adaconv,
        "bias_act": _bias_act,
        "conv3x3": _conv3x3,
        "moments": _moments,
        "upfirdn2d": _upfirdn2d,
    }[name.removesuffix(IN_CHANNELS_LAST)]()
    order = torch.channels_last if name.endswith(IN_CHANNELS_LAST) else torch.contiguous_format
    return (case for case in of_op if case.order == order)


def _draw(*shape: int) -> Tensor:
    """Eighths between −2 and 2 without 0: exact in every dtype, and not at the kink of a ReLU."""
    return (torch.randint(-16, 16, shape, dtype=torch.float64) + 0.5) / 8


def _adaconv() -> Iterator[Case]:
    ops = torch.ops.adaconv
    sizes = [(1, 3, 17, 33), (1, 3, 9, 70), (1, 1, 6, 40), (2, 3, 20, 9), (3, 3, 7, 35), (8, 3, 18, 10), (15, 1, 6, 6)]
    sizes += [(4, 3, 33, 40), (16, 3, 5, 6), (2, 5, 9, 34), (1, 7, 12, 8)]
    sizes += [(1, 3, 16, 11), (8, 3, 24, 9), (2, 3, 8, 3), (36, 3, 8, 5)]  # strips of CUDA's that end with the image
    both = itertools.cycle([*ORDERS, *ORDERS[::-1]])  # with zeros and with reflection
    plain = [(group, k, h, w, group * (2 if group < 4 else 1)) for group, k, h, w in sizes]
    # on tensor cores: strips that end with the image, before and after it, and several parts of an image
    last = [(1, 3, 9, 16, 32), (2, 3, 2, 2, 16), (4, 1, 35, 17, 16), (8, 3, 40, 33, 16), (16, 3, 17, 18, 32)]
    wide = (2, 3, 3, 1040, 16)  # a warp of the gradient by the kernel takes several strips
    last.append(wide)
    modes = itertools.product([*plain, *last], ("zeros", "reflect"))
    for (group, k, h, w, channels), mode in (m for m in modes if m != (wide, "reflect")):
        n, order = 2, torch.channels_last if (group, k, h, w, channels) in last else next(both)
        yield Case(
            "adaconv",
            f"{group} channels a group, {k}x{k}, {h}x{w}, {mode}",
            lambda x, kernel, bias, reflect=mode == "reflect": ops.adaconv(x, kernel, bias, reflect),
            lambda x, kernel, bias, mode=mode: adaconv_reference(x, kernel, bias, mode),
            (_draw(n, channels, h, w), _draw(n, channels, group, k, k), _draw(n, channels)),
            order,
        )


def _upfirdn2d() -> Iterator[Case]:
    ops = torch.ops.adaconv
    common = [(1, 1, 4, (2, 1, 2, 1)), (2, 1, 4, (2, 1, 2, 1)), (1, 2, 4, (1, 1, 1, 1)), (1, 1, 4, (-1, 4, 3, -2))]
    other = [(2, 2, 4, (1, 2, 0, 3)), (3, 2, 5, (1, -1, 2, 3)), (1, 2, 12, (5, 5, 6, 4))]
    for up, down, taps, pad in [*common, *other]:
        f = _draw(taps)
        for shape, order in itertools.product([(2, 3, 17, 35), (1, 16, 8, 66)], ORDERS):
            yield Case(
                "upfirdn2d",
                f"up {up}, down {down}, {taps} taps, padding {pad}, {list(shape)}",
                lambda x, f=f, up=up, down=down, pad=pad: ops.upfirdn2d(x, f.to(x), up, down, pad, 2.5),
                lambda x, f=f, up=up, down=down, pad=pad: upfirdn2d_reference(x, f, up, down, pad, 2.5),
                (_draw(*shape),),
                order,
            )


def _bias_act() -> Iterator[Case]:
    ops = torch.ops.adaconv
    orders = itertools.cycle(ORDERS)
    settings = itertools.product([(2, 3), (2, 16, 9, 11), (1, 3, 40, 40)], [(2**0.5, None), (-0.7, None), (3.0, 0.55)])
    for (index, act), (shape, (gain, clamp)) in itertools.product(enumerate(ACTIVATIONS), list(settings)):
        bias = torch.randint(-8, 8, shape[1:2], dtype=torch.float64) / 4 + 1 / 32  # no sum is 0, or near the clamp
        yield Case(
            "bias_act",
            f"{act}, gain {gain:.2f}, clamp {clamp}, {list(shape)}",
            lambda x, b, a=(index, gain, -1.0 if clamp is None else clamp): ops.bias_act(x, b, *a),
            lambda x, b, a=(act, gain, clamp): bias_act_reference(x, b, *a),
            (_draw(*shape), bias),
            next(orders),
        )


def _conv3x3() -> Iterator[Case]:
    ops = torch.ops.adaconv
    for shape, outputs, mode in [((2, 16, 9, 14), 5, "zeros"), ((1, 32, 8, 33), 40, "reflect")]:
        yield Case(
            "conv3x3",
            f"{list(shape)}, {outputs} outputs, {mode}",
            lambda x, w, b, mode=mode: ops.conv3x3(x, prepare(w), b, len(w), mode == "reflect", True),
            lambda x, w, b, mode=mode: conv3x3_reference(x, w, b, mode, True),
            (_draw(*shape), _draw(outputs, shape[1], 3, 3), _draw(outputs)),
            dtypes=(torch.float32,),
            gradients=False,
        )
    for shape, outputs, padding in [((2, 16, 9, 14), 32, 1), ((1, 32, 8, 33), 16, 0)]:
        yield Case(
            "conv3x3",
            f"learned, {list(shape)}, {outputs} outputs, padding {padding}",
            lambda x, w, padding=padding: ops.winograd(x, w, padding),
            lambda x, w, padding=padding: F.conv2d(x, w, padding=padding),
            (_draw(*shape), _draw(outputs, shape[1], 3, 3)),
            dtypes=(torch.float32,),
        )


def _moments() -> Iterator[Case]:
    # the last one's planes are shared by several of CUDA's blocks
    for shape in [
        (2, 3, 1, 1),
        (2, 3, 5, 7),
        (1, 2, 17, 65),
        (1, 16, 40, 60),
        (1, 2, 96, 99),
        (2, 72, 9, 7),
        (3, 80, 40, 30),
    ]:
        for order in ORDERS:
            x = _draw(*shape) + (torch.arange(shape[1], dtype=torch.float64) % 16)[:, None, None]
            yield Case("moments", f"{list(shape)}", torch.ops.adaconv.moments, moments_reference, (x,), order)


def compare(case: Case, dtype: torch.dtype, device: str) -> str | None:
    """What differs between kernel and reference, or None."""
    exact = [t.to(dtype).double().requires_grad_() for t in case.inputs]  # as they are after rounding
    inputs = [t.detach().to(device, dtype) for t in exact]
    if inputs[0].ndim == 4:
        inputs[0] = inputs[0].contiguous(memory_format=case.order)
    inputs = [t.requires_grad_() for t in inputs]
    results = []
    # As the next layer may give its gradient: in another order only in half precision, where convolutions choose it.
    dy_orders = ORDERS if torch.channels_last == case.order or dtype == torch.bfloat16 else ORDERS[:1]
    for function, given in ((case.kernel, inputs), (case.reference, exact)):
        if not case.gradients:
            with torch.no_grad():
                results.append([function(*given)])
            continue
        y = function(*given)
        y = y if isinstance(y, tuple) else (y,)
        torch.manual_seed(1)
        dy = [_draw(*t.shape).to(t) for t in y]
        gradients = [
            gradient
            for order in dy_orders
            for gradient in torch.autograd.grad(
                y, given, [t.contiguous(memory_format=order) if t.ndim == 4 else t for t in dy], retain_graph=True
            )
        ]
        results.append([t.detach() for t in (*y, *gradients)])
    outputs = len(results[0]) - (len(inputs) * len(dy_orders) if case.gradients else 0)
    for place, (value, want) in enumerate(zip(*results, strict=True)):
        name = "the result" if place < outputs else "a gradient"
        if value.dtype != dtype or value.shape != want.shape:
            return f"{name} is {value.dtype} {list(value.shape)}, expected {dtype} {list(want.shape)}"
        error, size = (value.double().cpu() - want).abs(), want.abs().max()
        wrong = ~(error <= TOLERANCE[dtype] * size + 1e-12)
        if wrong.any():
            at = wrong.nonzero()[0].tolist()
            got, expected = float(value[tuple(at)]), float(want[tuple(at)])
            count = f"{int(wrong.sum())} of {wrong.numel()} values"
            return f"{name} is wrong in {count}: at {at} {got:.6g}, not {expected:.6g}"
    return None


def check(name: str, device: str) -> str | None:
    """The first difference between an op's kernels and its reference, in one line; None where there is none."""
    for case in cases(name):
        for dtype in case.dtypes:
            try:
                difference = compare(case, dtype, device)
            except Exception as error:  # whatever a broken kernel makes of it
                if out_of_memory(error):
                    raise SystemExit(OUT_OF_MEMORY) from None
                difference = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if difference:
                return f"{case.what}, {str(dtype).removeprefix('torch.')}: {difference}"
    return None


def main(device: str, ops: str, libraries: Sequence[str]) -> None:
    torch.set_num_threads(1)
    for library in libraries:
        torch.ops.load_library(library)
    found = False
    for op in ops.split(","):  # one after the other: the first that is missing has crashed
        difference = check(op, device)
        found = found or difference is not None
        print(f"{op}: {difference or ''}", flush=True)
    if found:
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
