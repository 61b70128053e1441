"""Programs compiled ahead of time by inductor, and the settings that make their matrix products quick on a CPU.

Programs run without Python, and multiply matrices by oneDNN, which on some processors takes less than half of the time that
eager torch takes; on a CPU that has AVX2 and no AVX-512 inductor writes the products itself, see `tiles`.
"""

from __future__ import annotations

import importlib
import math
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.utils._pytree import tree_map

Program = Callable[[list[Any]], list[Tensor]]
"""Machine code that takes tensors and gives tensors."""


def compiled(program: nn.Module, *arguments: Any, rows: int | None = None, folded: bool = True) -> Program:
    """The program as machine code, for tensors (b, n, ...) and (b, heads, n, head_dim) with any b and n but 1.

    What has a single row here is for single rows.

    What it takes and gives are lists, all else of the structure flattened. It does not look at strides: all tensors that it gets
    must be contiguous.
    rows:   that the program is wanted for, by default those of the first argument, (b, n) or (t,); see `has_templates`.
    folded: whether what depends on weights alone is computed once, such as the floats that integers stand for.
    """
    arguments = tree_map(torch.Tensor.contiguous, arguments)
    sizes = tree_map(lambda x: {n: Dim.DYNAMIC for n in (0, 2 if x.ndim == 4 else 1) if n < x.ndim and x.shape[n] > 1}, arguments)
    exported = export(program, arguments, dynamic_shapes=sizes, strict=False)
    first, *others = arguments[0].shape[:2]
    multiplied = math.prod([first if rows is None else rows, *others])
    if has_templates(next(program.parameters()), multiplied):
        # there may be no template for some product, which torch 2.9 tells by the second; and `tiles` reaches into inductor
        failures = (torch._dynamo.exc.BackendCompilerFailed, torch._inductor.exc.LoweringException, ImportError)
        try:
            with tiles(multiplied):
                return packaged(exported, freezing=folded, max_autotune_gemm=True, max_autotune_gemm_backends="CPP")
        except failures as error:
            name, why = type(program).__name__.lower(), str(error).splitlines()[0]
            warnings.warn(f"the {name} of a Transformer goes without inductor's matrix products: {why}", stacklevel=4)
    return packaged(exported, freezing=folded)


def packaged(exported: ExportedProgram, **options: Any) -> Program:
    """Options: those of inductor."""
    with tempfile.TemporaryDirectory() as folder:
        path = torch._inductor.aoti_compile_and_package(
            exported,
            package_path=str(Path(folder) / "program.pt2"),
            inductor_configs={"cpp.enable_concat_linear": True, **options},
        )
        loaded = torch._inductor.aoti_load_package(path)
    return lambda tensors: loaded.loader.run(tensors)  # `loaded` itself takes Python 0.2 ms to sort arguments


def has_templates(weight: Tensor, rows: int) -> bool:
    """Whether inductor's own matrix products, its templates, are preferred; before torch 2.9 such programs did not compile.

    rows: of the matrix that a layer multiplies.

    On a CPU with AVX-512 they are for few rows: of 16 rows products took 0.6 to 0.9 of the time of oneDNN's, of 64 rows 0.9 to 1,
    of 512 rows as much. In bfloat16 they are for a single row, where they read weights faster: a token of SmolLM2 took 0.45.
    """
    recent = torch.__version__ >= "2.9"  # compared as a version, of which 2.15 is a later one
    most = {("AVX2", torch.float32): sys.maxsize, ("AVX512", torch.float32): 64, ("AVX512", torch.bfloat16): 1}
    return recent and weight.is_cpu and rows <= most.get((torch.backends.cpu.get_cpu_capability(), weight.dtype), 0)


def tiles(rows: int) -> AbstractContextManager[Any]:
    """While this is open, inductor's float32 products go by tiles that were measured to be quick, of 6 x 16 or 8 x 16 numbers.

    Inductor's own for AVX2 have 4 rows and 24 columns where that divides them, else 16. The sums of 4 x 16 fill 8 registers of 8
    numbers; two begin in each cycle and end four later, so that any delay is a stall. 6 x 16 fill 12 of the 16 registers, as
    4 x 24 do, with which a product for 64 rows, written by hand, was a quarter slower. On an EPYC with AVX2 a step of a model of
    dim 256 for 16, 64 and 256 rows takes 0.92, 0.81 and 0.80 of the time that it takes with inductor's own, and the encoder 0.6
    to 0.8 of that with oneDNN.

    For AVX-512 inductor's have 8 rows and 48 columns. On an EPYC 8 x 16 took 0.4 to 0.6 of their time for 16 and 64 rows, the
    least of twelve sizes. A single row would have one register of sums, and goes by inductor's own.
    """
    importlib.import_module("torch._inductor.lowering")  # first, for these modules import each other
    from torch._inductor.codegen.cpp_micro_gemm import CppMicroGemmFP32Vec, generate_gemm_config, micro_gemm_configs
    from torch._inductor.cpu_vec_isa import VecAVX2, VecAVX512

    mine: dict[Any, list[tuple[int, int, int]]] = {VecAVX2: [(6, 16, 1)]} | ({VecAVX512: [(8, 16, 1)]} if rows > 1 else {})
    others = [tile for tile in micro_gemm_configs[CppMicroGemmFP32Vec] if tile.vec_isa_cls not in mine]
    first = [tile for kind, sizes in mine.items() for tile in generate_gemm_config(kind, sizes)]
    return mock.patch.dict(micro_gemm_configs, {CppMicroGemmFP32Vec: [*first, *others]})
