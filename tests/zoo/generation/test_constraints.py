"""Rules on a row's past, and the filters that look at all probabilities at once, against Hugging Face's processors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as theirs

from zoo.generation import decoding
from zoo.generation.constraints import Constraints
from zoo.generation.sampling import Sampler, keep_typical, within_sigmas

VOCAB = 7
SEEDS = st.integers(0, 2**32 - 1)
INF = float("inf")


def drawn(seed, rows, length):
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, VOCAB, dtype=torch.float64, generator=g)
    return values, torch.randint(VOCAB, (rows, length), generator=g)


class Counting:
    """A decoder with logits of its own for every step and past."""

    def __init__(self, seed, rows, vocab_size=VOCAB):
        self.g, self.past, self.vocab_size = seed, torch.zeros(rows, dtype=torch.long), vocab_size

    def __call__(self, tokens, mask=None):
        for n in range(tokens.shape[1]):
            real = torch.ones(len(tokens), dtype=torch.bool) if mask is None else mask[:, n]
            self.past = (31 * self.past + tokens[:, n] + 1).remainder(10007).where(real, self.past)
        rows = [torch.randn(self.vocab_size, generator=torch.Generator().manual_seed(self.g + int(p))) for p in self.past]
        return torch.stack(rows).double()

    def select(self, rows):
        self.past = self.past[rows]


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 3), st.integers(1, 12), st.integers(1, 4))
def test_repeated_ngrams_are_those_of_generate(seed, rows, length, n):
    values, tokens = drawn(seed, rows, length)
    found = Constraints(no_repeat_ngram=n)(values, tokens)
    assert torch.equal(found, theirs.NoRepeatNGramLogitsProcessor(n)(tokens, values.clone()))


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 8), st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=3), min_size=1, max_size=4))
def test_forbidden_sequences_are_those_of_generate(seed, length, sequences):
    values, tokens = drawn(seed, 2, length)
    found = Constraints(forbidden_sequences=sequences)(values, tokens)
    assert torch.equal(found, theirs.NoBadWordsLogitsProcessor(sequences, eos_token_id=None)(tokens, values.clone()))


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.floats(0.05, 0.95))
def test_typical_tokens_are_those_of_generate(seed, mass):
    values, tokens = drawn(seed, 3, 1)
    expected = theirs.TypicalLogitsWarper(mass)(tokens, 2 * values).softmax(-1)
    found = keep_typical((2 * values).softmax(-1), mass)
    torch.testing.assert_close(found / found.sum(-1, keepdim=True), expected)
    sampler = Sampler(temperature=0.5, typical=mass, seed=0).weights(values)
    torch.testing.assert_close(sampler / sampler.sum(-1, keepdim=True), expected)


def test_sigmas_leave_what_is_near_the_largest_whatever_the_temperature():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0, -INF], [5.0, 5.0, 5.0, -INF, -INF]], dtype=torch.float64)
    kept = within_sigmas(logits, 1.0)
    assert kept[0].tolist() == [-INF, -INF, 2.0, 3.0, -INF]  # one sigma is 1.118
    assert kept[1].tolist() == [5.0, 5.0, 5.0, -INF, -INF]
    for temperature in (0.1, 10.0):
        weights = Sampler(temperature=temperature, top_n_sigma=1.0, seed=0).weights(logits)
        assert ((weights > 0) == (kept > -INF)).all()
    assert torch.equal(within_sigmas(logits, 10.0), logits)


@pytest.mark.parametrize("beams", [0, 1, 3])
@pytest.mark.parametrize(
    "rules",
    [dict(no_repeat_ngram=2), dict(forbidden_sequences=[[3], [1, 2], [2, 0, 1]]), dict(min_new_tokens=6), dict(forbidden=[0, 5])],
    ids=lambda rules: next(iter(rules)),
)
def test_what_a_rule_forbids_never_comes(rules, beams):
    """In greedy search and beam search, for rows with pasts of their own, which padding is no part of; without it, it comes."""
    mask = torch.arange(3) >= torch.tensor([[0], [1], [2], [0]])
    prompt = torch.tensor([[1, 4, 6], [1, 6, 4], [1, 2, 3], [4, 4, 2]])
    broken = {True: 0, False: 0}
    for ruled in (True, False):
        for seed in range(6):
            options = dict(max_new_tokens=12, stop=(4,), prompt_mask=mask, **(rules if ruled else {}))
            decoder = Counting(seed, 4)
            found = (
                decoding.beam(decoder, prompt, beams=beams, **options).tokens[:, 0]
                if beams
                else decoding.greedy(decoder, prompt, **options)
            )
            for row, new in enumerate(decoding.trim(found, 4)):
                broken[ruled] += breaks(rules, prompt[row][mask[row]].tolist(), new)
    assert broken[True] == 0 < broken[False]


def breaks(rules, prompt, new):
    text = prompt + new
    if n := rules.get("no_repeat_ngram"):
        grams = [tuple(text[i : i + n]) for i in range(len(text) + 1 - n)]
        return grams != list(dict.fromkeys(grams))
    if sequences := rules.get("forbidden_sequences"):
        ends = range(len(prompt) + 1, len(text) + 1)
        return any(text[max(0, end - len(s)) : end] == s for s in sequences for end in ends)
    if least := rules.get("min_new_tokens"):
        return len(new) < least
    return bool({*new} & {*rules["forbidden"]})


def test_a_batch_obeys_as_its_rows_alone():
    rules = dict(no_repeat_ngram=2, forbidden_sequences=[[1, 2]], repetition_penalty=1.2, min_new_tokens=3)
    mask = torch.arange(3) >= torch.tensor([[0], [2]])
    prompt = torch.tensor([[1, 4, 6], [5, 5, 3]])
    together = decoding.greedy(Counting(3, 2), prompt, max_new_tokens=8, stop=(4,), prompt_mask=mask, **rules)
    for row in range(2):
        alone = decoding.greedy(Counting(3, 1), prompt[row : row + 1, mask[row]], max_new_tokens=8, stop=(4,), **rules)
        assert decoding.trim(alone, 4) == decoding.trim(together[row : row + 1], 4)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (dict(no_repeat_ngram=0), "no_repeat_ngram"),
        (dict(min_new_tokens=-1), "min_new_tokens"),
        (dict(forbidden_sequences=[[]]), "forbidden_sequences"),
        (dict(forbidden_sequences=[[-1]]), "forbidden_sequences"),
        (dict(forbidden_sequences=[[VOCAB]]), "below vocab_size, 7"),
        (dict(repetition_penalty=0.5), "repetition_penalty"),
    ],
)
def test_bad_rules_are_refused(rules, words):
    with pytest.raises(ValueError, match=words):
        decoding.greedy(Counting(0, 1), torch.tensor([[1]]), max_new_tokens=2, **rules)
    for name, value in (("typical", 0.0), ("typical", 1.1), ("top_n_sigma", 0.0), ("top_n_sigma", INF)):
        with pytest.raises(ValueError, match=name):
            Sampler(**{name: value})
