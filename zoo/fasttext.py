"""fastText: a text is the sum of the vectors of its n-grams, over the root of their number, and a linear layer tells its class.

    Joulin et al., "Bag of Tricks for Efficient Text Classification", 2016 (arXiv 1607.01759); n-grams of characters: Bojanowski
    et al., "Enriching Word Vectors with Subword Information", 2016 (arXiv 1607.04606); theirs is the mean, which makes long texts
    faint where vectors are small

An n-gram is 1 to `grams` neighbouring tokens: with a tokenizer of characters, pieces of words and whole ones. There are too many
for a table, so that each takes the row that its hash says; a few share one. Proven against `nn.EmbeddingBag`, with n-grams listed
one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from layers.checks import is_traced, require
from layers.embedding import TokenEmbedding, require_known
from layers.weights import WeightMap
from zoo.model import Model
from zoo.transformer import require_mask, require_tokens

BASE = 1_000_003
"""Of the hash, a prime: h <- BASE h + token + 1, in 64 bits; then every length has an odd factor of its own."""


class FastText(Model):
    """tokens (b, n) -> logits (b, num_classes).

    embedding: of hashed n-grams, as many as there are buckets.
    head:      module (b, dim) -> (b, num_classes), with a linear layer `output`.
    grams:     length of the longest n-grams, in tokens.
    dropout:   of n-grams.
    """

    output_layers = ("head.output",)

    def __init__(self, embedding: TokenEmbedding, head: nn.Module, *, vocab_size: int, grams: int, dropout: float = 0.0) -> None:
        super().__init__()
        require(vocab_size > 0, "vocab_size", vocab_size, "positive")
        require(grams > 0, "grams", grams, "positive")
        require(0 <= dropout < 1, "dropout", dropout, "a probability below 1")
        self.embedding, self.head, self.dropout = embedding, head, nn.Dropout(dropout)
        self.vocab_size, self.grams = vocab_size, grams

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: boolean (b, n), True for real tokens, None where all are; the others must be before or after all of them.

        Errors: `ValueError` for sizes and dtypes that do not fit, and on the CPU for unknown tokens.
        """
        require_tokens(tokens, "tokens", "batch length")
        require_mask(mask, "mask", "batch length", tokens)
        require(tokens.shape[1] > 0, "tokens", tuple(tokens.shape), "of one token a row at least")
        if tokens.is_cpu and not is_traced():
            require_known(tokens, "tokens", self.vocab_size)
        mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        rows, real = self.hashed(tokens, mask)
        x = self.embedding(rows)
        weights = self.dropout(real.to(x.dtype) / real.sum(1, keepdim=True).clamp(min=1).to(x.dtype).sqrt())
        return self.head((x * weights[..., None]).sum(1))

    def hashed(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the table for all n-grams, (b, n), (b, n - 1) ... side by side, and which of them have real tokens only."""
        buckets, rows, real = self.embedding.table.num_embeddings, [], []
        values, whole = torch.zeros_like(tokens, dtype=torch.int64), torch.ones_like(mask)
        for n in range(min(self.grams, tokens.shape[1])):
            size = tokens.shape[1] - n
            values, whole = values[:, :size] * BASE + tokens[:, n:] + 1, whole[:, :size] & mask[:, n:]
            mixed = values * (2 * n + 1)
            rows.append((mixed ^ (mixed >> 17)) % buckets)
            real.append(whole)
        return torch.cat(rows, 1), torch.cat(real, 1)


class ClassHead(nn.Module):
    """Dropout and one linear layer: (b, dim) -> (b, num_classes)."""

    def __init__(self, dim: int, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        require(num_classes > 0, "num_classes", num_classes, "positive")
        self.dropout, self.output = nn.Dropout(dropout), nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.dropout(x))


def fasttext(
    vocab_size: int,
    *,
    dim: int = 32,
    grams: int = 5,
    buckets: int = 65_536,
    dropout: float = 0.2,
    head: str = "sequence",
    num_classes: int = 2,
) -> FastText:
    """head: "sequence", the only one there is. dropout: of n-grams, and of what the head sees."""
    require(head == "sequence", "head", head, "'sequence'")
    require(dim > 0, "dim", dim, "positive")
    embedding = TokenEmbedding(buckets, dim, std=0.1 * dim**-0.5)
    model = FastText(embedding, ClassHead(dim, num_classes, dropout=dropout), vocab_size=vocab_size, grams=grams, dropout=dropout)
    model.references = {"torch": names_of_torch}
    return model


def names_of_torch(model: FastText) -> WeightMap:
    """Our names and those of an `nn.EmbeddingBag` and an `nn.Linear`."""
    return WeightMap(("embedding.table", "bag"), ("head.output", "output"))


VARIANTS: dict[str, Callable[..., FastText]] = {"fasttext": partial(fasttext)}
