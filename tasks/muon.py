"""Muon: an optimizer whose steps change every direction of a matrix by as much.

The momentum of a matrix, U S V^T by singular values, is mostly of a few large directions; a step goes along U V^T instead. Five
products of a polynomial bring all singular values near 1 without a decomposition:

    X <- 3.4445 X - 4.7750 (X X^T) X + 2.0315 (X X^T)^2 X

Sources: Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural networks"; the length of a step is that of Liu et
al., 2025 (arXiv 2502.16982), so that one learning rate serves these matrices and, by AdamW, everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Modules whose weights are matrices, those of convolutions by their first axis and all others."""


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
            for p in group["params"] if group.get("orthogonal") else ():
                if p.grad is not None:
                    self.take(p, p.grad, group)
        try:
            self.param_groups = [group for group in groups if not group.get("orthogonal")]
            super().step()
        finally:
            self.param_groups = groups
        return loss

    def take(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """The step of one matrix."""
        state = self.state[p]
        if not state:
            state |= {"step": torch.zeros(()), "mean": torch.zeros_like(p)}
        state["step"] += 1  # AdamW reads it of every state
        state["mean"].lerp_(gradient, 1 - self.momentum)
        ahead = gradient.lerp(state["mean"], self.momentum)
        ahead = (ahead.full_tensor() if isinstance(ahead, DTensor) else ahead).flatten(1)  # each process computes the whole step
        length, direction = 0.2 * max(ahead.shape) ** 0.5, orthogonal(ahead).view(p.shape)
        if isinstance(p, DTensor):
            direction = distribute_tensor(direction.contiguous(), p.device_mesh, p.placements, src_data_rank=None)
        p.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"] * length)


def orthogonal(matrix: Tensor, steps: int = 5, eps: float = 1e-7) -> Tensor:
    """(m, n) -> (m, n): the same singular vectors, singular values of about 0.7 to 1.2 in place of all that are not tiny."""
    x = matrix.float() if matrix.dtype in (torch.bfloat16, torch.float16) else matrix
    x = x / (torch.linalg.matrix_norm(x) + eps)
    x = x.T if len(matrix) > matrix.shape[1] else x
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.T if len(matrix) > matrix.shape[1] else x).to(matrix.dtype)


def hidden_matrices(model: nn.Module) -> set[Tensor]:
    """Weights of linear layers and convolutions, but for the model's last ones, in `head` and `output`."""
    return {
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, LINEAR) and not name.startswith(("head", "output"))
    }
