"""Models of which two processes hold a part each compute what whole ones do, forward and backward, in float64."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

import zoo
from layers.lora import add_lora
from zoo.parallel import tensor_parallel

TRANSFORMER = {"vocab_size": 11, "dim": 12, "heads": 2, "hidden_dim": 10, "layers": 2}
MODELS = {
    "transformer_base": {**TRANSFORMER, "dropout": 0.0, "padding": 0},
    "transformer_small": TRANSFORMER,
    "bert_small": {"vocab_size": 11, "head": "masked", "dim": 12, "hidden_dim": 10, "dropout": 0.0, "attention_dropout": 0.0},
    "gpt_small": {"vocab_size": 11, "dim": 12, "heads": 6, "layers": 2, "max_positions": 9},
    "llama_small": {
        "vocab_size": 11,
        "dim": 16,
        "heads": 4,
        "layers": 2,
        "hidden_dim": 10,
        "kv_heads": 2,
        "query_key_norm": True,
    },
}
PROCESSES = """
import os, sys, torch, torch.distributed as dist
import test_parallel
rank = int(os.fork() > 0)
torch.set_num_threads(1)
dist.init_process_group("gloo", f"file://{os.getcwd()}/store", rank=rank, world_size=2)
test_parallel.compare(dist.init_device_mesh("cpu", (2,)))
sys.stdout.flush()
os._exit(os.waitstatus_to_exitcode(os.wait()[1]) if rank else 0)
"""


def model_of(name, **more):
    """Nothing stays at its default: norms and biases are drawn, too."""
    torch.manual_seed(0)
    known = zoo.arguments(name)
    model = zoo.create(name, **{k: v for k, v in (MODELS[name] | more).items() if k in known}).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    return model


def inputs_of(model):
    draw = torch.Generator().manual_seed(1)
    tokens, mask = torch.randint(1, 11, (3, 5), generator=draw), torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3:] = False
    if isinstance(model, zoo.EncoderDecoder):
        return tokens, torch.randint(1, 11, (3, 4), generator=draw), mask
    return tokens, mask


def called(model, inputs):
    output = model(*inputs)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    (output.sin() * weights).sum().backward()
    return output.detach()


def compare(mesh):
    """In each of two processes."""
    from zoo.parallel import joined, split_axes, whole

    group = mesh.get_group()
    for name in MODELS:
        one, other = model_of(name), tensor_parallel(model_of(name), mesh)
        inputs = inputs_of(one)
        exact = {"rtol": 1e-12, "atol": 1e-12}
        torch.testing.assert_close(called(other, inputs), called(one, inputs), **exact)
        axes = split_axes(other)
        assert len(axes) >= 14, name
        assert all(2 * other.get_parameter(n).numel() == one.get_parameter(n).numel() for n in axes)
        gradients = {n: joined(p.grad, axes.get(n), group) for n, p in other.named_parameters()}
        torch.testing.assert_close(gradients, {n: p.grad for n, p in one.named_parameters()}, **exact)
        torch.testing.assert_close(whole(other, mesh), dict(one.state_dict()), rtol=0, atol=0)
        if isinstance(one, zoo.LanguageModel):
            assert decoded(other) == decoded(one)
        os.write(1, f"{name}\n".encode())  # whole, beside the other process's


@torch.no_grad()
def decoded(model):
    caches, token, found = model.new_caches(9), torch.tensor([[1], [2]]), []
    for _ in range(6):
        token = model.next_logits(token, caches).argmax(-1)[:, None]
        found += token.flatten().tolist()
    return found


@pytest.mark.processes
def test_two_processes_compute_what_one_does(tmp_path, monkeypatch, request):
    monkeypatch.setenv("PYTHONPATH", f"{request.path.parent}:{request.config.rootpath}")
    done = subprocess.run(
        [sys.executable, "-c", PROCESSES], cwd=tmp_path, check=False, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted([*MODELS, *MODELS])


@pytest.fixture
def three(monkeypatch):
    """A group of three, as far as it is asked before anything is sent."""
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 3)
    monkeypatch.setattr(dist, "get_rank", lambda group=None: 0)


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("transformer_small", {}, "model, in encoder.0.attention.sublayer, heads must be a multiple of the 3 processes, got 2"),
        ("transformer_small", {"heads": 3}, "hidden_dim must be a multiple of the 3 processes, got 10"),
        ("llama_small", {"heads": 6, "dim": 24}, "kv_heads must be a multiple of the 3 processes, got 2"),
    ],
)
def test_what_cannot_be_split_is_named(three, name, more, words):
    model = model_of(name, **more)
    before = {key: x.clone() for key, x in model.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        tensor_parallel(model, None)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_other_models_and_other_layers_are_refused(three):
    with pytest.raises(ValueError, match="model must be one with MultiHeadAttention, FeedForward, GatedFeedForward to split"):
        tensor_parallel(nn.Sequential(nn.Linear(3, 3)), None)
    model = model_of("gpt_small")
    add_lora(model, 2)
    with pytest.raises(ValueError, match=r"query, LoRALinear"):
        tensor_parallel(model, None)
