"""Recurrent encoder-decoders with attention, which translated before the Transformer did.

    Bahdanau   GRU; the state before a step chooses what the step sees of the source; additive scores      2014 (arXiv 1409.0473)
    Luong      LSTM; the state after a step does, and what was seen is input of the next step; products    2015 (arXiv 1508.04025)

An encoder reads the source in both directions. One table embeds source and target, times sqrt(dim), and puts out logits, as in
`zoo.transformer`; the papers have three tables and no factor. Proven against the papers' formulas over torch's cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.alignment import AdditiveAttention, Alignment, MultiplicativeAttention, Remembered
from layers.cells import GRUCell, LSTMCell, State
from layers.checks import require, require_axes
from layers.embedding import TokenEmbedding, require_indices, require_known
from layers.recurrent import GRU, LSTM, Recurrent
from zoo.generation.recurrent import Seq2SeqDecoding
from zoo.model import EncoderDecoder
from zoo.transformer import require_mask, require_tokens


class Seq2Seq(EncoderDecoder):
    """source tokens (b, n), target tokens (b, m) -> logits (b, m, vocab_size) for what follows each target token.

    embedding: shared by source, target and output.
    encoder:   of both directions.
    decoder:   such as `BahdanauDecoder`, for the encoder's output.
    dropout:   of the embeddings, and of what the decoder puts out.
    """

    def __init__(self, embedding: TokenEmbedding, encoder: Recurrent, decoder: AttentionDecoder, *, dropout: float = 0.0) -> None:
        super().__init__()
        require(0 <= dropout < 1, "dropout", dropout, "a probability below 1")
        require(encoder.directions == 2, "encoder", f"{encoder.directions} direction", "of both directions")
        width = decoder.attention.memory_dim
        require(
            width == encoder.output_dim, "memory_dim of the decoder", width, f"{encoder.output_dim}, what the encoder puts out"
        )
        self.embedding, self.encoder, self.decoder, self.dropout = embedding, encoder, decoder, nn.Dropout(dropout)
        self.bias = nn.Parameter(torch.zeros(embedding.table.num_embeddings))

    def encode(self, source: Tensor, source_mask: Tensor | None = None) -> tuple[Remembered, State]:
        """source (b, n), source_mask (b, n), True for real tokens -> the memory, and the state that a decoder begins with.

        Padding is skipped, on whichever side it is.
        """
        require_tokens(source, "source", "batch source_length")
        require_mask(source_mask, "source_mask", "batch source_length", source)
        memory, last = self.encoder(self.dropout(self.embedding(source)), mask=source_mask)
        return self.decoder.attention.remember(memory, source_mask), self.decoder.start(last)

    def decode(
        self, target: Tensor, memory: Remembered, state: State, target_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, State]:
        """target (b, m) after what the state knows -> (b, m, dim), ready for `logits`; weights (b, m, n); the state after it.

        target_mask: (b, m), True for real tokens; the others are skipped, and what is put out there means nothing.
        """
        require_tokens(target, "target", "batch target_length", batch=memory.memory.shape[0])
        require_mask(target_mask, "target_mask", "batch target_length", target)
        x, weights, state = self.decoder(self.dropout(self.embedding(target)), memory, state, target_mask)
        return self.dropout(x), weights, state

    def logits(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., vocab_size)"""
        return self.embedding.logits(x, self.bias)

    def forward(
        self, source: Tensor, target: Tensor, source_mask: Tensor | None = None, target_mask: Tensor | None = None
    ) -> Tensor:
        return self.logits(self.decode(target, *self.encode(source, source_mask), target_mask)[0])

    def alignments(self, source: Tensor, target: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """(b, m, n): how much of each source token is seen where the token after each target token is written."""
        return self.decode(target, *self.encode(source, source_mask))[1]

    def next_logits(self, tokens: Tensor, state: State, mask: Tensor | None, memory: Remembered) -> tuple[Tensor, State]:
        """One step of decoding: tokens (b, n) after what the state knows -> logits (b, vocab_size), and the state after them."""
        x, _, state = self.decode(tokens, memory, state, mask)
        return self.logits(x[:, -1]), state

    def start(self, source: Tensor, source_mask: Tensor | None = None, *, capacity: int) -> Seq2SeqDecoding:
        """Begin to decode up to `capacity` target tokens, a prompt and its padding among them; see `zoo.generation.decoding`."""
        require_axes(source, "source", "batch source_length")
        require_indices(source, "source")
        if source.is_cpu:  # a GPU is not worth waiting for
            require_known(source, "source", self.embedding.table.num_embeddings)
        require(capacity > 0, "capacity", capacity, "positive")
        with torch.no_grad():
            memory, state = self.encode(source, source_mask)
        return Seq2SeqDecoding(self, capacity, state, memory)

    def optimized(self, example: Tensor, dtype: torch.dtype) -> nn.Module:
        """Errors: `ValueError`: there is no program for it."""
        raise ValueError("model must be a Transformer for its decoding to be compiled, got a Seq2Seq: use it as it is")


class AttentionDecoder(nn.Module):
    """Abstract: embeddings x (b, m, dim) -> (b, m, dim), ready for the output, by steps that look at a memory.

    attention: for the encoder's output. cells: one a layer.
    """

    def __init__(self, attention: Alignment, cells: Sequence[nn.Module]) -> None:
        super().__init__()
        self.attention, self.cells = attention, nn.ModuleList(cells)

    def start(self, last: State) -> State:
        """The encoder's last state, of tensors (b, layers * 2, d) -> tensors (b, ...), with which the decoder begins."""
        raise NotImplementedError

    def step(self, x: Tensor, memory: Remembered, state: State) -> tuple[Tensor, Tensor, State]:
        """x (b, dim) -> what `readout` needs of the step (b, d), weights (b, n), the next state."""
        raise NotImplementedError

    def readout(self, x: Tensor, seen: Tensor) -> Tensor:
        """x (b, m, dim), what steps have left (b, m, d) -> (b, m, dim), of all steps at once."""
        raise NotImplementedError

    def forward(self, x: Tensor, memory: Remembered, state: State, mask: Tensor | None = None) -> tuple[Tensor, Tensor, State]:
        """-> output (b, m, dim), weights (b, m, n), the state after the last real token. mask: (b, m), True for real tokens."""
        require(x.shape[1] > 0, "target", tuple(x.shape[:2]), "of one token a row at least")
        seen, weights = [], []
        for t in range(x.shape[1]):
            own, weight, after = self.step(x.select(1, t), memory, state)  # of x[:, t], torch 2.6 exports no batch of any size
            real = None if mask is None else mask.select(1, t)
            state = after if real is None else tuple(kept(real, new, old) for new, old in zip(after, state, strict=True))
            seen.append(own)
            weights.append(weight)
        return self.readout(x, torch.stack(seen, 1)), torch.stack(weights, 1), state

    def advance(self, layer: int, x: Tensor, state: State) -> State:
        """A cell's step, without the checks of its call: many of them would take longer than a small step."""
        cell: Any = self.cells[layer]
        return cell.step(cell.input(x), state)

    def look(self, query: Tensor, memory: Remembered) -> tuple[Tensor, Tensor]:
        """query (b, d) -> context (b, memory_dim), weights (b, n)."""
        context, weights = self.attention(query.unsqueeze(1), memory)
        return context.squeeze(1), weights.squeeze(1)


def kept(real: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """new (b, ...) where real (b,), else old."""
    return torch.where(real.reshape(-1, *[1] * (new.ndim - 1)), new, old)


class BahdanauDecoder(AttentionDecoder):
    """s' = GRU([y; c], s), where c is what s sees of the memory; output: the larger of each two numbers of A [s'; c; y] + a.

    The first state is tanh(W s + w) of where the encoder's backward direction ends. Differs from the paper in that the output
    depends on s', as in its equation 4, not on s, as in its appendix; and in its GRU, see `layers.cells`.
    """

    def __init__(self, dim: int, memory_dim: int, hidden_dim: int) -> None:
        super().__init__(AdditiveAttention(hidden_dim, memory_dim, hidden_dim), [GRUCell(dim + memory_dim, hidden_dim)])
        self.first = nn.Linear(memory_dim // 2, hidden_dim)
        self.output = nn.Linear(hidden_dim + memory_dim + dim, 2 * dim)

    def start(self, last: State) -> State:
        return (self.first(last[0].select(1, -1)).tanh(),)

    def step(self, x: Tensor, memory: Remembered, state: State) -> tuple[Tensor, Tensor, State]:
        context, weights = self.look(state[0], memory)
        state = self.advance(0, torch.cat([x, context], -1), state)
        return torch.cat([state[0], context], -1), weights, state

    def readout(self, x: Tensor, seen: Tensor) -> Tensor:
        return self.output(torch.cat([seen, x], -1)).unflatten(-1, (-1, 2)).amax(-1)


class LuongDecoder(AttentionDecoder):
    """h', c' = LSTM([y; o], h, c); o' = tanh(W [m; h']), where m is what h' sees of the memory; output: o'. The first o is zeros.

    That o' goes into the next step is the paper's input feeding. The first state is the encoder's last, both directions side by
    side, where the paper's encoder has one direction; so a direction has half of the decoder's hidden_dim.
    dropout: between layers.
    """

    def __init__(self, dim: int, hidden_dim: int, layers: int, dropout: float = 0.0) -> None:
        cells = [LSTMCell(hidden_dim if n else 2 * dim, hidden_dim) for n in range(layers)]
        super().__init__(MultiplicativeAttention(hidden_dim, hidden_dim), cells)
        self.output, self.dropout = nn.Linear(2 * hidden_dim, dim, bias=False), dropout

    def start(self, last: State) -> State:
        h, c = (part.unflatten(1, (-1, 2)).flatten(2) for part in last)
        return h.new_zeros(h.shape[0], self.output.out_features), h, c

    def step(self, x: Tensor, memory: Remembered, state: State) -> tuple[Tensor, Tensor, State]:
        fed, *before = state
        x, after = torch.cat([x, fed], -1), []
        for n in range(len(self.cells)):
            x = F.dropout(x, self.dropout, self.training) if n else x
            after.append(self.advance(n, x, tuple(part.select(1, n) for part in before)))
            x = after[-1][0]
        context, weights = self.look(x, memory)
        fed = self.output(torch.cat([context, x], -1)).tanh()
        return fed, weights, (fed, *(torch.stack(parts, 1) for parts in zip(*after, strict=True)))

    def readout(self, x: Tensor, seen: Tensor) -> Tensor:
        return seen


# -------------------------------------------------------------------------------------------------------------------- variants


def seq2seq_bahdanau(
    vocab_size: int, *, dim: int = 128, hidden_dim: int = 256, dropout: float = 0.0, padding: int = 0
) -> Seq2Seq:
    """For small data and a CPU; the paper's has dim 620 and hidden_dim 1000, of the decoder and of each direction.

    padding: token that fills up short rows; its embedding starts as zeros and is not trained by them.
    """
    encoder, decoder = GRU(dim, hidden_dim, bidirectional=True), BahdanauDecoder(dim, 2 * hidden_dim, hidden_dim)
    return Seq2Seq(TokenEmbedding(vocab_size, dim, scale=dim**0.5, padding=padding), encoder, decoder, dropout=dropout)


def seq2seq_luong(
    vocab_size: int, *, dim: int = 128, hidden_dim: int = 256, layers: int = 1, dropout: float = 0.0, padding: int = 0
) -> Seq2Seq:
    """For small data and a CPU; the paper's has dim and hidden_dim 1000, 4 layers and dropout 0.2.

    hidden_dim: of the decoder; each direction of the encoder has half of it. layers: of both. dropout: between layers too.
    padding:    as in `seq2seq_bahdanau`.
    """
    require(hidden_dim > 0 and hidden_dim % 2 == 0, "hidden_dim", hidden_dim, "positive and even, for two directions")
    between = dropout if layers > 1 else 0.0
    encoder = LSTM(dim, hidden_dim // 2, layers=layers, bidirectional=True, dropout=between)
    decoder = LuongDecoder(dim, hidden_dim, layers, between)
    return Seq2Seq(TokenEmbedding(vocab_size, dim, scale=dim**0.5, padding=padding), encoder, decoder, dropout=dropout)


VARIANTS: dict[str, Callable[..., Seq2Seq]] = {"seq2seq_bahdanau": seq2seq_bahdanau, "seq2seq_luong": seq2seq_luong}
