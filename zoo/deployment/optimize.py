"""A model made fast for inference: batch norms folded, channels last, compiled with its weights as constants.

On a CPU in float32, 3x3 convolutions of 128 channels and more are Winograd's. Of a Transformer, decoding is compiled: see
`zoo.deployment.compiled_decoding`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from layers.convolution import fold_norms
from layers.winograd import use_winograd
from zoo.model import Model


class Optimized(nn.Module):
    """What `optimize` returns: inference only.

    Two programs of the same weights, each compiled when it is first needed: one for inputs of the example's shape, and one for
    all others, without Winograd's convolutions, which for unknown sizes take minutes to compile. A call holds settings of the
    whole process while it runs, so that on torch 2.6 only one thread at a time may call.
    """

    def __init__(self, model: nn.Module, example: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.shape, self.images = dtype, example.shape, example.ndim == 4
        same = copy.deepcopy(model, {id(p): p for p in model.parameters()})  # a copy with the same parameters
        if self.images and dtype == torch.float32 and example.device.type == "cpu":
            use_winograd(same)
        self.for_example, self.for_others = torch.compile(same, dynamic=False), torch.compile(model)

    def forward(self, images: Tensor) -> Any:
        program = self.for_example if images.shape == self.shape else self.for_others
        images = images.detach().to(self.dtype)
        images = images.contiguous(memory_format=torch.channels_last) if self.images else images
        # Given as an option of torch.compile, freezing comes too late: weights are arguments by then. In float64 they stay such,
        # for constants are packed for oneDNN, which does not know it. And torch.compile gives up on a class after 8 models.
        constants = torch._inductor.config.patch(freezing=self.dtype != torch.float64)
        models = torch._dynamo.config.patch(cache_size_limit=2**16, accumulated_cache_size_limit=2**16)
        with torch.no_grad(), constants, models:
            return program(images)


def optimize(model: nn.Module, example: Tensor, dtype: torch.dtype | None = None) -> Any:
    """A faster copy of `model` for inference, compiled by one call on `example`; the model itself is left alone.

    example: an input of the shape to come, (b, c, y, x). Another number of images or another size works too, by a somewhat slower
             program, which compiles a few times until it holds for any. Of a Transformer, source tokens (b, n); any other size
             will do as well. What is faster is `start`, and the decoding that it begins, with as many threads as torch has now.
             It takes a minute or two.
    dtype:   what to compute in, by default the model's own; `torch.bfloat16` trades three digits for speed, on processors that
             multiply such numbers (AVX-512 BF16, AMX), and is several times slower on others.
    Equal to the model's eval output up to rounding in that dtype.
    """
    own = next(p.dtype for p in model.parameters())
    dtype = dtype or own
    if isinstance(model, Model) and (decodes_fast := model.optimized(example, dtype)) is not None:
        return decodes_fast
    fast = copy.deepcopy(model).eval().requires_grad_(False).to(torch.promote_types(own, dtype))
    fast = fold_norms(fast).to(dtype)
    if example.ndim == 4:
        fast = fast.to(memory_format=torch.channels_last)
    optimized = Optimized(fast, example, dtype).eval()
    optimized(example)
    return optimized
