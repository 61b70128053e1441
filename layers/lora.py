"""Low-rank adaptation (LoRA): a trained model learns a task by small matrices beside its linear layers, which stay as they are.

    y = W x + b + scale B A x        A (rank, in), B (out, rank), scale = alpha / rank

Only A and B learn. B starts as zeros, so that nothing has changed at first; in the end W + scale B A is an ordinary weight.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021 (arXiv 2106.09685). With `stable` the scale is
alpha / sqrt(rank), as of Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023 (arXiv 2312.03732).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.checks import require


class LoRALinear(nn.Linear):
    """x (..., in_features) -> (..., out_features): `nn.Linear`, whose parameters it keeps by their names, and the product.

    rank:    of the product, at least 1.
    alpha:   what the product weighs; 2 rank unless given.
    dropout: of what A sees, in training.
    stable:  see above.
    Errors: `ValueError` at construction. Proven against the formula of PEFT's `lora.Linear`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rank: int,
        alpha: float | None = None,
        dropout: float = 0.0,
        stable: bool = False,
        bias: bool = True,
    ) -> None:
        require(in_features > 0, "in_features", in_features, "positive")
        require(out_features > 0, "out_features", out_features, "positive")
        require(rank > 0, "rank", rank, "positive")
        alpha = 2.0 * rank if alpha is None else float(alpha)
        require(math.isfinite(alpha) and alpha > 0, "alpha", alpha, "positive")
        require(0 <= dropout < 1, "dropout", dropout, "a probability below 1")
        super().__init__(in_features, out_features, bias)
        self.rank, self.scale = rank, alpha / (math.sqrt(rank) if stable else rank)
        self.dropout = nn.Dropout(dropout)
        self.lora_a = nn.Parameter(torch.empty(rank, in_features))
        self.lora_b = nn.Parameter(torch.empty(out_features, rank))
        self.reset_lora()

    @classmethod
    def of(cls, linear: nn.Linear, **options: Any) -> LoRALinear:
        """With the very parameters of the layer, in their dtype and on their device."""
        with torch.device("meta"):
            lora = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, **options)
        lora.lora_a, lora.lora_b = (nn.Parameter(linear.weight.new_empty(x.shape)) for x in (lora.lora_a, lora.lora_b))
        lora.weight, lora.bias = linear.weight, linear.bias
        lora.reset_lora()
        return lora.train(linear.training)

    def reset_lora(self) -> None:
        """A as `nn.Linear` starts, B as zeros."""
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        nn.init.zeros_(self.lora_b)

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim < 1 or input.shape[-1] != self.in_features:
            raise ValueError(f"input: features must be {self.in_features}, got shape {tuple(input.shape)}")
        low = F.linear(F.linear(self.dropout(input), self.lora_a), self.lora_b)
        return super().forward(input) + self.scale * low

    def merged_weight(self) -> Tensor:
        """W + scale B A"""
        return self.weight + self.scale * (self.lora_b @ self.lora_a)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, scale={self.scale:g}"


def add_lora(
    model: nn.Module,
    rank: int,
    *,
    targets: Sequence[str] = ("query", "value"),
    alpha: float | None = None,
    dropout: float = 0.0,
    stable: bool = False,
) -> list[str]:
    """Turn linear layers into `LoRALinear`, in place, and let nothing else of the model learn; the names of these layers.

    targets: last names of layers, such as "query" of "encoder.0.attention.sublayer.query"; by default those of the paper.
    Errors: `ValueError` for a target that no linear layer has, or whose weight another module has too, which a merge would
            change; nothing is changed then.
    """
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    known = sorted({name.rpartition(".")[2] for name in linears})
    require(bool(targets), "targets", list(targets), f"some of {', '.join(known)}")
    for target in targets:
        require(target in known, "targets", target, f"one of {', '.join(known) or 'none: the model has no linear layers'}")
    chosen = {name: linear for name, linear in linears.items() if name.rpartition(".")[2] in targets}
    owners = names_of_parameters(model)
    for name, linear in chosen.items():
        own, found = f"{name}.weight", owners[id(linear.weight)]
        require(found == [own], "targets", name, f"a layer with a weight of its own, not that of {', '.join({*found} - {own})}")
    options = dict(rank=rank, alpha=alpha, dropout=dropout, stable=stable)
    made = {name: LoRALinear.of(linear, **options) for name, linear in chosen.items()}
    model.requires_grad_(False)
    for name, lora in made.items():
        put(model, name, lora)
    return list(made)


def merge_lora(model: nn.Module) -> nn.Module:
    """Turn each `LoRALinear` back into an `nn.Linear` with the merged weight, in place; the model, which computes the same."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            with torch.device("meta"):
                linear = nn.Linear(module.in_features, module.out_features, module.bias is not None)
            with torch.no_grad():
                linear.weight = nn.Parameter(module.merged_weight().to(module.weight.dtype), module.weight.requires_grad)
            linear.bias = module.bias
            put(model, name, linear.train(module.training))
    return model


def has_lora(model: nn.Module) -> bool:
    return any(isinstance(module, LoRALinear) for module in model.modules())


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    place, _, last = name.rpartition(".")
    setattr(model.get_submodule(place), last, module)


def names_of_parameters(model: nn.Module) -> dict[int, list[str]]:
    """Of each parameter, by its identity, all names."""
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return found
