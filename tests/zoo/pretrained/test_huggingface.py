"""Hugging Face's configs become our arguments and come back; weights go both ways, bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from torch import nn

import zoo
from zoo import files
from zoo.generation import decoding
from zoo.pretrained.decoder_options import DECODERS
from zoo.pretrained.huggingface import arguments_of, to_huggingface

SIZES = dict(
    vocab_size=19, hidden_size=12, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2, intermediate_size=20,
    head_dim=4, max_position_embeddings=32, bos_token_id=None, eos_token_id=None, pad_token_id=None,
)  # fmt: skip


def rope(**options):
    return dict(SIZES, rope_parameters=dict(rope_theta=500.0, **options))


THEIRS = {
    "gpt2": ("GPT2", dict(vocab_size=19, n_embd=12, n_head=3, n_layer=2, n_positions=32, bos_token_id=None, eos_token_id=None)),
    "gpt2, inner": ("GPT2", dict(vocab_size=19, n_embd=12, n_head=3, n_layer=1, n_inner=17, eos_token_id=None)),
    "llama": ("Llama", dict(SIZES, attention_bias=True, rms_norm_eps=1e-5)),
    "llama, tied": ("Llama", dict(SIZES, tie_word_embeddings=True)),
    "llama 3": ("Llama", rope(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                              original_max_position_embeddings=16)),
    "linear": ("Llama", rope(rope_type="linear", factor=3.0)),
    "dynamic": ("Llama", rope(rope_type="dynamic", factor=3.0)),
    "yarn": ("Llama", rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=8, beta_fast=16.0)),
    "yarn, scaled": ("Llama", rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=8, mscale=1.0,
                                   mscale_all_dim=0.5)),
    "longrope": ("Llama", rope(rope_type="longrope", factor=4.0, original_max_position_embeddings=8, short_factor=[1.0, 1.5],
                               long_factor=[2.0, 3.0])),
    "mistral": ("Mistral", dict(SIZES, sliding_window=3)),
    "mistral without a window": ("Mistral", dict(SIZES, sliding_window=None)),
    "mixtral": ("Mixtral", dict(SIZES, num_local_experts=3)),
    "qwen3": ("Qwen3", dict(SIZES, tie_word_embeddings=True)),
    "gemma": ("Gemma", SIZES),
    "gemma2": ("Gemma2", dict(SIZES, sliding_window=3, query_pre_attn_scalar=20, attn_implementation="eager")),
    "gemma3": ("Gemma3", dict(SIZES, sliding_window=3, query_pre_attn_scalar=20)),
}  # fmt: skip


def made(kind, seed=0):
    """One of their models with drawn weights, away from their defaults."""
    family, options = THEIRS[kind]
    config = getattr(transformers, "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config")(**options)
    name = f"{family}LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    torch.manual_seed(seed)
    model = getattr(transformers, name)(config).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.4)
    return model


def of(model, tmp_path):
    """Our model of the folder that theirs leaves."""
    model.save_pretrained(tmp_path)
    kind = type(model).__name__
    name = "gpt_small" if kind.startswith("GPT2") else "gemma_2b" if kind.startswith("Gemma") else "llama_small"
    return zoo.create(name, weights=f"hf:{tmp_path}").eval()


@pytest.mark.parametrize("kind", THEIRS)
def test_there_and_back(kind, tmp_path):
    """Logits to float32's rounding, of short texts and of longer ones than the original; then the same weights and config."""
    theirs = made(kind)
    ours = of(theirs, tmp_path)
    for length in (5, 20):
        tokens = torch.randint(19, (2, length))
        with torch.no_grad():
            expected = theirs(tokens).logits
        assert (ours(tokens) - expected).abs().max() < 2e-4 * expected.square().mean().sqrt()
    again = to_huggingface(ours)
    assert type(again) is (type(theirs) if kind != "mistral without a window" else transformers.LlamaForCausalLM)
    found, expected = again.state_dict(), theirs.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    with torch.no_grad():
        torch.testing.assert_close(again(tokens).logits, theirs(tokens).logits, rtol=1e-5, atol=1e-5)
    again.save_pretrained(tmp_path / "again")
    _, arguments = arguments_of(json.loads((tmp_path / "again" / "config.json").read_text()))
    before = ours.config["arguments"]
    assert {k: v for k, v in arguments.items() if v not in (None, False)} == {
        k: v for k, v in before.items() if v not in (None, False)
    }


def test_every_architecture_is_tried():
    found = {name.removesuffix("ForCausalLM").removesuffix("LMHeadModel") for name in DECODERS}
    assert found == {family for family, _ in THEIRS.values()}


def test_what_comes_back_generates(tmp_path):
    """In a folder of their own, loaded by `AutoModelForCausalLM`."""
    model = zoo.create("llama_small", vocab_size=19, dim=12, heads=3, layers=1, hidden_dim=20).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.4)
    to_huggingface(model).save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    prompt = torch.randint(19, (2, 4))
    expected = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False, pad_token_id=0)
    found = decoding.greedy(model.start(capacity=12), prompt, max_new_tokens=8)
    assert torch.equal(found, expected[:, 4:])


@pytest.mark.parametrize("kind", ["gpt2", "llama, tied", "gemma"])
@pytest.mark.parametrize("whole", [True, False])
def test_names_without_prefix_and_tables_of_old(kind, whole, tmp_path):
    """As the hub's gpt2 is published: no prefix, no output layer, and causal masks of every block; and Llamas of 2023."""
    theirs = made(kind)
    theirs.save_pretrained(tmp_path)
    tables = {"gpt2": ("h.{}.attn.bias", "h.{}.attn.masked_bias")}.get(kind, ("layers.{}.self_attn.rotary_emb.inv_freq",))
    body = "transformer." if kind == "gpt2" else "model."
    tensors = files.read_tensors(tmp_path)
    tensors |= {body + table.format(n): torch.ones(3) for table in tables for n in range(2)}
    if not whole:
        tensors = {name.removeprefix(body): x for name, x in tensors.items()}
        config = files.read_json(tmp_path / "config.json")
        architecture = config["architectures"][0].replace("LMHead", "").replace("ForCausalLM", "Model")
        files.write_json(tmp_path / "config.json", config | {"architectures": [architecture]})
    files.write_tensors(tmp_path / "model.safetensors", tensors)
    name = "gpt_small" if kind == "gpt2" else "gemma_2b" if kind == "gemma" else "llama_small"
    model = zoo.create(name, weights=f"hf:{tmp_path}")
    found = to_huggingface(model).state_dict()
    assert all(torch.equal(found[name], x) for name, x in theirs.state_dict().items())
    files.write_tensors(tmp_path / "model.safetensors", tensors | {"h.0.attn.bias_2": torch.ones(1), "other": torch.ones(1)})
    with pytest.raises(ValueError, match=r"unmapped: .*h\.0\.attn\.bias_2, .*other"):
        zoo.create(name, weights=f"hf:{tmp_path}")


def test_without_the_output_layer_it_is_missing(tmp_path):
    """Of a Llama that is not tied."""
    made("llama").save_pretrained(tmp_path)
    tensors = {name: x for name, x in files.read_tensors(tmp_path).items() if not name.startswith("lm_head")}
    files.write_tensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(ValueError, match=r"do not fit llama_small: .*missing: output\.weight$"):
        zoo.create("llama_small", weights=f"hf:{tmp_path}")


def test_what_a_config_leaves_out_is_theirs():
    """Not what the variant has: llama_small is tied."""
    for kind in DECODERS:
        config = getattr(transformers, kind).config_class()
        written = {k: v for k, v in config.to_dict().items() if v is not None} | {"architectures": [kind]}
        short = {k: v for k, v in written.items() if DECODERS[kind].defaults.get(k) is None}
        assert arguments_of(short) == arguments_of(written), kind


def test_version_4s_form_of_rotary_positions():
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    old = dict(rope_theta=500000.0, rope_scaling=llama3 | {"original_max_position_embeddings": 8192})
    new = dict(rope_parameters=dict(old["rope_scaling"], rope_theta=500000.0))
    configs = [dict(SIZES, architectures=["LlamaForCausalLM"], **form) for form in (old, new)]
    (_, first), (_, second) = map(arguments_of, configs)
    assert first == second
    assert first["scaling"] == dict(kind="llama3", factor=8.0, low=1.0, high=4.0, original_length=8192)
    assert first["base"] == 500000.0


def test_a_folder_of_another_architecture_is_refused(tmp_path):
    made("mistral").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"another architecture, .*llama_small.*, not of gpt2"):
        zoo.create("gpt2", weights=f"hf:{tmp_path}")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"no_such_option": 3}))
    with pytest.raises(ValueError, match=r"config\.json: .*no_such_option = 3"):
        zoo.create("llama_small", weights=f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"do not fit llama_small: .*missing: decoder\.2"):
        zoo.create("llama_small", weights=f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(architectures=["FalconForCausalLM"]), "architectures must be one of GPT2LMHeadModel.*got FalconForCausalLM"),
        (dict(architectures=[]), "got none"),
        (dict(no_such_option=3), "LlamaForCausalLM has options that are unknown here: no_such_option = 3"),
        (dict(hidden_act="gelu"), "hidden_act of LlamaForCausalLM must be 'silu' or 'swish', got 'gelu'"),
        (dict(quantization_config={}), "quantization_config"),
        (dict(rope_parameters=dict(rope_type="new")), "rope_type must be one of .*got 'new'"),
        (dict(rope_parameters=dict(rope_type="linear", factor=2.0, other=1)), "other is unknown of rope_type linear"),
        (dict(rope_parameters=dict(partial_rotary_factor=0.5)), "partial_rotary_factor must be 1"),
    ],
)
def test_what_we_have_not_is_named(changes, words):
    with pytest.raises(ValueError, match=words):
        arguments_of(dict(SIZES, architectures=["LlamaForCausalLM"]) | changes)


def test_models_that_theirs_are_none_of():
    with pytest.raises(ValueError, match="model must be one of"):
        to_huggingface(zoo.create("transformer_small", vocab_size=19))
    model = zoo.create("llama_small", vocab_size=19)
    model.config = {}
    with pytest.raises(ValueError, match=r"zoo\.create"):
        to_huggingface(model)
