"""How texts go on from their prompts, a token at a time: one by itself, or many that share the calls of the model.

This is continuous batching, or iteration-level scheduling (Yu et al., Orca, OSDI 2022): texts come and go between any two tokens.
Each has rules, random numbers and an end of its own; prompts of unequal lengths are padded on the left, and whoever ends or
leaves takes no more room. What is left of the company is rounding, for a batch adds up in another order. A greedy text is what it
is alone: where `sure` sees that rounding might decide, it is computed again without the others, and goes on so. A drawn text is
another one as rarely as a random number falls between two that differ in their last digits.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor

    from tasks.data.tokenizer import TextTokenizer

Pieces = Generator[str, None, tuple[int, bool]]
"""A piece a token; returned is how many tokens there were, and whether the text has ended by itself."""
CLOSE = 1e-4
"""Logits, relative to the largest, that rounding might put in another order. What was met is a hundredth of it."""


def generate(model: Any, tokenizer: TextTokenizer, prompt: str, **options: Any) -> Pieces:
    """The text that follows, a piece a token, each of whole characters; options are those of `Text`.

    It ends with the document, or after so many tokens, and what is left of it then.
    """
    return Text(model, tokenizer, prompt, **options).pieces()


class Text:
    """A text that is being written; `pieces` gives what is ready, and else has the batch that it is in go on.

    context: tokens that the model sees at most; a longer text goes on from the last half of it.
    choose:  a `Sampler`, or None for the likeliest token. rules: those of `zoo.generation.constraints`.
    """

    def __init__(
        self, model: Any, tokenizer: TextTokenizer, prompt: str, *, context: int, max_new_tokens: int, choose: Any = None,
        **rules: Any,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.context, self.most = model, tokenizer, context, max_new_tokens
        self.choose, self.rules = choose, rules | {"forbidden": tuple({tokenizer.pad_or_eos} - {tokenizer.eos})}
        self.new: list[int] = []
        self.shown, self.done = "", 0
        self.ready: deque[str] = deque()
        self.batch: Batch | None = None
        self.end: bool | Exception | None = None
        """Whether it has ended by itself, or what has kept it from going on; None while it goes on."""
        self.see([tokenizer.eos, *tokenizer.encode(prompt)])

    def see(self, tokens: list[int]) -> None:
        """The model begins with these, or with the last ones if they are too many."""
        from zoo.generation.constraints import Constraints

        self.window = tokens[-(self.context // 2) :] if len(tokens) >= self.context else tokens
        self.first, self.told, self.batch = len(self.window), 0, None
        self.shared = False
        """Whether of what the model remembers anything has been computed together with others."""
        least = max(0, self.rules.get("min_new_tokens", 0) - self.done)
        self.constraints = Constraints(**self.rules | {"min_new_tokens": least, "stop": (self.tokenizer.eos,)})

    @property
    def room(self) -> int:
        """Tokens that it may still get before it is over, or the model begins anew."""
        return min(self.most - self.done, self.context - len(self.window))

    def pieces(self) -> Pieces:
        try:
            while True:
                if self.ready:
                    yield self.ready.popleft()
                elif isinstance(self.end, Exception):
                    raise self.end
                elif self.end is not None:
                    return self.done, self.end
                else:
                    (self.batch or Batch([self])).step()
        finally:  # also where nobody wants more of it
            self.end, self.batch = self.end or False, None

    def take(self, logits: Tensor) -> None:
        """The next token. logits: (1, vocab_size)."""
        import torch

        from zoo.generation.decoding import likeliest

        try:
            past, self.told = torch.tensor([self.window[self.told :]], device=logits.device), len(self.window)
            before = copy.copy(self.constraints)
            values = self.constraints(logits, past)
            if self.shared and self.choose is None and not sure(values):
                self.constraints, values = before, before(self.alone(), past)
            token = int((self.choose or likeliest)(values, self.done)[0])
        except Exception as error:
            self.batch, self.end = None, error
        else:
            self.put(token)

    def alone(self) -> Tensor:
        """(1, vocab_size): what follows, computed step by step as it is without company.

        From here on the text stays alone until it begins anew, so that no token of it is computed more than twice.
        """
        import torch

        rest, device = self.window[self.first :], next(self.model.parameters()).device
        decoder = self.model.start(capacity=len(rest) + self.first + self.room)
        logits = decoder(torch.tensor([self.window[: self.first]], device=device))
        for token in rest:
            logits = decoder(torch.tensor([[token]], device=device))
        self.shared = False
        Batch([self], decoder)
        return logits

    def put(self, token: int) -> None:
        self.done += 1
        ended = token == self.tokenizer.eos
        if not ended:
            self.new.append(token)
        text = self.tokenizer.decode(self.new)  # what follows a text: byte-level tokens keep their spaces
        whole = ended or not text.endswith("\N{REPLACEMENT CHARACTER}")
        self.ready.append(text[len(self.shown) :] if whole else "")
        self.shown = text if whole else self.shown
        if not ended and self.done == self.most:
            self.ready.append(text[len(self.shown) :])
        if ended or self.done == self.most:
            self.batch, self.end = None, ended
        elif len(self.window) + 1 >= self.context:
            self.see([*self.window, token])
        else:
            self.window.append(token)


def sure(logits: Tensor) -> bool:
    """Whether the likeliest token of (1, vocab_size) is so much likelier than the next one that rounding does not matter."""
    if logits.shape[1] < 2:
        return True
    first, second = logits[0].float().topk(2).values.tolist()
    if second == -math.inf:
        return True
    return first - second > CLOSE * max(abs(first), abs(second), 1.0)


class Batch:
    """Texts of one model, for all of which one call of it gives the next token. Texts leave by having another `batch`, or none.

    One that fails as a whole falls apart into its texts, so that none suffers from another. decoder: of a text that is to stay
    alone, with all of it but the last token.
    """

    def __init__(self, texts: Sequence[Text], decoder: Any = None) -> None:
        self.texts, self.decoder, self.open = [*texts], decoder, decoder is None
        self.capacity = 0 if decoder is None else decoder.capacity
        self.own()

    def own(self) -> None:
        for text in self.texts:
            text.batch, text.shared = self, text.shared or len(self.texts) > 1

    def keep(self) -> None:
        """Those who have left take no more room. They leave at any time: their client's thread is another one."""
        import torch

        kept = [n for n, text in enumerate(self.texts) if text.batch is self and text.end is None]
        if self.decoder is not None and 0 < len(kept) < len(self.texts):
            self.decoder.select(torch.tensor(kept, device=next(self.texts[0].model.parameters()).device))
        self.texts = [self.texts[n] for n in kept]

    def step(self) -> None:
        """A token for each text, or what is wrong with it."""
        self.keep()
        if not self.texts:
            return
        try:
            logits = self.logits()
        except Exception as error:
            if len(self.texts) == 1:
                self.texts[0].batch, self.texts[0].end = None, error
            else:
                for text in self.texts:
                    Batch([text])
            return
        texts, full = self.texts, self.decoder.length >= self.capacity
        for text, row in zip(texts, logits.split(1), strict=True):
            text.take(row)
            if full and text.batch is self:
                text.batch = None

    def logits(self) -> Tensor:
        """(texts, vocab_size) for what comes next."""
        import torch

        model, longest = self.texts[0].model, max(len(text.window) for text in self.texts)
        device = next(model.parameters()).device
        if self.decoder is not None:
            return self.decoder(torch.tensor([text.window[-1:] for text in self.texts], device=device))
        self.capacity = min(self.texts[0].context, longest + max(text.room for text in self.texts))
        decoder = model.start(capacity=self.capacity)
        gaps = [longest - len(text.window) for text in self.texts]
        pad = self.texts[0].tokenizer.pad_or_eos
        tokens = torch.tensor([[pad] * gap + text.window for gap, text in zip(gaps, self.texts, strict=True)], device=device)
        mask = torch.arange(longest, device=device) >= torch.tensor(gaps, device=device)[:, None]
        logits = decoder(tokens, mask=mask) if any(gaps) else decoder(tokens)
        self.decoder = decoder
        return logits

    def join(self, other: Batch, most: int) -> bool:
        """Takes in the texts of another batch that has begun too, if together they are `most` at most, and may be joined."""
        self.keep()
        other.keep()
        texts = self.texts + other.texts
        if not (self.open and other.open and self.texts and other.texts and len(texts) <= most):
            return False
        if not (self.decoder.joinable and other.decoder.joinable):
            return False
        capacity = max(len(text.window) for text in texts) + max(text.room for text in texts)
        self.decoder.join(other.decoder, capacity)
        self.texts, self.capacity = texts, capacity
        self.own()
        return True


def share_calls(texts: Iterable[Text], most: int) -> None:
    """Texts whose next pieces are about to be asked for share calls of the model from now on, `most` of them at most."""
    waiting = [text for text in texts if not text.ready and text.end is None]
    found = dict.fromkeys([text.batch for text in waiting])  # read once: whoever leaves has none, at any time
    batches = [batch for batch in found if batch is not None and batch.decoder is not None]
    kept: list[Batch] = []
    for batch in batches:
        if not any(one.join(batch, most) for one in kept):
            kept.append(batch)
    group: list[Text] = []
    for text in sorted((text for text in waiting if text.batch is None), key=lambda text: len(text.window)):
        if group and (len(group) == most or len(text.window) > 2 * len(group[0].window) + 16):  # or most of it were padding
            Batch(group)
            group = []
        group.append(text)
    if group:
        Batch(group)
