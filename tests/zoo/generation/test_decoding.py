from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LogitsProcessorList, MarianConfig, MarianMTModel
from transformers.generation import logits_process
from transformers.modeling_outputs import BaseModelOutput

from zoo.generation.decoding import beam, greedy, largest, sample, stream, trim
from zoo.generation.sampling import Repetition, Sampler, keep_min_p, keep_top_k, keep_top_p, mix, row_seeds, uniform

SEEDS = st.integers(0, 2**32 - 1)
INF = float("inf")


class Whole:
    """A function of all tokens so far and of what belongs to each row, the prompt's mask among it, as a decoder."""

    def __init__(self, forward, **memory):
        self.forward, self.memory, self.tokens = forward, memory, None

    def __call__(self, tokens, mask=None):
        self.memory |= {} if mask is None else {"mask": mask}
        self.tokens = tokens if self.tokens is None else torch.cat([self.tokens, tokens], 1)
        return self.forward(self.tokens, **self.memory)

    def select(self, rows):
        self.tokens = self.tokens[rows]
        self.memory = {name: value[rows] for name, value in self.memory.items()}


class Recurrent:
    """Weights of a model whose next token depends on every earlier one; padding leaves its state alone."""

    def __init__(self, seed, vocab_size, scale=1.5):
        rng = torch.Generator().manual_seed(seed)
        self.vocab_size, self.bias = vocab_size, torch.zeros(vocab_size, dtype=torch.float64)
        self.tokens, self.back, self.out = (
            torch.randn(*shape, generator=rng, dtype=torch.float64) * scale
            for shape in ((vocab_size, 6), (6, 6), (6, vocab_size))
        )

    def decoder(self, mask=None):
        return Whole(self.logits) if mask is None else Whole(self.logits, mask=mask)

    def logits(self, tokens, mask=None):
        state = torch.zeros(len(tokens), 6, dtype=torch.float64)
        for n in range(tokens.shape[1]):
            new = (state @ self.back + self.tokens[tokens[:, n]]).tanh()
            state = new if mask is None or n >= mask.shape[1] else new.where(mask[:, n : n + 1], state)
        return state @ self.out + self.bias


def draw_tokens(rng, *shape, below):
    return torch.randint(below, shape, generator=rng)


def draw_padded(rng, rows, longest, vocab_size):
    """Prompts of 1 to `longest` tokens, padded on the left with tokens of every kind, and the mask that tells them apart."""
    lengths = torch.randint(1, longest + 1, (rows, 1), generator=rng)
    return draw_tokens(rng, rows, longest, below=vocab_size), torch.arange(longest) >= longest - lengths


# Hugging Face's generate


def redraw(model, rng):
    """Every parameter and buffer away from its default, with logits that are well apart."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(
                torch.randn(p.shape, generator=rng, dtype=p.dtype) * (0.7 if p.ndim > 1 else 0.2)
                + ("norm" in name or ".ln" in name)
            )
        for name, buffer in model.named_buffers():
            if name == "final_logits_bias":
                buffer.copy_(torch.randn(buffer.shape, generator=rng, dtype=buffer.dtype))
    return model.double().eval()


VOCAB = 23  # more than the (1 + 2 stop tokens) * 5 beams that are looked at, below which `generate` ranks -1e9 among equals
NO_SPECIAL = dict(bos_token_id=None, eos_token_id=None, pad_token_id=VOCAB - 1)


def gpt2(rng, rows, layers, longest):
    """Inputs of `generate`, our decoder over the same model, and its prompt."""
    config = GPT2Config(vocab_size=VOCAB, n_positions=32, n_embd=8, n_layer=layers, n_head=2, **NO_SPECIAL)
    model = redraw(GPT2LMHeadModel(config), rng)
    prompt, mask = draw_padded(rng, rows, longest, VOCAB)

    def forward(tokens, mask):
        mask = torch.cat([mask, mask.new_ones(len(tokens), tokens.shape[1] - mask.shape[1])], 1).long()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return model(tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, -1].float()

    return model, dict(inputs=prompt, attention_mask=mask.long()), Whole(forward, mask=mask), prompt


def marian(rng, rows, layers, longest):
    """Inputs of `generate`, our decoder over the same model, and its prompt."""
    sizes = dict(d_model=8, max_position_embeddings=32, encoder_layers=layers, decoder_layers=layers)
    sizes |= {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("attention_heads", 2), ("ffn_dim", 12))}
    config = MarianConfig(vocab_size=VOCAB, decoder_start_token_id=VOCAB - 2, forced_eos_token_id=None, **sizes, **NO_SPECIAL)
    model = redraw(MarianMTModel(config), rng)
    source, mask = draw_padded(rng, rows, longest, VOCAB)
    source, mask = source.flip(1), mask.flip(1).long()
    memory = model.get_encoder()(source, attention_mask=mask).last_hidden_state.detach()

    def forward(tokens, memory, mask):
        outputs = model(encoder_outputs=BaseModelOutput(memory), attention_mask=mask, decoder_input_ids=tokens, use_cache=False)
        return outputs.logits[:, -1].float()

    prompt = torch.full((rows, 1), VOCAB - 2)
    return model, dict(inputs=source, attention_mask=mask), Whole(forward, memory=memory, mask=mask), prompt


@st.composite
def generations(draw):
    rng = torch.Generator().manual_seed(draw(SEEDS))
    build = draw(st.sampled_from([gpt2, marian]))
    model, inputs, decoder, prompt = build(rng, draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 4)))
    likely = decoder.forward(prompt, **decoder.memory).mean(0).topk(8).indices.tolist()
    stop = draw(st.lists(st.sampled_from(likely), max_size=2, unique=True))
    options = dict(max_new_tokens=draw(st.integers(1, 9)), repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.2, 2.5])))
    pad = stop[0] if stop and stop[0] and draw(st.booleans()) else VOCAB - 1
    ours = dict(stop=stop, pad=pad, prompt_mask=decoder.memory["mask"] if build is gpt2 else None, **options)
    theirs = dict(eos_token_id=stop or None, pad_token_id=pad, do_sample=False, **inputs, **options)
    return model, decoder, prompt, ours, theirs


@given(generations())
def test_greedy_is_generate(case):
    model, decoder, prompt, ours, theirs = case
    expected = model.generate(**theirs)[:, prompt.shape[1] :]
    assert torch.equal(greedy(decoder, prompt, **ours), expected)


@given(generations(), st.data())
def test_beam_is_generate(case, data):
    model, decoder, prompt, ours, theirs = case
    beams = data.draw(st.integers(2, 5), label="beams")
    nbest = data.draw(st.integers(1, beams), label="nbest")
    shared = dict(
        length_penalty=data.draw(st.sampled_from([-2.0, -0.7, 0.0, 0.6, 1.0, 3.0]), label="length_penalty"),
        early_stopping=data.draw(st.sampled_from([True, False, "never"]), label="early_stopping"),
    )
    expected = model.generate(
        **theirs, **shared, num_beams=beams, num_return_sequences=nbest, return_dict_in_generate=True, output_scores=True
    )
    tokens, scores = beam(decoder, prompt, beams=beams, nbest=nbest, **ours, **shared)
    assert torch.equal(tokens.flatten(0, 1), expected.sequences[:, prompt.shape[1] :])
    torch.testing.assert_close(scores.flatten(), expected.sequences_scores)


@given(SEEDS, st.sampled_from([0.3, 1.0, 4.0]))
def test_filters_are_those_of_transformers(seed, temperature):
    logits = torch.randn(3, 37, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    for top_k, top_p, min_p in itertools.product([None, 1, 5, 99], [0.1, 0.6, 0.95, 1.0], [0.0, 0.05, 0.5, 1.0]):
        chain = [logits_process.TemperatureLogitsWarper(temperature), logits_process.TopPLogitsWarper(top_p)]
        chain[1:1] = [logits_process.TopKLogitsWarper(top_k)] if top_k else []
        expected = LogitsProcessorList([*chain, logits_process.MinPLogitsWarper(min_p)])(None, logits).softmax(-1)
        weights = Sampler(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p).weights(logits)
        torch.testing.assert_close(weights / weights.sum(-1, keepdim=True), expected)


# Laws of the loop


@st.composite
def searches(draw):
    """A model, padded prompts with their mask, and options that all ways of decoding take."""
    seed, vocab_size = draw(SEEDS), draw(st.integers(2, 9))
    rng = torch.Generator().manual_seed(seed)
    prompt, mask = draw_padded(rng, draw(st.integers(1, 5)), draw(st.integers(1, 4)), vocab_size)
    options = dict(
        max_new_tokens=draw(st.integers(1, 8)),
        stop=draw(st.lists(st.integers(0, vocab_size - 1), max_size=2)),
        pad=draw(st.integers(0, vocab_size - 1)),
        repetition_penalty=draw(st.sampled_from([1.0, 1.7])),
    )
    model = Recurrent(seed, vocab_size)
    model.bias[options["stop"]] = draw(st.sampled_from([0.0, 1.5, 3.0]))
    return model, prompt, mask, options


BEAM_OPTIONS = st.integers(1, 5).flatmap(
    lambda beams: st.fixed_dictionaries(
        dict(
            beams=st.just(beams),
            nbest=st.integers(1, beams),
            length_penalty=st.floats(-2, 2),
            early_stopping=st.sampled_from([True, False, "never"]),
        )
    )
)
SAMPLE_OPTIONS = st.fixed_dictionaries(
    dict(
        temperature=st.floats(0.1, 3),
        top_k=st.none() | st.integers(1, 9),
        top_p=st.floats(0.1, 1),
        min_p=st.floats(0, 0.5),
        seed=st.integers(0, 2**63 - 1),
    )
)


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


@given(searches(), BEAM_OPTIONS)
def test_beam_1_is_greedy(search, more):
    model, prompt, mask, options = search
    options["repetition_penalty"] = 1.0  # which is on logits here and on log-probabilities there
    tokens, _ = beam(model.decoder(mask), prompt, **options, **(more | dict(beams=1, nbest=1)))
    assert torch.equal(tokens[:, 0], greedy(model.decoder(mask), prompt, **options))


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


# Laws of beam search


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


# Laws of sampling


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


# Degenerate numbers

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
