"""The names under which the ops' kernels are checked: of an op, and of an op on channels-last tensors."""

from __future__ import annotations

IN_CHANNELS_LAST = " in channels-last"  # ends the name of an op whose kernels are checked in that memory order

_IN_BOTH_ORDERS = tuple(
    op + order for op in ("adaconv", "bias_act", "moments", "upfirdn2d") for order in ("", IN_CHANNELS_LAST)
)
OPS: dict[str, tuple[str, ...]] = {"cpu": (*_IN_BOTH_ORDERS, "conv3x3"), "cuda": _IN_BOTH_ORDERS}  # by device
