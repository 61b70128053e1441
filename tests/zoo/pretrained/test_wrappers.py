"""Our models as models of transformers: saved, loaded anew, generated from, resized, used by pipelines; see test_trainer too."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import torch
import transformers
from torch import nn
from transformers import pipeline
from word_tokenizers import READS, WRITES, words

import zoo
from layers import masks
from zoo.generation import decoding
from zoo.model import LanguageModel
from zoo.pretrained import wrappers
from zoo.pretrained.wrappers import register, wrap

SMALL = dict(vocab_size=19, dim=8, heads=2, hidden_dim=12, layers=2)
READERS = dict(padding=0, max_positions=30)
LABELS = ["no", "yes", "perhaps"]
MODELS = {
    "causal": ("llama_small", dict(kv_heads=1, experts=3, query_key_norm=True, window=3)),
    "states": ("roberta_base", READERS),
    "masked": ("distilbert_base", READERS | dict(head="masked")),
    "sequence": ("bert_small", READERS | dict(head="sequence", num_classes=3, std=0.02)),
    "tokens": ("roberta_base", READERS | dict(head="tokens", num_classes=3)),
    "answer": ("roberta_base", READERS | dict(head="answer")),
}
AUTO = {"causal": "ForCausalLM", "states": "", "masked": "ForMaskedLM", "sequence": "ForSequenceClassification",
        "tokens": "ForTokenClassification", "answer": "ForQuestionAnswering"}  # fmt: skip
TEXTS = ["a zoo in which nothing is taken", "all can fly"]


def drawn(kind, **more):
    name, arguments = MODELS.get(kind, (kind, {}))
    model = zoo.create(name, **SMALL | arguments | more).eval()
    torch.manual_seed(2)
    for p in model.parameters():
        nn.init.normal_(p, std=0.4)
    if "num_classes" in arguments:
        model.config["classes"] = LABELS
    return model


def loaded(kind, folder):
    register()
    return getattr(transformers, f"AutoModel{AUTO[kind]}").from_pretrained(folder)


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], x) for name, x in expected.items())


def first(output):
    """Where an answer starts, of a model that tells its end too."""
    return output[0] if isinstance(output, tuple) else output


def prompts(side="left"):
    tokens = torch.randint(5, 19, (2, 5), generator=torch.Generator().manual_seed(0))
    mask = masks.allowed_from_lengths(torch.tensor([5, 3]), 5, side)
    return tokens.masked_fill(~mask, 0), mask


@pytest.mark.parametrize("kind", MODELS)
def test_saved_and_loaded(kind, tmp_path):
    """Names, bits and outputs, through the meta device, with classes; and the folder is one of ours too."""
    model, (tokens, mask) = drawn(kind), prompts()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    made = wrap(model, folder=tmp_path / "new")
    assert made.model is model
    assert same(model.state_dict(), before)
    again = loaded(kind, tmp_path / "new")
    assert type(again) is type(made)
    assert same(again.state_dict(), made.state_dict())
    with torch.no_grad():
        assert torch.equal(again(tokens, attention_mask=mask.long())[0], made(tokens, attention_mask=mask.long())[0])
        expected = first(model(tokens, mask))
        assert torch.equal(again(input_ids=tokens, attention_mask=mask.long(), return_dict=False)[0], expected)
    assert [*again.config.id2label.values()] == (LABELS if kind in ("sequence", "tokens") else ["LABEL_0", "LABEL_1"])
    ours = zoo.load(tmp_path / "new")
    assert same(ours.state_dict(), before)
    assert ours.config.get("classes") == (LABELS if kind in ("sequence", "tokens") else None)


@pytest.mark.processes
def test_a_fresh_process_loads_them(tmp_path):
    tokens, mask = prompts()
    for kind in MODELS:
        wrap(drawn(kind), folder=tmp_path / kind)
    script = f"""
import torch, transformers
from zoo.pretrained.wrappers import register
register()
tokens, mask = torch.tensor({tokens.tolist()}), torch.tensor({mask.long().tolist()})
for kind, auto in {AUTO}.items():
    model = getattr(transformers, "AutoModel" + auto).from_pretrained({str(tmp_path)!r} + "/" + kind)
    torch.save(model(tokens, attention_mask=mask)[0], {str(tmp_path)!r} + "/" + kind + ".pt")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for kind in MODELS:
        assert torch.equal(torch.load(tmp_path / f"{kind}.pt"), first(drawn(kind)(tokens, mask))), kind


@pytest.mark.parametrize("asked", ["states", "sequence", "tokens", "answer"])
def test_another_head_on_a_saved_body(asked, tmp_path):
    """The body is the file's; the new head is drawn by the model's law, and nothing is left without a value."""
    model = drawn("masked", dim=64, heads=2)
    wrap(model, folder=tmp_path / "new")
    made = loaded(asked, tmp_path / "new")
    state = {name.removeprefix("model."): x for name, x in made.state_dict().items()}
    body = {name: x for name, x in model.state_dict().items() if not name.startswith("head.")}
    assert same({name: x for name, x in state.items() if not name.startswith("head.")}, body)
    head = {name: x for name, x in state.items() if name.startswith("head.")}
    assert (head == {}) == (asked == "states")
    for name, x in head.items():
        assert (x == 0).all() if name.endswith("bias") else 0.01 < x.std() < 0.03
    assert made.config.arguments.get("head") == (None if asked == "states" else asked)


def test_the_loss_of_answers_is_that_of_their_class():
    """Which takes no account of an answer that a text's cut has lost."""
    model, (tokens, mask) = drawn("answer"), prompts("right")
    given = dict(attention_mask=mask.long(), start_positions=torch.tensor([1, 5]), end_positions=torch.tensor([3, 5]))
    found, expected = (made(tokens, **given) for made in (wrap(model), zoo.to_huggingface(model)))
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.end_logits[mask], expected.end_logits[mask], rtol=1e-4, atol=1e-4)


def test_another_number_of_labels(tmp_path):
    wrap(drawn("sequence"), folder=tmp_path / "new")
    register()
    auto = transformers.AutoModelForSequenceClassification
    made = auto.from_pretrained(tmp_path / "new", num_labels=5, ignore_mismatched_sizes=True)
    assert made.model.head.output.weight.shape == (5, 8)
    assert made(prompts()[0]).logits.shape == (2, 5)
    assert made.model.head.output.weight.std() < 0.05


class Bigrams(LanguageModel):
    """A table that two names share, and numbers that no file holds."""

    def __init__(self, vocab_size, dim):
        super().__init__()
        self.embedding, self.output = nn.Embedding(vocab_size, dim), nn.Linear(dim, vocab_size, bias=False)
        self.output.weight = self.embedding.weight
        self.register_buffer("scale", torch.linspace(1, 2, dim), persistent=False)

    def forward(self, tokens, mask=None):
        return self.output(self.embedding(tokens) * self.scale)


def bigrams(vocab_size, *, dim: int = 6) -> Bigrams:
    return Bigrams(vocab_size, dim)


def test_shared_tensors_and_numbers_that_no_file_holds(tmp_path, monkeypatch):
    monkeypatch.setitem(zoo.MODELS, "bigrams", partial(bigrams, dim=6))
    model = zoo.create("bigrams", vocab_size=19)
    wrap(model, folder=tmp_path / "new")
    again = loaded("causal", tmp_path / "new")
    assert torch.equal(again.model.scale, model.scale)
    assert again.model.output.weight is again.model.embedding.weight
    assert torch.equal(again(prompts()[0]).logits, model(prompts()[0]))


@pytest.mark.parametrize("name", ["gpt_small", "llama_small", "causal"])
def test_generate_gives_our_tokens(name, tmp_path):
    """Greedy and beams, rows padded on the left, whatever cache is asked for; and texts drawn by their sampler repeat."""
    model, (tokens, mask) = drawn(name), prompts()
    wrap(model, words(WRITES), tmp_path / "new")
    made, given = loaded("causal", tmp_path / "new"), dict(attention_mask=mask.long(), max_new_tokens=7, do_sample=False)
    expected = decoding.greedy(model.start(capacity=12), tokens, prompt_mask=mask, max_new_tokens=7, stop=(3,))
    for options in ({}, dict(cache_implementation="static"), dict(use_cache=False)):
        found = made.generate(tokens, **given, **options)[:, 5:]
        assert torch.equal(found, expected[:, : found.shape[1]]), options
    beams = decoding.beam(model.start(capacity=12), tokens, prompt_mask=mask, max_new_tokens=7, beams=3, stop=(3,))
    found = made.generate(tokens, **given, num_beams=3)[:, 5:]
    assert decoding.trim(found, 3) == decoding.trim(beams.tokens[:, 0], 3)
    several = made.generate(tokens, **given, num_beams=3, num_return_sequences=2, use_cache=False)
    assert torch.equal(several, made.generate(tokens, **given, num_beams=3, num_return_sequences=2))


def test_pipelines(tmp_path):
    register()
    for kind in MODELS:
        tokenizer = words(WRITES if kind == "causal" else READS)
        wrap(drawn(kind), tokenizer, tmp_path / kind)
    ids = [torch.tensor([words(READS).encode(text).ids]) for text in (*TEXTS, "a [MASK] can fly")]
    (written,) = pipeline("text-generation", str(tmp_path / "causal"))(TEXTS[0], max_new_tokens=5, do_sample=False)
    tokens = torch.tensor([words(WRITES).encode(TEXTS[0]).ids])
    model = drawn("causal")
    new = decoding.greedy(model.start(capacity=20), tokens, max_new_tokens=5, stop=(3,))[0].tolist()
    assert written["generated_text"] == TEXTS[0] + words(WRITES).decode(new)
    found = pipeline("text-classification", str(tmp_path / "sequence"), batch_size=2)(TEXTS)
    assert [row["label"] for row in found] == [LABELS[drawn("sequence")(x).argmax()] for x in ids[:2]]
    found = pipeline("token-classification", str(tmp_path / "tokens"), ignore_labels=[])(TEXTS[0])
    assert [row["entity"] for row in found] == [LABELS[n] for n in drawn("tokens")(ids[0])[0, 1:-1].argmax(-1)]
    found = pipeline("fill-mask", str(tmp_path / "masked"))("a [MASK] can fly")
    assert found[0]["token"] == drawn("masked")(ids[2])[0, 2].argmax()
    found = pipeline("feature-extraction", str(tmp_path / "states"))(TEXTS[0], return_tensors=True)
    torch.testing.assert_close(found, drawn("states")(ids[0]))


@pytest.mark.parametrize(("kind", "more"), [("causal", {}), ("causal", dict(tied=True)), ("masked", {})])
@pytest.mark.parametrize("size", [23, 17])
def test_another_vocabulary(kind, more, size, tmp_path):
    made = wrap(drawn(kind, **more))
    tokens = torch.randint(17, (2, 4))
    with torch.no_grad():
        before = made(tokens).logits
        made.resize_token_embeddings(size)
        after = made(tokens).logits
    kept = min(size, 19)
    assert after.shape[-1] == size
    torch.testing.assert_close(after[..., :kept], before[..., :kept])
    made.save_pretrained(tmp_path)
    again = loaded(kind, tmp_path)
    assert same(again.state_dict(), made.state_dict())
    assert again.config.arguments["vocab_size"] == again.config.vocab_size == size
    zoo.save(made.model, tmp_path / "ours")
    assert same(zoo.load(tmp_path / "ours").state_dict(), made.model.state_dict())


def test_what_is_refused(tmp_path):
    model, (tokens, _) = drawn("gpt_small", max_positions=9), prompts()
    made = wrap(model)
    with pytest.raises(ValueError, match=r"capacity must be 9 at most, the positions that the model has learned, got 15"):
        made.generate(tokens, max_new_tokens=10, pad_token_id=0)
    with pytest.raises(ValueError, match=r"positions must be from 0 to 8, got 0 to 9"):
        made(tokens.repeat(1, 2))
    with pytest.raises(ValueError, match=r"tokens must be tokens from 0 to 18, got 19"):
        made(torch.full((1, 2), 19))
    for name in ("position_ids", "inputs_embeds"):
        with pytest.raises(ValueError, match=f"{name} must be left out for a model of zooproof"):
            made(tokens, **{name: tokens})
    with pytest.raises(ValueError, match=f"{wrappers.CACHE} must be left to generate, got a DynamicCache"):
        made(tokens, **{wrappers.CACHE: transformers.DynamicCache()})
    kept = made.generate(tokens, max_new_tokens=2, pad_token_id=0, return_dict_in_generate=True)[wrappers.CACHE]
    for options in ({wrappers.CACHE: kept}, dict(prompt_lookup_num_tokens=2)):
        with pytest.raises(ValueError, match=f"{wrappers.CACHE} must be left to generate|croppe|does not go back in generate"):
            made.generate(tokens[:1], max_new_tokens=4, pad_token_id=0, **options)
    with pytest.raises(ValueError, match="bert_small has no head for ZooproofForCausalLM"):
        wrappers.ZooproofForCausalLM(wrappers.ZooproofConfig(model="bert_small", arguments=SMALL))
    with pytest.raises(ValueError, match="input_ids must be given"):
        made()
    with pytest.raises(ValueError, match="tokenizer has 18 tokens, and the model's vocab_size is 19"):
        wrap(model, words(WRITES, 18), tmp_path / "new")
    wrap(drawn("masked"), folder=tmp_path / "new")
    with pytest.raises(ValueError, match="distilbert_base has no head for ZooproofForCausalLM"):
        loaded("causal", tmp_path / "new")
    with pytest.raises(ValueError, match="exists already: give another one"):
        wrap(model, folder=tmp_path / "new")
    for other in (zoo.create("resnet20"), drawn("bert_small", head="pooled")):
        with pytest.raises(ValueError, match="model must be a language model, or have one of the heads None, masked, sequence"):
            wrap(other)
    model.config = {}
    with pytest.raises(ValueError, match=r"model must come from zoo\.create or zoo\.load"):
        wrap(model)
