"""How processes share a run's model: each has all of it (DDP), slices of every tensor (FSDP2), or parts of layers (--tensor).

    processes = data x tensor       those of one tensor group see the same examples, those of one data group hold the same part

Checkpoints, evaluation and what is kept are of the whole model, gathered, so that they do not depend on the number of processes.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from tasks.options import EngineOptions, UserError
from tasks.recompute import blocks, buffers_kept
from zoo.parallel import joined, split_axes, tensor_parallel

if TYPE_CHECKING:
    from accelerate import Accelerator

    from tasks.engine import Run


class Sharding:
    """Who holds what.

    world, index: number of data groups' members, and which of them this process is: what it sees of a batch.
    tensor: number of processes that share each layer. fsdp: whether members of a data group hold slices only.
    told: a line for whoever asked for slices that there are not.
    Errors: `UserError` if the number of processes is no multiple of --tensor.
    """

    def __init__(self, accelerator: Accelerator, options: EngineOptions) -> None:
        processes, self.tensor = accelerator.num_processes, options.tensor
        if processes % self.tensor:
            raise UserError(
                f"--tensor {self.tensor}: the number of processes must be a multiple of it, there are {processes}; "
                f"torchrun --nproc-per-node {self.tensor} starts {self.tensor}"
            )
        self.world, self.index = processes // self.tensor, accelerator.process_index // self.tensor
        self.fsdp = options.shard == "fsdp" and self.world > 1
        more = f"torchrun --nproc-per-node {2 * self.tensor}"
        alone = options.shard == "fsdp" and not self.fsdp
        self.told = [f"--shard fsdp: there is nobody to share slices with, {more} starts enough processes"] if alone else []
        self.device = accelerator.device
        self.short = torch.bfloat16 if options.precision == "bf16" else None
        self.mesh: Any = None
        if self.divided:
            sizes, names = (self.world, self.tensor), ("data", "tensor")
            self.mesh = dist.init_device_mesh(self.device.type, sizes, mesh_dim_names=names)

    @property
    def divided(self) -> bool:
        """Whether no process has the whole model."""
        return self.fsdp or self.tensor > 1

    def divide(self, *models: nn.Module) -> None:
        """In place. Errors: `UserError` for a model whose layers cannot be split."""
        for model in models:
            if self.tensor > 1:
                try:
                    tensor_parallel(model, self.mesh["tensor"])
                except ValueError as error:
                    raise UserError(f"--tensor {self.tensor}: {error}") from error
            if self.fsdp:
                fully_sharded(model, self.mesh["data"], self.short)

    def total(self, value: Tensor) -> Tensor:
        """Sum over the data group."""
        value = value.to(self.device).clone(memory_format=torch.contiguous_format)
        dist.all_reduce(value, group=self.mesh["data"].get_group())
        return value

    def whole(self, x: Tensor, axis: int | None) -> Tensor:
        """A tensor of which this process has a part, in every process; all of them have to ask. axis: `split_axes`'s."""
        x = x.detach()
        x = x.full_tensor() if isinstance(x, DTensor) else x
        return x if axis is None else joined(x, axis, self.mesh["tensor"].get_group())

    def part(self, x: Tensor, like: Tensor, axis: int | None) -> Tensor:
        """The opposite of `whole`: what this process has of x, where it has `like`. Nothing is sent."""
        x = x.to(self.device)
        if axis is not None:
            x = x.chunk(self.tensor, axis)[self.mesh["tensor"].get_local_rank()]
        if not isinstance(like, DTensor):
            return x
        return distribute_tensor(x.contiguous(), like.device_mesh, like.placements, src_data_rank=None)

    def gathered(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """The whole state of a divided model, one tensor after another; all processes have to ask."""
        axes = split_axes(model)
        for name, x in model.state_dict().items():
            yield name, self.whole(x, axes.get(name))

    @torch.no_grad()
    def fill(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Put a whole state into a divided model. Errors: `KeyError` for a tensor that is missing."""
        axes = split_axes(model)
        for name, x in model.state_dict().items():
            x.copy_(self.part(tensors[name], x, axes.get(name)))

    def finite(self, model: nn.Module) -> bool:
        """Whether all weights are, in all processes."""
        local = (x.to_local() if isinstance(x, DTensor) else x for x in model.state_dict().values() if x.is_floating_point())
        broken = sum(int(not x.isfinite().all()) for x in local)
        if self.divided:
            count = torch.tensor(float(broken), device=self.device)
            dist.all_reduce(count)
            broken = int(count)
        return broken == 0

    def clip(self, module: nn.Module, most: float) -> None:
        """Scale gradients down to a norm of the whole model's gradient."""
        if self.tensor == 1:
            nn.utils.clip_grad_norm_(module.parameters(), most)
            return
        axes, squares = split_axes(module), []
        for split in (False, True):
            found = [p.grad for name, p in module.named_parameters() if (name in axes) == split and p.grad is not None]
            norm: Any = nn.utils.get_total_norm(found) if found else torch.zeros((), device=self.device)
            squares.append((norm.full_tensor() if isinstance(norm, DTensor) else norm) ** 2)
        dist.all_reduce(squares[1], group=self.mesh["tensor"].get_group())
        nn.utils.clip_grads_with_norm_(module.parameters(), most, (squares[0] + squares[1]).sqrt())


def fully_sharded(model: nn.Module, mesh: Any, short: torch.dtype | None = None) -> None:
    """By `fully_shard`, block by block and then the rest, in place: a block is gathered while it computes.

    short: in which the weights of blocks are gathered, and blocks compute, what they hand on among it. Gradients are summed in
           float32; what is outside of blocks, and blocks with batch norms, whose running statistics are longer, stay as they are.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    containers = nn.ModuleList | nn.ModuleDict  # which have no forward
    for block in dict.fromkeys(block for block in blocks(model) if not isinstance(block, containers)):
        if shares(model, block):
            continue  # such a parameter belongs to the group of all that have it
        norms = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in block.modules())
        short_here = None if norms else short
        policy = MixedPrecisionPolicy(short_here, torch.float32 if short_here else None)
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))


def shares(model: nn.Module, block: nn.Module) -> bool:
    """Whether a parameter of the block is one of a module outside of it, too."""
    inside = {id(part) for part in block.modules()}
    outside = {id(p) for part in model.modules() if id(part) not in inside for p in part.parameters(recurse=False)}
    return any(id(p) in outside for p in block.parameters())


def has_unused(run: Run) -> bool:
    """Whether the loss of the first example leaves a trainable parameter out, for which DDP would wait for ever if untold."""
    first = next(iter(run.task.train.batches(0)))[:1]
    parameters = [p for p in run.model.parameters() if p.requires_grad]
    with buffers_kept(run.model), run.accelerator.autocast():
        _, loss, _ = next(iter(run.task.losses(run.model.train(), run.to_device(run.task.train.batch(first, 0)))))
    found = torch.autograd.grad(loss, parameters, allow_unused=True) if loss.requires_grad else [None]
    return any(x is None for x in found)


def synchronising(run: Run, last: bool) -> AbstractContextManager[None]:
    """While gradients are computed: whether they are exchanged at once, as those of the last micro-batch are."""
    if run.sharding.fsdp:
        model: Any = run.wrapped
        model.set_requires_gradient_sync(last)
        return contextlib.nullcontext()
    return contextlib.nullcontext() if last or run.adds_up else run.accelerator.no_sync(run.wrapped)


@contextlib.contextmanager
def at_hand(run: Run) -> Iterator[nn.Module]:
    """What is evaluated and kept, whole, on the run's device; of a divided model a copy, which lies in main memory else."""
    if run.whole is not None:
        run.whole.to(run.accelerator.device)
    try:
        yield run.result
    finally:
        if run.whole is not None:
            run.whole.to("cpu")


@torch.no_grad()
def refresh(run: Run) -> None:
    """The whole copy of a divided model has its weights, or their average; all processes have to ask."""
    if run.whole is None:
        return
    ours = run.whole.state_dict()
    for name, x in run.sharding.gathered(run.average or run.model):
        ours[name].copy_(x)


def whole_copy(sharding: Sharding, model: nn.Module) -> nn.Module | None:
    """A copy in main memory of a model that will be divided."""
    return copy.deepcopy(model).to("cpu") if sharding.divided else None
