"""What low precision must cost: the same operations in exact arithmetic, each of whose results is rounded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


class Rounding(TorchDispatchMode):
    """Operations in float64, whose results are moved by up to half a unit, drawn, and rounded to `dtype`.

    Results all of whose values `dtype` has are left alone, such as views, copies and pads: nothing is rounded there.
    """

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        self.dtype, self.half = dtype, torch.finfo(dtype).eps / 2
        self.generator = torch.Generator().manual_seed(seed)
        self.operations = 0

    def rounded(self, x: Any) -> Any:
        if not (isinstance(x, Tensor) and x.is_floating_point() and x.device.type == "cpu" and x.dtype == torch.float64):
            return x
        if torch.equal(x.to(self.dtype).to(x.dtype), x):
            return x
        self.operations += 1
        return self.moved(x).to(self.dtype).to(x.dtype)

    def moved(self, x: Tensor) -> Tensor:
        """By up to half a unit, each value by itself."""
        noise = 2 * torch.rand(x.shape, generator=self.generator, dtype=x.dtype) - 1
        return x * (1 + self.half * noise)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        aliases = [r.alias_info for r in func._schema.returns]
        if any(a is not None and a.is_write for a in aliases):
            if isinstance(result, Tensor) and result.is_floating_point():
                result.copy_(self.rounded(result))
            return result
        if any(a is not None for a in aliases):
            return result
        return tree_map(self.rounded, result)
