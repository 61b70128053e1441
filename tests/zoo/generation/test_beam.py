"""Laws of beam search: scores, exhaustiveness, when it ends."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from searches import BEAM_OPTIONS, INF, SEEDS, Recurrent, Whole, draw_tokens, searches

from zoo.generation.decoding import beam, greedy, largest


@given(searches(), BEAM_OPTIONS)
def test_beam_1_is_greedy(search, more):
    model, prompt, mask, options = search
    options["repetition_penalty"] = 1.0  # which is on logits here and on log-probabilities there
    tokens, _ = beam(model.decoder(mask), prompt, **options, **(more | dict(beams=1, nbest=1)))
    assert torch.equal(tokens[:, 0], greedy(model.decoder(mask), prompt, **options))


def log_probability(model, prompt, tokens):
    """Of `tokens` behind `prompt`, one full forward a token."""
    known, total = list(prompt), 0.0
    for token in tokens:
        total += float(model.logits(torch.tensor([known])).log_softmax(-1)[0, token])
        known.append(token)
    return total


def until_stop(tokens, stop):
    return tokens[: next((i + 1 for i, token in enumerate(tokens) if token in stop), len(tokens))]


@given(searches(), BEAM_OPTIONS)
def test_scores_are_those_of_a_full_forward(search, more):
    model, prompt, mask, options = search
    options["repetition_penalty"] = 1.0
    tokens, scores = beam(model.decoder(mask), prompt, prompt_mask=mask, **options, **more)
    assert tokens.shape[:2] == scores.shape == (len(prompt), more["nbest"])
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    for row in range(len(prompt)):
        kept = [until_stop(t, options["stop"]) for t, s in zip(tokens[row].tolist(), scores[row], strict=True) if s > -INF]
        assert kept
        assert len({tuple(t) for t in kept}) == len(kept)
        for hypothesis, score in zip(kept, scores[row].tolist(), strict=False):
            expected = log_probability(model, prompt[row, mask[row]].tolist(), hypothesis)
            assert score == pytest.approx(expected / len(hypothesis) ** more["length_penalty"], rel=1e-9)


@given(SEEDS, st.sampled_from([(2, 5), (3, 3), (4, 2)]), st.lists(st.integers(0, 1), max_size=1), BEAM_OPTIONS)
def test_a_wide_beam_is_exhaustive(seed, sizes, stop, more):
    (vocab_size, length), more = sizes, more | dict(beams=40, nbest=40)
    model, prompt = Recurrent(seed, vocab_size), torch.tensor([[0, 1]])
    every = {tuple(until_stop(t, stop)) for t in itertools.product(range(vocab_size), repeat=length)}
    assert len(every) <= 40
    score = {t: log_probability(model, [0, 1], t) / len(t) ** more["length_penalty"] for t in every}
    ranked = sorted(every, key=score.__getitem__, reverse=True)
    tokens, scores = beam(model.decoder(), prompt, max_new_tokens=length, stop=stop, **more)
    assert [tuple(until_stop(t, stop)) for t in tokens[0, : len(ranked)].tolist()] == ranked
    assert scores[0, : len(ranked)].tolist() == pytest.approx([score[t] for t in ranked])
    assert (scores[0, len(ranked) :] == -INF).all()


def patient_search(model, prompt, beams, length, stop, length_penalty):
    """Beam search in plain Python that never stops early: the best score."""
    running, finished = {(): 0.0}, []
    for n in range(1, length + 1):
        grown = {}
        for past, total in running.items():
            gains = model.logits(torch.tensor([[*prompt, *past]])).log_softmax(-1)[0].tolist()
            grown |= {(*past, token): total + gain for token, gain in enumerate(gains)}
        ranked = sorted(grown, key=grown.__getitem__, reverse=True)
        over = [t for t in ranked[:beams] if t[-1] in stop or n == length]
        finished += [grown[t] / n**length_penalty for t in over]
        running = {t: grown[t] for t in [t for t in ranked if t[-1] not in stop][:beams]}
    return max(finished)


@given(SEEDS, st.integers(2, 4), st.floats(-2, 3), st.sampled_from([[0], [0, 1]]))
def test_never_stopping_early_misses_nothing(seed, beams, length_penalty, stop):
    model, options = Recurrent(seed, 6, scale=0.7), dict(beams=beams, length_penalty=length_penalty)

    def best(early_stopping):
        decoder = model.decoder()
        calls = []
        decoder.forward = lambda tokens: calls.append(0) or model.logits(tokens)
        result = beam(decoder, torch.tensor([[2]]), max_new_tokens=7, stop=stop, early_stopping=early_stopping, **options)
        return float(result.scores), len(calls)

    (at_once, fewest), (usual, some), (never, most) = (best(early_stopping) for early_stopping in (True, False, "never"))
    assert never == pytest.approx(patient_search(model, [2], beams, 7, stop, length_penalty))
    assert at_once <= usual <= never
    assert fewest <= some <= most
    if length_penalty <= 0:
        assert usual == never


def by_position(*shares):
    """A decoder whose next token depends on the position alone, and a list that grows with its calls."""
    calls = []

    def forward(tokens):
        calls.append(tokens.shape[1])
        return torch.tensor(shares[tokens.shape[1] - 1]).log().expand(len(tokens), -1)

    return Whole(forward), calls


def test_early_stopping_has_three_ways():
    """Stopping at once is quickest, some patience finds a better hypothesis, and the long one that is best of all takes never."""
    shares = [[22, 6, 72], [35, 36, 29], [9, 31, 60], [49, 31, 20], *[[2, 2, 96]] * 6]
    expected = {True: (2, [2, 0]), False: (4, [2, 1, 2, 0]), "never": (10, [2, 1, 2, 1, *[2] * 6])}
    for early_stopping in expected:
        options = dict(max_new_tokens=10, stop=[0], early_stopping=early_stopping)
        decoder, calls = by_position(*shares)
        tokens = beam(decoder, torch.tensor([[1]]), beams=2, **options).tokens[0, 0].tolist()
        assert (len(calls), tokens) == expected[early_stopping]
        decoder, calls = by_position(*shares)
        assert beam(decoder, torch.tensor([[1]]), beams=1, **options).tokens[0, 0].tolist() == [2, 1, 2, 0]
        assert len(calls) == 4


def test_stop_tokens_never_crowd_out_all_others():
    """Each beam's two likeliest tokens stop, and yet the search goes on, for the long hypothesis is the best."""
    decoder, _ = by_position(*[[45, 45, 6, 4]] * 6)
    found = beam(decoder, torch.tensor([[3]]), beams=2, max_new_tokens=6, stop=[0, 1], length_penalty=3.0, early_stopping="never")
    assert found.tokens[0, 0, :5].tolist() == [2] * 5


def test_a_search_ends_when_nothing_goes_on():
    decoder, calls = by_position(*[[1, 2, 3]] * 5)
    found = beam(decoder, torch.tensor([[0]]), beams=4, nbest=4, max_new_tokens=5, stop=[0, 1, 2])
    assert found.tokens[0, :3].tolist() == [[2], [1], [0]]
    assert found.scores[0, 3] == -INF
    assert len(calls) == 1


@given(st.integers(1, 12), st.integers(0, 60), st.integers(0, 11), st.integers(1, 9), SEEDS, st.booleans())
def test_largest_is_topk(block, blocks, rest, k, seed, ties):
    rng, n = torch.Generator().manual_seed(seed), max(1, blocks * block + rest)
    values = draw_tokens(rng, 20, n, below=6).double() if ties else torch.randn(20, n, generator=rng)
    top, places = largest(values, k, block)
    count = min(k, n)
    assert top.shape == places.shape == (20, k)
    assert torch.equal(top[:, :count], values.topk(count).values)
    assert (top[:, count:] == -INF).all()
    assert torch.equal(values.gather(1, places)[:, :count], top[:, :count])
    assert all(len(set(row)) == count for row in places[:, :count].tolist())


def test_beams_without_a_continuation_end_and_others_go_on():
    """As where a grammar forbids all: a hypothesis that nothing may follow is lost, and no score is NaN."""

    def forward(tokens):
        logits = torch.tensor([0.0, 0.5, 0.7, -INF]).expand(len(tokens), -1)
        return logits.masked_fill((tokens[:, 1:] == 2).any(1, keepdim=True), -INF)

    found = beam(Whole(forward), torch.zeros(1, 1, dtype=torch.long), beams=3, nbest=3, max_new_tokens=3)
    assert not found.scores.isnan().any()
    best = found.tokens[0, 0].tolist()
    assert 2 not in best[:-1]
    assert best == [1, 1, 2]
