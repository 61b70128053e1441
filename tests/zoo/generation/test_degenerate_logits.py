"""NaN and infinity among the logits."""

from __future__ import annotations

import math

import pytest
import torch
from searches import INF, Whole

from zoo.generation.decoding import beam, greedy, sample
from zoo.generation.sampling import Sampler

NAN = float("nan")


def constant(*rows):
    """A decoder that always gives these logits."""
    return Whole(lambda tokens: torch.tensor(rows).expand(len(tokens), -1) if len(rows) == 1 else torch.tensor(rows))


@pytest.mark.parametrize("how", [greedy, sample, beam])
@pytest.mark.parametrize(
    ("logits", "words"),
    [
        ([NAN, 1.0, 2.0], "NaN"),
        ([1.0, NAN, -INF], "NaN"),
        ([NAN, INF, 0.0], "NaN"),
        ([NAN, NAN, NAN], "NaN"),
        ([-INF, -INF, -INF], "-inf everywhere"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_logits_that_allow_no_token_are_refused(how, logits, words, dtype):
    """In the first step, and in any row at any later one."""
    good = [0.0, 1.0, 2.0]
    for first in (1, 3):

        def forward(tokens, first=first):
            rows = [good, logits if tokens.shape[1] >= first else good]
            return torch.tensor(rows, dtype=dtype).repeat_interleave(len(tokens) // 2, 0)

        with pytest.raises(ValueError, match=f"logits.* must be .*, got '?{words}"):
            how(Whole(forward), torch.zeros(2, 1, dtype=torch.long), max_new_tokens=4)


@pytest.mark.parametrize("how", [greedy, sample, beam])
def test_infinite_logits_are_the_only_tokens(how):
    decoder = constant([1.0, 5.0, INF, -INF])
    tokens = how(decoder, torch.zeros(3, 1, dtype=torch.long), max_new_tokens=3)
    assert ((tokens.tokens if how is beam else tokens) == 2).all()
    if how is beam:
        assert not tokens.scores.any()


def test_infinite_logits_are_equally_likely():
    logits = torch.tensor([[1.0, INF, 5.0, INF]])
    weights = Sampler(temperature=0.1).weights(logits)
    assert weights.tolist() == [[0, 0.5, 0, 0.5]]
    scores = beam(constant(logits[0].tolist()), torch.zeros(1, 1, dtype=torch.long), beams=3, max_new_tokens=2, nbest=3).scores
    assert scores.tolist() == [pytest.approx([math.log(0.5)] * 3)]


@pytest.mark.parametrize("how", [greedy, sample, beam])
def test_what_a_row_gives_after_its_end_stops_no_other(how):
    """Row 0 ends at once; whatever its logits are then, row 1 goes on as it does alone."""

    def forward(tokens, kind):
        rows = torch.tensor([[-1.0, 0.5, 2.0], [0.5, 1.0, -1.0]], dtype=torch.float64)[kind]
        rows[:, 2] = rows[:, 2] + (tokens.shape[1] > 4)
        over = (tokens[:, 1:] == 2).any(1) | ((kind == 0) & (tokens.shape[1] > 1))
        return rows.masked_fill(over[:, None], NAN)

    prompt, options = torch.zeros(2, 1, dtype=torch.long), dict(max_new_tokens=6, stop=2)
    more = dict(top_k=1, seed=1) if how is sample else dict(beams=1) if how is beam else {}
    batch = how(Whole(forward, kind=torch.tensor([0, 1])), prompt, **options, **more)
    alone = how(Whole(forward, kind=torch.tensor([1])), prompt[:1], **options, **more)
    batch, alone = (x.tokens[:, 0] if how is beam else x for x in (batch, alone))
    assert batch[0, 0] == 2
    assert batch.shape[1] > 3
    assert torch.equal(batch[1:], alone)
