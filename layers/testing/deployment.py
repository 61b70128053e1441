"""State, copies, the meta device, `torch.export` and `torch.compile`."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import torch
from hypothesis import settings
from pytest_torch import assert_checkpoint_roundtrip
from torch import Tensor

from layers.testing.contract import Case
from layers.testing.equality import Mismatch, require_equal
from layers.testing.profiles import THOROUGH


def state_round_trip(case: Case) -> None:
    """state_dict, deepcopy and pickle keep every bit, and a copy shares nothing with its original."""
    block = case.block()
    output = case.call(block, case.inputs())
    if block.state_dict():
        assert_checkpoint_roundtrip(lambda: case.new(stream=1).double(), case.inputs(), model=block, rtol=0, atol=0)
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


def dynamic_shapes(case: Case) -> dict[str, Any]:
    batch = torch.export.Dim("batch")
    return {k: {position: batch} if (position := case.batches().get(k)) is not None else None for k in case.specs}


def export(case: Case) -> bool:
    """`torch.export` with a dynamic batch equals eager, at another batch size too."""
    if not case.batches():
        return False
    block = case.block()
    program = torch.export.export(block, (), case.inputs(), dynamic_shapes=dynamic_shapes(case)).module()
    for size in (case.batch_size(), case.batch_size() + 5):
        other = case.with_batch(size)
        require_equal(
            program(**other.inputs()),
            other.call(block, other.inputs()),
            case.tolerance(block),
            f"exported, batch {size}",
        )
    return True


def compile(case: Case) -> bool:
    """Whole-graph `torch.compile` with a dynamic batch equals eager, forward and backward, without compiling again.

    Through aot_eager, which is quick; in a thorough run, and where the contract says so, through inductor.
    """
    if not case.batches():
        return False
    block, graphs = case.block(), []
    thorough = settings.default is not None and settings.default.max_examples >= THOROUGH
    usual = "inductor" if thorough else "aot_eager"
    compiler = torch._dynamo.lookup_backend(case.contract.backend or usual)

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
