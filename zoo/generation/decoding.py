"""Decoding of autoregressive models: greedy, beam search, sampling, streaming; proven against Hugging Face's `generate`.

A batch gives each row what the row gives alone. Prompts of unequal lengths come padded on the left, with a `prompt_mask`, of
which the decoder and the penalty are told. Results hold the new tokens only and are as long as the longest row; a shorter one
ends with its stop token, then `pad`. `trim` turns them into lists. A stop token within the prompt stops nothing.

Arguments that all have in common:
    prompt:         (b, n), at least one token a row; an encoder-decoder's is its start token.
    max_new_tokens: the most that are added to a prompt.
    stop:           the token that ends a row, or several such tokens.
    prompt_mask:    (b, n), False for padding on the left of the prompt; it takes a decoder that knows what a mask is.
    rules:          the arguments of `Constraints`: repetition_penalty, no_repeat_ngram, forbidden_sequences, forbidden and
                    min_new_tokens. Beam search applies them to log-probabilities, not to logits.

Errors: `ValueError` that names the argument; and for logits that are NaN or leave no token possible. Where logits are +inf, these
tokens, equally likely, are all that is possible.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from operator import index
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from layers.checks import require, require_axes
from zoo.generation.constraints import Constraints
from zoo.generation.sampling import Sampler, require_possible


class Decoder(Protocol):
    """A model in the middle of decoding: it remembers the past of each of its rows."""

    def __call__(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(rows, n) new tokens after each row's past -> (rows, vocab_size) logits for the next one.

        mask: (rows, n), False for padding on the left, only where there is some and only in the first call. A decoder that never
              gets prompts of unequal lengths need not take it.
        """
        ...

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may be taken several times."""
        ...


def likeliest(logits: Tensor, step: int) -> Tensor:
    """Greedy choice: logits (b, vocab_size) -> (b,); of equals, any. Errors: `ValueError` for NaN, and where all are -inf."""
    tokens = logits.argmax(-1)  # of NaN, if there is one
    if logits.numel() > 0:
        require_possible(logits.gather(-1, tokens[..., None]))
    return tokens


def stream(
    decoder: Decoder,
    prompt: Tensor,
    *,
    max_new_tokens: int,
    stop: int | Sequence[int] = (),
    pad: int = 0,
    prompt_mask: Tensor | None = None,
    choose: Callable[[Tensor, int], Tensor] = likeliest,
    **rules: Any,
) -> Iterator[Tensor]:
    """Yields the next tokens (b,), step by step, until all rows have stopped; rows that have stopped get `pad`.

    choose: (logits (b, vocab_size), number of the step) -> tokens (b,), such as `likeliest` or a `Sampler`.
    """
    stop = as_tokens(stop)
    check(decoder, prompt, max_new_tokens, stop, pad, prompt_mask)
    constraints = Constraints(**rules, stop=stop, mask=prompt_mask)
    return steps(decoder, prompt, max_new_tokens, stop, pad, prompt_mask, constraints, choose)


@torch.no_grad()
def steps(
    decoder: Decoder,
    tokens: Tensor,
    max_new_tokens: int,
    stop: Sequence[int],
    pad: int,
    mask: Tensor | None,
    constraints: Constraints,
    choose: Callable[[Tensor, int], Tensor],
) -> Iterator[Tensor]:
    """The loop of `stream`, whose arguments are checked before the first step is asked for."""
    stops = torch.tensor(stop, dtype=torch.long, device=tokens.device)
    stopped = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for step in range(max_new_tokens):
        logits = decoder(tokens) if mask is None or step > 0 else decoder(tokens, mask=mask)
        if step == 0:
            check_logits(logits, len(tokens), stop, pad)
        logits = constraints(logits, tokens)
        try:
            chosen = choose(logits, step)
        except (ValueError, RuntimeError):  # what comes after a row's end does not count, NaN neither
            if not bool(stopped.any()):
                raise
            chosen = choose(logits.masked_fill(stopped[:, None], 0.0), step)
        if stop:
            chosen = chosen.masked_fill(stopped, pad)
            stopped = stopped | torch.isin(chosen, stops)
        yield chosen
        if stop and bool(stopped.all()):
            return
        tokens = chosen[:, None]


def greedy(decoder: Decoder, prompt: Tensor, **options: Any) -> Tensor:
    """(b, t): the likeliest token, again and again. Options: those of `stream`, but for `choose`."""
    return torch.stack(list(stream(decoder, prompt, choose=likeliest, **options)), 1)


def sample(
    decoder: Decoder,
    prompt: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical: float = 1.0,
    top_n_sigma: float | None = None,
    seed: int | Tensor | None = None,
    **options: Any,
) -> Tensor:
    """(b, t): drawn as `Sampler` says, seeds included. Other options: those of `stream`, but for `choose`."""
    sampler = Sampler(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, typical=typical, top_n_sigma=top_n_sigma, seed=seed
    )
    return torch.stack(list(stream(decoder, prompt, choose=sampler, **options)), 1)


class Hypotheses(NamedTuple):
    """What `beam` returns, the best first."""

    tokens: Tensor
    """(b, nbest, t)"""
    scores: Tensor
    """(b, nbest): sum of the tokens' log-probabilities / their number ** length_penalty; -inf where hypotheses ran out."""


@torch.no_grad()
def beam(
    decoder: Decoder,
    prompt: Tensor,
    *,
    beams: int = 4,
    max_new_tokens: int,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    nbest: int = 1,
    stop: int | Sequence[int] = (),
    pad: int = 0,
    prompt_mask: Tensor | None = None,
    **rules: Any,
) -> Hypotheses:
    """The best hypotheses of each row, finished by a stop token, which counts as one of its tokens, or by the last step.

    Every step keeps the `beams` likeliest unfinished hypotheses. One that finishes as one of the `beams` likeliest continuations
    is kept as long as its score is among the `beams` best. With beams=1 this is `greedy`.
    length_penalty: above 0 favours long hypotheses, below 0 short ones.
    early_stopping: when a row that has `beams` finished hypotheses is done. True: at once. False: when the likeliest unfinished
        one, ended here, would score below them all. "never": when it would at every length to come, so that nothing is missed.
    """
    stop = as_tokens(stop)
    check(decoder, prompt, max_new_tokens, stop, pad, prompt_mask)
    require(beams > 0, "beams", beams, "positive")
    require(0 < nbest <= beams, "nbest", nbest, f"positive and at most the {beams} beams")
    require(early_stopping in (True, False, "never"), "early_stopping", early_stopping, 'True, False or "never"')
    require(abs(length_penalty) < float("inf"), "length_penalty", length_penalty, "finite")
    constraints, b = Constraints(**rules, stop=stop, mask=prompt_mask), len(prompt)
    stops = torch.tensor(sorted(set(stop)), dtype=torch.long, device=prompt.device)
    candidates = (1 + len(stops)) * beams  # at least `beams` of which go on

    tokens, width = prompt, 1
    logits = decoder(tokens) if prompt_mask is None else decoder(tokens, mask=prompt_mask)
    check_logits(logits, b, stop, pad)
    scores = torch.zeros(b, 1, dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device)
    running = prompt.new_empty((b, 1, 0))
    finished = prompt.new_full((b, beams, max_new_tokens), -1)
    finished_scores = scores.new_full((b, beams), float("-inf"))
    done, some_finished = torch.zeros(b, dtype=torch.bool, device=prompt.device), b == 0
    first_rows = torch.arange(b, device=prompt.device)[:, None]

    for length in range(1, max_new_tokens + 1):
        if length > 1:
            logits = decoder(tokens)
        live = (scores > float("-inf")) & ~done[:, None]
        gains = constraints(log_probabilities(logits, scores.dtype, live.flatten()), tokens)
        totals = gains.unflatten(0, (b, width)).add_(scores[:, :, None]).flatten(1)
        totals, chosen = largest(totals, candidates)
        parents, chosen = chosen // logits.shape[1], chosen % logits.shape[1]

        ends = torch.isin(chosen, stops) if length < max_new_tokens else torch.ones_like(chosen, dtype=torch.bool)
        if bool(ends.any()):
            some_finished = True
            new = (totals / length**length_penalty).masked_fill(~ends | done[:, None], float("-inf"))[:, :beams]
            finished_scores, best = torch.cat([finished_scores, new], 1).topk(beams)
            ended = F.pad(longer(running, parents[:, :beams], chosen[:, :beams]), (0, max_new_tokens - length), value=-1)
            finished = take(torch.cat([finished, ended], 1), best)
            totals, kept = totals.masked_fill(ends, float("-inf")).topk(beams)
            parents, chosen = parents.gather(1, kept), chosen.gather(1, kept)
        scores, parents, chosen = (x[:, :beams] for x in (totals, parents, chosen))

        ran_out = (scores[:, 0] == float("-inf")) & (finished_scores[:, 0] == float("-inf")) & ~done
        require(not bool(ran_out.any()), "logits of the decoder", "-inf everywhere", "more than -inf for some token")

        if some_finished:
            reach = max_new_tokens if early_stopping == "never" and length_penalty > 0 else length
            hopeless = scores[:, 0] / reach**length_penalty <= finished_scores[:, -1]
            full = finished_scores[:, -1] > float("-inf")
            done = done | (full if early_stopping is True or beams == 1 else full & hopeless) | (scores[:, 0] == float("-inf"))
            if bool(done.all()):
                break
        rows = (first_rows * width + parents).flatten()
        decoder.select(rows)
        constraints.select(rows)
        running, tokens, width = longer(running, parents, chosen), chosen.reshape(-1, 1), beams

    finished = finished[:, :nbest]
    longest = int((finished >= 0).sum(-1).max()) if b else 0
    return Hypotheses(finished[:, :, :longest].where(finished[:, :, :longest] >= 0, pad), finished_scores[:, :nbest])


def log_probabilities(logits: Tensor, dtype: torch.dtype, live: Tensor) -> Tensor:
    """logits (rows, vocab_size) -> log-probabilities, never NaN: -inf in a row where no token is possible.

    live: (rows,), True for the rows that still count. Errors: `ValueError` for NaN in one of them.
    """
    result = logits.log_softmax(-1, dtype=dtype)
    if logits.numel() == 0 or not bool(result[:, 0].isnan().any()):  # one that is not finite makes NaN of all of its row
        return result
    infinite = logits == float("inf")
    sole = torch.zeros_like(result).masked_fill(~infinite, float("-inf")).log_softmax(-1)
    result = sole.where(infinite.any(-1, keepdim=True), result)
    nan = logits.isnan().any(-1, keepdim=True)
    require(not bool((nan[:, 0] & live).any()), "logits of the decoder", "NaN", "numbers")
    return result.masked_fill(nan | result[:, :1].isnan(), float("-inf"))


def longer(histories: Tensor, parents: Tensor, chosen: Tensor) -> Tensor:
    """histories (b, m, t), parents (b, k), the next token of each (b, k) -> (b, k, t + 1)."""
    return torch.cat([take(histories, parents), chosen[:, :, None]], 2)


def take(values: Tensor, at: Tensor) -> Tensor:
    """values (b, m, t), at (b, k) -> (b, k, t)."""
    return values.gather(1, at[:, :, None].expand(-1, -1, values.shape[-1]))


def largest(values: Tensor, k: int, block: int = 64) -> tuple[Tensor, Tensor]:
    """The k largest of each row (b, n) and their places, in order; after them -inf where there are fewer.

    The k largest of a vocabulary are in the k blocks with the largest maxima, or in the rest that fills no block; looking only
    there takes a quarter to a third of the time of `topk`.
    """
    n = values.shape[1]
    if k > n:
        top, places = F.pad(values, (0, k - n), value=float("-inf")).topk(k)
        return top, places.clamp(max=n - 1)
    if n < 4 * k * block:
        return tuple(values.topk(k))
    rest, looked_at = n % block, k * block
    blocks = values[:, : n - rest].unflatten(1, (-1, block))
    best = blocks.amax(2).topk(k).indices
    top, at = torch.cat([take(blocks, best).flatten(1), values[:, n - rest :]], 1).topk(k)
    places = best.gather(1, at.clamp(max=looked_at - 1) // block) * block + at % block
    return top, places.where(at < looked_at, at - looked_at + n - rest)


def trim(tokens: Tensor, stop: int | Sequence[int] = ()) -> list[list[int]]:
    """(rows, t) -> each row's tokens before its first stop token, as lists."""
    ends = set(as_tokens(stop))
    return [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in tokens.tolist()]


def as_tokens(stop: int | Sequence[int]) -> tuple[int, ...]:
    try:
        return tuple(index(token) for token in ([stop] if isinstance(stop, int) else stop))
    except TypeError as error:
        raise ValueError(f"stop must be a token or a sequence of tokens, got {stop!r}") from error


def check(
    decoder: Decoder, prompt: Tensor, max_new_tokens: int, stop: Sequence[int], pad: int, prompt_mask: Tensor | None
) -> None:
    """The errors that need no model: `ValueError` that names the argument."""
    require_axes(prompt, "prompt", "batch tokens")
    require(prompt.shape[1] > 0, "prompt", tuple(prompt.shape), "of one token a row at least, such as a start token")
    require(prompt.dtype == torch.long, "prompt", prompt.dtype, "of dtype torch.int64")
    require(max_new_tokens > 0, "max_new_tokens", max_new_tokens, "positive")
    require(all(token >= 0 for token in stop), "stop", list(stop), "tokens, none of them negative")
    require(pad >= 0, "pad", pad, "a token that the model takes, not negative")
    if prompt_mask is not None:
        require_left_padding(prompt_mask, "prompt_mask", prompt)
        require(takes_mask(decoder), "prompt_mask", "a mask", f"None for a {type(decoder).__name__}, which takes no mask")


def require_left_padding(mask: Tensor, name: str, tokens: Tensor) -> None:
    """`ValueError` unless the mask tells which of the tokens (b, n) are real, and these are on the right."""
    require_axes(mask, name, "batch tokens", batch=tokens.shape[0], tokens=tokens.shape[1])
    require(mask.dtype == torch.bool, name, mask.dtype, "of dtype torch.bool, True for real tokens")
    require(bool(mask[:, -1].all()), name, mask, "True in the last column, for padding is on the left")
    require(bool((mask[:, 1:] >= mask[:, :-1]).all()), name, mask, "True from a row's first real token on")


def takes_mask(decoder: Decoder) -> bool:
    try:
        inspect.signature(decoder).bind(None, mask=None)
    except TypeError:
        return False
    except ValueError:  # it does not say
        return True
    return True


def check_logits(logits: Tensor, rows: int, stop: Sequence[int], pad: int) -> None:
    """The errors that need the vocabulary: `ValueError` that names the argument."""
    require_axes(logits, "logits of the decoder", "rows vocab_size", rows=rows)
    inside = f"below vocab_size, {logits.shape[1]}"
    require(all(token < logits.shape[1] for token in stop), "stop", list(stop), inside)
    require(pad < logits.shape[1], "pad", pad, inside)
