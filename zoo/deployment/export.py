"""A model as a file that runs without this project: a program of torch.export, of AOTInductor, ONNX, and others.

    to             file     run by                                    called with     gives
    "torch"        .pt2     `torch.export.load(path).module()`        names           a dictionary
    "aot"          .pt2     `torch._inductor.aoti_load_package(path)` names           a dictionary
    "onnx"         .onnx    onnxruntime                               names           a list, in the order of the names
    "executorch"   .pte     ExecuTorch's `load_method("forward")`     a list          a list, in the order of the names
    "torchscript"  .pt      `torch.jit.load(path)`                    places          a tuple

Batch, lengths, rows and columns may differ from call to call. The file is run by its own runtime, at other sizes than those of
the example, before it appears under its name: what differs from the model, or holds for one size alone, leaves no file.

ExecuTorch plans all memory when the file is written: there the sizes of the example are the largest that a call may have.
"""

from __future__ import annotations

import inspect
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layers.checks import require
from zoo.deployment.optimize import Constant, prepared
from zoo.files import first_line
from zoo.model import Model

ENDINGS = {"torch": ".pt2", "aot": ".pt2", "onnx": ".onnx", "executorch": ".pte", "torchscript": ".pt"}
NEEDS = {"onnx": ("export", ("onnx", "onnxscript", "onnxruntime")), "executorch": ("executorch", ("executorch",))}
"""Of formats whose runtimes are no part of torch: the extra, and its packages."""
OPSET = 20
"""Of ONNX, where none is named."""
AXES = {
    "images": "batch channels height width",
    "tokens": "batch length",
    "mask": "batch length",
    "types": "batch length",
    "source": "batch source_length",
    "source_mask": "batch source_length",
    "target": "batch target_length",
    "target_mask": "batch target_length",
    "times": "batch",
    "classes": "batch",
    "latents": "batch latent_dim",
    "past_keys": "batch heads past head_dim",
    "past_values": "batch heads past head_dim",
    "memory_keys": "batch heads source_length head_dim",
    "memory_values": "batch heads source_length head_dim",
}
"""Of what models are called with, by name; numbers at the end of a name tell layers apart."""
DYNAMIC = ("batch", "height", "width", "length", "source_length", "target_length", "past")
"""Axes whose sizes may differ from call to call, where they are not fixed."""
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Largest difference to the model, as a part of its largest output, by the dtype of the model."""


def export(
    model: nn.Module,
    example: Tensor | Mapping[str, Tensor],
    path: str | Path,
    to: str = "onnx",
    *,
    fixed: Sequence[str] = (),
    opset: int | None = None,
) -> None:
    """Write a copy of `model`, in evaluation, its batch norms folded, to `path`.

    example: what the model is called with: its first input, or several by name, such as {"tokens": tokens, "mask": mask}. What is
             left out is not an input of the file either. Two rows or more, and two of every other size that may differ;
             for "executorch" the most rows, the longest texts and the largest images of any call.
    to:      "torch", "aot", "onnx", "executorch" or "torchscript", as above. "aot" compiles for the processor at hand, for a
             minute or so; "executorch" is for XNNPACK, on phones and the like, and best installed in an environment of its own.
    fixed:   axes that shall have the sizes of the example in every call: "batch", "height", "width", "length", "source_length",
             "target_length". Calls of another size are then errors of the runtime.
    opset:   of ONNX, 20 by default.
    Encoders and decoding steps of models that write texts: see `zoo.deployment.exported_decoding`.
    Errors: `ValueError` for arguments that do not fit, a model that is not in float32 or float64 (ExecuTorch: in float32), or
            for ONNX and ExecuTorch on a GPU, and an axis that the model has but for one size; `ModuleNotFoundError` that names
            the extra, without the packages of the format; `RuntimeError` where torch or ExecuTorch cannot write the model, or the
            file does not compute what the model does.
    """
    require(to in ENDINGS, "to", to, f"one of {', '.join(ENDINGS)}")
    path = Path(path)
    require(path.suffix == ENDINGS[to], "path", str(path), f"a file that ends in {ENDINGS[to]}")
    require(isinstance(model, nn.Module), "model", model, "a module")
    require(isinstance(example, Tensor | Mapping), "example", type(example).__name__, "a tensor, or tensors by name")
    require(not isinstance(fixed, str), "fixed", fixed, "several names, such as a tuple")
    require(not isinstance(model, Constant), "model", type(model).__name__, "the model itself, not what zoo.optimize made of it")
    require(opset is None or to == "onnx", "opset", opset, 'None unless to is "onnx"')
    require(opset is None or 18 <= opset <= 23, "opset", opset, "from 18 to 23")
    inputs = inputs_of(model, example)
    fixed = tuple(fixed)
    known = [axis for axis in DYNAMIC if any(axis in axes_of(name) for name in inputs)]
    for axis in fixed:
        require(axis in known, "fixed", axis, f"of {', '.join(known)}")
    dtype = next((x.dtype for x in model.parameters() if x.is_floating_point()), torch.float32)
    require(dtype in TOLERANCE, "model", dtype, "in float32 or float64")
    if to in NEEDS:
        require_packages(to)
        require(to != "executorch" or dtype is torch.float32, "model", dtype, "in float32, which XNNPACK computes in")
        away = {x.device.type for x in (*model.parameters(), *inputs.values())} - {"cpu"}
        require(not away, "model and example", ", ".join(away), f"on the processor, where {NEEDS[to][1][-1]} checks the file")
    free = free_of(inputs, fixed)
    for name, axes in free.items():
        for n, axis in axes.items():
            least = f"2 or more in {axis}, unless that is fixed"
            require(inputs[name].shape[n] > 1, "example", f"{name} {tuple(inputs[name].shape)}", least)
    program = Program(plain(prepared(model, dtype)), tuple(inputs))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        part = Path(folder) / path.name
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # exporters tell of their own affairs; what counts is measured below
            WRITERS[to](program, inputs, free, part, opset or OPSET)
            check(program, [inputs, *others(inputs, free, bounded=to == "executorch")], runner(part, to), TOLERANCE[dtype])
        part.replace(path)
    if to == "torchscript":
        warnings.warn("TorchScript is deprecated by torch, which gives torch.export in its place", FutureWarning, stacklevel=2)


class Program(nn.Module):
    """What is exported: inputs by name -> outputs by name."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model

        def forward(**inputs: Tensor) -> dict[str, Tensor]:
            return named(model, model(**inputs))

        # exporters take the names of inputs from here
        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        self.forward = forward


class InOrder(nn.Module):
    """The same without names, which traces lack."""

    def __init__(self, program: Program, names: Iterable[str]) -> None:
        super().__init__()
        self.program, self.names = program, tuple(names)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.program(**dict(zip(self.names, inputs, strict=True))).values())


def named(model: nn.Module, outputs: Any) -> dict[str, Tensor]:
    """Outputs by name: those of a dictionary as they are, else as the model calls them."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    several = outputs if isinstance(outputs, tuple) else (outputs,)
    names = model.outputs if isinstance(model, Model) else ()
    return dict(zip(names if len(names) == len(several) else [f"output_{n}" for n in range(len(several))], several, strict=True))


class Affine(nn.Module):
    """A batch norm in evaluation that no convolution could take in: x (b, c, ...) -> scale * x + shift."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        weight = 1.0 if norm.weight is None else norm.weight
        scale = weight * (norm.running_var + norm.eps).rsqrt()
        shift = (0.0 if norm.bias is None else norm.bias) - norm.running_mean * scale
        self.scale, self.shift = nn.Parameter(scale.detach(), False), nn.Parameter(shift.detach(), False)

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.ndim - 2))
        return x * self.scale.view(shape) + self.shift.view(shape)


def plain(model: nn.Module) -> nn.Module:
    """The copy without batch norms, which torch 2.6 does not write as ONNX."""
    for module in [*model.modules()]:
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d) and child.track_running_stats:
                setattr(module, name, Affine(child))
    return model


def axes_of(name: str) -> list[str]:
    return AXES[re.sub(r"_\d+$", "", name)].split()


def inputs_of(model: nn.Module, example: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs by name, in the order in which the model takes them."""
    parameters = inspect.signature(model.forward).parameters
    several = any(p.kind is p.VAR_KEYWORD for p in parameters.values())  # such as the past of every layer
    given = {next(iter(parameters)): example} if isinstance(example, Tensor) else dict(example)
    require(bool(given), "example", given, "a tensor, or tensors by name")
    for name, x in given.items():
        require(several or name in parameters, "example", name, f"of the inputs {', '.join(parameters)}")
        require(re.sub(r"_\d+$", "", name) in AXES, "example", name, f"of the inputs {', '.join(AXES)}, whose axes are known")
        require(isinstance(x, Tensor), "example", f"{name}={x!r}", "a tensor")
        axes = axes_of(name)
        require(x.ndim == len(axes), "example", f"{name} {tuple(x.shape)}", f"of the axes {' '.join(axes)}")
    return given if several else {name: given[name] for name in parameters if name in given}


Free = Mapping[str, Mapping[int, str]]
"""Of each input: the axes, by number, whose sizes may differ."""


def free_of(inputs: Iterable[str], fixed: Sequence[str]) -> Free:
    return {name: {n: a for n, a in enumerate(axes_of(name)) if a in DYNAMIC and a not in fixed} for name in inputs}


def exported(program: Program, inputs: Mapping[str, Tensor], free: Free, bounded: bool = False) -> torch.export.ExportedProgram:
    """bounded: no size is larger than the example's. Errors: `ValueError` for an axis that holds for one size alone."""
    auto: Any = torch.export.Dim.AUTO
    shapes = {name: {n: auto(max=inputs[name].shape[n]) if bounded else auto for n in axes} for name, axes in free.items()}
    try:
        found = torch.export.export(program, (), dict(inputs), dynamic_shapes=shapes, strict=False)
    except Exception as error:
        axes = ", ".join(sorted({axis for axes in free.values() for axis in axes.values()}))
        why = f"torch.export fails: {first_line(error)}"
        raise RuntimeError(f"{why}; with some of {axes} in `fixed` it may do" if axes else why) from error
    for name, axes in free.items():
        for n, axis in axes.items():
            if isinstance(shape_of(found, name)[n], int):
                size = inputs[name].shape[n]
                raise ValueError(f"fixed must have {axis!r}: as a program, the model takes {name} of {axis} {size} alone")
    return found


def shape_of(program: torch.export.ExportedProgram, name: str) -> torch.Size:
    return next(node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder" and node.name == name)


def write_torch(program: Program, inputs: Mapping[str, Tensor], free: Free, path: Path, opset: int) -> None:
    torch.export.save(exported(program, inputs, free), path)


def write_aot(program: Program, inputs: Mapping[str, Tensor], free: Free, path: Path, opset: int) -> None:
    torch._inductor.aoti_compile_and_package(exported(program, inputs, free), package_path=str(path))


def write_onnx(program: Program, inputs: Mapping[str, Tensor], free: Free, path: Path, opset: int) -> None:
    import onnx

    found = exported(program, inputs, free)
    if torch.__version__.startswith("2.6."):  # which cannot convert linear layers without bias for sizes that may differ
        found = found.run_decompositions()
    outputs = [*program(**inputs)]
    options: dict[str, Any] = {"input_names": [*inputs], "output_names": outputs, "opset_version": opset, "verbose": False}
    try:
        torch.onnx.export(found, (), str(path), dynamo=True, external_data=False, **options)
    except Exception as error:  # which say much; the last line tells why
        raise RuntimeError(f"torch.onnx fails: {str(error).strip().splitlines()[-1]}") from error
    proto = onnx.load(path)
    names = {str(shape_of(found, name)[n]): axis for name, axes in free.items() for n, axis in axes.items()}
    del proto.graph.value_info[:]  # shapes of what is within, some of them wrong, by which onnxruntime shares memory
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), dim.dim_param)
    onnx.save(proto, path)


def write_executorch(program: Program, inputs: Mapping[str, Tensor], free: Free, path: Path, opset: int) -> None:
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS, GeluConfig
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    found = exported(program, inputs, free, bounded=True)
    # whose XNNPACK takes GELU by tanh for the exact one in 1.5.1: https://github.com/pytorch/executorch/pull/22851
    by_tanh = any(node.kwargs.get("approximate") == "tanh" for node in found.graph.nodes)
    parts = [part for part in ALL_PARTITIONER_CONFIGS if not (by_tanh and part is GeluConfig)]
    try:
        path.write_bytes(to_edge_transform_and_lower(found, partitioner=[XnnpackPartitioner(parts)]).to_executorch().buffer)
    except Exception as error:
        raise RuntimeError(f"ExecuTorch fails: {' '.join(str(error).split())[:300]}") from error


def write_torchscript(program: Program, inputs: Mapping[str, Tensor], free: Free, path: Path, opset: int) -> None:
    flat = InOrder(program, inputs).eval()
    torch.jit.save(torch.jit.trace(flat, tuple(inputs.values()), check_trace=False), str(path))


WRITERS: dict[str, Callable[..., None]] = {
    "torch": write_torch, "aot": write_aot, "onnx": write_onnx, "executorch": write_executorch,
    "torchscript": write_torchscript,
}  # fmt: skip


def runner(path: Path, to: str) -> Callable[[Mapping[str, Tensor]], list[Tensor]]:
    """A file that `export` wrote, run by its own runtime: inputs by name -> outputs, in their order."""
    if to == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda inputs: [torch.from_numpy(x) for x in session.run(None, {name: x.numpy() for name, x in inputs.items()})]
    if to == "executorch":
        from executorch.runtime import Runtime

        method = Runtime.get().load_program(path).load_method("forward")
        dense = torch.contiguous_format  # strides of empty tensors too, for it ends the process over others
        return lambda inputs: [x.clone() for x in method.execute([x.clone(memory_format=dense) for x in inputs.values()])]
    if to == "torchscript":
        script = torch.jit.load(str(path))
        return lambda inputs: [*script(*inputs.values())]
    program: Any = torch.export.load(path).module() if to == "torch" else torch._inductor.aoti_load_package(str(path))
    return lambda inputs: [*program(**inputs).values()]


def check(program: Program, examples: Iterable[Mapping[str, Tensor]], run: Any, tolerance: float) -> None:
    """Errors: `RuntimeError` unless the file computes what the model does, of each example."""
    for sized in examples:
        try:
            expected = program(**sized)
        except ValueError:  # the model does not take that size: more tokens than it has positions for, a smaller image
            continue
        shapes = {name: tuple(x.shape) for name, x in sized.items()}
        try:
            got = run(sized)
        except Exception as error:
            raise RuntimeError(f"the file fails for {shapes}: {first_line(error)}; see `fixed`") from error
        for (name, ours), theirs in zip(expected.items(), got, strict=True):
            if theirs.shape != ours.shape:
                raise RuntimeError(f"the file gives {name} {tuple(theirs.shape)}, the model {tuple(ours.shape)}, for {shapes}")
            error = relative_error(theirs, ours)
            if not error <= tolerance:
                raise RuntimeError(f"the file's {name} differs from the model's by {error:.1e} of its largest, for {shapes}")


def others(inputs: Mapping[str, Tensor], free: Free, bounded: bool = False) -> Iterator[dict[str, Tensor]]:
    """The example at other sizes, its values again and again; `bounded`: as much smaller as they would be larger."""
    sizes = {axis: inputs[name].shape[n] for name, axes in free.items() for n, axis in axes.items()}
    for number, batch in enumerate((1, 3, 2)):
        new = {axis: (size + 7 + 6 * number * (axis == "width"), 1, size - 1)[number] for axis, size in sizes.items()}
        new |= {axis: sizes[axis] + 13 * (number == 1) for axis in ("height", "width") if axis in sizes and number}
        new |= {"batch": batch} if "batch" in sizes else {}
        if "past" in new:
            new["past"] = (0, 1, sizes["past"] + 3)[number]
        if bounded:
            new = {axis: size if size <= sizes[axis] else max(2 * sizes[axis] - size, 1) for axis, size in new.items()}
        yield {name: resized(x, {n: new[axis] for n, axis in free[name].items()}) for name, x in inputs.items()}


def resized(x: Tensor, sizes: Mapping[int, int]) -> Tensor:
    for axis, size in sizes.items():
        x = x.index_select(axis, torch.arange(size, device=x.device) % x.shape[axis])
    return x


def relative_error(got: Tensor, expected: Tensor) -> float:
    """The largest difference as a part of the largest value."""
    if not expected.numel():
        return 0.0
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def require_packages(to: str) -> None:
    extra, packages = NEEDS[to]
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"{missing[0]} is not installed: pip install 'zooproof[{extra}]'", name=missing[0])
