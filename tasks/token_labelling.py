"""Which spans a model finds in texts: the likeliest row of tags that IOB2 allows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tasks.data.alignment import cut, encode
from tasks.data.spans import OUTSIDE, Span, follows, to_spans
from tasks.data.tagged import Tagged
from tasks.span_models import outputs
from tasks.text_models import Reader


class Labelled(NamedTuple):
    """Spans of words, and how sure the model is of each: the mean probability of its words' tags."""

    spans: list[Span]
    scores: list[float]


def label(reader: Reader, texts: Sequence[Tagged], batch_size: int = 32) -> list[Labelled]:
    """The spans of each text, whatever its length, by a model that knows its tags, those of IOB2."""
    config, tokenizer = reader.model.config, reader.tokenizer
    encoded = encode(tokenizer, [x.text for x in texts], [x.words for x in texts])
    cuts = [cut(one, tokenizer, config["context"], config["overlap"]) for one in encoded]
    said = iter(outputs(reader, [window for windows in cuts for window in windows], batch_size))
    tags = config["tags"]
    refused = refusals(tags)
    found = []
    for text, windows in zip(texts, cuts, strict=True):
        logs = np.full((len(text.words), len(tags)), np.nan)
        for window in windows:
            logits = next(said)[0].double().log_softmax(-1).numpy()
            for place, word in window.words:
                logs[word] = logits[place]
        found.append(spans_of(logs, tags, refused))
    return found


def spans_of(logs: np.ndarray, tags: Sequence[str], refused: np.ndarray) -> Labelled:
    """logs: logarithms of probabilities (words, tags), NaN for a word without tokens, which begins no span."""
    begins = [tag.startswith("B-") for tag in tags]
    free = np.where(begins, -np.inf, 0.0)
    best = likeliest(np.where(np.isnan(logs), free, logs), refused)
    spans = to_spans([tags[n] for n in best], "iob2")
    sure = np.exp(logs[np.arange(len(best)), best])
    means = [sure[start:end][~np.isnan(sure[start:end])].mean() for _, start, end in spans]
    return Labelled(spans, [float(x) for x in means])


def refusals(tags: Sequence[str]) -> np.ndarray:
    """(1 + tags, tags): True where the second may not follow the first; the last row is of what begins a text."""
    found = np.zeros((len(tags) + 1, len(tags)), bool)
    for before, after in follows(tags):
        found[before, after] = True
    return found


def likeliest(logs: np.ndarray, refused: np.ndarray) -> list[int]:
    """The row of tags with the largest sum of (words, tags) without a refused pair: Viterbi, 1967. Of equals the first."""
    if not len(logs):
        return []
    cost = np.where(refused, -np.inf, 0.0)
    total, back = logs[0] + cost[-1], []
    for row in logs[1:]:
        paths = total[:, None] + cost[:-1]
        back.append(paths.argmax(0))
        total = paths.max(0) + row
    found = [int(total.argmax())]
    for step in reversed(back):
        found.append(int(step[found[-1]]))
    return found[::-1]


def commonest(train: Sequence[Tagged], texts: Sequence[Tagged]) -> list[list[Span]]:
    """What needs no model: each word gets the label that it has most often in training, unknown ones the one of all words;
    neighbours of one label are a span."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for text in train:
        for word, kind in zip(words(text), kinds(text), strict=True):
            seen[word][kind] += 1
            seen[""][kind] += 1
    known = {word: counts.most_common(1)[0][0] for word, counts in seen.items()}
    return [to_spans([known.get(word, known[""]) for word in words(text)], "io") for text in texts]


def words(text: Tagged) -> list[str]:
    return [text.text[start:end] for start, end in text.words]


def kinds(text: Tagged) -> list[str]:
    found = [OUTSIDE] * len(text.words)
    for kind, start, end in text.spans:
        found[start:end] = [kind] * (end - start)
    return found
