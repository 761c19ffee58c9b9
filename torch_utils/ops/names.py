"""What a check of the kernels and the process that makes it agree on: the ops' names, and an exit code."""

from __future__ import annotations

IN_CHANNELS_LAST = " in channels-last"  # ends the name of an op whose kernels are checked in that memory order
OUT_OF_MEMORY = 75  # exit code of a check that could not be made for want of memory (EX_TEMPFAIL of sysexits.h)

_IN_BOTH_ORDERS = tuple(
    op + order for op in ("adaconv", "bias_act", "moments", "upfirdn2d") for order in ("", IN_CHANNELS_LAST)
)
OPS: dict[str, tuple[str, ...]] = {"cpu": (*_IN_BOTH_ORDERS, "conv3x3"), "cuda": _IN_BOTH_ORDERS}  # by device
