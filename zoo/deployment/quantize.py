"""Models of 8-bit integers: a copy that takes a quarter of the memory, for `zoo.optimize`, `zoo.save` and `zoo.load`.

Numbers are q * scale, with integers q from -128 to 127 and a float scale for each row of a weight, |row|'s largest / 127.5, as
torchao's `Int8WeightOnlyConfig` has them. Of linear layers in a text's model, weights alone, or inputs too, one scale for each
token's; Dettmers et al., "LLM.int8()", 2022 (arXiv 2208.07339), has the arithmetic. Networks of images: see
`zoo.deployment.quantized_images`.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.checks import require
from layers.embedding import TokenEmbedding, require_indices, require_known
from layers.experts import MixtureOfExperts
from layers.lora import has_lora, merge_lora
from zoo.bert import Bert
from zoo.gpt import CausalLM
from zoo.model import ImageModel
from zoo.transformer import Transformer

KINDS = ("int8", "dynamic")
WHY_NOT = {"int4": " (torchao's int4 needs mslk, which is not used here)"}
"""Of kinds that one might expect."""
PIECE = 2**20
"""Weights that are floats at a time where several rows are multiplied."""
STREAMS = 4
"""Rows of a weight that a compiled product reads at a time, for as many sums; one sum waits for each of its additions."""


def quantize(model: nn.Module, kind: str, *, calibration: Tensor | None = None) -> Any:
    """A copy of a model with weights of 8 bits, in eval mode; the model itself is left alone.

    kind: "static", of an `ImageModel`: weights and what is between layers, by ranges that `calibration` tells, images
          (n, c, y, x) such as some hundreds to train on. It needs torchao. `zoo.optimize` makes it fast.
          "int8", of a text's model: weights alone. What is multiplied by them is float32, so that it is closest to the model.
          Of a `CausalLM` `zoo.optimize(copy, prompt)` of a single row is faster, for a token takes as long as reading weights.
          "dynamic", of a text's model: the inputs of linear layers too, which are rounded as they come. `zoo.optimize` of a
          `Bert` or a `Transformer` multiplies integers.
    Linear layers and tables of tokens are quantized; norms, positions and biases stay float32. `zoo.save` and `zoo.load` keep
    the integers, and `model.config["quantized"]` the kind.
    Errors: `ValueError` for another kind, another sort of model, one that is not float32, or is quantized already.
            `RuntimeError` for "static" without torchao, or with a torch that is too old for it. A processor without AVX-512 VNNI,
            on which integers are slow, is warned of.
    """
    require(kind in (*KINDS, "static"), "kind", kind, f"one of {', '.join((*KINDS, 'static'))}{WHY_NOT.get(kind, '')}")
    static = kind == "static"
    wanted = "an ImageModel" if static else "a CausalLM, a Bert or a Transformer; networks of images take 'static'"
    suits = isinstance(model, ImageModel if static else CausalLM | Bert | Transformer)
    require(suits, "model", type(model).__name__, wanted)
    given = None if calibration is None else type(calibration).__name__
    wanted = "images (n, c, y, x)" if static else f"left out, for {kind} needs none"
    require((given is not None) == static, "calibration", given, wanted)
    require_float32(model)
    on_cpu = all(x.is_cpu for x in model.parameters())
    require(on_cpu or kind == "int8", "model", "on another device", f"on the CPU, for whose integers {kind} is")
    if kind != "int8" and not has_vnni():
        warnings.warn(
            f"this processor lacks AVX-512 VNNI, by which {kind} int8 is quick: it may be slower than float32", stacklevel=2
        )
    if static:
        from zoo.deployment.quantized_images import quantize_images

        return quantize_images(cast(Any, model), cast(Tensor, calibration))
    config: Any = model.config
    require("quantized" not in config, "model", config.get("quantized"), "one that is not quantized yet")
    require(not any(isinstance(m, MixtureOfExperts) for m in model.modules()), "model", "experts", "without a mixture of experts")
    quantized = copy.deepcopy(model)
    quantized = cast(Any, merge_lora(quantized) if has_lora(quantized) else quantized)
    replace(quantized, kind)
    quantized.config = {**config, "quantized": kind}
    return quantized.eval().requires_grad_(False)


def has_vnni() -> bool:
    """Whether this processor multiplies integers of 8 bits."""
    return torch.cpu._is_vnni_supported()


def require_float32(model: nn.Module) -> None:
    dtypes = {x.dtype for x in model.parameters()}
    require(dtypes == {torch.float32}, "model", ", ".join(sorted(map(str, dtypes))), "of float32")


def replace(model: nn.Module, kind: str) -> None:
    """Put quantized parts in the place of linear layers and tables of tokens, on the meta device too.

    Errors: `ValueError` for another kind.
    """
    require(kind in KINDS, "quantized", kind, f"one of {', '.join(KINDS)}")
    for parent in list(model.modules()):
        for name, part in list(parent.named_children()):
            if type(part) is nn.Linear:
                setattr(parent, name, Int8Linear(part, dynamic=kind == "dynamic"))
            elif type(part) is TokenEmbedding:
                setattr(parent, name, Int8TokenEmbedding(part, dynamic=kind == "dynamic"))


def is_quantized(model: nn.Module) -> bool:
    return any(isinstance(m, Int8Rows) for m in model.modules())


@torch.no_grad()
def rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """rows (..., n) -> (integers (..., n), scale (...)), the largest of each row at 127.5, which becomes 127 or -128."""
    scale = (rows.abs().amax(-1) / 127.5).clamp_min(torch.finfo(torch.float32).eps)
    return (rows * (1 / scale)[..., None]).round().clamp(-128, 127).to(torch.int8), scale


class Int8Rows(nn.Module):
    """A weight (o, i) of integers, and a scale for each row."""

    weight: Tensor

    def __init__(self, weight: Tensor, dynamic: bool) -> None:
        super().__init__()
        self.dynamic = dynamic
        integers, scale = rounded(weight.detach())
        self.register_buffer("weight", integers)
        self.scale = nn.Parameter(scale, requires_grad=False)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., i) -> (..., o)"""
        if self.dynamic:
            integers, scale = rounded(x.reshape(-1, x.shape[-1]))
            # as inductor knows it, whose product has both scales and the bias in it
            found = (torch._int_mm(integers, self.weight.mT).to(x.dtype) * scale[:, None] * self.scale).view(
                *x.shape[:-1], len(self.scale)
            )
        elif torch.compiler.is_compiling() and x.numel() == x.shape[-1]:
            found = self.of_one_row(x) * self.scale
        else:
            pieces = self.weight.split(max(1, PIECE // x.shape[-1]))
            found = torch.cat([F.linear(x, piece.to(x.dtype)) for piece in pieces], -1) * self.scale
        return found if bias is None else found + bias

    def of_one_row(self, x: Tensor) -> Tensor:
        """Written out, for compilers: they read the integers once, and make floats of them in registers."""
        each = len(self.weight) // STREAMS
        pieces = [self.weight[n * each : (n + 1) * each] for n in range(STREAMS)] + [self.weight[STREAMS * each :]]
        return torch.cat([(x[..., None, :] * piece.to(x.dtype)).sum(-1) for piece in pieces if len(piece) > 0], -1)


class Int8Linear(Int8Rows):
    """A `nn.Linear` of integers."""

    def __init__(self, linear: nn.Linear, dynamic: bool) -> None:
        super().__init__(linear.weight, dynamic)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        require(x.shape[-1] == self.in_features, "x", tuple(x.shape), f"(..., {self.in_features})")
        return self.product(x, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, dynamic={self.dynamic}"


class Int8Table(Int8Rows):
    """A `nn.Embedding` of integers."""

    def __init__(self, table: nn.Embedding, dynamic: bool) -> None:
        super().__init__(table.weight, dynamic)
        self.num_embeddings, self.embedding_dim = table.num_embeddings, table.embedding_dim

    def forward(self, tokens: Tensor) -> Tensor:
        return self.weight[tokens].to(self.scale.dtype) * self.scale[tokens][..., None]


class Int8TokenEmbedding(nn.Module):
    """A `TokenEmbedding` of integers."""

    def __init__(self, embedding: TokenEmbedding, dynamic: bool) -> None:
        super().__init__()
        self.scale, self.padding = embedding.scale, embedding.padding
        self.table = Int8Table(embedding.table, dynamic)

    def forward(self, tokens: Tensor) -> Tensor:
        require_indices(tokens, "tokens")
        if not torch.compiler.is_compiling() and tokens.is_cpu:
            require_known(tokens, "tokens", self.table.num_embeddings)
        embedded = self.table(tokens)
        return embedded if self.scale == 1 else embedded * self.scale

    def logits(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """As `TokenEmbedding.logits`."""
        return self.table.product(x, bias)
