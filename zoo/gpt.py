"""Decoder-only language models: GPT-2, Llama, and what is made of the same parts.

    GPT-2     learned positions, layer norms, GELU                           Radford et al., 2019
    Llama     rotary positions, RMSNorm, SwiGLU, grouped queries             Touvron et al., 2023 (arXiv 2302.13971)
    Mistral   Llama with a sliding window                                    Jiang et al., 2023 (arXiv 2310.06825)
    Mixtral   Llama with a mixture of experts                                Jiang et al., 2024 (arXiv 2401.04088)
    Qwen3     Llama with norms of queries and keys                           Yang et al., 2025 (arXiv 2505.09388)
    Gemma     Llama with GEGLU, norms of 1 + weight, scaled embeddings       Gemma Team, 2024 (arXiv 2403.08295)
    Gemma 2   norms after each part too, capped scores, every other layer has a window        2024 (arXiv 2408.00118)
    Gemma 3   norms of queries and keys in place of caps, two kinds of rotary positions       2025 (arXiv 2503.19786)

Proven against Hugging Face's models of these names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from layers import masks
from layers.attention import MultiHeadAttention
from layers.cache import Cache, RollingCache
from layers.checks import require, require_axes
from layers.embedding import TokenEmbedding, require_indices
from layers.experts import MixtureOfExperts
from layers.feedforward import GEGLU, FeedForward, SwiGLU
from layers.normalization import RMSNorm
from layers.positions import LearnedPositions, Rotary
from layers.rotary_scaling import SCALINGS, Scaling
from layers.transformer import EncoderBlock, PreNorm, SandwichNorm
from layers.weights import WeightMap
from zoo.generation.decoder_only import Decoding
from zoo.model import LanguageModel

TABLES = re.compile(r"(^|\.)(attn\.(masked_)?bias|rotary_emb\.inv_freq)$")
"""Names of what old files hold beside weights: causal masks and frequencies."""


class CausalLM(LanguageModel):
    """tokens (b, n) -> logits (b, n, vocab_size) for what follows each token.

    blocks:    modules (b, n, dim) -> (b, n, dim) with causal attentions, such as `EncoderBlock`.
    norm:      after the last block.
    positions: module positions (n,) or (b, n) -> (..., dim), added to the embeddings.
    rotary:    the `Rotary` that all attentions share: its angles are computed once for all of them.
    output:    module (b, n, dim) -> (b, n, vocab_size); None for the embedding's table, "tied".
    dropout:   of the embeddings.
    softcap:   bound of the logits, softcap * tanh(logits / softcap).
    """

    def __init__(
        self,
        embedding: TokenEmbedding,
        blocks: Sequence[nn.Module],
        *,
        norm: nn.Module | None = None,
        positions: nn.Module | None = None,
        rotary: Rotary | None = None,
        output: nn.Module | None = None,
        dropout: float = 0.0,
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        require(0 <= dropout < 1, "dropout", dropout, "a probability below 1")
        require(softcap is None or softcap > 0, "softcap", softcap, "positive")
        self.embedding, self.positions, self.rotary, self.dropout = embedding, positions, rotary, nn.Dropout(dropout)
        self.decoder = nn.ModuleList(blocks)
        self.norm, self.output, self.softcap = norm, output, softcap

    def hidden(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        caches: Sequence[Cache] = (),
        length: int | Tensor | None = None,
    ) -> Tensor:
        """tokens (b, n) -> (b, n, dim), ready for `logits`.

        mask:      (b, n), True for real tokens, without caches: those know where their rows start.
        positions: (n,) or (b, n), such as `masks.packed_positions(documents)`; by default they go on where the caches end, or
                   count the real tokens of each row.
        caches:    one a block, as `new_caches` makes them.
        length:    that the whole text may have, for rotary scalings that depend on it; by default what there is.
        Packed documents must not see each other: give the blocks' `mask` as (b, 1, n, n), from `masks.packed(documents)`.
        """
        require_axes(tokens, "tokens", "batch length")
        require_indices(tokens, "tokens")
        given = positions is not None
        if mask is not None:
            require(not caches, "mask", "a mask", "None with caches, which know where their rows start")
            require(mask.dtype == torch.bool, "mask", mask.dtype, "boolean, True for real tokens")
            if mask.ndim == 2:
                require_axes(mask, "mask", "batch length", batch=tokens.shape[0], length=tokens.shape[1])
            else:
                require(mask.ndim == 4, "mask", tuple(mask.shape), "of 2 or 4 axes")
                masks.require_fits(mask, "mask", batch=tokens.shape[0], queries=tokens.shape[1], keys=tokens.shape[1])
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
            if caches:
                positions = caches[0].positions(caches[0].slots(tokens.shape[1], tokens.device))
            elif mask is not None and mask.ndim == 2:
                positions = masks.padded_positions(mask)
        else:
            axes = "length" if positions.ndim == 1 else "batch length"
            require_axes(positions, "positions", axes, batch=tokens.shape[0], length=tokens.shape[1])
        x = self.embedding(tokens)
        x = self.dropout(x if self.positions is None else x + self.positions(positions, x.dtype))
        places: dict[str, Any] = {"positions": positions} if given else {}
        if self.rotary is not None:
            places = {"positions": self.rotary.angles(positions, x.dtype, length)}
        seen = masks.for_keys(mask) if mask is not None and mask.ndim == 2 else mask
        for block, cache in zip(self.decoder, caches or [None] * len(self.decoder), strict=True):
            x = block(x, mask=seen, cache=cache, **places)
        return x if self.norm is None else self.norm(x)

    def logits(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., vocab_size)"""
        logits = self.embedding.logits(x) if self.output is None else self.output(x)
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()

    def forward(self, tokens: Tensor, mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """mask: (b, n), True for real tokens, or (b, 1, n, n), True where a token may look. positions: as `hidden`'s."""
        return self.logits(self.hidden(tokens, mask, positions))

    def next_logits(self, tokens: Tensor, caches: Sequence[Cache], length: int | Tensor | None = None) -> Tensor:
        """tokens (b, n) after what is in the caches -> logits (b, vocab_size) for the next one."""
        return self.logits(self.hidden(tokens, caches=caches, length=length)[:, -1])

    def new_caches(self, capacity: int, spare: int = 0) -> list[Cache]:
        """One a block; of attentions with a window, caches that keep no more than it, and `spare` tokens to go back by."""
        windows = [next((m.window for m in block.modules() if isinstance(m, MultiHeadAttention)), None) for block in self.decoder]
        return [Cache(capacity) if size is None or size + spare >= capacity else RollingCache(size + spare) for size in windows]

    def start(self, *, capacity: int, spare: int = 0) -> Decoding:
        """Begin to decode rows of up to `capacity` tokens, prompt and padding among them; see `zoo.generation.decoding`.

        spare: tokens that the decoder may go back by, where attentions have a window.
        """
        self.check_start(capacity, spare)
        return Decoding(self, capacity, spare)

    def check_start(self, capacity: int, spare: int = 0) -> None:
        """The errors of `start`: `ValueError` that names the argument."""
        require(capacity > 0, "capacity", capacity, "positive")
        require(spare >= 0, "spare", spare, "zero or more")
        if isinstance(self.positions, LearnedPositions):
            most = self.positions.max_positions
            require(capacity <= most, "capacity", capacity, f"{most} at most, the positions that the model has learned")

    def adapted(self, tensors: Mapping[str, Any], reference: str) -> dict[str, Any]:
        """Files of a model without output layer lack the body's prefix; files of old hold tables that a model computes itself."""
        if not reference:
            return dict(tensors)
        known = self.maps[reference].export(self).keys()
        body = f"{next(iter(known)).partition('.')[0]}."
        kept = {name: x for name, x in tensors.items() if not TABLES.search(name)}
        return {f"{body}{name}" if name not in known and f"{body}{name}" in known else name: x for name, x in kept.items()}

    def optimized(self, example: Tensor, dtype: torch.dtype) -> nn.Module:
        """A copy for inference whose `start` leads to a compiled step; see `zoo.optimize`."""
        from zoo.deployment.compiled_causal import optimize_causal  # which imports this module

        return optimize_causal(self, example, dtype)


def init_normal(std: float) -> Callable[[nn.Module], None]:
    """For `Module.apply`: N(0, std^2) for linear layers, zero biases."""

    def init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    return init


def gpt2(
    vocab_size: int,
    *,
    dim: int = 768,
    heads: int = 12,
    layers: int = 12,
    max_positions: int = 1024,
    hidden_dim: int | None = None,
    dropout: float = 0.1,
    embedding_std: float | None = 0.02,
) -> CausalLM:
    """GPT-2. What is added to the residual sum starts with std 0.02 / sqrt(2 layers).

    hidden_dim:    4 * dim unless given.
    embedding_std: of the embeddings at the start, None for dim^-0.5: beside 0.02, blocks of small models are too loud.
    """
    require(heads > 0 and dim % heads == 0, "heads", heads, f"positive and a divisor of dim {dim}")

    def block() -> EncoderBlock:
        attention = MultiHeadAttention(dim, heads, causal=True, dropout=dropout)
        feedforward = FeedForward(dim, hidden_dim or 4 * dim, activation=nn.GELU("tanh"))
        parts = (PreNorm(part, nn.LayerNorm(dim), nn.Dropout(dropout)) for part in (attention, feedforward))
        return EncoderBlock(*parts)

    model = CausalLM(
        TokenEmbedding(vocab_size, dim, std=embedding_std),
        [block() for _ in range(layers)],
        norm=nn.LayerNorm(dim),
        positions=LearnedPositions(max_positions, dim),
        dropout=dropout,
    )
    model.apply(init_normal(0.02))
    for name, weight in model.named_parameters():
        if name.endswith(("output.weight", "down.weight")):
            nn.init.normal_(weight, std=0.02 / (2 * layers) ** 0.5)
    model.references = {"huggingface": names_of_gpt2}
    return model


def llama(
    vocab_size: int,
    *,
    dim: int,
    heads: int,
    layers: int,
    hidden_dim: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    base: float = 10000.0,
    scaling: Mapping[str, Any] | None = None,
    window: int | None = None,
    bias: bool = False,
    output_bias: bool | None = None,
    query_key_norm: bool = False,
    experts: int | None = None,
    active: int = 2,
    tied: bool = False,
    eps: float = 1e-6,
    dropout: float = 0.0,
    embedding_std: float | None = 0.02,
) -> CausalLM:
    """Llama and its relatives; the numbers of published models are in `VARIANTS`.

    base, scaling:  of the rotary positions; scaling: its kind and its arguments, {"kind": "llama3", "factor": 32.0}.
    bias:           of queries, keys and values (Qwen2), output_bias: of the attention's output.
    query_key_norm: as in Qwen3. window: as in Mistral. experts, active: as in Mixtral.
    tied:           the embedding's table is the output layer too.
    dropout:        of the attention weights.
    embedding_std:  as GPT-2's.
    """
    require(heads > 0 and (head_dim is not None or dim % heads == 0), "heads", heads, f"positive and a divisor of dim {dim}")
    width = head_dim or dim // heads
    rotary, norm = Rotary(width, base, scaling=scaling_of(scaling)), partial(RMSNorm, eps=eps)

    def block() -> EncoderBlock:
        attention = MultiHeadAttention(
            dim, heads, kv_heads=kv_heads, head_dim=width, bias=bias, output_bias=output_bias, causal=True, window=window,
            dropout=dropout, positions=rotary, query_norm=norm(width) if query_key_norm else None,
            key_norm=norm(width) if query_key_norm else None,
        )  # fmt: skip
        feedforward = SwiGLU(dim, hidden_dim) if experts is None else MixtureOfExperts(dim, hidden_dim, experts, active)
        return EncoderBlock(PreNorm(attention, norm(dim)), PreNorm(feedforward, norm(dim)))

    model = CausalLM(
        TokenEmbedding(vocab_size, dim, std=embedding_std),
        [block() for _ in range(layers)],
        norm=norm(dim),
        rotary=rotary,
        output=None if tied else nn.Linear(dim, vocab_size, bias=False),
    )
    model.apply(init_normal(0.02))
    model.references = {"huggingface": names_of_llama}
    if experts is not None:
        model.references |= {"huggingface_files": names_of_mixtral}
    return model


def gemma(
    vocab_size: int,
    *,
    dim: int,
    heads: int,
    layers: int,
    hidden_dim: int,
    kv_heads: int,
    head_dim: int,
    base: float = 10000.0,
    scaling: Mapping[str, Any] | None = None,
    window: int | None = None,
    local_layers: int = 0,
    local_base: float | None = None,
    query_key_norm: bool = False,
    sandwich: bool = False,
    query_scale: float | None = None,
    attention_softcap: float | None = None,
    softcap: float | None = None,
    eps: float = 1e-6,
    dropout: float = 0.0,
) -> CausalLM:
    """Gemma 1, 2 and 3.

    window, local_layers: of every `local_layers` + 1 layers, all but the last look back `window` tokens only.
    local_base:  of their rotary positions, which are not scaled; None for the positions of the others.
    sandwich:    norms after attention and feed-forward network too.
    query_scale: scores are divided by its square root, by default by that of head_dim.
    attention_softcap, softcap: of scores and of logits.
    """
    require(local_layers >= 0, "local_layers", local_layers, "zero or more")
    require(window is not None or local_layers == 0, "window", window, "a number of tokens where there are local_layers")
    norm, rotary = partial(RMSNorm, eps=eps, offset=1.0), Rotary(head_dim, base, scaling=scaling_of(scaling))
    local = rotary if local_base is None else Rotary(head_dim, local_base)

    def wired(part: nn.Module) -> nn.Module:
        return SandwichNorm(part, norm(dim), norm(dim)) if sandwich else PreNorm(part, norm(dim))

    def block(n: int) -> EncoderBlock:
        near = local_layers > 0 and (n + 1) % (local_layers + 1) > 0
        norms = [norm(head_dim)] if query_key_norm else []
        scale = 1.0 if query_scale is None else (head_dim / query_scale) ** 0.5
        attention = MultiHeadAttention(
            dim, heads, kv_heads=kv_heads, head_dim=head_dim, bias=False, causal=True, window=window if near else None,
            dropout=dropout, softcap=attention_softcap, positions=local if near else rotary,
            query_norm=nn.Sequential(*norms, Scale(scale)), key_norm=norm(head_dim) if query_key_norm else None,
        )  # fmt: skip
        return EncoderBlock(wired(attention), wired(GEGLU(dim, hidden_dim, approximate="tanh")))

    model = CausalLM(
        TokenEmbedding(vocab_size, dim, std=0.02, scale=dim**0.5),
        [block(n) for n in range(layers)],
        norm=norm(dim),
        rotary=rotary if local_base is None else None,
        softcap=softcap,
    )
    model.apply(init_normal(0.02))
    model.references = {"huggingface": names_of_llama}
    return model


class Scale(nn.Module):
    """x -> factor * x"""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x if self.factor == 1 else x * self.factor


def scaling_of(given: Mapping[str, Any] | None) -> Scaling | None:
    """{"kind": "yarn", "factor": 4.0, ...} -> `YarnScaling(factor=4.0, ...)`."""
    if given is None:
        return None
    options = dict(given)
    kind = options.pop("kind", None)
    require(kind in SCALINGS, "scaling", given, f"a dictionary with a kind, one of {', '.join(SCALINGS)}")
    try:
        return SCALINGS[kind](**options)
    except TypeError as error:
        raise ValueError(f"scaling: {str(error).split('() ')[-1]}, got {given}") from error


LLAMA_3 = {"kind": "llama3", "factor": 8.0}
VARIANTS: dict[str, Callable[..., CausalLM]] = {
    # the small ones are for training on a CPU
    "gpt2": partial(gpt2, vocab_size=50257),
    "gpt2_medium": partial(gpt2, vocab_size=50257, dim=1024, heads=16, layers=24),
    "gpt2_large": partial(gpt2, vocab_size=50257, dim=1280, heads=20, layers=36),
    "gpt2_xl": partial(gpt2, vocab_size=50257, dim=1600, heads=25, layers=48),
    "gpt_small": partial(gpt2, dim=192, heads=6, layers=3, max_positions=256, dropout=0.0, embedding_std=None),
    "llama_small": partial(llama, dim=192, heads=6, layers=3, hidden_dim=512, tied=True, embedding_std=None),
    "llama2_7b": partial(llama, vocab_size=32000, dim=4096, heads=32, layers=32, hidden_dim=11008, eps=1e-5),
    "llama3_1b": partial(
        llama, vocab_size=128256, dim=2048, heads=32, kv_heads=8, layers=16, hidden_dim=8192, base=500000.0,
        scaling=LLAMA_3 | {"factor": 32.0}, tied=True, eps=1e-5,
    ),
    "llama3_8b": partial(
        llama, vocab_size=128256, dim=4096, heads=32, kv_heads=8, layers=32, hidden_dim=14336, base=500000.0,
        scaling=LLAMA_3, eps=1e-5,
    ),
    "smollm2_135m": partial(
        llama, vocab_size=49152, dim=576, heads=9, kv_heads=3, layers=30, hidden_dim=1536, base=100000.0, tied=True, eps=1e-5
    ),
    "mistral_7b": partial(
        llama, vocab_size=32000, dim=4096, heads=32, kv_heads=8, layers=32, hidden_dim=14336, window=4096, eps=1e-5
    ),
    "mixtral_8x7b": partial(
        llama, vocab_size=32000, dim=4096, heads=32, kv_heads=8, layers=32, hidden_dim=14336, base=1e6, experts=8, eps=1e-5
    ),
    "qwen3_0_6b": partial(
        llama, vocab_size=151936, dim=1024, heads=16, kv_heads=8, head_dim=128, layers=28, hidden_dim=3072, base=1e6,
        query_key_norm=True, tied=True,
    ),
    "gemma_2b": partial(gemma, vocab_size=256000, dim=2048, heads=8, kv_heads=1, head_dim=256, layers=18, hidden_dim=16384),
    "gemma2_2b": partial(
        gemma, vocab_size=256000, dim=2304, heads=8, kv_heads=4, head_dim=256, layers=26, hidden_dim=9216, window=4096,
        local_layers=1, sandwich=True, query_scale=256, attention_softcap=50.0, softcap=30.0,
    ),
    "gemma3_1b": partial(
        gemma, vocab_size=262144, dim=1152, heads=4, kv_heads=1, head_dim=256, layers=26, hidden_dim=6912, base=1e6, window=512,
        local_layers=5, local_base=10000.0, query_key_norm=True, sandwich=True, query_scale=256,
    ),
}  # fmt: skip


def names_of_gpt2(model: CausalLM) -> WeightMap:
    """Our names and those of `transformers.GPT2LMHeadModel`, whose linear layers are transposed."""
    ours, theirs = "decoder.{i}.attention.sublayer", "transformer.h.{i}.attn"
    return WeightMap(
        ("embedding.table.weight", "transformer.wte.weight lm_head.weight"),
        ("positions.table", "transformer.wpe"),
        ("decoder.{i}.attention.norm", "transformer.h.{i}.ln_1"),
        (" ".join(f"{ours}.{n}.weight" for n in ("query", "key", "value")), f"{theirs}.c_attn.weight", "qkv o i -> i (qkv o)"),
        (" ".join(f"{ours}.{n}.bias" for n in ("query", "key", "value")), f"{theirs}.c_attn.bias", "qkv o -> (qkv o)"),
        (f"{ours}.output.weight", f"{theirs}.c_proj.weight", "o i -> i o"),
        (f"{ours}.output.bias", f"{theirs}.c_proj.bias"),
        ("decoder.{i}.feedforward.norm", "transformer.h.{i}.ln_2"),
        ("decoder.{i}.feedforward.sublayer.up.weight", "transformer.h.{i}.mlp.c_fc.weight", "o i -> i o"),
        ("decoder.{i}.feedforward.sublayer.up.bias", "transformer.h.{i}.mlp.c_fc.bias"),
        ("decoder.{i}.feedforward.sublayer.down.weight", "transformer.h.{i}.mlp.c_proj.weight", "o i -> i o"),
        ("decoder.{i}.feedforward.sublayer.down.bias", "transformer.h.{i}.mlp.c_proj.bias"),
        ("norm", "transformer.ln_f"),
    )


def names_of_mixtral(model: CausalLM) -> WeightMap:
    """Our names and those in files of Mixtral's, which hold every expert apart."""
    return names_of_llama(model, by_expert=True)


def names_of_llama(model: CausalLM, by_expert: bool = False) -> WeightMap:
    """Our names and those of transformers' `LlamaForCausalLM`, and of its relatives' classes."""
    first: Any = model.decoder[0]
    sandwich, mixture = isinstance(first.attention, SandwichNorm), isinstance(first.feedforward.sublayer, MixtureOfExperts)
    attention, block = "decoder.{i}.attention.sublayer", "model.layers.{i}"
    tied = model.output is None
    rows: list[tuple[str, ...]] = [
        ("embedding.table.weight", "model.embed_tokens.weight" + (" lm_head.weight" if tied else "")),
        *([] if tied else [("output", "lm_head")]),
        *((f"{attention}.{n}", f"{block}.self_attn.{n[0]}_proj") for n in ("query", "key", "value", "output")),
        (f"{attention}.key_norm", f"{block}.self_attn.k_norm"),
        (f"{attention}.query_norm" + (".0" if sandwich else ""), f"{block}.self_attn.q_norm"),
        ("decoder.{i}.attention.norm", f"{block}.input_layernorm"),
        ("decoder.{i}.attention.after", f"{block}.post_attention_layernorm"),
        ("decoder.{i}.feedforward.norm", f"{block}.{'pre_feedforward' if sandwich else 'post_attention'}_layernorm"),
        ("decoder.{i}.feedforward.after", f"{block}.post_feedforward_layernorm"),
        ("norm", "model.norm"),
    ]
    feedforward = "decoder.{i}.feedforward.sublayer"
    if mixture and by_expert:
        numbers = range(len(first.feedforward.sublayer.gate))
        rows.append((f"{feedforward}.router", f"{block}.block_sparse_moe.gate"))
        for ours, theirs in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
            names = " ".join(f"{block}.block_sparse_moe.experts.{e}.{theirs}.weight" for e in numbers)
            rows.append((f"{feedforward}.{ours}", names, "e o i -> e o i"))
    elif mixture:
        rows += [
            (f"{feedforward}.router", f"{block}.mlp.gate"),
            (f"{feedforward}.gate {feedforward}.up", f"{block}.mlp.experts.gate_up_proj", "gu e o i -> e (gu o) i"),
            (f"{feedforward}.down", f"{block}.mlp.experts.down_proj"),
        ]
    else:
        rows += [(f"{feedforward}.{n}", f"{block}.mlp.{n}_proj") for n in ("gate", "up", "down")]
    return WeightMap(*(row for row in rows if sandwich or ".after" not in row[0]))
