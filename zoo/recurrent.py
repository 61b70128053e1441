"""Recurrent networks that read and write texts: a language model, and an encoder of both directions with heads on its states.

    language model   Mikolov et al., "Recurrent neural network based language model", 2010; LSTM: Zaremba et al., 2014 (arXiv
                     1409.2329); one table for input and output: Press and Wolf, 2016 (arXiv 1608.05859)
    encoder          Graves and Schmidhuber, "Framewise Phoneme Classification with Bidirectional LSTM", 2005

The networks are those of `layers.recurrent`. Proven against `nn.Embedding`, `nn.RNN`, `nn.LSTM`, `nn.GRU` and `nn.Linear`, put
together as in PyTorch's example `word_language_model`, whose names `maps["torch"]` knows, and which has a `scale` of 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from layers.cells import State
from layers.checks import require
from layers.embedding import TokenEmbedding
from layers.recurrent import GRU, LSTM, RNN, Recurrent, rows
from layers.weights import WeightMap
from zoo.generation.recurrent import RecurrentDecoding
from zoo.heads import AnswerHead, LastStates, MaxStates, MeanStates, SequenceHead, TokenHead
from zoo.model import LanguageModel, Model
from zoo.transformer import require_mask, require_tokens


class RecurrentLM(LanguageModel):
    """tokens (b, n) -> logits (b, n, vocab_size) for what follows each token.

    recurrent:  of one direction.
    projection: module (..., output_dim) -> (..., dim), for a network whose output is not as wide as the embedding.
    output:     module (..., output_dim or dim) -> (..., vocab_size); None for the embedding's table and a bias, "tied".
    dropout:    of the embeddings, and of what the network puts out.
    """

    def __init__(
        self,
        embedding: TokenEmbedding,
        recurrent: Recurrent,
        *,
        projection: nn.Module | None = None,
        output: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require(0 <= dropout < 1, "dropout", dropout, "a probability below 1")
        require(recurrent.directions == 1, "recurrent", f"{recurrent.directions} directions", "of one direction")
        dim = embedding.table.embedding_dim
        fits = recurrent.output_dim == dim or projection is not None or output is not None
        require(fits, "projection", projection, f"a module from {recurrent.output_dim} to {dim} for an output of the embedding")
        self.embedding, self.recurrent, self.dropout = embedding, recurrent, nn.Dropout(dropout)
        self.projection, self.output = projection, output
        self.bias = nn.Parameter(torch.zeros(embedding.table.num_embeddings)) if output is None else None

    def hidden(self, tokens: Tensor, mask: Tensor | None = None, state: State | None = None) -> tuple[Tensor, State]:
        """tokens (b, n) -> (b, n, output_dim), ready for `logits`, and the state that goes on.

        mask:  boolean (b, n), True for real tokens; the others are skipped, on whichever side they are.
        state: that an earlier call has left; by default the beginning of a text.
        """
        require_tokens(tokens, "tokens", "batch length")
        require_mask(mask, "mask", "batch length", tokens)
        x, state = self.recurrent(self.dropout(self.embedding(tokens)), state, mask=mask)
        return self.dropout(x), state

    def logits(self, x: Tensor) -> Tensor:
        """x (..., output_dim) -> (..., vocab_size)"""
        x = x if self.projection is None else self.projection(x)
        return self.embedding.logits(x, self.bias) if self.output is None else self.output(x)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: as `hidden`'s; logits at padding mean nothing."""
        return self.logits(self.hidden(tokens, mask)[0])

    def next_logits(self, tokens: Tensor, state: State | None = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """tokens (b, n) after what the state knows -> logits (b, vocab_size) for the next one, and the state after them.

        mask: (b, n), False for padding on the left.
        """
        x, state = self.hidden(tokens, mask, state)
        return self.logits(x[:, -1]), state

    def start(self, *, capacity: int, spare: int = 0) -> RecurrentDecoding:
        """Begin to decode rows of up to `capacity` tokens, prompt and padding among them; see `zoo.generation.decoding`.

        spare: 0, for a state does not go back, so that there is no speculative decoding.
        """
        require(capacity > 0, "capacity", capacity, "positive")
        require(spare == 0, "spare", spare, "0: the state of a recurrent model does not go back")
        return RecurrentDecoding(self, capacity)

    def optimized(self, example: Tensor, dtype: torch.dtype) -> nn.Module:
        """Errors: `ValueError`: what there is to compute is in torch's kernels already."""
        raise ValueError(f"model must be no recurrent language model to be optimized: {KERNELS}")


class RecurrentEncoder(Model):
    """tokens (b, n) -> states (b, n, output_dim), or what a head makes of them, as in `zoo.bert`.

    head:    module (states, mask, embedding) -> outputs; None for the states themselves.
    dropout: of the embeddings.
    """

    def __init__(
        self, embedding: TokenEmbedding, recurrent: Recurrent, *, head: nn.Module | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        require(0 <= dropout < 1, "dropout", dropout, "a probability below 1")
        self.embedding, self.recurrent, self.dropout, self.head = embedding, recurrent, nn.Dropout(dropout), head
        self.outputs = ("states",) if head is None else getattr(head, "outputs", ("logits",))
        self.output_layers = ("head.output",) if isinstance(getattr(head, "output", None), nn.Linear) else ()

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Any:
        """The inputs of `encode` -> its states, or the head's outputs, which mean nothing where a token is padding."""
        states = self.encode(tokens, mask)
        return states if self.head is None else self.head(states, mask, self.embedding)

    def encode(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """tokens (b, n) -> states (b, n, output_dim), zeros for padding. mask: boolean (b, n), True for real tokens."""
        require_tokens(tokens, "tokens", "batch length")
        require_mask(mask, "mask", "batch length", tokens)
        return self.recurrent(self.dropout(self.embedding(tokens)), mask=mask)[0]

    def optimized(self, example: Tensor, dtype: torch.dtype) -> nn.Module:
        """Errors: `ValueError`: what there is to compute is in torch's kernels already."""
        raise ValueError(f"model must be no recurrent encoder to be optimized: {KERNELS}")

    def adapted(self, tensors: Mapping[str, Tensor], reference: str) -> dict[str, Tensor]:
        """Without what only another head has."""
        return {name: x for name, x in tensors.items() if name in self.state_dict() or not name.startswith("head.")}


# -------------------------------------------------------------------------------------------------------------------- variants

KERNELS = "it runs in torch's kernels for whole layers, which compilers leave out of their graphs; use it as it is"
Kind = Callable[..., Recurrent]
"""`RNN`, `LSTM` or `GRU`."""


def language_model(
    kind: Kind,
    vocab_size: int,
    *,
    dim: int,
    hidden_dim: int | None = None,
    layers: int,
    dropout: float = 0.0,
    tied: bool = True,
    scale: float | None = None,
) -> RecurrentLM:
    """hidden_dim: dim unless given; another is projected to dim. dropout: between layers too. tied: see `RecurrentLM`.

    scale: factor of the embeddings, sqrt(dim) unless given; a table that puts out logits too begins with small numbers, and a
           network that sees such learns slowly.
    """
    width = hidden_dim or dim
    recurrent = kind(dim, width, layers=layers, dropout=dropout if layers > 1 else 0.0)
    projection = nn.Linear(width, dim, bias=False) if tied and width != dim else None
    output = None if tied else nn.Linear(width, vocab_size)
    embedding = TokenEmbedding(vocab_size, dim, scale=dim**0.5 if scale is None else scale)
    model = RecurrentLM(embedding, recurrent, projection=projection, output=output, dropout=dropout)
    model.references = {"torch": names_of_torch}
    return model


def encoder(
    kind: Kind,
    vocab_size: int,
    *,
    dim: int,
    hidden_dim: int | None = None,
    layers: int,
    dropout: float = 0.0,
    padding: int = 0,
    head: str | None = None,
    num_classes: int | None = None,
    pooling: str = "last",
) -> RecurrentEncoder:
    """hidden_dim:  of each direction, dim unless given; states are twice as wide.
    padding:     token that fills up short rows; its embedding starts as zeros and is not trained by them.
    head:        None, or "sequence", "tokens" or "answer".
    num_classes: of the heads "sequence" and "tokens"; 2 unless given.
    pooling:     of the head "sequence": "last" for where both directions end, "mean" or "max" over real tokens.
    """
    width, classes = 2 * (hidden_dim or dim), num_classes or 2
    require(pooling in POOLINGS, "pooling", pooling, f"one of {', '.join(POOLINGS)}")
    choices: dict[str, Callable[[], nn.Module]] = {
        "sequence": lambda: SequenceHead(POOLINGS[pooling](width), classes, dropout=dropout),
        "tokens": lambda: TokenHead(width, classes, dropout=dropout),
        "answer": lambda: AnswerHead(width, dropout=dropout),
    }
    require(head is None or head in choices, "head", head, f"None or one of {', '.join(choices)}")
    right = "positive" if head in ("sequence", "tokens") else f"None for the head {head!r}"
    require(num_classes is None or (right == "positive" and num_classes > 0), "num_classes", num_classes, right)
    recurrent = kind(dim, width // 2, layers=layers, bidirectional=True, dropout=dropout if layers > 1 else 0.0)
    embedding = TokenEmbedding(vocab_size, dim, padding=padding, std=1.0)  # as `nn.Embedding`
    return RecurrentEncoder(embedding, recurrent, head=None if head is None else choices[head](), dropout=dropout)


POOLINGS = {"last": LastStates, "mean": MeanStates, "max": MaxStates}
VARIANTS: dict[str, Callable[..., Model]] = {
    # the small ones are for training on a CPU
    "rnn_small": partial(language_model, RNN, dim=256, layers=1),
    "lstm_small": partial(language_model, LSTM, dim=256, layers=1),
    "gru_small": partial(language_model, GRU, dim=256, layers=1),
    # Zaremba et al.: 20 and 66 million parameters at 10,000 words
    "lstm_medium": partial(language_model, LSTM, dim=650, layers=2, dropout=0.5, tied=False, scale=1.0),
    "lstm_large": partial(language_model, LSTM, dim=1500, layers=2, dropout=0.65, tied=False, scale=1.0),
    "bilstm_small": partial(encoder, LSTM, dim=128, layers=1),
    "bigru_small": partial(encoder, GRU, dim=128, layers=1, pooling="max"),
}


def names_of_torch(model: RecurrentLM) -> WeightMap:
    """Our names and those of PyTorch's example `word_language_model`; a `projection` comes before its `decoder`."""
    network = [(ours, f"rnn.{theirs}") for ours, theirs in rows("recurrent.cells", "")]
    if model.output is not None:
        return WeightMap(*network, ("embedding.table.weight", "encoder.weight"), ("output", "decoder"))
    table = ("embedding.table.weight", "encoder.weight decoder.weight")
    return WeightMap(*network, table, ("bias", "decoder.bias"), ("projection", "projection"))
