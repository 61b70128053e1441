"""Laws of sampling: filters, penalties, seeds, and how often tokens are drawn."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from searches import INF, SEEDS, Recurrent, draw_tokens, searches

from zoo.generation.decoding import greedy, sample
from zoo.generation.sampling import Repetition, Sampler, keep_min_p, keep_top_k, keep_top_p, mix, row_seeds, uniform


def draw_weights(seed, n, ties=False):
    rng = torch.Generator().manual_seed(seed)
    logits = draw_tokens(rng, 3, n, below=3).double() if ties else torch.randn(3, n, generator=rng, dtype=torch.float64)
    return (logits * (10.0 ** draw_tokens(rng, 3, 1, below=3) / 10)).softmax(-1)


@given(SEEDS, st.integers(1, 40), st.integers(1, 50), st.booleans())
def test_top_k_keeps_exactly_k(seed, n, k, ties):
    weights = draw_weights(seed, n, ties)
    kept = keep_top_k(weights, k)
    assert ((kept > 0).sum(-1) == min(k, n)).all()
    assert torch.equal(kept[kept > 0], weights[kept > 0])
    assert (kept.where(kept > 0, INF).amin(-1) >= weights.where(kept == 0, 0).amax(-1)).all()


@given(SEEDS, st.integers(1, 40) | st.integers(500, 1000), st.floats(0.01, 1), st.booleans(), st.floats(0.1, 10))
def test_top_p_keeps_the_smallest_set_that_reaches_p(seed, n, p, ties, total):
    weights = draw_weights(seed, n, ties) * total
    kept = keep_top_p(weights, p)
    assert torch.equal(kept[kept > 0], weights[kept > 0])
    for row, left in zip(weights.tolist(), kept.tolist(), strict=True):
        chosen = [w for w in left if w > 0]
        mass = math.fsum(chosen) / math.fsum(row)
        assert min(chosen) >= max([r for r, w in zip(row, left, strict=True) if w == 0], default=0)
        assert mass >= p - 1e-12
        assert mass - min(chosen) / math.fsum(row) < p + 1e-12


def test_top_p_at_its_boundary():
    """Shares that are exact in binary: reaching p is enough, and nothing below it is."""
    weights = torch.tensor([[0.125, 0.5, 0.25, 0.125]], dtype=torch.float64)
    counts = {0.01: 1, 0.5: 1, 0.5000001: 2, 0.75: 2, 0.7500001: 3, 0.875: 3, 0.876: 4, 1.0: 4}
    assert {p: int((keep_top_p(weights, p) > 0).sum()) for p in counts} == counts
    many = torch.full((1, 1024), 2.0**-10, dtype=torch.float64)
    assert int((keep_top_p(many, 0.75) > 0).sum()) == 768


@given(SEEDS, st.integers(1, 40), st.floats(0, 1))
def test_min_p_is_a_share_of_the_likeliest(seed, n, p):
    weights = draw_weights(seed, n)
    for row, kept in zip(weights.tolist(), keep_min_p(weights, p).tolist(), strict=True):
        assert kept == [w if w >= p * max(row) else 0 for w in row]
    assert (keep_min_p(weights, p) > 0).any(-1).all()


@given(SEEDS, st.floats(0.05, 20), st.floats(-50, 50))
def test_temperature_divides_log_odds(seed, temperature, shift):
    logits = torch.randn(3, 11, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = Sampler(temperature=temperature).weights(logits + shift)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, dtype=torch.float64))
    odds = weights.log() - weights.log()[:, :1]
    torch.testing.assert_close(odds, (logits - logits[:, :1]) / temperature, rtol=1e-9, atol=1e-9)


@given(searches(), SEEDS)
def test_sampling_without_freedom_is_greedy(search, seed):
    model, prompt, mask, options = search
    expected = greedy(model.decoder(mask), prompt, prompt_mask=mask, **options)
    for narrow in (dict(temperature=1e-300), dict(top_k=1), dict(top_p=1e-9), dict(min_p=1.0)):
        tokens = sample(model.decoder(mask), prompt, prompt_mask=mask, seed=seed, **options, **narrow)
        assert torch.equal(tokens, expected)


@given(searches(), st.floats(1, 5))
def test_a_repetition_penalty_raises_nothing(search, penalty):
    """No logit and no log-probability rises; only seen ones move; the seen tokens together, and a lone one, lose probability."""
    model, prompt, mask, _ = search
    logits = model.logits(prompt, mask)
    seen = torch.tensor([[t in row[real] for t in range(model.vocab_size)] for row, real in zip(prompt, mask, strict=True)])
    for values in (logits, logits.log_softmax(-1)):
        penalised = Repetition(penalty, mask)(values, prompt)
        assert torch.equal(penalised[~seen], values[~seen])
        assert (penalised[seen] <= values[seen]).all()
        torch.testing.assert_close(penalised[seen], torch.where(values > 0, values / penalty, values * penalty)[seen])
        before, after = (v.softmax(-1).where(seen, 0) for v in (values, penalised))
        assert (after.sum(-1) <= before.sum(-1) + 1e-12).all()
        lone = seen.sum(-1) == 1
        assert (after[lone] <= before[lone] + 1e-12).all()


def test_a_repetition_penalty_follows_its_row():
    """Also through `select`, and the same word is penalised once however often it was said."""
    repetition, values = Repetition(2.0), torch.full((2, 4), -1.0)
    assert repetition(values, torch.tensor([[0, 0], [1, 1]])).tolist() == [[-2, -1, -1, -1], [-1, -2, -1, -1]]
    repetition.select(torch.tensor([1, 1, 0]))
    expected = [[-1, -2, -1, -2], [-1, -2, -1, -2], [-2, -1, -1, -2]]
    assert repetition(values[:1].expand(3, 4), torch.tensor([[3], [3], [3]])).tolist() == expected


def test_tokens_are_drawn_as_often_as_likely():
    rows, logits = 20_000, torch.tensor([0.0, 1.5, -INF, -1.0, 0.5, -20.0], dtype=torch.float64)
    sampler = Sampler(temperature=0.8, seed=5)
    share = (logits / 0.8).softmax(-1)
    for step in (0, 7):
        found = torch.bincount(sampler(logits.expand(rows, -1), step), minlength=6) / rows
        assert ((found - share).abs() <= 4.5 * (share * (1 - share) / rows).sqrt() + 1e-6).all()
    first, second = (sampler(logits.expand(rows, -1), step) for step in (0, 1))
    both = torch.bincount(first * 6 + second, minlength=36).view(6, 6) / rows
    torch.testing.assert_close(both, share[:, None] * share, rtol=0, atol=0.015, check_dtype=False)


def test_generators_are_splitmix64():
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [int(seed) % 2**64 for seed in row_seeds(1234567, 5)] == published
    seeds = torch.tensor([1234567, -1])
    for step, bits in enumerate(published):
        assert float(uniform(seeds, step)[0]) == (bits >> 11) / 2**53
    assert mix(torch.zeros(1, dtype=torch.long)).item() == 0
    numbers = torch.stack([uniform(row_seeds(0, 500), step) for step in range(100)])
    assert 0 <= numbers.min() < 1e-3 < 0.999 < numbers.max() < 1
    assert abs(float(numbers.mean()) - 0.5) < 0.005
    assert abs(float(numbers.var()) - 1 / 12) < 0.002


def test_seeds():
    model, prompt = Recurrent(1, 9, scale=0.3), torch.tensor([[4, 2]] * 6)

    def drawn(seed):
        return sample(model.decoder(), prompt, max_new_tokens=12, seed=seed)

    before = torch.get_rng_state()
    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))
    assert len(set(map(tuple, drawn(3).tolist()))) == 6  # rows with the same prompt differ
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(drawn(None), drawn(None))
    runs = []
    for _ in range(2):
        torch.manual_seed(11)
        runs.append(drawn(None))
    assert torch.equal(*runs)


@given(SEEDS, st.integers(1, 9))
def test_no_token_outside_of_the_vocabulary_is_drawn(seed, vocab_size):
    """For logits of every size and infinity, and never one that is not possible."""
    rng = torch.Generator().manual_seed(seed)
    scale = torch.tensor([0.0, 1.0, 1e4, 1e38, INF])
    logits = torch.randn(50, vocab_size, generator=rng) * scale[draw_tokens(rng, 50, vocab_size, below=5)]
    logits = logits.nan_to_num(0.0, INF, -INF)
    logits[:, 0] = logits[:, 0].clamp(min=-3.0)
    sampler = Sampler(seed=seed)
    for step in range(3):
        drawn = sampler(logits, step)
        assert ((drawn >= 0) & (drawn < vocab_size)).all()
        assert (logits.gather(1, drawn[:, None]) > -INF).all()
