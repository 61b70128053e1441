"""A model made fast for inference: batch norms folded, channels last, compiled with its weights as constants.

On a CPU in float32, 3x3 convolutions of 128 channels and more are Winograd's.

Of a Transformer two programs are compiled ahead of time, the encoder and one step of the decoder, for batches, sources and
capacities of any size. They run without Python, and multiply matrices by oneDNN, which on some processors takes less than half
of the time that eager torch takes; on a CPU that has AVX2 and no AVX-512 inductor writes the products itself, see `tiles`.
"""

from __future__ import annotations

import copy
import importlib
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from layers.cache import CrossCache, SharedCache
from layers.checks import require, require_axes
from layers.convolution import fold_norms
from layers.positions import LearnedPositions
from layers.winograd import use_winograd
from zoo.transformer import Decoding, Transformer

Program = Callable[[list[Any]], list[Tensor]]
"""Machine code that takes tensors and gives tensors."""


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
    if isinstance(model, Transformer):
        return optimize_decoding(model, example, dtype)
    fast = copy.deepcopy(model).eval().requires_grad_(False).to(torch.promote_types(own, dtype))
    fast = fold_norms(fast).to(dtype)
    if example.ndim == 4:
        fast = fast.to(memory_format=torch.channels_last)
    optimized = Optimized(fast, example, dtype).eval()
    optimized(example)
    return optimized


# --------------------------------------------------------------------------------------------------------------- decoding


def optimize_decoding(model: Transformer, example: Tensor, dtype: torch.dtype) -> Transformer:
    """A copy whose `start` leads to compiled programs."""
    fast = copy.deepcopy(model).eval().requires_grad_(False).to(dtype)
    source, mask = at_least_two(example, torch.ones_like(example, dtype=torch.bool))
    with torch.no_grad():
        decoding = OptimizedDecoding(fast, fast.encode(source, mask), mask, 16, len(source))  # a compiler plans for such sizes
        decoding(source[:, :2])
        past, crossed = past_of(decoding), crossed_of(decoding)
        encode = compiled(Encoder(fast), source, mask)
        step = compiled(Step(fast), source[:, :1], decoding.memory, mask, past, crossed)
    keys = [own.keys[:1, :, :1] for own, _ in decoding.caches]
    fast.start = partial(start, fast, encode, step, keys)
    return fast


def past_of(decoding: Decoding) -> list[Tensor]:
    caches = [own for own, _ in decoding.caches if isinstance(own, SharedCache)]
    return [x for own in caches for x in (own.keys, own.values, own.length, own.rows)]


def crossed_of(decoding: Decoding) -> list[Tensor]:
    return [x.contiguous() for _, cross in decoding.caches for x in (cross.keys, cross.values)]


class Encoder(nn.Module):
    """source (b, n) and its mask -> memory (b, n, dim), and the keys and values that every cross-attention makes of it."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, source: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
        decoding = Decoding(self.model, self.model.encode(source, mask), mask, capacity=1)
        decoding(source[:, :1])  # a step fills the caches, and all else of it is dead code to a compiler
        return decoding.memory, crossed_of(decoding)


class Step(nn.Module):
    """`Transformer.next_logits`, its caches taken apart; those of the past are written to."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, memory: Tensor, mask: Tensor, past: Sequence[Tensor], crossed: Sequence[Tensor]) -> Tensor:
        caches = [(SharedCache(keys.shape[2]), CrossCache()) for keys in past[::4]]
        for n, (own, cross) in enumerate(caches):
            own.keys, own.values, own.length, own.rows = past[4 * n : 4 * n + 4]
            cross.keys, cross.values = crossed[2 * n : 2 * n + 2]
        return self.model.next_logits(tokens, memory, mask, caches)


def compiled(program: nn.Module, *arguments: Any) -> Program:
    """The program as machine code, for tensors (b, n, ...) and (b, heads, n, head_dim) with any b and n but 1.

    What it takes and gives are lists, all else of the structure flattened. It does not look at strides: all tensors that it gets
    must be contiguous.
    """
    arguments = tree_map(torch.Tensor.contiguous, arguments)
    sizes = tree_map(lambda x: {n: Dim.DYNAMIC for n in (0, 2 if x.ndim == 4 else 1) if n < x.ndim and x.shape[n] > 1}, arguments)
    exported = export(program, arguments, dynamic_shapes=sizes, strict=False)
    if has_templates(next(program.parameters())):
        # there may be no template for some product, which torch 2.9 tells by the second; and `tiles` reaches into inductor
        failures = (torch._dynamo.exc.BackendCompilerFailed, torch._inductor.exc.LoweringException, ImportError)
        try:
            with tiles():
                return packaged(exported, max_autotune_gemm=True, max_autotune_gemm_backends="CPP")
        except failures as error:
            name, why = type(program).__name__.lower(), str(error).splitlines()[0]
            warnings.warn(f"the {name} of a Transformer goes without inductor's matrix products: {why}", stacklevel=4)
    return packaged(exported)


def packaged(exported: ExportedProgram, **options: Any) -> Program:
    """Options: those of inductor."""
    with tempfile.TemporaryDirectory() as folder:
        path = torch._inductor.aoti_compile_and_package(
            exported,
            package_path=str(Path(folder) / "program.pt2"),
            inductor_configs={"freezing": True, "cpp.enable_concat_linear": True, **options},
        )
        loaded = torch._inductor.aoti_load_package(path)
    return lambda tensors: loaded.loader.run(tensors)  # `loaded` itself takes Python 0.2 ms to sort arguments


def has_templates(weight: Tensor) -> bool:
    """Whether inductor's own matrix products, its templates, are preferred; before torch 2.9 such programs did not compile."""
    recent = torch.__version__ >= "2.9"  # compared as a version, of which 2.15 is a later one
    measured = weight.is_cpu and weight.dtype == torch.float32 and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return recent and measured


def tiles() -> AbstractContextManager[Any]:
    """While this is open, inductor's products for AVX2 go by tiles of 6 rows and 16 columns.

    Its own have 4 rows and 24 columns where that divides them, else 16. The sums of 4 x 16 fill 8 registers of 8 numbers; two
    begin in each cycle and end four later, so that any delay is a stall. 6 x 16 fill 12 of the 16 registers, as 4 x 24 do, with
    which a product for 64 rows, written by hand, was a quarter slower. On an EPYC with AVX2 a step of a model of dim 256 for 16,
    64 and 256 rows takes 0.92, 0.81 and 0.80 of the time that it takes with inductor's own, and the encoder 0.6 to 0.8 of that
    with oneDNN.
    """
    importlib.import_module("torch._inductor.lowering")  # first, for these modules import each other
    from torch._inductor.codegen.cpp_micro_gemm import CppMicroGemmFP32Vec, generate_gemm_config, micro_gemm_configs
    from torch._inductor.cpu_vec_isa import VecAVX2

    others = [tile for tile in micro_gemm_configs[CppMicroGemmFP32Vec] if tile.vec_isa_cls is not VecAVX2]
    return mock.patch.dict(micro_gemm_configs, {CppMicroGemmFP32Vec: [*generate_gemm_config(VecAVX2, [(6, 16, 1)]), *others]})


def at_least_two(source: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Two rows and two tokens, or more, for a compiler takes a size of 1 for a constant; contiguous, as programs expect."""
    rows, tokens = (2 if size == 1 else size for size in source.shape)
    missing = (0, tokens - source.shape[1])
    source, mask = (F.pad(x, missing).expand(rows, -1).contiguous() for x in (source, mask))
    return source, mask


def start(
    model: Transformer,
    encode: Program,
    step: Program,
    keys: Sequence[Tensor],
    source: Tensor,
    source_mask: Tensor | None = None,
    *,
    capacity: int,
) -> Decoding:
    """As `Transformer.start`, with programs; keys: one for each cache, (1, kv_heads, 1, head_dim)."""
    require_axes(source, "source", "batch source_length")
    if source.numel() == 0:
        return Transformer.start(model, source, source_mask, capacity=capacity)
    mask = torch.ones_like(source, dtype=torch.bool) if source_mask is None else source_mask
    require_axes(mask, "source_mask", "batch source_length", batch=len(source), source_length=source.shape[1])
    require(mask.dtype == torch.bool, "source_mask", mask.dtype, "boolean")
    require_known(source, "source", model)
    if isinstance(model.positions, LearnedPositions):
        longest = max(source.shape[1], capacity)
        require(
            longest <= model.positions.max_positions, "source and capacity", longest, f"{model.positions.max_positions} at most"
        )
    rows, (source, mask) = len(source), at_least_two(source, mask)
    memory, *crossed = encode([source, mask])
    decoding = OptimizedDecoding(model, memory, mask, max(2, capacity), rows, step)
    for n, (own, cross) in enumerate(decoding.caches):
        own.allocate(keys[n].expand(len(source), -1, -1, -1))
        cross.keys, cross.values = (x.contiguous() for x in crossed[2 * n : 2 * n + 2])
    return decoding


def require_known(tokens: Tensor, name: str, model: Transformer) -> None:
    """A program ends the process where a token is outside of the vocabulary, so that these are looked for before."""
    low, high = (int(x) for x in tokens.aminmax())
    size = model.embedding.table.num_embeddings
    require(low >= 0 and high < size, name, low if low < 0 else high, f"tokens from 0 to {size - 1}")


class OptimizedDecoding(Decoding):
    """A `Decoding` whose steps of one token run a program; a longer prompt, or no rows at all, go through the model.

    rows: as many as the caller knows of; there may be one more.
    """

    cache = SharedCache

    def __init__(
        self, model: Transformer, memory: Tensor, mask: Tensor, capacity: int, rows: int, step: Program | None = None
    ) -> None:
        super().__init__(model, memory, mask, capacity)
        self.rows, self.step = rows, step

    def __call__(self, tokens: Tensor) -> Tensor:
        """As `Decoding`."""
        require_axes(tokens, "tokens", "batch target_length", batch=self.rows)
        tokens = tokens.repeat(2, 1) if self.rows == 1 else tokens
        if tokens.shape[1] != 1 or self.rows == 0 or self.step is None:
            return super().__call__(tokens)[: self.rows]
        require_known(tokens, "tokens", self.model)
        for own, _ in self.caches:
            own.require_room(1)
        past, crossed = past_of(self), crossed_of(self)
        return self.step([tokens.contiguous(), self.memory, self.source_mask, *past, *crossed])[0][: self.rows]

    def select(self, rows: Tensor) -> None:
        """As `Decoding`."""
        self.rows = len(rows)
        super().select(rows.repeat(2) if self.rows == 1 else rows)
