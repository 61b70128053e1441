"""A model made fast for inference: batch norms folded, channels last, compiled with its weights as constants.

On a CPU in float32, 3x3 convolutions of 128 channels and more are Winograd's for images of the example's shape. Those of networks
of diffusion are for any shape, on x86 with AVX2 from channels that are a multiple of 8 to one of 16, with AVX-512 of 16 and 32.
Of models that write texts, decoding is compiled, of a BERT a forward that leaves padding out, of networks of diffusion what
samplers call: see `zoo.deployment.compiled_decoding`, `compiled_causal`, `compiled_encoder` and `compiled_diffusion`.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from layers.checks import require
from layers.convolution import fold_norms
from layers.winograd import use_winograd
from zoo.model import Model


class Constant(nn.Module):
    """Abstract: inference only, with weights that are constants of programs, out of everybody's reach.

    It has no state; nothing that a caller does to it from outside changes what it computes. `train()` leaves it as it is, as part
    of an outer model that trains too. Loading a state, another dtype or device, `requires_grad_()` and pickling raise a
    `RuntimeError`: change or save the model, and optimize that again. `copy.deepcopy` shares the programs.
    """

    def __init__(self, programs: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.programs, self.dtype, self.device = programs, dtype, device  # a tuple, for others change what is among its modules
        super().train(False)

    def train(self, mode: bool = True) -> Constant:
        """Stays in evaluation."""
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Constant:
        """Errors: `RuntimeError` if gradients are asked for."""
        return self.refuse("have gradients") if requires_grad else self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Errors: `RuntimeError`, for a state without weights would be taken for the model's."""
        return self.refuse("be saved")

    def _load_from_state_dict(self, state_dict: Any, prefix: Any, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """What `load_state_dict` does, of an outer model too."""
        if any(name.startswith(prefix) for name in state_dict):
            self.refuse("load weights")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Constant:
        """What `to`, `double`, `cuda` and the like do, of an outer model too; nothing to do is done."""
        probe = torch.empty(1, dtype=self.dtype, device=self.device)
        changed = fn(probe)
        if (changed.dtype, changed.device) != (probe.dtype, probe.device):
            self.refuse(f"be moved from {probe.dtype} on {probe.device} to {changed.dtype} on {changed.device}")
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Constant:
        other = type(self).__new__(type(self))
        vars(other).update({k: v if k == "programs" else copy.deepcopy(v, memo) for k, v in vars(self).items()})
        return other

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.refuse("be pickled")

    def refuse(self, what: str) -> Any:
        raise RuntimeError(f"an optimized model cannot {what}: its weights are constants of a program; optimize the model again")


class Optimized(Constant):
    """What `optimize` returns, unless a model has a way of its own.

    Two programs of the same weights, each compiled when it is first needed: one for inputs of the example's shape, and one for
    all others, without `WinogradConv2d`, which for unknown sizes takes minutes to compile. A call holds settings of the
    whole process while it runs, so that on torch 2.6 only one thread at a time may call.

    Images of another float dtype are converted. All others that are not as the example was, integers or those of another device,
    go to the model as it was before it was compiled, and so does a call that a program fails: its errors are the model's.
    """

    any_size = True
    """Whether there is a program for other shapes; without one they go to the model as it was."""

    def __init__(self, model: nn.Module, example: Tensor, dtype: torch.dtype) -> None:
        device = next((x.device for x in tensors(model)), example.device)
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.in_channels == 1 and isinstance(module.weight, nn.Parameter):
                module.weight.data = one_layout(module.weight.detach())
        for_example, for_others = shared(model), model
        if example.ndim == 4 and dtype == torch.float32 and device.type == "cpu":
            for_example, for_others = self.by_fewer_products(model)
        others = torch.compile(for_others) if self.any_size else model
        programs = torch.compile(for_example, dynamic=False), others, model
        super().__init__(programs, dtype if example.is_floating_point() else example.dtype, device)
        self.shape = example.shape

    def by_fewer_products(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        """The model with Winograd's convolutions, for inputs of the example's shape and for others."""
        return use_winograd(shared(model)), model

    def forward(self, images: Tensor, *others: Tensor) -> Any:
        """others: what else the model takes, right as it is."""
        for_example, for_others, model = self.programs
        with torch.no_grad():
            if isinstance(images, Tensor) and images.is_floating_point() and self.dtype.is_floating_point:
                images = images.detach().to(self.dtype)
            if not self.takes(images):
                return model(images, *others)
            program = for_example if images.shape == self.shape else for_others
            images = one_layout(images) if images.ndim == 4 else images
            # Set for the whole process: as an option of torch.compile, freezing acts after weights became arguments. Not in
            # float64, which oneDNN lacks. And torch.compile gives up on a class after 8 models.
            constants = torch._inductor.config.patch(freezing=self.dtype != torch.float64)
            models = torch._dynamo.config.patch(cache_size_limit=2**16, accumulated_cache_size_limit=2**16)
            with constants, models:
                try:
                    return program(images, *others)
                except Exception:
                    model(images, *others)  # raises what it raises for such images
                    raise

    def takes(self, images: Any) -> bool:
        """Whether there is a program for these."""
        if not isinstance(images, Tensor) or images.numel() == 0:
            return False
        return images.device == self.device and images.dtype == self.dtype


def optimize(model: nn.Module, example: Tensor, dtype: torch.dtype | None = None) -> Any:
    """A faster copy of `model` for inference, compiled by one call on `example`; the model itself is left alone.

    example: an input of the shape to come, (b, c, y, x). Another number of images or another size works too, by a somewhat slower
             program, which compiles a few times until it holds for any. Of a Transformer, source tokens (b, n); any other size
             will do as well, but with AVX-512 programs for one row are the quickest for few. What is faster is `start`, and the
             decoding that it begins, with as many threads as torch has now. It takes a minute or two. Of a language model,
             a prompt (1, n) for single rows, or (b, n) for any number. Of a BERT, tokens (b, n), of the size that is planned for;
             its forward takes any other size, mask, types and positions too. Of a network of diffusion, noisy images
             (b, c, y, x); it is called as the network, with times and classes, by samplers too.
    dtype:   what to compute in, by default the model's own; `torch.bfloat16` trades three digits for speed, on processors that
             multiply such numbers (AVX-512 BF16, AMX), and is several times slower on others, which is warned of.
    Equal to the model's eval output up to rounding in that dtype. Subclasses of layers, and hooked, pruned and parametrized ones,
    are compiled as they are. What the copy refuses: see `Constant`.
    """
    own = next((x.dtype for x in tensors(model) if x.is_floating_point()), example.dtype)
    dtype = dtype or own
    if dtype == torch.bfloat16 and example.is_cpu and not has_bfloat16():
        warnings.warn("this processor lacks AVX-512 BF16 and AMX: bfloat16 is several times slower than float32", stacklevel=2)
    config = getattr(model, "config", None)  # of somebody else's module, anything
    quantized = config.get("quantized") if isinstance(config, dict) else None
    require(dtype == torch.float32 or quantized is None, "dtype", dtype, f"torch.float32 of a quantized model ({quantized})")
    if isinstance(model, Model) and (decodes_fast := model.optimized(example, dtype)) is not None:
        return decodes_fast
    fast = prepared(model, dtype)
    if example.ndim == 4:
        fast = fast.to(memory_format=torch.channels_last)
    optimized = Optimized(fast, example, dtype)
    optimized(example)
    return optimized


def has_bfloat16() -> bool:
    """Whether this processor multiplies such numbers."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def prepared(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy for inference, norms folded in the wider of its dtype and this one."""
    wide = [torch.promote_types(x.dtype, dtype) for x in model.parameters() if x.is_floating_point()]
    fast = copied(model, {}).eval().requires_grad_(False)
    return fold_norms(fast.to(wide[0]) if wide else fast).to(dtype)


def one_layout(images: Tensor) -> Tensor:
    """(b, c, y, x) with channels last, but of one channel, whose strides fit either layout, with those of channels first.

    Programs for any number of images take one channel for channels first, and what a convolution makes of it too. With other
    strides of images or weights they fail on torch 2.15, and are wrong on torch 2.6: torch/_inductor/mkldnn_ir.py.
    """
    _, channels, height, width = images.shape
    images = images.contiguous(memory_format=torch.channels_last)
    return images.as_strided(images.shape, (height * width, height * width, width, 1)) if channels == 1 else images


def tensors(model: nn.Module) -> chain[Tensor]:
    return chain(model.parameters(), model.buffers())


def shared(model: nn.Module) -> Any:
    """A copy with the same parameters."""
    return copied(model, {id(p): p for p in model.parameters()})


def copied(model: nn.Module, memo: dict[int, Any]) -> Any:
    """Of tensors that are computed, such as a pruned weight, the value; torch copies no others than parameters."""
    for module in model.modules():
        memo |= {id(x): x.detach().clone() for x in vars(module).values() if isinstance(x, Tensor) and not x.is_leaf}
    return copy.deepcopy(model, memo)
