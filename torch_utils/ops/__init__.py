"""The operations that the networks are made of: adaconv, upfirdn2d, bias_act, moments."""

from torch_utils.ops.adaconv import adaconv
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.moments import moments
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d

__all__ = ["adaconv", "bias_act", "moments", "setup_filter", "upfirdn2d"]
