"""What `zoo.summary` counts is what torch counts, or what a closed form says; the model is as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import zoo
from layers.attention import MultiHeadAttention
from layers.feedforward import SwiGLU
from layers.recurrent import GRU, LSTM
from zoo.summaries import Summary


class Shared(nn.Module):
    """One layer, twice, within another that is not called."""

    def __init__(self):
        super().__init__()
        self.first = self.second = nn.Linear(3, 3)
        self.inner = nn.ModuleList([nn.ModuleDict({"a": nn.Sequential(nn.Linear(3, 5, bias=False))})])
        self.unused = nn.Linear(7, 7)

    def forward(self, x):
        return {"all": [self.inner[0]["a"](self.second(self.first(x)))], "more": None}


def test_multiply_adds_are_half_of_what_torch_counts():
    model, images = zoo.create("resnet18", num_classes=7), torch.randn(2, 3, 32, 48)
    found = zoo.summary(model, images)
    with FlopCounterMode(display=False) as counter:
        model.eval()(images)
    assert found[0].multiply_adds == counter.get_total_flops() // 2
    assert found[0].multiply_adds == sum(row.multiply_adds for row in found[1:])
    assert found[0].parameters == sum(p.numel() for p in model.parameters()) == sum(row.parameters for row in found[1:])
    assert found[0].shape == "b=2 d=7"
    assert [row.name for row in found] == ["", "stem", *(f"stages.{n}" for n in range(4)), "head"]
    assert found[1].shape == "b=2 c=64 y=8 x=12"


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_is_counted_on_a_cpu_too(kv_heads):
    b, n, dim, heads, x = 2, 5, 12, 4, torch.randn(2, 5, 12)
    (row,) = zoo.summary(MultiHeadAttention(dim, heads, kv_heads=kv_heads), x, depth=0)
    projections = b * n * dim * (2 * dim + 2 * dim * kv_heads // heads)
    assert row.multiply_adds == projections + 2 * b * n * n * dim


@pytest.mark.parametrize(("block", "gates"), [(LSTM, 4), (GRU, 3)])
def test_recurrent_networks_are_counted(block, gates):
    (row,) = zoo.summary(block(6, 8, layers=2), torch.randn(3, 5, 6), depth=0)
    assert row.multiply_adds == 3 * 5 * gates * 8 * (6 + 8 + 8 + 8)
    assert row.shape == "b=3 n=5 d=8"


def test_rows_are_what_is_called_and_so_many_calls_deep():
    x = torch.randn(4, 3)
    found = {depth: zoo.summary(Shared(), x, depth=depth) for depth in (0, 1, 2)}
    assert [row.name for row in found[0]] == [""]
    assert [(row.name, row.multiply_adds) for row in found[1]] == [("", 132), ("first", 72), ("inner.0.a", 60)]
    assert [row.name for row in found[2]] == ["", "first", "inner.0.a", "inner.0.a.0"]
    assert found[0][0].shape == "b=4 d=5"
    assert found[0][0].parameters == 12 + 15 + 56


def test_the_table_has_a_line_for_each_row():
    found = zoo.summary(zoo.create("gpt_small", vocab_size=9), torch.ones(2, 5, dtype=torch.long), depth=2)
    head, *lines = str(found).splitlines()
    assert head.split("  ")[-1] == "proven against"
    assert len(lines) == len(found) > 5
    assert all(
        line.startswith(row.name) and row.kind in line and row.shape in line for line, row in zip(lines, found, strict=True)
    )
    assert "transformers" in next(line for line in lines if "FeedForward" in line or "LearnedPositions" in line)
    assert isinstance(found, Summary)


def test_what_a_block_is_proven_against_is_in_its_docstring():
    assert zoo.summary(SwiGLU(4, 6), torch.randn(2, 4))[0].proof == "Llama's and T5's of transformers"
    assert zoo.summary(nn.Linear(4, 6), torch.randn(2, 4))[0].proof == ""


def test_the_model_is_as_it_was():
    model = zoo.create("vgg11", num_classes=3).train()
    model.head.eval()
    modes = [module.training for module in model.modules()]
    for images in (torch.randn(1, 3, 32, 32), torch.randn(1, 4, 32, 32)):
        if images.shape[1] == 3:
            zoo.summary(model, images)
        else:
            with pytest.raises(ValueError, match="channels"):
                zoo.summary(model, images)
        assert [module.training for module in model.modules()] == modes
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="model must be a module, got 'resnet18'"):
        zoo.summary("resnet18", torch.randn(1))  # type: ignore
    with pytest.raises(ValueError, match=r"inputs must be what the model is called with, got \(\)"):
        zoo.summary(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="depth must be 0 or more, got -1"):
        zoo.summary(nn.Linear(1, 1), torch.randn(1), depth=-1)
