"""The operations that the networks are made of: adaconv, upfirdn2d, bias_act, moments, conv3x3."""

from torch_utils.ops.adaconv import adaconv
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.conv3x3 import PreparedWeight, conv3x3
from torch_utils.ops.moments import moments
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d

__all__ = ["PreparedWeight", "adaconv", "bias_act", "conv3x3", "moments", "setup_filter", "upfirdn2d"]
