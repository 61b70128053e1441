"""`python -m layers.testing`: what is guessed of a block without a contract, what is told, and the draft that is printed."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Literal

import pytest
import torch
import torchvision
from hypothesis import settings
from torch import nn

from layers.attention import MultiHeadAttention
from layers.convolution import ConvNormAct
from layers.feedforward import FeedForward, GatedFeedForward
from layers.recurrent import LSTM
from layers.testing.__main__ import main, value, values
from layers.testing.draft import draft
from layers.testing.drawing import Part
from layers.testing.guesses import Unclear, described

BROKEN = """
import torch
from torch import nn
from torch.nn import functional

class Mixes(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.linear = nn.Linear(dim, dim)
    def forward(self, x):
        return self.linear(x - x.mean(0))

class IgnoresMode(Mixes):
    def forward(self, x):
        return functional.dropout(self.linear(x), 0.5)

class WritesOver(Mixes):
    def forward(self, x):
        with torch.no_grad():
            x[x < 0] = 0
        return self.linear(x)

class Hides(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.scales = [nn.Parameter(torch.randn(dim))]
    def forward(self, x):
        return x * self.scales[0]
"""


ONLY = ("smoke", "parameters_used", "batch_rows", "per_sample_gradients")


@pytest.fixture
def program(tmp_path, monkeypatch, capsys):
    """Runs the program on a class of BROKEN; gives the exit status, and what it prints."""
    (tmp_path / "broken_to_draft.py").write_text(BROKEN)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = settings._current_profile

    def run(name, *options):
        try:
            status = main([f"{tmp_path / 'broken_to_draft.py'}:{name}", *options])
        finally:
            settings.load_profile(before)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.mark.parametrize(
    ("block", "given", "lines"),
    [
        (FeedForward, {}, ["dim=st.sampled_from([4, 8])", 'x=tensor("b n dim", dim=a.dim)']),
        (MultiHeadAttention, {}, ["heads=st.sampled_from([1, 2])", 'query=tensor("b n dim", dim=a.dim)', '("b", "n", a.dim)']),
        (ConvNormAct, {}, ['("b", a.out_channels, "y", "x")', "trains_differently=lambda a: True"]),
        (LSTM, {}, ['[("b", "n", a.hidden_dim), [("b", 1, a.hidden_dim), ("b", 1, a.hidden_dim)]]']),
        (nn.Conv2d, {}, ["kernel_size=3", "y=st.integers(6, 10)", '("b", a.out_channels, sizes.y - 2, sizes.x - 2)']),
        (nn.Conv2d, {"stride": [2]}, ["stride=2", '("b", a.out_channels, (sizes.y - 1) // 2, (sizes.x - 1) // 2)']),
        (nn.GRU, {}, ["batch_first=True", '[("b", "n", a.hidden_size), (1, "b", a.hidden_size)]']),
        (nn.Embedding, {}, ['input=tokens("b n", a.num_embeddings)', '("b", "n", a.embedding_dim)']),
        (nn.MultiheadAttention, {}, ['value=tensor("b n embed_dim", embed_dim=a.embed_dim)', '("b", "n", "n")']),
        (nn.TransformerEncoderLayer, {}, ["dim_feedforward=st.sampled_from([4, 8])", "stochastic=lambda a: True"]),
        (torchvision.ops.StochasticDepth, {"mode": ["row", "batch"]}, ["p=0.3", 'mode=st.sampled_from(["row", "batch"])']),
        (GatedFeedForward, {"activation": [value("torch.nn:SiLU()")]}, ["activation=part(SiLU)", "from torch.nn.modules"]),
        (nn.Flatten, {}, ["arguments={}", '("b", sizes.n * sizes.d)']),
        (nn.AvgPool2d, {}, ["kernel_size=3", 'input=tensor("b d y x", ']),
        (nn.LPPool1d, {}, ["norm_type=2.0", '("b", "n", sizes.d // 3)']),
        (nn.Conv3d, {}, ["z=st.integers(6, 10)", '("b", a.out_channels, sizes.z - 2, sizes.y - 2, sizes.x - 2)']),
        (nn.Bilinear, {}, ['input2=tensor("b n in2_features", in2_features=a.in2_features)']),
    ],
)  # fmt: skip
def test_arguments_and_axes_are_found(block, given, lines):
    source = str(draft(block, given, {}))
    assert not [line for line in lines if line not in source], source


def test_the_contract_is_the_source_that_is_printed():
    drafted = draft(nn.Linear, {}, {})
    namespace = {}
    exec(str(drafted), namespace)
    case = namespace["linear"].example()
    assert repr(case) == repr(drafted.contract().example())
    assert drafted.contract().check(only=["smoke", "shape", "batch_rows", "gradcheck"], examples=2)


class Lambda(nn.Linear):
    """A keyword, once its name is in lower case."""


class Tensor(nn.Linear):
    """A name of the kit's, once it is in lower case."""


class Dict(nn.Linear):
    """A name of Python's that drafts use."""

    def __init__(self, dim: int, form: str = "plain") -> None:
        super().__init__(dim, dim)


@pytest.mark.parametrize(
    ("block", "given", "name"),
    [(Lambda, {}, "lambda_contract"), (Tensor, {}, "tensor_contract"), (Dict, {"form": ['a"b\\', "c\n"]}, "dict_contract")],
)
def test_the_source_runs_whatever_names_and_words_are_in_it(block, given, name):
    namespace = {}
    exec(str(draft(block, given, {})), namespace)
    case = namespace[name].example()
    assert not given or case.arguments.form in given["form"]


class Both(nn.Module):
    def __init__(self, dim: int, mode: Literal["sum", "product"] = "sum", twice: bool = False) -> None:
        super().__init__()
        self.scale, self.mode, self.twice = nn.Parameter(torch.ones(dim)), mode, twice

    def forward(self, x, condition):
        y = self.scale * (x + condition[:, None] if self.mode == "sum" else x * condition[:, None])
        return {"out": y, "more": None} | ({"twice": 2 * y} if self.twice else {})


def test_two_inputs_of_different_form_and_switches():
    """A switch that changes the form of the output stays as it is."""
    source = str(draft(Both, {"dim": [4, 8]}, {}))
    for line in ('x=tensor("b n dim"', 'condition=tensor("b dim"', 'mode=st.sampled_from(["sum", "product"])', '"more": ...'):
        assert line in source
    assert "twice" not in source


def test_inputs_may_be_given():
    drafted = draft(Both, {}, {"x": "b tokens dim", "condition": "b dim"})
    assert 'x=tensor("b tokens dim", dim=a.dim)' in str(drafted)
    assert 'input=tokens("b t", 4)' in str(draft(nn.Embedding, {}, {"input": "b t < 4"}))
    assert 'input=tensor("b c y x", c=3)' in str(draft(nn.Conv2d, {"in_channels": [3], "padding": [1]}, {"input": "b c=3 y x"}))
    with pytest.raises(Unclear, match=r"--input: size in 'b n < size' is neither a number nor an argument; there are num_emb"):
        draft(nn.Embedding, {}, {"input": "b n < size"})


def test_inputs_that_are_not_given_are_guessed_beside_those_that_are():
    source = str(draft(Both, {}, {"x": "b tokens dim"}))
    assert 'x=tensor("b tokens dim", dim=a.dim)' in source
    assert 'condition=tensor("b dim", dim=a.dim)' in source
    assert 'input2=tensor("b n in2_features"' in str(draft(nn.Bilinear, {}, {"input1": "b n in1_features"}))
    with pytest.raises(Unclear, match=r"no guess fits the inputs input2 .*--input 'input2=b n dim'"):
        draft(nn.Bilinear, {}, {"input1": "b n"})


@pytest.mark.parametrize(
    ("block", "given", "words"),
    [
        (GatedFeedForward, {}, r"the argument activation \(Module\) cannot be guessed: .*--set 'activation=torch.nn:ReLU\(\)'"),
        (torchvision.ops.StochasticDepth, {}, r"the argument mode \(str\) cannot be guessed.*--set mode=one,two"),
        (nn.Linear, {"out": [3]}, "--set: there is no argument out; there are in_features, out_features, bias"),
        (nn.Linear, {"in_features": ["four"]}, "it cannot be built with in_features='four'.*--set dim=4,8"),
        (nn.PixelShuffle, {}, r"no guess fits the inputs input \(RuntimeError: .*--input 'input=b n dim'"),
    ],
)
def test_what_cannot_be_guessed_is_told(block, given, words):
    with pytest.raises(Unclear, match=words):
        draft(block, given, {})


def test_axes_that_nothing_explains_are_left_open():
    assert described([({"sizes.n": n}, [torch.zeros(n * n + 1), None]) for n in (2, 5, 7)]) == "[..., ...]"
    assert described([({"sizes.n": n}, torch.zeros(2 * n + 2)) for n in (2, 5, 7)]) == "((sizes.n + 1) * 2,)"


def test_values_of_arguments():
    assert values("4,8") == [4, 8]
    assert values("(3, 5),[1],None") == [(3, 5), [1], None]
    assert values("[4, 8]") == [[4, 8]]
    assert values("batch,row") == ["batch", "row"]
    assert value("torch.nn:ReLU") is nn.ReLU
    assert value("torch.nn:ReLU()") == Part(nn.ReLU, {})


@pytest.mark.parametrize(
    ("name", "red"), [("Mixes", "batch_rows"), ("IgnoresMode", "deterministic"), ("WritesOver", "inputs_unchanged")]
)
def test_broken_blocks_are_red(name, red, program):
    namespace = {}
    exec(program(name, "--draft-only")[1], namespace)
    report = namespace[{"Mixes": "mixes", "IgnoresMode": "ignores_mode", "WritesOver": "writes_over"}[name]]
    assert [o.name for o in report.check(only=[red, "shape"], examples=2).failed()] == [red]


def test_the_program_says_what_is_red_and_prints_a_draft(program):
    status, out, _ = program("Hides", "--examples", "1", *(w for name in ONLY for w in ("--only", name)))
    assert status == 1
    assert re.search(r"^parameters_used +red .* Mismatch: scales\[0\]: not among the parameters", out, re.M)
    assert re.search(r"^batch_rows +green ", out, re.M)
    assert re.search(r"^per_sample_gradients +skipped .* it has no parameters$", out, re.M)
    assert "2 green, 1 red, 1 skipped" in out
    assert "A draft of a contract" in out
    assert "    Hides,\n    arguments=dict(\n" in out


def test_nothing_checked_is_neither_green_nor_red(program):
    status, out, _ = program("Mixes", "--seconds", "0")
    assert status == 2
    assert "0 green, 0 red, " in out


@pytest.mark.parametrize(("source", "why"), [("nosuch", "NameError: name 'nosuch'"), ("class", "SyntaxError: invalid syntax")])
def test_a_file_that_raises_is_told(source, why, tmp_path, monkeypatch, capsys):
    path = tmp_path / f"raises_{why[:4].lower()}_to_draft.py"
    path.write_text(source)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main([f"{path}:Block"]) == 2
    assert f"cannot be imported: {why}" in capsys.readouterr().err


def test_an_error_of_a_check_is_no_mistake_in_usage(program, monkeypatch):
    def raising(*arguments):
        raise ValueError("of the kit's own")

    monkeypatch.setattr("layers.testing.__main__.outcomes", raising)
    with pytest.raises(ValueError, match="of the kit's own"):
        program("Mixes")


def test_mistakes_at_the_command_line(program, capsys):
    status, out, err = program("Nothing")
    assert (status, out) == (2, "")
    assert "has no Nothing; its blocks are Mixes, IgnoresMode, WritesOver, Hides" in err
    assert "--set must be NAME=..., got 'dim'" in program("Mixes", "--set", "dim")[2]
    for mistake in (("--only", "backwards"), ("--examples", "0")):
        with pytest.raises(SystemExit, match="2"):
            program("Mixes", *mistake)
        assert not capsys.readouterr().out
    assert main(["no.such.module:Block"]) == 2
    assert main(["FeedForward"]) == 2


@pytest.mark.processes
def test_printed_drafts_run_as_they_stand(tmp_path):
    for block in (nn.Embedding, ConvNormAct):
        (tmp_path / f"test_{block.__name__.lower()}.py").write_text(str(draft(block, {}, {})) + "\n")
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "--hypothesis-profile=few"]
    done = subprocess.run([*command, "-m", "quick"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 blocks, 4 properties" in done.stdout


@pytest.mark.processes
def test_a_block_of_the_folder_is_found(tmp_path):
    (tmp_path / "own.py").write_text(BROKEN)
    command = [sys.executable, "-m", "layers.testing", "own:Mixes", "--draft-only"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "from own import Mixes" in done.stdout
