"""A mixture of experts: of several gated feed-forward networks, a router chooses a few for each token.

    x (..., dim) -> sum over the `active` likeliest experts e of p_e * W2_e (act(Wg_e x) * (W1_e x)),  p = softmax(router x),
                    divided by the sum of the chosen p

Shazeer et al., "Outrageously Large Neural Networks", 2017 (arXiv 1701.06538); Jiang et al., "Mixtral of Experts", 2024 (arXiv
2401.04088), which this is. Proven against `MixtralSparseMoeBlock` of transformers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layers.backends import needs_formula
from layers.checks import require
from layers.feedforward import require_dim


class MixtureOfExperts(nn.Module):
    """x (..., dim) -> (..., dim). Parameters of all experts are stacked: `gate` and `up` (e, hidden_dim, dim), `down` back.

    active: experts a token goes through.
    Each expert computes its own tokens only. Compilers, for which that is no fixed amount of work, and transforms of `torch.func`
    let all experts compute all tokens, with a weight of zero for those that were not chosen.
    """

    def __init__(self, dim: int, hidden_dim: int, experts: int, active: int, *, activation: nn.Module | None = None) -> None:
        super().__init__()
        require(dim > 0, "dim", dim, "positive")
        require(hidden_dim > 0, "hidden_dim", hidden_dim, "positive")
        require(experts > 0, "experts", experts, "positive")
        require(0 < active <= experts, "active", active, f"from 1 to the {experts} experts")
        self.dim, self.active = dim, active
        self.router = nn.Linear(dim, experts, bias=False)
        self.gate, self.up = (nn.Parameter(torch.empty(experts, hidden_dim, dim)) for _ in range(2))
        self.down = nn.Parameter(torch.empty(experts, dim, hidden_dim))
        self.activation = nn.SiLU() if activation is None else activation
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As `nn.Linear` starts."""
        for weight in (self.gate, self.up, self.down):
            bound = weight.shape[-1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        require_dim(x, self.dim)
        tokens = x.reshape(-1, self.dim)
        weights, chosen = self.route(tokens)
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or needs_formula(tokens):
            return self.all_experts(tokens, weights, chosen).reshape(x.shape)
        output = torch.zeros_like(x.reshape(-1, self.dim))
        for e in range(len(self.gate)):
            rows, place = torch.where(chosen == e)
            found = self.expert(tokens[rows], e) * weights[rows, place, None]
            output = output.index_add(0, rows, found.to(output.dtype))
        return output.reshape(x.shape)

    def route(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (n, dim) -> weights (n, active), which add up to 1, and the numbers of the experts (n, active)."""
        scores = self.router(tokens)
        weights, chosen = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).topk(self.active)
        return (weights / weights.sum(-1, keepdim=True)).to(scores.dtype), chosen

    def expert(self, tokens: Tensor, e: int) -> Tensor:
        gate, up, down = (weight[e].mT for weight in (self.gate, self.up, self.down))
        return (self.activation(tokens @ gate) * (tokens @ up)) @ down

    def all_experts(self, tokens: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        hidden = self.activation(tokens @ self.gate.mT) * (tokens @ self.up.mT)
        outputs = hidden @ self.down.mT  # (e, n, dim)
        shares = torch.zeros_like(outputs[..., 0].mT).scatter(-1, chosen, weights.to(outputs.dtype))
        return (shares.mT.unsqueeze(-1) * outputs).sum(0)
