"""How well a language model foretells a text, in bits per byte, and how it goes on from a prompt."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
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


def generate(
    model: Any,
    tokenizer: TextTokenizer,
    prompt: str,
    *,
    context: int,
    max_new_tokens: int,
    choose: Any = None,
    **rules: Any,
) -> Generator[str, None, tuple[int, bool]]:
    """The text that follows, a piece a token, each of whole characters: it is empty where a token ends within one.

    It ends with the document, or after so many tokens, and what is left of it then.

    Returns how many tokens it was, and whether the document has ended.

    context: tokens that the model sees at most; a longer text goes on from the last half of it.
    choose:  a `Sampler`, or None for the likeliest token. rules: those of `zoo.generation.constraints`.
    """
    import torch

    from zoo.generation import decoding

    device = next(model.parameters()).device
    known, new, shown, done = [tokenizer.eos, *tokenizer.encode(prompt)], [], "", 0
    choose = choose or decoding.likeliest
    while done < max_new_tokens:
        seen = known[-(context // 2) :] if len(known) >= context else known
        most = min(max_new_tokens - done, context - len(seen))
        decoder = model.start(capacity=len(seen) + most)
        steps = decoding.stream(
            decoder,
            torch.tensor([seen], device=device),
            max_new_tokens=most,
            stop=(tokenizer.eos,),
            pad=tokenizer.eos,
            choose=lambda logits, step, before=done: choose(logits, before + step),
            **rules | {"forbidden": tuple({tokenizer.pad_or_eos} - {tokenizer.eos})},
        )
        for token in (int(step[0]) for step in steps):
            done += 1
            known.append(token)
            if token == tokenizer.eos:
                yield text_of(tokenizer, new)[len(shown) :]
                return done, True
            new.append(token)
            text = text_of(tokenizer, new)
            whole = not text.endswith("\N{REPLACEMENT CHARACTER}")
            yield text[len(shown) :] if whole else ""
            shown = text if whole else shown
    yield text_of(tokenizer, new)[len(shown) :]
    return done, False


def text_of(tokenizer: TextTokenizer, ids: Sequence[int]) -> str:
    """What follows a text: byte-level tokens keep their spaces."""
    return tokenizer.decode(ids)
