"""What this processor computes wrongly, so that contracts do not draw it: both sides of a comparison would be noise."""

from __future__ import annotations

from functools import cache

import torch
from torch.nn import functional as F


@cache
def narrowest() -> int:
    """The least width of images: 3 where convolutions in bfloat16 with a stride are wrong for one or two columns of ten pixels.

    oneDNN's are, where it uses AMX, in torch 2.6 and 2.15: they read memory that nobody has written.
    """
    g = torch.Generator().manual_seed(0)
    x, kernel = (torch.randn(*shape, generator=g).bfloat16() for shape in ((2, 8, 11, 1), (8, 8, 3, 3)))
    truth = F.conv2d(x.double(), kernel.double(), None, 2, 1)
    found = [F.conv2d(x, kernel, None, 2, 1).double() for _ in range(4)]
    return 1 if all((y - truth).abs().max() < 0.1 * truth.abs().max() for y in found) else 3
