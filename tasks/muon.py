"""Muon: an optimizer whose steps change every direction of a matrix by as much.

The momentum of a matrix, U S V^T by singular values, is mostly of a few large directions; a step goes along U V^T instead. Five
products of a polynomial bring all singular values near 1 without a decomposition:

    X <- F X,  F = 3.4445 - 4.7750 X X^T + 2.0315 (X X^T)^2

Each step's F is a polynomial of the first X X^T, and the next X X^T is F (X X^T) F: the five are multiplied with each other
before they meet X. For the kernel of a convolution, whose rows are long, that takes a half to a tenth of the time.

Sources: Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural networks"; the length of a step is that of Liu et
al., 2025 (arXiv 2502.16982), so that one learning rate serves these matrices and, by AdamW, everything else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Modules whose weights are matrices, those of convolutions by their first axis and all others."""
TOGETHER = 2**20
"""Elements of matrices that are multiplied at once, but for a single larger one."""


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
        """A step of its matrices, those of one shape together, for many small products take longer than a large one."""
        alike = defaultdict(list)
        for p in group["params"]:
            if p.grad is not None:
                alike[len(p), p.numel(), p.dtype, p.device].append(p)
        for (_, size, *_), same in alike.items():
            count = max(1, TOGETHER // max(1, size))
            for few in (same[n : n + count] for n in range(0, len(same), count)):
                for p, direction in zip(few, orthogonal(torch.stack([self.ahead(p, p.grad) for p in few])), strict=True):
                    self.move(p, direction, group)

    def ahead(self, p: Tensor, gradient: Tensor) -> Tensor:
        """The momentum of one matrix after its gradient, seen from a step ahead: all of it, in each process."""
        state = self.state[p]
        if not state:
            state |= {"step": torch.zeros(()), "mean": torch.zeros_like(p)}
        state["step"] += 1  # AdamW reads it of every state
        state["mean"].lerp_(gradient, 1 - self.momentum)
        ahead = gradient.lerp(state["mean"], self.momentum)
        return (ahead.full_tensor() if isinstance(ahead, DTensor) else ahead).flatten(1)

    def move(self, p: Tensor, direction: Tensor, group: dict[str, Any]) -> None:
        length, direction = 0.2 * max(direction.shape) ** 0.5, direction.view(p.shape)
        if isinstance(p, DTensor):
            direction = distribute_tensor(direction.contiguous(), p.device_mesh, p.placements, src_data_rank=None)
        p.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"] * length)


def orthogonal(matrix: Tensor, steps: int = 5, eps: float = 1e-7) -> Tensor:
    """(..., m, n) -> (..., m, n): the same singular vectors; singular values that are not tiny become about 0.7 to 1.2."""
    x = matrix.float() if matrix.dtype in (torch.bfloat16, torch.float16) else matrix
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + eps)
    x = x.mT if x.shape[-2] > x.shape[-1] else x
    gram, factor, product = x @ x.mT, None, None
    for _ in range(steps):
        gram = gram if factor is None else factor @ gram @ factor
        factor = 2.0315 * (gram @ gram) - 4.7750 * gram
        factor.diagonal(dim1=-2, dim2=-1).add_(3.4445)
        product = factor if product is None else factor @ product
    x = product @ x
    return (x.mT if matrix.shape[-2] > matrix.shape[-1] else x).to(matrix.dtype)


def hidden_matrices(model: nn.Module) -> set[Tensor]:
    """Weights of linear layers and convolutions, but for the model's last ones, in `head` and `output`."""
    return {
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, LINEAR) and not name.startswith(("head", "output"))
    }
