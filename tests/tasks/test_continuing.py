"""Texts in company: each is what it is alone, whoever else is there, comes, fails or leaves; calls of the model are shared."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from tasks import continuing
from tasks.continuing import Text, share_calls, sure
from tasks.serving.writing import may_share, until
from zoo.generation.decoder_only import Decoding
from zoo.generation.sampling import Sampler

CONTEXT, EOS = 12, 0
TOKENIZER = SimpleNamespace(
    eos=EOS, pad_or_eos=1, encode=lambda text: [ord(x) - 95 for x in text], decode=lambda ids: "".join(chr(n + 95) for n in ids)
)
MODELS = {
    "gpt_small": dict(max_positions=CONTEXT, heads=2),
    "llama_small": dict(heads=2),
    "windows": dict(heads=2, window=4),
    "experts": dict(heads=2, experts=3),
    "lstm_small": {},
}
NAMES = {"windows": "mistral_7b", "experts": "mixtral_8x7b"}


def model_of(name, dtype=torch.float64):
    torch.manual_seed(0)
    more = dict(hidden_dim=24, kv_heads=1) if name in NAMES else {}
    model = zoo.create(NAMES.get(name, name), vocab_size=28, dim=16, layers=2, **MODELS[name], **more).to(dtype).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture(scope="module")
def models():
    return {name: model_of(name) for name in MODELS}


def written(asked, model):
    settings = dict(asked)
    seed, greedy = settings.pop("seed"), settings.pop("greedy")
    filters = {name: settings.pop(name) for name in ("temperature", "top_p") if name in settings}
    settings["choose"] = None if greedy else Sampler(seed=seed, **filters)
    return Text(model, TOKENIZER, settings.pop("prompt"), context=CONTEXT, **settings)


def all_of(text):
    """Its pieces, how many tokens, and whether it has ended by itself."""
    pieces, found = text.pieces(), []
    while True:
        try:
            found.append(next(pieces))
        except StopIteration as end:
            return found, end.value


asks = st.fixed_dictionaries(
    {"prompt": st.text("abcdefgh", max_size=15), "max_new_tokens": st.integers(1, 20), "seed": st.integers(0, 99),
     "greedy": st.booleans()},
    optional={"temperature": st.floats(0.5, 2), "top_p": st.floats(0.5, 1), "min_new_tokens": st.integers(0, 20),
              "repetition_penalty": st.floats(1, 2), "no_repeat_ngram": st.integers(1, 3)},
)  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=8)
@given(data=st.data())
def test_a_text_in_company_is_what_it_is_alone(models, name, data):
    """They come when they come, are asked for when they are, and some leave in the midst."""
    model = models[name]
    some = data.draw(st.lists(asks, min_size=1, max_size=5))
    alone = [all_of(written(one, model)) for one in some]
    texts = [written(one, model) for one in some]
    pieces, found, ended = [text.pieces() for text in texts], [[] for _ in some], {}
    there, leaves = 1, data.draw(st.sampled_from([None, *range(len(some))]))
    while len(ended) < len(some):
        there = min(len(some), there + data.draw(st.integers(0, 2)))
        asking = [n for n in range(there) if n not in ended and data.draw(st.integers(0, 3))]
        share_calls([texts[n] for n in asking], 3)
        for n in asking:
            try:
                found[n].append(next(pieces[n]))
            except StopIteration as end:
                ended[n] = end.value
            if n == leaves and len(found[n]) == 2:
                pieces[n].close()
                ended[n] = None
    for n, (wanted, how) in enumerate(alone):
        if n == leaves and ended[n] is None:
            assert found[n] == wanted[:2]
        else:
            assert (found[n], ended[n]) == (wanted, how)


def by_hand(asked, model):
    """The tokens, each of a call of the whole model; a text that has filled the context goes on from its last half."""
    choose, found = Sampler(seed=asked["seed"], temperature=0.9, top_p=0.9), []
    window = [EOS, *TOKENIZER.encode(asked["prompt"])]
    while len(found) < asked["max_new_tokens"]:
        window = window[-CONTEXT // 2 :] if len(window) >= CONTEXT else window
        with torch.no_grad():
            logits = model(torch.tensor([window]))[:, -1]
        logits[:, TOKENIZER.pad_or_eos] = -torch.inf
        if len(found) < asked["min_new_tokens"]:
            logits[:, EOS] = -torch.inf
        token = int(logits.argmax() if asked["greedy"] else choose(logits, len(found)))
        if token == EOS:
            return TOKENIZER.decode(found), (len(found) + 1, True)
        found, window = [*found, token], [*window, token]
    return TOKENIZER.decode(found), (len(found), False)


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("name", ["gpt_small", "lstm_small"])
def test_a_text_is_what_the_whole_model_would_say(models, name, greedy):
    """Also beyond the context, of which there are 12 tokens here."""
    for seed, (prompt, least) in enumerate([("a", 0), ("abcdefghabcd", 3), ("", 30), ("abcdefghab", 14)]):
        asked = {"prompt": prompt, "max_new_tokens": 30, "seed": seed, "greedy": greedy, "min_new_tokens": least}
        pieces, end = all_of(written({**asked, "temperature": 0.9, "top_p": 0.9}, models[name]))
        assert ("".join(pieces), end) == by_hand(asked, models[name])


class Watched:
    """A model that notes the rows of each call, and fails when a row of several, or the only one, has the token `poison`."""

    def __init__(self, model, poison=None):
        self.model, self.poison, self.rows = model, poison, []
        self.embedding, self.parameters = model.embedding, model.parameters

    def start(self, capacity):
        return Watching(self, capacity)


class Watching(Decoding):
    def __init__(self, watched, capacity):
        super().__init__(watched.model, capacity)
        self.watched = watched

    def __call__(self, tokens, mask=None):
        self.watched.rows.append(len(tokens))
        if self.watched.poison in tokens.flatten().tolist():
            raise RuntimeError("poison")
        return super().__call__(tokens, mask)


def ask(**more):
    return {"prompt": "a", "max_new_tokens": 6, "seed": 0, "greedy": False, "min_new_tokens": 6, **more}


@pytest.mark.parametrize("doubt", [False, True])
def test_calls_are_shared_and_whoever_comes_later_joins(models, monkeypatch, doubt):
    """Whoever has been in doubt, as all are here, goes on alone."""
    monkeypatch.setattr(continuing, "CLOSE", torch.inf if doubt else 0.0)
    watched = Watched(models["llama_small"])
    texts = [written(ask(prompt=prompt, seed=n, greedy=doubt), watched) for n, prompt in enumerate(["a", "abcd", "b"])]
    pieces = [text.pieces() for text in texts]
    for n in range(7):
        there = texts if n > 1 else texts[:2]
        share_calls(there, 4)
        for one in pieces[: len(there)]:
            next(one)
    assert watched.rows == ([2] + [1] * 17 if doubt else [2, 2, 2, 1, 3, 3, 3, 1])


def test_a_text_that_fails_fails_alone(models):
    """In the midst of a batch, and at its begin."""
    for prompt in ("h", "ah"):
        watched = Watched(models["llama_small"], poison=ord("h") - 95)
        texts = [written(ask(prompt=one, forbidden_sequences=[[ord("h") - 95]]), watched) for one in ("a", prompt, "bc")]
        share_calls(texts, 4)
        with pytest.raises(RuntimeError, match="poison"):
            all_of(texts[1])
        clean = [written(ask(prompt=one, forbidden_sequences=[[ord("h") - 95]]), models["llama_small"]) for one in ("a", "bc")]
        assert [all_of(texts[0]), all_of(texts[2])] == [all_of(one) for one in clean]


def test_whoever_has_left_is_computed_no_more(models):
    watched = Watched(models["llama_small"])
    texts = [written(ask(prompt=prompt), watched) for prompt in "abc"]
    pieces = [text.pieces() for text in texts]
    share_calls(texts, 4)
    for one in pieces:
        next(one)
    for one in pieces[::2]:
        one.close()
    next(pieces[1])
    assert watched.rows == [3, 1]
    assert texts[0].batch is texts[2].batch is None


def test_a_text_that_is_stopped_leaves_the_others_alone(models):
    """By a text of which a part is the end of what has come; others go on, as each of them is alone."""
    asked = [ask(prompt=prompt, seed=n, max_new_tokens=12, min_new_tokens=12) for n, prompt in enumerate(["a", "bcd", "ef"])]
    whole = ["".join(all_of(written(one, models["llama_small"]))[0]) for one in asked]
    stops = [whole[0][3:5], whole[1][6:8], "\n"]
    texts = [written(one, models["llama_small"]) for one in asked]
    pieces, found = [until(text.pieces(), [stop]) for text, stop in zip(texts, stops, strict=True)], [""] * 3
    for _ in range(14):
        share_calls(texts, 4)
        found = [before + next(one, "") for before, one in zip(found, pieces, strict=True)]
    assert found == [text.partition(stop)[0] for text, stop in zip(whole, stops, strict=True)]
    assert [text.batch for text in texts] == [None] * 3


def test_prompts_of_very_unequal_lengths_do_not_wait_for_each_other(models):
    texts = [written(ask(prompt="a" * n), models["llama_small"]) for n in (1, 9, 2)]
    for text in texts:
        text.window = text.window * 5 if len(text.window) == 10 else text.window
    share_calls(texts, 4)
    assert texts[0].batch is texts[2].batch is not texts[1].batch


@pytest.mark.parametrize("prompts", [("a", "bcd"), ("abcdefg", "a")], ids=["left", "begun anew"])
def test_where_rounding_might_decide_a_greedy_text_is_that_of_the_text_alone(models, monkeypatch, prompts):
    """Logits are all but equal from the seventh token on, and disturbed by less than `CLOSE` where others were there before."""
    begins = {CONTEXT // 2, *(1 + len(prompt) for prompt in prompts)}

    class Near(Watching):
        company = False

        def __call__(self, tokens, mask=None):
            self.company |= len(tokens) > 1 or not (self.begun or tokens.shape[1] in begins)
            logits, start = super().__call__(tokens, mask), self.past[0].start
            near = 1 + 1e-5 * torch.tanh(logits)
            if self.company:
                near += 5e-5 * torch.linspace(0, 1, near.shape[1]).flip(0)
            real = torch.full((len(tokens), 1), self.length) - (0 if start is None else start[:, None])
            return torch.where(real < 7, logits, near)

    def found(together):
        watched, lengths = Watched(models["llama_small"]), zip(prompts, (2, 12), strict=True)
        watched.start = partial(Near, watched)
        asked = [ask(prompt=prompt, greedy=True, max_new_tokens=n, min_new_tokens=n) for prompt, n in lengths]
        texts = [written(one, watched) for one in asked]
        if together:
            share_calls(texts, 2)
        return [all_of(text) for text in texts], sum(watched.rows)

    alone, (texts, rows) = found(together=False)[0], found(together=True)
    assert texts == alone
    assert rows <= 2 * 14  # what is computed again is so once, not for each token
    monkeypatch.setattr(continuing, "CLOSE", 0.0)
    assert found(together=True)[0] != alone


def test_a_token_is_sure_unless_another_is_about_as_likely():
    assert sure(torch.tensor([[1.0, -torch.inf, -torch.inf]]))
    assert not sure(torch.tensor([[1.0, 1.0 - 1e-6]]))


@pytest.mark.parametrize("name", ["llama_small", "lstm_small"])
def test_slots_of_those_who_have_left_are_given_back(models, name):
    """A batch has no more slots than its longest text, and two steps."""
    texts = [written(ask(prompt="ab"[: n % 3], seed=n), models[name]) for n in range(14)]
    pieces, calls = [text.pieces() for text in texts], 0
    for turn in range(3 * len(texts)):
        there = [n for n in range(turn // 3 + 1) if texts[n].end is None]
        share_calls([texts[n] for n in there], 4)
        for n in there:
            next(pieces[n])
        decoders = {text.batch.decoder for text in texts if text.batch is not None and text.batch.decoder is not None}
        calls += len(decoders)
        assert all(decoder.length <= 10 for decoder in decoders)
    assert calls <= 4 * len(texts)


def test_who_leaves_while_batches_join_is_computed_no_more(models, monkeypatch):
    """The client's thread is another one than that of the model."""
    watched, keep, seen = Watched(models["llama_small"]), continuing.Batch.keep, []
    texts = [written(ask(prompt=prompt), watched) for prompt in "ab"]
    pieces = [text.pieces() for text in texts]
    for one in pieces:
        next(one)

    def leaving(batch):
        keep(batch)
        seen.append(batch)
        if len(seen) == 2:
            pieces[1].close()

    monkeypatch.setattr(continuing.Batch, "keep", leaving)
    share_calls(texts, 4)
    next(pieces[0])
    assert (len(seen), watched.rows) == (3, [1, 1, 1])


def test_half_precision_and_positions_that_depend_on_the_room_share_nothing():
    model = zoo.create("llama_small", vocab_size=28, dim=16, layers=1, heads=2)
    assert [may_share(model, precision) for precision in ("fp32", "bf16")] == [True, False]
    model.rotary.scaling = SimpleNamespace(needs_length=True)
    assert not may_share(model, "fp32")
