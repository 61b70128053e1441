"""Speculative decoding: a cheap draft proposes several tokens, the model looks at all at once, and keeps what it would say.

Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", 2022 (arXiv 2211.17192); Chen et al., 2023 (arXiv
2302.01318). A draft proposes what it holds likeliest, so that a proposed x is kept with the probability p(x) that the model gives
it, and else the model draws among the other tokens: together, x comes as often as the model alone would say it. Greedily, x is
kept if it is the model's own choice.

    prompt_lookup    what followed the last tokens where they stood before: for code, summaries, answers out of a text
    DraftModel       a smaller model of the same vocabulary

Rows of a batch keep as many tokens as the row that keeps fewest, so that none depends on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from layers.checks import require
from zoo.generation.decoding import as_tokens, check, check_logits, likeliest
from zoo.generation.past import Past
from zoo.generation.sampling import Sampler, uniform

Draft = Callable[[Sequence[Sequence[int]], int], Tensor]
"""(the tokens of each row so far, k) -> (b, k or fewer) proposals for what comes next."""


class Speculated(NamedTuple):
    tokens: Tensor
    """(b, t): the new tokens; a row that has stopped goes on with `pad`."""
    calls: int
    """How often the model was called; without a draft, t times."""


@torch.no_grad()
def speculate(
    decoder: Any,
    prompt: Tensor,
    *,
    draft: Draft,
    max_new_tokens: int,
    lookahead: int = 8,
    stop: int | Sequence[int] = (),
    pad: int = 0,
    prompt_mask: Tensor | None = None,
    sampler: Sampler | None = None,
) -> Speculated:
    """As `decoding.greedy`, or drawn by the sampler: the same tokens, or the same law, with fewer calls of the model.

    decoder:   as ``model.start(capacity=n + max_new_tokens, spare=lookahead)`` gives one: it looks at several tokens at once,
               and goes back.
    lookahead: most tokens that are proposed at a time.
    Draws of the sampler are another sequence than `decoding.sample`'s: two random numbers for each token.
    Errors: those of `decoding.stream`; and for a decoder that cannot go back.
    """
    stop = as_tokens(stop)
    check(decoder, prompt, max_new_tokens, stop, pad, prompt_mask)
    require(lookahead > 0, "lookahead", lookahead, "positive")
    require(isinstance(decoder, Past) and hasattr(decoder, "all_logits"), "decoder", type(decoder).__name__,
            "one that goes back, as a CausalLM's")  # fmt: skip
    b, ends = len(prompt), torch.tensor(stop, dtype=torch.long, device=prompt.device)
    real = torch.ones_like(prompt, dtype=torch.bool) if prompt_mask is None else prompt_mask
    texts = [row[seen].tolist() for row, seen in zip(prompt, real, strict=True)]
    logits = decoder(prompt) if prompt_mask is None else decoder(prompt, mask=prompt_mask)
    check_logits(logits, b, stop, pad)
    kept, calls = choose(logits[:, None], prompt[:, :0], sampler, 0), 1
    found, stopped = [kept], torch.isin(kept[:, -1], ends)
    while (done := sum(x.shape[1] for x in found)) < max_new_tokens and not (stop and bool(stopped.all())) and b > 0:
        for row, new in zip(texts, kept.tolist(), strict=True):
            row += new
        most = min(lookahead, max_new_tokens - done - 1)
        proposed = draft(texts, most)[:, :most].to(prompt) if most else prompt[:, :0]
        length = decoder.length
        logits = decoder.all_logits(torch.cat([kept[:, -1:], proposed], 1))
        calls += 1
        new = choose(logits, proposed, sampler, done, stopped)
        decoder.truncate(length + new.shape[1])
        if stop:  # after a row's end there is padding only
            after = torch.isin(new, ends).cumsum(1) - torch.isin(new, ends).int() > 0
            new = new.masked_fill(after | stopped[:, None], pad)
            stopped = stopped | torch.isin(new, ends).any(1)
        kept = new
        found.append(new)
    tokens = torch.cat(found, 1)
    if stop and bool(stopped.all()):  # no longer than the longest row
        longest = (torch.isin(tokens, ends).int().cumsum(1) == 0).sum(1) + 1
        tokens = tokens[:, : int(longest.max()) if b else 0]
    return Speculated(tokens, calls)


def choose(logits: Tensor, proposed: Tensor, sampler: Sampler | None, step: int, stopped: Tensor | None = None) -> Tensor:
    """logits (b, k + 1, vocab_size), proposals (b, k) -> (b, 1 to k + 1): those that every row keeps, and one token more.

    step: the number of the first of them. stopped: (b,), rows that keep whatever is proposed.
    """
    k = proposed.shape[1]
    if sampler is None:
        own = torch.stack([likeliest(logits[:, n], step + n) for n in range(k + 1)], 1)
        agreed = own[:, :k] == proposed
    else:
        seeds = sampler.seeds_for(logits[:, 0])
        weights = torch.stack([sampler.weights(logits[:, n]) for n in range(k + 1)], 1)
        shares = weights[:, :k].gather(-1, proposed[..., None])[..., 0] / weights[:, :k].sum(-1)
        agreed = torch.stack([uniform(seeds, 2 * (step + n)) for n in range(k)], 1) < shares if k else proposed.bool()
        others = torch.cat([weights[:, :k].scatter(-1, proposed[..., None], 0.0), weights[:, k:]], 1)
        own = torch.stack([draw(others[:, n], uniform(seeds, 2 * (step + n) + 1)) for n in range(k + 1)], 1)
        own = torch.cat([proposed.where(agreed, own[:, :k]), own[:, k:]], 1)
    agreed = agreed if stopped is None else agreed | stopped[:, None]
    count = int(agreed.cumprod(1).sum(1).min()) if len(logits) and k else 0
    return own[:, : count + 1]


def draw(weights: Tensor, numbers: Tensor) -> Tensor:
    """(b, vocab_size), (b,) in [0, 1) -> a token for each row, as likely as its share of the weights."""
    mass = weights.cumsum(-1)
    return torch.searchsorted(mass, numbers[:, None] * mass[:, -1:], right=True)[:, 0].clamp(max=weights.shape[1] - 1)


def prompt_lookup(longest: int = 3) -> Draft:
    """Proposes what followed the last `longest` tokens, or fewer, where they stood the last time before.

    Saxena, "Prompt Lookup Decoding", 2023. A row without such a place proposes its last token.
    """
    require(longest > 0, "longest", longest, "positive")

    def draft(texts: Sequence[Sequence[int]], k: int) -> Tensor:
        rows = []
        for text in texts:
            row = list(followed(text, longest, k))
            rows.append((row + [text[-1]] * k)[:k])
        return torch.tensor(rows, dtype=torch.long).reshape(len(texts), k)

    return draft


def followed(text: Sequence[int], longest: int, k: int) -> Sequence[int]:
    for n in range(min(longest, len(text) - 1), 0, -1):
        last = text[-n:]
        for start in range(len(text) - n - 1, -1, -1):
            if text[start : start + n] == last:
                return text[start + n : start + n + k]
    return ()


class DraftModel:
    """Proposes what a smaller model of the same vocabulary holds likeliest; it remembers its past, and goes back as told.

    model: a `CausalLM`, or its optimized copy. capacity: of its decoder.
    """

    def __init__(self, model: Any, capacity: int) -> None:
        self.model, self.capacity = model, capacity
        self.decoders: list[Any] = []
        self.known: list[list[int]] = []

    def __call__(self, texts: Sequence[Sequence[int]], k: int) -> Tensor:
        return torch.tensor([self.row(n, list(text), k) for n, text in enumerate(texts)], dtype=torch.long).reshape(len(texts), k)

    def row(self, n: int, text: list[int], k: int) -> list[int]:
        """A row by itself: its past up to where the text differs, the rest of the text, then k tokens one after the other."""
        if n == len(self.decoders):
            self.decoders.append(self.model.start(capacity=self.capacity, spare=self.capacity))
            self.known.append([])
        decoder, known = self.decoders[n], self.known[n]
        same = next((i for i, (x, y) in enumerate(zip(known, text, strict=False)) if x != y), min(len(known), len(text) - 1))
        same = min(same, len(text) - 1)
        if known:
            decoder.truncate(same)
        new, found = torch.tensor([text[same:]]), []
        for _ in range(k):
            found.append(int(decoder(new).argmax(-1)))
            new = torch.tensor([found[-1:]])
        self.known[n] = text + found[:-1] if k else text[:same]
        return found
