"""State, copies, the meta device, what tools do with modules, `torch.export` and `torch.compile`."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from typing import Any

import torch
from hypothesis import settings
from pytest_torch import assert_checkpoint_roundtrip
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

from layers.testing.contract import Case, Flat, cast, is_float
from layers.testing.equality import Mismatch, leaves, require_equal
from layers.testing.gradients import kernels
from layers.testing.profiles import CI, THOROUGH
from layers.testing.reference import require_shape
from layers.testing.verdicts import NO_BATCH, Inapplicable, Verdict


def state_round_trip(case: Case) -> None:
    """state_dict, deepcopy and pickle keep every bit, and a copy shares nothing with its original.

    Parametrized modules, which torch refuses to pickle, are not pickled.
    """
    block = case.block()
    output = case.call(block, case.inputs())
    if block.state_dict():
        again, whole = lambda: Flat(case, cast(case.new(stream=1), torch.float64)), Flat(case, block)
        assert_checkpoint_roundtrip(again, tensors(case), model=whole, rtol=0, atol=0)
    copies = {"deepcopy": copy.deepcopy(block)}
    if not any(is_parametrized(module) for module in block.modules()):
        copies["pickle"] = pickle.loads(pickle.dumps(block))
    for how, copied in copies.items():
        require_equal(case.call(copied, case.inputs()), output, 0, f"output after {how}")
        with torch.no_grad():
            for x in [*copied.parameters(), *copied.buffers()]:
                x.zero_()
        require_equal(case.call(block, case.inputs()), output, 0, f"output after changing a {how}")


def meta_device(case: Case) -> None:
    """Built on the meta device, materialised as NaN, reset and loaded: the same outputs."""
    block = case.block()
    with torch.device("meta"):
        bare = cast(case.new(), torch.float64)
    devices = {x.device.type for x in [*bare.parameters(), *bare.buffers()]}
    if devices - {"meta"}:
        raise Mismatch(f"construction under torch.device('meta') left tensors on {sorted(devices - {'meta'})}")
    bare.to_empty(device="cpu")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for x in [*bare.parameters(), *bare.buffers()]:
            x.fill_(float("nan") if is_float(x) else -1)
        for module in bare.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    bare.load_state_dict(block.state_dict())
    require_equal(case.call(bare.eval(), case.inputs()), case.call(block, case.inputs()), 0, "output")


def meta_forward(case: Case) -> Verdict:
    """A call on the meta device gives outputs of the documented shapes there: no tensor is made on the CPU in passing."""
    with torch.device("meta"):
        block = cast(case.new(), torch.float64).eval()
    inputs = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in case.inputs().items()}
    if any(isinstance(v, torch.Generator) for v in inputs.values()):
        return Inapplicable("a generator belongs to a device, and the meta device has none")
    try:
        with torch.no_grad():
            output = case.call(block, inputs)
    except (NotImplementedError, RuntimeError) as error:
        if any(words in str(error) for words in WITHOUT_VALUES):
            return Inapplicable("it looks at values or calls a kernel, and the meta device has neither")
        raise Mismatch(f"a call on the meta device raises {type(error).__name__}: {error}") from error
    require_shape(case, output)
    if strangers := [f"{name} on {x.device}" for name, x in leaves(output) if x.device.type != "meta"]:
        raise Mismatch(f"a call on the meta device gives {', '.join(strangers)}")
    return True


WITHOUT_VALUES = (
    "meta tensors",
    "Meta tensors",
    "'Meta' backend",
    "data-dependent",
    "data-independent",
    "Cannot copy out of meta",
)
"""What torch says where values of a meta tensor are asked for, or a kernel has no meta form."""


def tensors(case: Case) -> tuple[Tensor, ...]:
    """The inputs of a `Called`."""
    return tuple(v for v in case.inputs().values() if isinstance(v, Tensor))


def inspection(case: Case) -> None:
    """`inspect.getmembers` and `repr`, with which debuggers and editors look into modules, do not raise."""
    for name, module in case.new().named_modules():
        for look in (inspect.getmembers, repr):
            try:
                look(module)
            except Exception as error:
                raise Mismatch(f"{look.__name__} of {name or 'the block'} raises {error!r}") from error


def hooks(case: Case) -> None:
    """Hooks on every submodule: what a forward hook keeps is not written over; backward hooks leave the gradients as they are."""
    for train in case.modes():
        block, watched, seen = case.block(train), case.block(train), []
        for name, module in watched.named_modules():
            module.register_forward_hook(lambda m, i, output, name=name, seen=seen: seen.append((name, output, copied(output))))
            module.register_full_backward_hook(lambda m, of_inputs, of_outputs: None)
        plain = case.gradients(lambda i, m=block: case.call(m, i), case.inputs(), block)
        with warnings.catch_warnings():
            # the first module gets tokens, and so has no gradient of its input; dicts and dataclasses have no backward hooks
            warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
            warnings.filterwarnings("ignore", "For backward hooks to be called, module output", UserWarning)
            ours = case.gradients(lambda i, m=watched: case.call(m, i), case.inputs(), watched)
            with torch.no_grad():
                case.call(watched, case.inputs())
        require_equal(ours[0], plain[0], case.tolerance(block), "output with hooks")
        require_equal(ours[1:], plain[1:], 10 * case.tolerance(block), "gradient with hooks", 1.0)
        for name, output, kept in seen:
            require_equal(dict(leaves(output)), kept, 0, f"what a hook on {name or 'the block'} kept: ")


def copied(output: Any) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in leaves(output)}


def trace(case: Case) -> Verdict:
    """`torch.jit.trace` equals eager in evaluation, for other values of the same sizes."""
    block, other = case.block(), case.inputs(stream=3)
    if not tensors(case):
        return Inapplicable("no input is a tensor")
    with warnings.catch_warnings():  # about comparisons of sizes, which hold for these sizes; and that tracing is old
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        with torch.no_grad():
            traced: Any = torch.jit.trace(Flat(case, block), tensors(case), check_trace=False)
    found = traced(*(v for v in other.values() if isinstance(v, Tensor)))
    expected = [x for _, x in leaves(case.call(block, other))]
    require_equal(list(found), expected, case.tolerance(block), "traced")
    return True


def export(case: Case) -> Verdict:
    """`torch.export` with a dynamic batch equals eager, at another batch size too."""
    if not case.batches():
        return NO_BATCH
    block, batch, positions = case.block(), torch.export.Dim("batch"), case.batches()
    names = [k for k, v in case.inputs().items() if isinstance(v, Tensor)]
    dynamic = {"tensors": tuple({positions[k]: batch} if k in positions else None for k in names)}
    with warnings.catch_warnings():  # about what nn.LSTM and its like keep for their kernels
        warnings.filterwarnings("ignore", r"The tensor attributes? .*_flat_weights", UserWarning)
        # torch 2.6 exports what compiles, and so no kernels of LSTMs, unless it is told otherwise
        loosely: dict[str, Any] = {"strict": False} if kernels(block) else {}
        program = torch.export.export(Flat(case, block), tensors(case), dynamic_shapes=dynamic, **loosely).module()
    for size in (case.batch_size(), case.batch_size() + 5):
        other = case.with_batch(size)
        expected = [x for _, x in leaves(other.call(block, other.inputs()))]
        require_equal(list(program(*tensors(other))), expected, case.tolerance(block), f"exported, batch {size}")
    return True


def compile(case: Case) -> Verdict:
    """Whole-graph `torch.compile` with a dynamic batch equals eager, forward and backward, without compiling again.

    Through aot_eager, which is quick; through inductor in a thorough run, and in one of `ci` where the contract asks for it.
    """
    if not case.batches():
        return NO_BATCH
    if found := kernels(case.new()):
        return Inapplicable(f"torch.compile leaves the kernel of {found} out of its graphs")
    block, graphs = case.block(), []
    examples = settings.default.max_examples if settings.default else 0
    wanted = case.contract.backend or "inductor"
    compiler = torch._dynamo.lookup_backend(wanted if examples >= (CI if case.contract.backend else THOROUGH) else "aot_eager")

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return compiler(graph, inputs)

    torch._dynamo.reset()
    compiled: Any = torch.compile(block, backend=counting, fullgraph=True)
    for size in (case.batch_size(), case.batch_size() + 5):
        other = case.with_batch(size)

        def run(inputs: dict[str, Any], other: Case = other) -> Any:
            for k, position in other.batches().items():
                torch._dynamo.mark_dynamic(inputs[k], position)
            return other.call(compiled, inputs)

        ours = other.gradients(run, other.inputs(), block)
        eager = other.gradients(lambda i, c=other: c.call(block, i), other.inputs(), block)
        require_equal(ours[0], eager[0], case.tolerance(block), f"compiled, batch {size}")
        require_equal(ours[1:], eager[1:], 10 * case.tolerance(block), f"compiled gradient, batch {size}", 1.0)
    if len(graphs) > 1:  # an identity needs none
        raise Mismatch(f"compiled {len(graphs)} graphs for two batch sizes, one is enough")
    return True
