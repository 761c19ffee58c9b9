"""Half precision: the types that layers compute in, and autocast."""

from __future__ import annotations

import torch

COMPUTE_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # None: that of the weights


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Convolutions and matrix products in float16 ("fp16") or bfloat16 ("bf16"); with "fp32" nothing changes."""
    return torch.autocast(device.type, COMPUTE_DTYPES[precision] or torch.bfloat16, enabled=precision != "fp32")
