"""The Transformer: Vaswani et al., "Attention Is All You Need", 2017 (arXiv 1706.03762).

An encoder reads the source; a decoder writes the target, each position attending to those before it and to the whole memory that
the encoder leaves. Post-norm, sinusoidal positions, one embedding table for source, target and output, as in the paper; other
wirings are other blocks, see `docs/compose.md`. Proven against Hugging Face's Marian and `nn.Transformer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers import masks
from layers.attention import MultiHeadAttention
from layers.checks import require, require_axes
from layers.embedding import TokenEmbedding, require_indices, require_known
from layers.feedforward import FeedForward
from layers.positions import LearnedPositions, Rotary, Sinusoidal
from layers.transformer import DecoderBlock, EncoderBlock, PostNorm, PreNorm
from layers.weights import WeightMap
from zoo.generation.encoder_decoder import Caches, Decoding
from zoo.model import EncoderDecoder


class Transformer(EncoderDecoder):
    """source tokens (b, n), target tokens (b, m) -> logits (b, m, vocab_size) for what follows each target token.

    encoder, decoder: blocks (b, n, dim) -> (b, n, dim), such as those of `encoder_block` and `decoder_block`.
    embedding: shared by source, target and output.
    positions: module positions (n,) or (b, n) -> (..., dim), added to the embeddings; None where the attentions have their own.
    encoder_norm, decoder_norm: after the last blocks, for pre-norm stacks.
    dropout:   of the sums of embeddings and positions.
    bias:      whether the output has one.
    """

    def __init__(
        self,
        encoder: Sequence[nn.Module],
        decoder: Sequence[nn.Module],
        embedding: TokenEmbedding,
        *,
        positions: nn.Module | None = None,
        encoder_norm: nn.Module | None = None,
        decoder_norm: nn.Module | None = None,
        dropout: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        require(0 <= dropout < 1, "dropout", dropout, "a probability below 1")
        self.embedding, self.positions, self.dropout = embedding, positions, nn.Dropout(dropout)
        self.encoder, self.decoder = nn.ModuleList(encoder), nn.ModuleList(decoder)
        self.encoder_norm, self.decoder_norm = encoder_norm, decoder_norm
        self.bias = nn.Parameter(torch.zeros(embedding.table.num_embeddings)) if bias else None

    def parts(self) -> dict[str, nn.Module]:
        """embedding, encoder1, ..., encoder_norm, decoder1, ..., decoder_norm."""
        found = super().parts()
        return {
            name: found[name]
            for name in sorted(found, key=lambda name: name.startswith(("encoder", "decoder")) + name.startswith("decoder"))
        }

    def embed(self, tokens: Tensor, positions: Tensor | None = None, real: Tensor | None = None) -> Tensor:
        """tokens (b, n) -> (b, n, dim)

        positions: (n,) or (b, n); by default they count the real tokens of each row, from 0. real: (b, n), None where all are.
        """
        x = self.embedding(tokens)
        if self.positions is not None:
            places = torch.arange(tokens.shape[1], device=tokens.device) if positions is None else positions
            added = self.positions(places, x.dtype)
            if positions is None and real is not None:  # looked up, for sines of b * n places would take longer than those of n
                added = F.embedding(masks.padded_positions(real), added)
            x = x + added
        return self.dropout(x)

    def encode(self, source: Tensor, source_mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """source (b, n), source_mask (b, n), True for real tokens -> memory (b, n, dim).

        positions: (n,) or (b, n), for packed documents, such as `masks.packed_positions(documents)`; by default those of the
                   real tokens in their row, from 0, on whichever side they are padded.
        """
        require_tokens(source, "source", "batch source_length")
        require_mask(source_mask, "source_mask", "batch source_length", source)
        places = require_positions(positions, "batch source_length", source)
        x, mask = self.embed(source, positions, source_mask), None if source_mask is None else masks.for_keys(source_mask)
        for block in self.encoder:
            x = block(x, mask=mask, **places)
        return x if self.encoder_norm is None else self.encoder_norm(x)

    def decode(
        self,
        target: Tensor,
        memory: Tensor,
        target_mask: Tensor | None = None,
        source_mask: Tensor | None = None,
        caches: Caches | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """target (b, m), memory (b, n, dim) -> (b, m, dim), ready for `logits`.

        With caches, one pair a block, the target goes on where they end, and target_mask covers what is in them too.
        positions: (m,) or (b, m), for packed documents; by default those that the caches say, or as in `encode`.
        """
        require_tokens(target, "target", "batch target_length", batch=memory.shape[0])
        require_mask(source_mask, "source_mask", "batch source_length", memory)
        places = require_positions(positions, "batch target_length", target)
        if caches and positions is None:
            positions = caches[0][0].positions(caches[0][0].slots(target.shape[1], target.device))
        elif target_mask is not None and not caches:
            require_mask(target_mask, "target_mask", "batch target_length", target)
        x = self.embed(target, positions, target_mask)
        mask = None if target_mask is None else masks.for_keys(target_mask)
        memory_mask = None if source_mask is None else masks.for_keys(source_mask)
        for block, cache in zip(self.decoder, caches or [None] * len(self.decoder), strict=True):
            x = block(x, memory, mask=mask, memory_mask=memory_mask, cache=cache, **places)
        return x if self.decoder_norm is None else self.decoder_norm(x)

    def logits(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., vocab_size)"""
        return self.embedding.logits(x, self.bias)

    def forward(
        self, source: Tensor, target: Tensor, source_mask: Tensor | None = None, target_mask: Tensor | None = None
    ) -> Tensor:
        memory = self.encode(source, source_mask)
        return self.logits(self.decode(target, memory, target_mask, source_mask))

    def alignments(self, source: Tensor, target: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """(b, m, n): what the last block looks at where the token after each target token is written, the mean over its heads."""
        last: Any = self.decoder[-1]
        attention = last.cross_attention.sublayer
        given: list[tuple[Any, Any]] = []
        hook = attention.register_forward_pre_hook(lambda module, *inputs: given.append(inputs), with_kwargs=True)
        try:
            self(source, target, source_mask)
        finally:
            hook.remove()
        args, options = given[0]
        return attention(*args, **options, return_weights=True)[1].mean(1)

    def next_logits(self, tokens: Tensor, memory: Tensor, source_mask: Tensor | None, caches: Caches) -> Tensor:
        """One step of decoding: tokens (b, n) after what is in the caches -> logits (b, vocab_size) for the next one."""
        return self.logits(self.decode(tokens, memory, source_mask=source_mask, caches=caches)[:, -1])

    def start(self, source: Tensor, source_mask: Tensor | None = None, *, capacity: int) -> Decoding:
        """Begin to decode up to `capacity` target tokens, a prompt and its padding among them; see `zoo.generation.decoding`."""
        self.check_start(source, source_mask, capacity)
        with torch.no_grad():
            return Decoding(self, self.encode(source, source_mask), source_mask, capacity)

    def check_start(self, source: Tensor, source_mask: Tensor | None, capacity: int) -> None:
        """The errors of `start`: `ValueError` that names the argument."""
        require_axes(source, "source", "batch source_length")
        require_indices(source, "source")
        if source.is_cpu:  # a GPU is not worth waiting for
            require_known(source, "source", self.embedding.table.num_embeddings)
        require_mask(source_mask, "source_mask", "batch source_length", source)
        require(capacity > 0, "capacity", capacity, "positive")
        if isinstance(self.positions, LearnedPositions):
            longest, most = max(source.shape[1], capacity), self.positions.max_positions
            require(longest <= most, "source and capacity", longest, f"{most} at most")

    def optimized(self, example: Tensor, dtype: torch.dtype) -> nn.Module:
        """A copy for inference whose `start` leads to compiled programs; see `zoo.optimize`."""
        from zoo.deployment.compiled_decoding import optimize_decoding  # which imports this module

        return optimize_decoding(self, example, dtype)


def require_tokens(tokens: Tensor, name: str, axes: str, **sizes: int) -> None:
    """`ValueError` for other axes, sizes or dtypes."""
    require_axes(tokens, name, axes, **sizes)
    require_indices(tokens, name)


def require_mask(mask: Tensor | None, name: str, axes: str, like: Tensor) -> None:
    """`ValueError` for a mask that does not tell which of `like` (b, n, ...) are real."""
    if mask is not None:
        require_axes(mask, name, axes, **dict(zip(axes.split(), like.shape[:2], strict=True)))
        require(mask.dtype == torch.bool, name, mask.dtype, "boolean, True for real tokens")


def require_positions(positions: Tensor | None, axes: str, like: Tensor) -> dict[str, Tensor]:
    """What blocks get, once it is known to fit tokens (b, n)."""
    if positions is None:
        return {}
    known = axes if positions.ndim == 2 else axes.split()[-1]
    require_axes(positions, "positions", known, **dict(zip(axes.split(), like.shape, strict=True)))
    return {"positions": positions}


def encoder_block(
    dim: int, heads: int, hidden_dim: int, dropout: float = 0.0, activation: nn.Module | None = None
) -> EncoderBlock:
    """The paper's: self-attention and feed-forward network, each followed by dropout, the residual sum and a layer norm."""
    return EncoderBlock(
        PostNorm(MultiHeadAttention(dim, heads), nn.LayerNorm(dim), nn.Dropout(dropout)),
        PostNorm(FeedForward(dim, hidden_dim, activation=activation), nn.LayerNorm(dim), nn.Dropout(dropout)),
    )


def decoder_block(
    dim: int, heads: int, hidden_dim: int, dropout: float = 0.0, activation: nn.Module | None = None
) -> DecoderBlock:
    """The paper's: as the encoder's, the self-attention causal, with an attention to the memory between."""
    return DecoderBlock(
        PostNorm(MultiHeadAttention(dim, heads, causal=True), nn.LayerNorm(dim), nn.Dropout(dropout)),
        PostNorm(MultiHeadAttention(dim, heads), nn.LayerNorm(dim), nn.Dropout(dropout)),
        PostNorm(FeedForward(dim, hidden_dim, activation=activation), nn.LayerNorm(dim), nn.Dropout(dropout)),
    )


def build(
    vocab_size: int,
    *,
    dim: int,
    heads: int,
    hidden_dim: int,
    layers: int,
    dropout: float = 0.1,
    padding: int = 0,
    interleaved: bool = True,
    activation: str = "relu",
    bias: bool = False,
) -> Transformer:
    """The options of the paper's variants.

    padding:     token that fills up short rows; its embedding is zeros and is not trained by them.
    interleaved: sines and cosines alternate, as in the paper; else the sines come first, as in Marian.
    activation:  "relu", or "silu" as in Marian. bias: of the output, as in Marian.
    """
    require(activation in ACTIVATIONS, "activation", activation, f"one of {', '.join(ACTIVATIONS)}")
    act = ACTIVATIONS[activation]
    model = Transformer(
        [encoder_block(dim, heads, hidden_dim, dropout, act()) for _ in range(layers)],
        [decoder_block(dim, heads, hidden_dim, dropout, act()) for _ in range(layers)],
        TokenEmbedding(vocab_size, dim, scale=dim**0.5, padding=padding),
        positions=Sinusoidal(dim, interleaved=interleaved),
        dropout=dropout,
        bias=bias,
    )
    model.references = {"torch": names_of_torch} | ({"huggingface": names_of_marian} if bias and not interleaved else {})
    model.apply(init_xavier)
    return model


def init_xavier(module: nn.Module) -> None:
    """Glorot's uniform law and zero biases for every linear layer, as in tensor2tensor and `nn.Transformer`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}


def transformer_small(
    vocab_size: int,
    *,
    dim: int = 128,
    heads: int = 4,
    hidden_dim: int = 512,
    layers: int = 2,
    dropout: float = 0.0,
    padding: int = 0,
) -> Transformer:
    """For small data and a CPU, wired as today: norms first, rotary positions instead of sines. It learns twice as fast."""

    require(heads > 0 and dim % heads == 0, "heads", heads, f"positive and a divisor of dim {dim}")

    def attention(rotary: bool = False, causal: bool = False) -> PreNorm:
        positions = Rotary(dim // heads) if rotary else None
        block = MultiHeadAttention(dim, heads, causal=causal, positions=positions)
        return PreNorm(block, nn.LayerNorm(dim), nn.Dropout(dropout))

    def feedforward() -> PreNorm:
        return PreNorm(FeedForward(dim, hidden_dim), nn.LayerNorm(dim), nn.Dropout(dropout))

    model = Transformer(
        [EncoderBlock(attention(rotary=True), feedforward()) for _ in range(layers)],
        [DecoderBlock(attention(rotary=True, causal=True), attention(), feedforward()) for _ in range(layers)],
        TokenEmbedding(vocab_size, dim, scale=dim**0.5, padding=padding),
        encoder_norm=nn.LayerNorm(dim),
        decoder_norm=nn.LayerNorm(dim),
        dropout=dropout,
    )
    model.apply(init_xavier)
    return model


VARIANTS: dict[str, Callable[..., Transformer]] = {
    # the paper's base and big models: 63 and 214 million parameters at 37,000 tokens. Options are those of `build`
    "transformer_base": partial(build, dim=512, heads=8, hidden_dim=2048, layers=6),
    "transformer_big": partial(build, dim=1024, heads=16, hidden_dim=4096, layers=6, dropout=0.3),
    "transformer_small": transformer_small,
}


def attention_rows(ours: str, theirs: str) -> list[tuple[str, str]]:
    return [
        (f"{ours}.{a}", f"{theirs}.{b}") for a, b in zip(("query", "key", "value", "output"), MARIAN_PROJECTIONS, strict=True)
    ]


MARIAN_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


def names_of_marian(model: Transformer, max_positions: int = 512) -> WeightMap:
    """Our names and those of `transformers.MarianMTModel`; the model needs a `bias` and positions that are not interleaved.

    max_positions: length of the table of sines that they keep; 512 in the published models.
    """
    dim = model.embedding.table.embedding_dim
    rows: list[tuple[str, str]] = []
    for side in ("encoder", "decoder"):
        block = f"model.{side}.layers.{{i}}"
        rows += attention_rows(f"{side}.{{i}}.attention.sublayer", f"{block}.self_attn")
        rows += [
            (f"{side}.{{i}}.attention.norm", f"{block}.self_attn_layer_norm"),
            (f"{side}.{{i}}.feedforward.sublayer.up", f"{block}.fc1"),
            (f"{side}.{{i}}.feedforward.sublayer.down", f"{block}.fc2"),
            (f"{side}.{{i}}.feedforward.norm", f"{block}.final_layer_norm"),
        ]
    rows += attention_rows("decoder.{i}.cross_attention.sublayer", "model.decoder.layers.{i}.encoder_attn")
    table = Sinusoidal(dim, interleaved=False)(torch.arange(max_positions), torch.float64)
    tables = {f"model.{side}.embed_positions.weight": table for side in ("encoder", "decoder")}
    shared = " ".join(f"model.{name}.weight" for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens"))
    return WeightMap(
        *rows,
        ("decoder.{i}.cross_attention.norm", "model.decoder.layers.{i}.encoder_attn_layer_norm"),
        ("embedding.table.weight", f"{shared} lm_head.weight"),
        ("bias", "final_logits_bias", "v -> 1 v"),
        derived=tables,
    )


def torch_rows(ours: str, theirs: str) -> list[tuple[str, ...]]:
    """A `MultiHeadAttention` and an `nn.MultiheadAttention` of one width."""
    return [
        (" ".join(f"{ours}.{n}.weight" for n in ("query", "key", "value")), f"{theirs}.in_proj_weight", "qkv o i -> (qkv o) i"),
        (" ".join(f"{ours}.{n}.bias" for n in ("query", "key", "value")), f"{theirs}.in_proj_bias", "qkv o -> (qkv o)"),
        (f"{ours}.output", f"{theirs}.out_proj"),
    ]


def names_of_torch(model: Transformer) -> WeightMap:
    """Our names and those of an `nn.Transformer` of the same blocks; what that lacks, embedding and bias, keeps our names.

    Its default stacks end with a norm, which the paper's post-norm models lack: pass it stacks with ``norm=None``.
    """
    rows: list[tuple[str, ...]] = [
        ("encoder.{i}.feedforward.norm", "encoder.layers.{i}.norm2"),
        ("decoder.{i}.cross_attention.norm", "decoder.layers.{i}.norm2"),
        ("decoder.{i}.feedforward.norm", "decoder.layers.{i}.norm3"),
        *torch_rows("decoder.{i}.cross_attention.sublayer", "decoder.layers.{i}.multihead_attn"),
        *((name, name) for name in ("embedding", "bias")),
    ]
    for side in ("encoder", "decoder"):
        rows += torch_rows(f"{side}.{{i}}.attention.sublayer", f"{side}.layers.{{i}}.self_attn")
        rows += [
            (f"{side}.{{i}}.feedforward.sublayer.up", f"{side}.layers.{{i}}.linear1"),
            (f"{side}.{{i}}.feedforward.sublayer.down", f"{side}.layers.{{i}}.linear2"),
            (f"{side}.{{i}}.attention.norm", f"{side}.layers.{{i}}.norm1"),
            (f"{side}_norm", f"{side}.norm"),
        ]
    return WeightMap(*rows)
