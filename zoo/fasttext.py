"""fastText: a text is the sum of the vectors of its n-grams, and a linear layer tells its class from that.

    Joulin et al., "Bag of Tricks for Efficient Text Classification", 2016 (arXiv 1607.01759); n-grams of characters: Bojanowski
    et al., "Enriching Word Vectors with Subword Information", 2016 (arXiv 1607.04606)

An n-gram is 1 to `grams` neighbouring tokens: with a tokenizer of characters, pieces of words and whole ones. There are too many
for a table, so that each takes the row that its hash says; a few share one.

Differs from theirs, a mean: an n-gram counts once a text, and weighs the more the fewer texts have it (inverse document
frequencies: Sparck Jones, 1972), and the more it tells of the class (supervised term weighting: Debole and Sebastiani, 2003); the
weights of a text have length 1. Proven against `nn.EmbeddingBag`, with n-grams listed one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    weights: Tensor
    """(buckets,): what an n-gram weighs, set by `weigh`."""

    def __init__(self, embedding: TokenEmbedding, head: nn.Module, *, vocab_size: int, grams: int, dropout: float = 0.0) -> None:
        super().__init__()
        require(vocab_size > 0, "vocab_size", vocab_size, "positive")
        require(grams > 0, "grams", grams, "positive")
        require(0 <= dropout < 1, "dropout", dropout, "a probability below 1")
        self.embedding, self.head, self.dropout = embedding, head, nn.Dropout(dropout)
        self.vocab_size, self.grams = vocab_size, grams
        self.register_buffer("weights", torch.ones(embedding.table.num_embeddings))

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: boolean (b, n), True for real tokens, None where all are; the others must be before or after all of them.

        Errors: `ValueError` for sizes and dtypes that do not fit, and on the CPU for unknown tokens.
        """
        require_tokens(tokens, "tokens", "batch length")
        require_mask(mask, "mask", "batch length", tokens)
        require(tokens.shape[1] > 0, "tokens", tuple(tokens.shape), "of one token a row at least")
        if tokens.is_cpu and not is_traced():
            require_known(tokens, "tokens", self.vocab_size)
        rows, real = self.distinct(tokens, torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask)
        x = self.embedding(rows)
        weights = torch.where(real, self.weights[rows], 0.0).to(x.dtype)
        weights = self.dropout(weights / weights.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12))
        return self.head((x * weights[..., None]).sum(1))

    def distinct(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the table (b, m) for the n-grams of each text, in order, and which of them count: the first of each row."""
        rows, real = self.hashed(tokens, mask)
        none = self.embedding.table.num_embeddings
        rows = rows.masked_fill(~real, none).sort(1).values
        before = rows.narrow(1, 0, rows.shape[1] - 1)  # of rows[:, :-1], torch 2.6 exports no batch of any size
        first = rows != F.pad(before, (1, 0), value=-1)
        return rows.clamp(max=none - 1), first & (rows != none)

    def optimized(self, example: Tensor, dtype: torch.dtype) -> nn.Module:
        """Errors: `ValueError`: a text's tokens are hashed and looked up, and nothing is multiplied that is worth a compiler."""
        raise ValueError(
            "model must be no FastText to be optimized: it looks rows up and multiplies next to nothing; use it as it is"
        )

    def adapted(self, tensors: Mapping[str, Tensor], reference: str) -> dict[str, Tensor]:
        """Without what only another head has."""
        return {name: x for name, x in tensors.items() if name in self.state_dict() or not name.startswith("head.")}

    @torch.no_grad()
    def weigh(self, texts: Iterable[Sequence[int]], labels: Iterable[int] | None = None) -> None:
        """Set the weights by texts to train on, of which d of t have an n-gram: 1 + log((1 + t) / (1 + d)).

        labels: the classes of the texts. An n-gram then weighs sqrt(KL(q | p)) times as much, p being the classes of all n-grams
                and q those of the texts that have it, with two more as p has them. One of no text weighs the mean of the others.
        Errors: `ValueError` where there are other classes than the head has, more or fewer than texts, or no texts with labels.
        """
        pairs = ((ids, 0) for ids in texts) if labels is None else zip(texts, labels, strict=True)
        head: Any = self.head
        classes = 1 if labels is None else head.output.out_features
        having, total = self.weights.new_zeros(len(self.weights), classes), 0
        for total, (ids, label) in enumerate(pairs, 1):  # noqa: B007
            tokens = torch.tensor([[*ids]], device=having.device)
            rows, real = self.distinct(tokens, torch.ones_like(tokens, dtype=torch.bool))
            require(labels is None or 0 <= label < classes, "labels", label, f"from 0 to {classes - 1}")
            having[rows[real], label] += 1
        require(labels is None or total > 0, "texts", "none", "one at least")
        count = having.sum(1)
        weights = 1 + torch.log((1 + total) / (1 + count))
        if labels is not None:
            p = (having.sum(0) / having.sum()).clamp(min=1e-12)
            q = (having + 2 * p) / (count + 2)[:, None]
            weights = weights * (q * (q / p).log()).sum(1).clamp(min=0).sqrt()
            weights = torch.where(count > 0, weights, weights[count > 0].mean())
        self.weights.copy_(weights)

    def hashed(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the table for all n-grams, (b, n), (b, n - 1) ... side by side, and which of them have real tokens only."""
        buckets, rows, real = self.embedding.table.num_embeddings, [], []
        values, whole = torch.zeros_like(tokens, dtype=torch.int64), torch.ones_like(mask)
        for n in range(min(self.grams, tokens.shape[1])):
            size = tokens.shape[1] - n
            values = values.narrow(1, 0, size) * BASE + tokens.narrow(1, n, size) + 1
            whole = whole.narrow(1, 0, size) & mask.narrow(1, n, size)
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
    dim: int = 24,
    grams: int = 5,
    buckets: int = 131_072,
    dropout: float = 0.3,
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
    """Our names and those of an `nn.EmbeddingBag`, its weights and an `nn.Linear`."""
    return WeightMap(("embedding.table", "bag"), ("weights", "weights"), ("head.output", "output"))


VARIANTS: dict[str, Callable[..., FastText]] = {"fasttext": partial(fasttext)}
