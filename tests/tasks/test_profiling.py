"""Where the time of training goes: what belongs to which block, and that looking changes nothing."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from toys import network

import zoo
from tasks.options import EngineOptions, UserError
from tasks.profiling import MARK, STEP, WARMUP, Profile, Row, measured, table


def event(name, time=0.0, number=-1, parent=None):
    return SimpleNamespace(name=name, self_cpu_time_total=time, cpu_time_total=time, sequence_nr=number, cpu_parent=parent)


def test_operations_belong_to_the_innermost_block_forward_and_backward():
    """Times in microseconds, of two steps."""
    outer, step = event(f"{MARK}outer"), event(STEP, 8_000_000)
    inner = event(f"{MARK}outer.inner", parent=outer)
    nested = event("aten::addmm", 2_000_000, 5, event("aten::linear", 1_000_000, 5, inner))
    of_inner = event("autograd::engine::evaluate_function: AddmmBackward0", 0, 5)
    adding = event("autograd::engine::evaluate_function: torch::autograd::AccumulateGrad", 0, -1)
    of_loss = event("autograd::engine::evaluate_function: MseLossBackward0", 0, 6)
    events = [
        step, outer, inner, nested.cpu_parent, nested,
        event("aten::detach", 400_000, 6, outer),  # before the loss, whose number it shows
        event("aten::mse_loss", 100_000, 6, step),
        of_loss, event("aten::mul", 700_000, -1, of_loss),
        of_inner, event("aten::mm", 1_600_000, -1, of_inner),
        adding, event("aten::add_", 300_000, -1, adding),
        event("aten::lerp_", 900_000, 7, step),
    ]  # fmt: skip
    rows, whole = measured(events, {"outer": "Sequential", "outer.inner": "Linear"}, steps=2)
    assert rows == [Row("outer.inner", "Linear", 1.5, 0.8), Row("outer", "Sequential", 0.2, 0.0)]
    assert whole == 4.0
    assert [line.split() for line in table(rows, whole).splitlines()[1:]] == [
        ["outer.inner", "(Linear)", "1500.00", "800.00", "57.5%"],
        ["outer", "(Sequential)", "200.00", "0.00", "5.0%"],
        ["loss,", "optimizer,", "Python", "37.5%"],
        ["a", "step", "4000.00"],
    ]


def test_a_table_has_ten_blocks_and_the_rest():
    rows = [Row(str(n), "Linear", 0.01 * n, 0.0) for n in range(12, 0, -1)]
    lines = table(rows, 1.0).splitlines()
    assert [line.split()[0] for line in lines[1:11]] == [str(n) for n in range(12, 2, -1)]
    assert lines[11].split() == ["all", "other", "blocks", "30.00", "0.00", "3.0%"]


def test_every_block_with_weights_takes_time_both_ways(tmp_path, capsys):
    """The last steps alone are looked at, and an error in a block leaves the others their names."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.GELU(), nn.Linear(8, 8)), nn.Linear(8, 1))
    profile = Profile(model, tmp_path, steps=2)
    for _ in range(WARMUP + 4):
        with profile.step():
            with pytest.raises(RuntimeError, match="shapes"):
                model[:2](torch.ones(3, 7))
            model(torch.ones(3, 8)).sum().backward()
        model(torch.ones(9, 8))  # between two steps, as an evaluation is
    text = (tmp_path / "profile.txt").read_text()
    assert capsys.readouterr().out == text
    found = {line.split()[0]: line.split() for line in text.splitlines()}
    for name in ("0", "1.1", "2"):
        assert found[name][1] == "(Linear)"
        assert float(found[name][2]) > 0
        assert float(found[name][3]) > 0
    names = [one["name"] for one in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if "name" in one]
    assert names.count(f"{MARK}1.1") == 2, "once a step"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_profiled_run_learns_the_same(start, tmp_path, monkeypatch, capsys):
    """Also where it has fewer steps than are asked for."""
    monkeypatch.setitem(zoo.MODELS, "toy", network)
    states, said = [], []
    for steps in (0, 2, 4, 5):  # of six, two of which come before
        run = start(model=zoo.create("toy"), epochs=2, profile=steps)
        run.fit()
        states.append(run.model.state_dict())
        said.append("a step " in capsys.readouterr().out)
        assert (tmp_path / "profile.txt").is_file() == bool(steps)
    assert said == [False, True, True, True]
    assert all(torch.equal(states[0][name], x) for state in states for name, x in state.items())
    run = start(model=zoo.create("toy"), epochs=1, profile=9)
    run.profile.left += 1  # as if it had ended a step earlier
    run.fit()
    assert "ended in the 2 steps before" in capsys.readouterr().out
    assert not any(module._forward_hooks for module in run.model.modules())
    assert not torch.autograd._profiler_enabled()


def test_a_compiled_model_has_no_blocks_to_tell_apart():
    with pytest.raises(UserError, match="--profile and --compile exclude each other"):
        EngineOptions(profile=1, compile=True)
