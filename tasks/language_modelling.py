"""How well a language model foretells a text, in bits per byte."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from tasks.data.documents import Document
    from tasks.data.tokenizer import TextTokenizer


class Foretold(NamedTuple):
    """Sums over texts, of which every token counts once, the one that ends each text among them."""

    nats: float
    tokens: int
    bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers, and with compressors."""
        return self.nats / math.log(2) / self.bytes

    @property
    def perplexity(self) -> float:
        """Of a token: comparable between models of one tokenizer."""
        return math.exp(self.nats / self.tokens)


def foretell(
    model: Any, tokenizer: TextTokenizer, documents: Sequence[Document], *, context: int, stride: int, batch_size: int = 16
) -> Iterator[Foretold]:
    """How well each document is foretold: each token out of the last context - stride ones at least, where there are so many."""
    import torch
    from torch.nn import functional as F

    from tasks.data.windows import IGNORED, collate, strided

    device = next(model.parameters()).device
    encoded = tokenizer.encode_batch([document.text for document in documents])
    for document, ids in zip(documents, encoded, strict=True):
        nats, count = 0.0, 0
        windows = strided([ids], tokenizer.eos, context, stride)
        for start in range(0, len(windows), batch_size):
            tokens, labels = (x.to(device) for x in collate(windows[start : start + batch_size], tokenizer.pad_or_eos))
            with torch.inference_mode():
                logits = model(tokens).float().flatten(0, 1)
                nats += float(F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="sum"))
            count += int((labels != IGNORED).sum())
        yield Foretold(nats, count, len(document.text.encode()))


def total(found: Sequence[Foretold]) -> Foretold:
    return Foretold(*(sum(numbers) for numbers in zip(*found, strict=True)))
