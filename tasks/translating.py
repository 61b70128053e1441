"""From sentences to translations: search, their scores, the forms they are written in, and what the model attends to."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from itertools import chain, groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.generation_config import USUAL, Constrained, Generation

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor

    from tasks.data.tokenizer import TextTokenizer


class Hypothesis(NamedTuple):
    """A translation, and how likely the model holds it.

    log_probability: the sum over its tokens, the one that ends it among them, in nats.
    score:           log_probability / their number ** length_penalty, by which beam search ranks.
    """

    text: str
    score: float = 0.0
    log_probability: float = 0.0


def translate(model: Any, tokenizer: TextTokenizer, sentences: Sequence[str], **options: Any) -> list[str]:
    """The best translation of each sentence, in their order; options are those of `search`."""
    return [found[0].text for found in search(model, tokenizer, sentences, **options)]


def search(
    model: Any, tokenizer: TextTokenizer, sentences: Sequence[str], *, beam: int | None = None, nbest: int = 1,
    length_penalty: float | None = None, batch_size: int = 64, longest: int = 256, scored: bool = False,
    generation: Generation = USUAL,
) -> list[list[Hypothesis]]:  # fmt: skip
    """The `nbest` best translations of each sentence, the best first, in the order of the sentences.

    beam:    hypotheses that are followed, 1 is greedy; nbest at most. It and length_penalty are those of `generation` by default.
    longest: most tokens of a translation. scored: whether greedy ones get their scores too.
    Sentences are decoded in batches of like length; none depends on the others. Where they run out, empty ones of -inf follow.
    """
    import torch

    from tasks.data.batching import padded

    device, pad, eos = next(model.parameters()).device, tokenizer.pad, tokenizer.eos
    beam, length_penalty = beam or generation.beams, generation.length_penalty if length_penalty is None else length_penalty
    encoded = [[*ids, eos] for ids in tokenizer.encode_batch(sentences)]
    hypotheses: dict[int, list[Hypothesis]] = {}

    def limit(row: int) -> int:
        """Most tokens of the translation: the same for all sentences of a batch, so that none depends on the others in it."""
        usual = 3 * 16 * math.ceil(len(encoded[row]) / 16) + 20
        return longest if generation.whole and generation.early_stopping == "never" else min(longest, usual)

    def decode(source: Tensor, most: int) -> tuple[Tensor, Tensor, bool]:
        """Tokens (b, nbest, t), their scores, and whether more room would change nothing."""
        from zoo.generation import decoding

        excluded, forbidden = (generation.forbidden, (pad,)) if generation.renormalize else ((), (pad, *generation.forbidden))
        last = eos if generation.forced_eos else None
        decoder = Constrained(model.start(source, source != pad, capacity=most + 1), most, excluded, last)
        prompt = torch.full((len(source), 1), tokenizer.bos, device=device)
        options: dict[str, Any] = dict(max_new_tokens=most, stop=(eos,), pad=pad, forbidden=forbidden)
        if beam == 1 and not scored:
            tokens = decoding.greedy(decoder, prompt, **options)[:, None]
            return tokens, torch.zeros(tokens.shape[:2]), decoder.steps < most
        options |= {"beams": beam, "nbest": nbest, "length_penalty": length_penalty, "early_stopping": generation.early_stopping}
        found = decoding.beam(decoder, prompt, **options)
        return found.tokens, found.scores, decoder.steps < most

    for room, group in groupby(sorted(range(len(encoded)), key=lambda row: len(encoded[row])), limit):
        while rows := list(islice(group, batch_size)):
            source, most = padded([encoded[row] for row in rows], pad).to(device), room
            tokens, scores, done = decode(source, most)
            while generation.whole and not done and most < longest:
                tokens, scores, done = decode(source, most := min(2 * most, longest))
            ended = tokens == eos
            sizes = torch.where(ended.any(-1), ended.int().argmax(-1) + 1, tokens.shape[-1]).to(scores)
            sums = (scores * sizes**length_penalty).tolist()
            for row, ids, *numbers in zip(rows, tokens.tolist(), scores.tolist(), sums, strict=True):
                texts = tokenizer.target.decode_batch(ids)
                hypotheses[row] = [Hypothesis(*one) for one in zip(texts, *numbers, strict=True)]
    return [hypotheses[row] for row in range(len(encoded))]


# ----------------------------------------------------------------------------------------------------------------- writing


def as_lines(found: Sequence[Sequence[Hypothesis]], scored: bool) -> Iterator[str]:
    """A text a hypothesis, with scores `score<tab>log_probability<tab>translation`."""
    for one in chain.from_iterable(found):
        yield f"{one.score:.6f}\t{one.log_probability:.6f}\t{one.text}" if scored else one.text


def as_rows(sources: Sequence[str], found: Sequence[Sequence[Hypothesis]]) -> Iterator[dict[str, Any]]:
    """A row a hypothesis; lines and ranks count from 1."""
    for line, (source, hypotheses) in enumerate(zip(sources, found, strict=True), 1):
        for rank, one in enumerate(hypotheses, 1):
            numbers = {"score": finite(one.score), "log_probability": finite(one.log_probability)}
            yield {"line": line, "rank": rank, "source": source, "translation": one.text, **numbers}


def finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


# --------------------------------------------------------------------------------------------------------------- attention


def draw_attention(model: Any, tokenizer: TextTokenizer, source: str, target: str, path: Path) -> None:
    """`attention_between`, as a picture."""
    from tasks import plots

    for note in plots.attention(*attention_between(model, tokenizer, source, target), path):
        print(note, file=sys.stderr)


def attention_between(model: Any, tokenizer: TextTokenizer, source: str, target: str) -> tuple[Tensor, list[str], list[str]]:
    """The model's attention to the source, see its `alignments`: a row for each piece that was written; pieces read and written.

    A token that is part of a character stands with the others of it: what they read adds up, what they write is averaged.
    """
    import torch

    from tasks.data.batching import collate

    ids = tokenizer.encode(source), tokenizer.target.encode(target)
    device = next(model.parameters()).device
    tokens, written, _ = (x.to(device) for x in collate([ids], tokenizer))
    with torch.inference_mode():
        weights = model.alignments(tokens, written, tokens != tokenizer.pad)[0].float().cpu()
    read, wrote = (characters(t, side) for t, side in zip((tokenizer, tokenizer.target), ids, strict=True))
    columns, rows = (membership([size for _, size in groups]) for groups in (read, wrote))
    weights = ((rows / rows.sum(1, keepdim=True)) @ weights @ columns.T).float()  # --precision counts here too
    sides = [[*(text for text, _ in groups), "</s>"] for groups in (read, wrote)]
    return weights, sides[0], sides[1]


def characters(tokenizer: TextTokenizer, ids: Sequence[int]) -> list[tuple[str, int]]:
    """The text of the ids in pieces of whole characters, and of how many tokens each piece is."""
    whole, found, start, before = tokenizer.decode(ids), [], 0, ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end])
        if whole.startswith(text) and len(text) >= len(before):  # else it ends within a character
            piece = text[len(before) :]
            found.append((piece.strip() or piece or str(tokenizer.inner.id_to_token(ids[end - 1])), end - start))
            start, before = end, text
    return found


def membership(sizes: Sequence[int]) -> Tensor:
    """(groups + 1, tokens + 1): 1 where a token is in the group; after both there is the token that ends a sentence."""
    import torch

    groups = torch.arange(len(sizes) + 1).repeat_interleave(torch.tensor([*sizes, 1]))
    return (torch.arange(len(sizes) + 1)[:, None] == groups).float()
