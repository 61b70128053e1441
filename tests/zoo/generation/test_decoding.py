"""Laws of the loop that greedy, sample, beam and stream share, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from searches import BEAM_OPTIONS, INF, SAMPLE_OPTIONS, Recurrent, Whole, searches

from zoo.generation.decoding import beam, greedy, sample, stream, trim
from zoo.generation.sampling import row_seeds


def assert_row(tokens, alone, pad):
    """`alone` is the row, up to the padding that longer rows bring."""
    assert torch.equal(tokens[..., : alone.shape[-1]], alone)
    assert (tokens[..., alone.shape[-1] :] == pad).all()


@pytest.mark.parametrize("how", [greedy, sample, beam])
@given(search=searches(), data=st.data())
def test_a_batch_is_its_rows_alone(how, search, data):
    model, prompt, mask, options = search
    more = data.draw({greedy: st.just({}), sample: SAMPLE_OPTIONS, beam: BEAM_OPTIONS}[how])
    batch = how(model.decoder(), prompt, prompt_mask=mask, **options, **more)
    for row, real in enumerate(mask):
        own = dict(seed=row_seeds(more["seed"], len(prompt))[row : row + 1]) if how is sample else {}
        alone = how(model.decoder(), prompt[row : row + 1, real], **options, **(more | own))
        if how is beam:
            assert_row(batch.tokens[row], alone.tokens[0], options["pad"])
            torch.testing.assert_close(batch.scores[row], alone.scores[0])
        else:
            assert_row(batch[row], alone[0], options["pad"])


@given(searches(), SAMPLE_OPTIONS)
def test_rows_stop_alone_and_all_ways_pad(search, more):
    model, prompt, mask, options = search
    free = greedy(model.decoder(mask), prompt, prompt_mask=mask, **(options | dict(stop=())))
    assert free.shape == (len(prompt), options["max_new_tokens"])
    tokens = greedy(model.decoder(mask), prompt, prompt_mask=mask, **options)
    ends = torch.isin(free, torch.tensor(options["stop"], dtype=torch.long)).cumsum(1)
    over = torch.cat([torch.zeros(len(free), 1, dtype=torch.bool), ends[:, :-1] > 0], 1)
    assert torch.equal(tokens, free.masked_fill(over, options["pad"])[:, : tokens.shape[1]])
    assert over[:, tokens.shape[1] :].all()
    assert not over[:, tokens.shape[1] - 1].all()
    kept = [[t for t, end in zip(row, e, strict=True) if not end] for row, e in zip(free.tolist(), ends.tolist(), strict=True)]
    assert trim(tokens, options["stop"]) == kept
    longer = sample(model.decoder(mask), prompt, **(options | dict(max_new_tokens=12)), **more)
    drawn = sample(model.decoder(mask), prompt, **options, **more)
    assert torch.equal(longer[:, : drawn.shape[1]], drawn)


def test_a_stop_token_in_the_prompt_stops_nothing():
    always = Whole(lambda tokens: torch.tensor([0.0, 1.0, 0.5]).expand(len(tokens), 3))
    prompt = torch.tensor([[2, 2]])
    assert greedy(always, prompt, max_new_tokens=3, stop=[2]).tolist() == [[1, 1, 1]]
    always.tokens = None
    assert beam(always, prompt, max_new_tokens=3, stop=[2], length_penalty=3.0, beams=2).tokens.tolist() == [[[1, 1, 1]]]


def test_a_stream_asks_the_model_for_one_step_at_a_time():
    model, prompt = Recurrent(3, 7), torch.tensor([[1, 2], [3, 4]])
    decoder, calls = model.decoder(), []
    forward, decoder.forward = decoder.forward, lambda tokens: calls.append(tokens.shape[1]) or model.logits(tokens)
    tokens = stream(decoder, prompt, max_new_tokens=5)
    assert calls == []
    first = next(tokens)
    assert calls == [2]
    rest = list(tokens)
    assert calls == [2, 3, 4, 5, 6]
    expected = greedy(model.decoder(), prompt, max_new_tokens=5)
    assert torch.equal(torch.stack([first, *rest], 1), expected)
    calls.clear()
    decoder.tokens = None
    assert len(list(stream(decoder, prompt, max_new_tokens=5, stop=range(7)))) == 1
    assert calls == [2]
    assert forward is not decoder.forward


def test_no_gradients():
    weight = torch.ones(5, 5, requires_grad=True)
    for how in (greedy, sample, beam):
        seen = []
        decoder = Whole(lambda tokens, seen=seen: seen.append(weight[tokens[:, -1]] * 2) or seen[-1])
        how(decoder, torch.tensor([[1]]), max_new_tokens=2)
        assert not any(logits.requires_grad for logits in seen)
    assert torch.is_grad_enabled()


# Errors
BAD = [
    (dict(max_new_tokens=0), "max_new_tokens must be positive, got 0"),
    (dict(prompt=torch.zeros(2, dtype=torch.long)), "prompt must have 2 axes"),
    (dict(prompt=torch.zeros(2, 0, dtype=torch.long)), "prompt must be of one token a row"),
    (dict(prompt=torch.zeros(2, 3)), "prompt must be of dtype torch.int64, got torch.float32"),
    (dict(stop=[2, -1]), r"stop must be .*, got \[2, -1\]"),
    (dict(stop=[5]), r"stop must be below vocab_size, 5, got \[5\]"),
    (dict(pad=-100), "pad must be .*, got -100"),
    (dict(pad=5), "pad must be below vocab_size, 5, got 5"),
    (dict(prompt_mask=torch.ones(2, 4, dtype=torch.bool)), "prompt_mask: tokens must be 3, got 4"),
    (dict(prompt_mask=torch.ones(2, 3)), "prompt_mask must be of dtype torch.bool"),
    (dict(prompt_mask=torch.tensor([[True, True, False]] * 2)), "prompt_mask must be True in the last column"),
    (dict(prompt_mask=torch.tensor([[True, False, True]] * 2)), "prompt_mask must be True from a row's first real token on"),
    (dict(stop=5), r"stop must be below vocab_size, 5, got \[5\]"),
    (dict(stop=None), "stop must be a token or a sequence of tokens, got None"),
    (dict(stop=[2.5]), r"stop must be a token or a sequence of tokens, got \[2.5\]"),
    (dict(repetition_penalty=0.9), "repetition_penalty must be .*at least 1, got 0.9"),
]
BAD_BEAM = [
    (dict(beams=0), "beams must be positive, got 0"),
    (dict(nbest=5), "nbest must be positive and at most the 4 beams, got 5"),
    (dict(early_stopping="always"), "early_stopping must be True, False or \"never\", got 'always'"),
    (dict(length_penalty=INF), "length_penalty must be finite, got inf"),
]
BAD_SAMPLE = [
    (dict(temperature=0.0), "temperature must be positive .*, got 0.0"),
    (dict(top_k=0), "top_k must be positive.*, got 0"),
    (dict(top_p=0.0), "top_p must be above 0 and at most 1, got 0.0"),
    (dict(top_p=1.1), "top_p must be above 0 and at most 1, got 1.1"),
    (dict(min_p=-0.1), "min_p must be from 0 to 1, got -0.1"),
    (dict(seed=-1), "seed must be from 0 to .*, got -1"),
    (dict(seed=torch.tensor([1, 2, 3])), r"seed must be of length 2, one for each row, got \(3,\)"),
    (dict(seed=torch.tensor([1.0, 2.0])), "seed must be .*torch.int64, got torch.float32"),
]


@pytest.mark.parametrize(
    ("how", "bad", "message"),
    [(how, *bad) for how in (greedy, beam, sample) for bad in BAD]
    + [(beam, *bad) for bad in BAD_BEAM]
    + [(sample, *bad) for bad in BAD_SAMPLE],
)
def test_bad_arguments_are_named(how, bad, message):
    arguments = dict(prompt=torch.zeros(2, 3, dtype=torch.long), max_new_tokens=2) | bad
    with pytest.raises(ValueError, match=message):
        how(Recurrent(0, 5).decoder(), **arguments)


def test_a_stream_complains_before_its_first_step():
    with pytest.raises(ValueError, match="max_new_tokens"):
        stream(Recurrent(0, 5).decoder(), torch.zeros(2, 3, dtype=torch.long), max_new_tokens=0)
    with pytest.raises(ValueError, match="rows must be 2, got 1"):
        greedy(Whole(lambda tokens: torch.zeros(1, 5)), torch.zeros(2, 3, dtype=torch.long), max_new_tokens=1)


@pytest.mark.parametrize("how", [greedy, sample, beam])
def test_an_empty_batch(how):
    tokens = how(Recurrent(0, 5).decoder(), torch.zeros(0, 3, dtype=torch.long), max_new_tokens=2, stop=[1])
    assert len(tokens.tokens if how is beam else tokens) == 0


@pytest.mark.parametrize("how", [greedy, sample, beam])
def test_a_decoder_that_takes_no_mask_is_given_none(how):
    prompt, mask = torch.zeros(2, 3, dtype=torch.long), torch.tensor([[True] * 3, [False, True, True]])
    model = Recurrent(0, 5)

    class Plain(Whole):
        def __call__(self, tokens):
            return super().__call__(tokens)

    how(Plain(model.logits), prompt, max_new_tokens=2)
    with pytest.raises(ValueError, match="prompt_mask must be None for a Plain, which takes no mask, got 'a mask'"):
        how(Plain(model.logits), prompt, max_new_tokens=2, prompt_mask=mask)


@pytest.mark.parametrize("how", [greedy, sample, beam])
def test_a_lone_stop_token_is_as_good_as_a_sequence_of_it(how):
    model, prompt = Recurrent(4, 5), torch.tensor([[1, 2], [3, 4]])
    model.bias[2] = 2.0
    options = dict(max_new_tokens=9) | ({} if how is not sample else dict(seed=3))
    lone, several = (how(model.decoder(), prompt, stop=stop, **options) for stop in (2, [2]))
    lone, several = (found.tokens[:, 0] if how is beam else found for found in (lone, several))
    assert torch.equal(lone, several)
    assert (lone == 2).any()
    assert trim(lone, 2) == trim(several, [2])


def test_logits_are_handed_on_as_they_are():
    """After a row has ended, too: they are copied only where the row's own are no numbers any more."""
    given, chosen = [], []

    def forward(tokens):
        given.append(torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]))
        return given[-1]

    def choose(logits, step):
        chosen.append(logits)
        return logits.argmax(-1)

    list(stream(Whole(forward), torch.zeros(2, 1, dtype=torch.long), max_new_tokens=4, stop=2, choose=choose))
    assert len(chosen) == 4
    assert all(x is y for x, y in zip(given, chosen, strict=True))
