"""What the kit has found in blocks of timm."""

from __future__ import annotations

from findings import CALLING, Finding


def one_weight(case):
    """Whether each output channel has one weight, whose deviation is zero."""
    arguments = case.arguments
    channels = getattr(arguments, "in_channel", 0) or arguments.in_channels
    return arguments.kernel_size == 1 and channels == arguments.groups


def standardised(name, build):
    return Finding(
        name,
        CALLING,
        "one weight for each output channel: `kernel_size=1` and as many groups as channels",
        "In evaluation too a call is an error about training, for the weights are standardised by a batch norm in training mode.",
        f"""
import torch
from timm.layers import {name}

try:
    {name}({build}).eval()(torch.randn(1, 2, 5, 5))
    raise AssertionError("works")
except ValueError as error:
    assert "when training" in str(error)
""",
        raises=ValueError,
        where=one_weight,
    )


FOUND = [
    standardised("StdConv2d", "2, 4, 1, groups=2"),
    standardised("StdConv2dSame", "2, 4, 1, groups=2"),
    standardised("ScaledStdConv2d", "2, 4, 1, groups=2"),
    Finding(
        "GatherExcite",
        "*",
        "`use_mlp=True`, the default, without `extra_params`",
        "The constructor is an error: it passes `act_layer` to `ConvMlp` twice.",
        """
from timm.layers.gather_excite import GatherExcite

try:
    GatherExcite(16)
    raise AssertionError("works")
except TypeError as error:
    assert "multiple values for argument 'act_layer'" in str(error)
""",
        raises=TypeError,
        where=lambda case: case.arguments.use_mlp,
    ),
    Finding(
        "EcaModule",
        "empty_batch",
        "all",
        "A batch of no rows is an error.",
        """
import torch
from timm.layers import EcaModule

try:
    EcaModule(8)(torch.randn(0, 8, 5, 5))
    raise AssertionError("works")
except RuntimeError as error:
    assert "cannot reshape tensor of 0 elements" in str(error)
""",
        raises=RuntimeError,
    ),
    Finding(
        "WindowAttention",
        "empty_batch",
        "all",
        "A batch of no rows is an error.",
        """
import torch
from timm.models.swin_transformer import WindowAttention

try:
    WindowAttention(4, 1, window_size=2)(torch.randn(0, 4, 4))
    raise AssertionError("works")
except RuntimeError as error:
    assert "cannot reshape tensor of 0 elements" in str(error)
""",
        raises=RuntimeError,
    ),
]
