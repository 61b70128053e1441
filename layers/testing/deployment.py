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

from layers.testing.contract import Called, Case
from layers.testing.equality import Mismatch, leaves, require_equal
from layers.testing.profiles import CI, THOROUGH


def state_round_trip(case: Case) -> None:
    """state_dict, deepcopy and pickle keep every bit, and a copy shares nothing with its original."""
    block = case.block()
    output = case.call(block, case.inputs())
    if block.state_dict():
        again, whole = lambda: Called(case, case.new(stream=1).double()), Called(case, block)
        assert_checkpoint_roundtrip(again, tensors(case), model=whole, rtol=0, atol=0)
    for how, copied in (("deepcopy", copy.deepcopy(block)), ("pickle", pickle.loads(pickle.dumps(block)))):
        require_equal(case.call(copied, case.inputs()), output, 0, f"output after {how}")
        with torch.no_grad():
            for x in [*copied.parameters(), *copied.buffers()]:
                x.zero_()
        require_equal(case.call(block, case.inputs()), output, 0, f"output after changing a {how}")


def meta_device(case: Case) -> None:
    """Built on the meta device, materialised as NaN, reset and loaded: the same outputs."""
    block = case.block()
    with torch.device("meta"):
        bare = case.new().double()
    devices = {x.device.type for x in [*bare.parameters(), *bare.buffers()]}
    if devices - {"meta"}:
        raise Mismatch(f"construction under torch.device('meta') left tensors on {sorted(devices - {'meta'})}")
    bare.to_empty(device="cpu")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for x in [*bare.parameters(), *bare.buffers()]:
            x.fill_(float("nan") if x.is_floating_point() else -1)
        for module in bare.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    bare.load_state_dict(block.state_dict())
    require_equal(case.call(bare.eval(), case.inputs()), case.call(block, case.inputs()), 0, "output")


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
        with warnings.catch_warnings():  # the first module gets tokens, and so has no gradient of its input
            warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
            ours = case.gradients(lambda i, m=watched: case.call(m, i), case.inputs(), watched)
        plain = case.gradients(lambda i, m=block: case.call(m, i), case.inputs(), block)
        require_equal(ours[0], plain[0], case.tolerance(block), "output with hooks")
        require_equal(ours[1:], plain[1:], 10 * case.tolerance(block), "gradient with hooks", 1.0)
        with torch.no_grad():
            case.call(watched, case.inputs())
        for name, output, kept in seen:
            require_equal(dict(leaves(output)), kept, 0, f"what a hook on {name or 'the block'} kept: ")


def copied(output: Any) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in leaves(output)}


def trace(case: Case) -> bool:
    """`torch.jit.trace` equals eager in evaluation, for other values of the same sizes."""
    block, other = case.block(), case.inputs(stream=3)
    if not tensors(case):
        return False

    class Flat(Called):
        """Tracing knows tuples of tensors."""

        def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
            return tuple(x for _, x in leaves(super().forward(*tensors)))

    with warnings.catch_warnings():  # about comparisons of sizes, which hold for these sizes; and that tracing is old
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        with torch.no_grad():
            traced: Any = torch.jit.trace(Flat(case, block), tensors(case), check_trace=False)
    found = traced(*(v for v in other.values() if isinstance(v, Tensor)))
    expected = [x for _, x in leaves(case.call(block, other))]
    require_equal(list(found), expected, case.tolerance(block), "traced")
    return True


def export(case: Case) -> bool:
    """`torch.export` with a dynamic batch equals eager, at another batch size too."""
    if not case.batches():
        return False
    block, batch, positions = case.block(), torch.export.Dim("batch"), case.batches()
    names = [k for k, v in case.inputs().items() if isinstance(v, Tensor)]
    dynamic = {"tensors": tuple({positions[k]: batch} if k in positions else None for k in names)}
    program = torch.export.export(Called(case, block), tensors(case), dynamic_shapes=dynamic).module()
    for size in (case.batch_size(), case.batch_size() + 5):
        other = case.with_batch(size)
        expected = other.call(block, other.inputs())
        require_equal(program(*tensors(other)), expected, case.tolerance(block), f"exported, batch {size}")
    return True


def compile(case: Case) -> bool:
    """Whole-graph `torch.compile` with a dynamic batch equals eager, forward and backward, without compiling again.

    Through aot_eager, which is quick; through inductor in a thorough run, and in one of `ci` where the contract asks for it.
    """
    if not case.batches():
        return False
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
