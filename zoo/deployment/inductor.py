"""Programs compiled ahead of time by inductor, and the settings that make their matrix products quick on a CPU.

Programs run without Python, and multiply matrices by oneDNN, which on some processors takes less than half of the time that
eager torch takes; on a CPU that has AVX2 and no AVX-512 inductor writes the products itself, see `tiles`.
"""

from __future__ import annotations

import importlib
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
    rows:   that the program is wanted for, by default as many as the first argument has; others go too, see `has_templates`.
    folded: whether what depends on weights alone is computed once, such as the floats that integers stand for.
    """
    arguments = tree_map(torch.Tensor.contiguous, arguments)
    sizes = tree_map(lambda x: {n: Dim.DYNAMIC for n in (0, 2 if x.ndim == 4 else 1) if n < x.ndim and x.shape[n] > 1}, arguments)
    exported = export(program, arguments, dynamic_shapes=sizes, strict=False)
    if has_templates(next(program.parameters()), rows=arguments[0].shape[0] if rows is None else rows):
        # there may be no template for some product, which torch 2.9 tells by the second; and `tiles` reaches into inductor
        failures = (torch._dynamo.exc.BackendCompilerFailed, torch._inductor.exc.LoweringException, ImportError)
        try:
            with tiles():
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

    On a CPU with AVX-512 they are for a single row, where they read weights faster than oneDNN: greedy translation of 1, 4 and
    16 sentences by a model of dim 256 took 0.4 to 0.8, 0.6 to 0.9, and 1.5 to 1.6 of the time in two runs on an EPYC. In bfloat16
    a token of SmolLM2 took 0.45 of it.
    """
    recent = torch.__version__ >= "2.9"  # compared as a version, of which 2.15 is a later one
    dtypes = {"AVX2": {torch.float32}, "AVX512": {torch.float32, torch.bfloat16} if rows == 1 else set()}
    return recent and weight.is_cpu and weight.dtype in dtypes.get(torch.backends.cpu.get_cpu_capability(), set())


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
