"""Muon: an optimizer whose steps change every direction of a matrix by as much.

The momentum of a matrix, U S V^T by singular values, is mostly of a few large directions; a step goes along U V^T instead. Five
products of a polynomial bring all singular values near 1 without a decomposition:

    X <- F X,  F = 3.4445 - 4.7750 X X^T + 2.0315 (X X^T)^2

Each step's F is a polynomial of the first X X^T, and the next X X^T is F (X X^T) F: the five are multiplied with each other
before they meet X. For the kernel of a convolution, whose rows are long, that takes a half to a tenth of the time. And matrices
with as many rows go through it together, whatever their length.

Sources: Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural networks"; the length of a step is that of Liu et
al., 2025 (arXiv 2502.16982), so that one learning rate serves these matrices and, by AdamW, everything else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Modules whose weights are matrices, those of convolutions by their first axis and all others."""
TOGETHER = 2**20
"""Elements of matrices that are multiplied at once."""


class Muon(torch.optim.AdamW):
    """Of the groups that say ``"orthogonal": True``; AdamW of all others.

    momentum: decay of the mean of gradients; a step looks ahead of it, after Nesterov.
    A step is 0.2 * sqrt(max(rows, columns)) times a matrix whose singular values are about 1: its elements have a root mean
    square of about 0.2, as those of AdamW's steps have.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(groups, lr, betas, weight_decay=weight_decay, fused=True)
        self._step_supports_amp_scaling = False  # a scaler of gradients takes no step where some are not finite, of matrices too
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        for group in groups:
            if group.get("orthogonal"):
                self.turn(group)
        try:
            self.param_groups = [group for group in groups if not group.get("orthogonal")]
            super().step()
        finally:
            self.param_groups = groups
        return loss

    def turn(self, group: dict[str, Any]) -> None:
        """A step of its matrices, those of one smaller side together, for many small products take longer than a large one."""
        alike = defaultdict(list)
        for p in group["params"]:
            if p.grad is not None:
                side = min(len(p), p.numel() // max(1, len(p)))
                alike[side, p.dtype, p.device, isinstance(p, DTensor)].append(p)
        for same in alike.values():
            for few in parts(same):
                self.move(few, orthogonals(self.ahead(few)), group)

    def ahead(self, matrices: list[Tensor]) -> list[Tensor]:
        """Their momenta after their gradients, seen from a step ahead: all of them, in each process."""
        states = [self.state[p] for p in matrices]
        for p, state in zip(matrices, states, strict=True):
            if not state:
                state |= {"step": torch.zeros(()), "mean": torch.zeros_like(p)}
        gradients: list[Any] = [p.grad for p in matrices]
        means: list[Any] = [state["mean"] for state in states]
        torch._foreach_add_([state["step"] for state in states], 1)  # AdamW reads it of every state
        torch._foreach_lerp_(means, gradients, 1 - self.momentum)
        ahead = torch._foreach_lerp(gradients, means, self.momentum)
        return [(x.full_tensor() if isinstance(x, DTensor) else x).flatten(1) for x in ahead]

    def move(self, matrices: list[Tensor], directions: list[Tensor], group: dict[str, Any]) -> None:
        if group["weight_decay"]:
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        for p, direction in zip(matrices, directions, strict=True):
            length, direction = 0.2 * max(direction.shape) ** 0.5, direction.view(p.shape)
            if isinstance(p, DTensor):
                direction = distribute_tensor(direction.contiguous(), p.device_mesh, p.placements, src_data_rank=None)
            p.add_(direction, alpha=-group["lr"] * length)


def parts(matrices: list[Tensor]) -> Iterator[list[Tensor]]:
    """Lists of `TOGETHER` elements at most, but for a single larger matrix."""
    few, size = [], 0
    for p in matrices:
        if few and size + p.numel() > TOGETHER:
            yield few
            few, size = [], 0
        few.append(p)
        size += p.numel()
    yield few


def orthogonal(matrix: Tensor, steps: int = 5, eps: float = 1e-7) -> Tensor:
    """(..., m, n) -> (..., m, n): the same singular vectors; singular values that are not tiny become about 0.7 to 1.2."""
    x = unit(matrix, eps)
    return turned(polynomial(x @ x.mT, steps) @ x, matrix)


def orthogonals(matrices: list[Tensor]) -> list[Tensor]:
    """`orthogonal` of each of them, whose smaller sides are alike."""
    alike = defaultdict(list)
    for n, matrix in enumerate(matrices):
        alike[matrix.shape].append(n)
    stacks = [torch.stack([matrices[n] for n in numbers]) for numbers in alike.values()]
    units = [unit(stack) for stack in stacks]
    products = polynomial(torch.cat([x @ x.mT for x in units])).split([len(x) for x in units])
    turns = [turned(product @ x, stack) for product, x, stack in zip(products, units, stacks, strict=True)]
    found = dict(zip([n for numbers in alike.values() for n in numbers], [x for stack in turns for x in stack], strict=True))
    return [found[n] for n in range(len(matrices))]


def unit(matrix: Tensor, eps: float = 1e-7) -> Tensor:
    """Lying, of norm 1, in float32 at least."""
    x = matrix.float() if matrix.dtype in (torch.bfloat16, torch.float16) else matrix
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + eps)
    return x.mT if x.shape[-2] > x.shape[-1] else x


def turned(x: Tensor, matrix: Tensor) -> Tensor:
    """As the matrix stands, and in its dtype."""
    return (x.mT if matrix.shape[-2] > matrix.shape[-1] else x).to(matrix.dtype)


def polynomial(gram: Tensor, steps: int = 5) -> Tensor:
    """The product of all F of gram matrices (..., m, m)."""
    product = factor = factor_of(gram)
    for _ in range(steps - 1):
        gram = factor @ gram @ factor
        factor = factor_of(gram)
        product = factor @ product
    return product


def factor_of(gram: Tensor) -> Tensor:
    factor = (gram @ gram).mul_(2.0315).sub_(gram, alpha=4.7750)
    factor.diagonal(dim1=-2, dim2=-1).add_(3.4445)
    return factor


def hidden_matrices(model: nn.Module) -> set[Tensor]:
    """Weights of linear layers and convolutions, but for the model's last ones, in `head` and `output`."""
    return {
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, LINEAR) and not name.startswith(("head", "output"))
    }
