"""Both ways to compute, torch's kernels and the loop, against `nn.RNN`, `nn.LSTM` and `nn.GRU`."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from layers import recurrent_kernels
from layers.cells import GRUCell, LSTMCell, RNNCell
from layers.recurrent import GRU, LSTM, NAMES_OF_TORCH, RNN, Recurrent, stacked
from layers.testing import Contract, Input, Twin, fill, padding_invariant, tensor

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),  # of the twin
    pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN"),  # of torch.backends.mkldnn.flags
]

OURS = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}


def theirs(a):
    options = dict(num_layers=a.layers, bias=a.bias, bidirectional=a.bidirectional, batch_first=True, dropout=a.dropout)
    if hasattr(a, "activation"):
        return nn.RNN(a.dim, a.hidden_dim, nonlinearity=a.activation.__name__.lower(), **options)
    if hasattr(a, "projection_dim"):
        return nn.LSTM(a.dim, a.hidden_dim, proj_size=a.projection_dim or 0, **options)
    return nn.GRU(a.dim, a.hidden_dim, **options)


def state_of(inputs):
    return tuple(inputs[name] for name in ("state[0]", "state[1]") if name in inputs)


def call(block, inputs):
    """A mask as `padding_invariant` has it: (b, 1, 1, n)."""
    mask = inputs["mask"].flatten(1) if "mask" in inputs else None
    return block(inputs["x"], state_of(inputs), mask=mask)


def call_theirs(module, inputs):
    """Theirs has the batch second in states, and one that is no tuple but for an LSTM."""
    state = tuple(part.transpose(0, 1).contiguous() for part in state_of(inputs))
    x, mask = inputs["x"], inputs.get("mask")
    if mask is not None:
        x = pack_padded_sequence(x, mask.sum(1), batch_first=True, enforce_sorted=False)
    cast = torch.is_autocast_enabled("cpu") and not recurrent_kernels.onednn_has(torch.get_autocast_dtype("cpu"))
    with torch.backends.mkldnn.flags(enabled=not cast):  # which nn.LSTM would call all the same, and raise
        output, after = module(x, state if len(state) > 1 else state[0])
    if mask is not None:
        output = pad_packed_sequence(output, batch_first=True, total_length=mask.shape[1])[0]
    return output, tuple(part.transpose(0, 1) for part in (after if isinstance(after, tuple) else (after,)))


def width(a):
    return getattr(a, "projection_dim", None) or a.hidden_dim


def states(a):
    count = a.layers * (2 if a.bidirectional else 1)
    inputs = {"state[0]": tensor("batch cells output_dim", cells=count, output_dim=width(a))}
    if hasattr(a, "projection_dim"):
        inputs["state[1]"] = tensor("batch cells hidden_dim", cells=count, hidden_dim=a.hidden_dim)
    return inputs


def outputs(a, sizes):
    directions = 2 if a.bidirectional else 1
    dims = (width(a), a.hidden_dim) if hasattr(a, "projection_dim") else (width(a),)
    return [("batch", "tokens", directions * width(a)), [("batch", directions * a.layers, d) for d in dims]]


TORCH = Twin("torch", build=theirs, weights=NAMES_OF_TORCH, call=call_theirs)
sizes = dict(
    fused=st.sampled_from([True, False]), dim=st.integers(2, 4), hidden_dim=st.integers(9, 11), layers=st.integers(1, 2),
    dropout=lambda a: st.sampled_from([0.0, 0.3]) if a.layers > 1 else 0.0,
    bidirectional=st.sampled_from([True, False]), bias=st.sampled_from([True, False]),
)  # fmt: skip


def contract(kind, **more):
    return Contract(
        OURS[kind],
        arguments=sizes | more,
        inputs=lambda a: {"x": tensor("batch tokens dim", tokens=st.integers(2, 6), dim=a.dim)} | states(a),
        outputs=outputs,
        call=call,
        twins=[TORCH],
        holds=[padding_invariant("x", "tokens", 1)],
        trains_differently=lambda a: a.dropout > 0,
        stochastic=lambda a: a.dropout > 0,
        invalid=[
            (dict(layers=0), "layers"), (dict(layers=2, dropout=1.0), "dropout"), (dict(layers=2, dropout=-0.1), "dropout"),
            (dict(layers=1, dropout=0.5), "dropout"),
            (dict(hidden_dim=0), "hidden_dim"), (dict(dim=0), "dim"),
        ],
        without={"compile": "torch.compile leaves the kernel out of its graphs: see below, for both ways"},
    )  # fmt: skip


rnn = contract("RNN", activation=st.sampled_from([nn.Tanh, nn.ReLU]))
lstm = contract("LSTM", projection_dim=st.sampled_from([None, 5]))
gru = contract("GRU")


# ---------------------------------------------------------------------------------------------------- rows of unequal length


def padded(kind, **arguments):
    return OURS[kind](**arguments)


def right_padded(axes, **sizes):
    """(b, n), True for the real tokens of rows that are padded on the right; each has one at least."""

    def sample(shape, g):
        return torch.arange(shape[1]) < torch.randint(1, shape[1] + 1, (shape[0], 1), generator=g)

    return Input(tuple(axes.split()), sizes, sample)


def of_kind(a):
    """The arguments of such a network, as `theirs`, `states` and `outputs` tell the kinds apart."""
    own = {"RNN": dict(activation=nn.Tanh), "LSTM": dict(projection_dim=None), "GRU": {}}[a.kind]
    return SimpleNamespace(**vars(a), **own)


packed = Contract(
    padded,
    arguments=dict(kind=st.sampled_from(["LSTM", "GRU", "RNN"])) | sizes,
    inputs=lambda a: (
        {"x": tensor("batch tokens dim", tokens=st.integers(2, 6), dim=a.dim), "mask": right_padded("batch tokens")}
        | states(of_kind(a))
    ),
    outputs=lambda a, sizes: outputs(of_kind(a), sizes),
    call=call,
    twins=[Twin("torch", build=lambda a: theirs(of_kind(a)), weights=NAMES_OF_TORCH, call=call_theirs)],
    invalid=[(dict(layers=0), "layers")],
    trains_differently=lambda a: a.dropout > 0,
    stochastic=lambda a: a.dropout > 0,
    without={
        "compile": "torch.compile leaves the kernel out of its graphs: see below, for both ways",
        "batch_rows": "how many rows share a product depends on all lengths, and so does rounding: see the rows alone below",
    },
    name="Packed",
)


def drawn(kind, fused=True, seed=0, **options):
    """A network of two layers, dim 3 and hidden_dim 5, with values of its own."""
    network = OURS[kind](3, 5, **dict(layers=2, fused=fused) | options).double().eval()
    return fill(network, torch.Generator().manual_seed(seed))


WAYS = pytest.mark.parametrize("fused", [True, False], ids=["fused", "written_out"])
KINDS = pytest.mark.parametrize("kind", OURS)


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64)


@WAYS
@KINDS
def test_a_row_is_as_its_real_tokens_alone(kind, fused):
    """Wherever the padding stands and whatever it holds, in both directions; output, state and gradients.

    A backward direction that begins in the padding: pytorch/pytorch#517, #1811.
    """
    network = drawn(kind, fused, bidirectional=True)
    torch.manual_seed(0)
    x, places = randn(5, 6, 3), torch.arange(6)
    mask = torch.stack([places > 3, places < 6, places < 2, places < 0, places % 3 != 1])
    state = tuple(randn(5, 4, 5) for _ in network.state_dims)
    junk = torch.where(mask[:, :, None], x, float("nan")).requires_grad_()
    output, after = network(junk, state, mask=mask)
    weights = randn(5, 6, 10)
    (output * weights).sum().backward()
    found = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    for row in range(5):
        own = x[row : row + 1, mask[row]].requires_grad_()
        alone, end = network(own, tuple(part[row : row + 1] for part in state))
        torch.testing.assert_close(output[row, mask[row]], alone[0])
        if mask[row].any():
            (alone * weights[row, mask[row]]).sum().backward()
            torch.testing.assert_close(junk.grad[row, mask[row]], own.grad[0])
        for ours, theirs in zip(after, end, strict=True):
            torch.testing.assert_close(ours[row], theirs[0])
    assert not output[~mask].any()
    assert not junk.grad[~mask].any()
    torch.testing.assert_close(found, [p.grad for p in network.parameters()])
    assert all(torch.equal(new[3], old[3]) for new, old in zip(after, state, strict=True))


# ------------------------------------------------------------------------------------------------------------- in pieces


@WAYS
@KINDS
def test_pieces_give_what_the_whole_gives(kind, fused):
    """Every way to cut five tokens, empty pieces too; and the past matters, but what comes later does not."""
    network = drawn(kind, fused)
    torch.manual_seed(0)
    x = randn(2, 5, 3)
    whole, end = network(x)
    for cuts in range(16):
        bounds = [0, *(i + 1 for i in range(4) if cuts >> i & 1), 5, 5]
        state, outputs = None, []
        for start, stop in pairwise(bounds):
            output, state = network(x[:, start:stop], state)
            outputs.append(output)
        torch.testing.assert_close(torch.cat(outputs, 1), whole)
        torch.testing.assert_close(state, end)
    forgetful = network(x[:, 2:])[0]
    assert not torch.isclose(forgetful, whole[:, 2:]).any()
    later = torch.cat([x[:, :3], randn(2, 2, 3)], 1)
    assert torch.equal(network(later)[0][:, :3], whole[:, :3])


@WAYS
def test_no_real_token_leaves_the_state_as_it_was(fused):
    network = drawn("LSTM", fused, bidirectional=True)
    for x, mask in ((randn(2, 0, 3), None), (randn(2, 3, 3), torch.zeros(2, 3) > 0), (randn(0, 3, 3), torch.ones(0, 3) > 0)):
        state = tuple(randn(len(x), 4, 5) for _ in range(2))
        output, after = network(x, state, mask=mask)
        assert output.shape == (*x.shape[:2], 10)
        assert not output.any()
        assert all(map(torch.equal, after, state))


# ------------------------------------------------------------------------------------------------------------------ dropout


@WAYS
@KINDS
def test_dropout_is_torchs(kind, fused):
    """Between layers, in training only: of the same random numbers the same outputs and gradients."""
    ours = drawn(kind, fused, layers=3, dropout=0.4).train()
    theirs = getattr(nn, kind)(3, 5, 3, dropout=0.4, batch_first=True).double()
    theirs.load_state_dict(NAMES_OF_TORCH.export(ours))
    x, found = randn(2, 4, 3), []
    for network in (ours, theirs):
        torch.manual_seed(1)
        output = network(x)[0]
        found.append((output, torch.autograd.grad(output.square().sum(), [p for _, p in sorted(named(network).items())])))
    torch.testing.assert_close(*found)
    assert not torch.equal(ours(x)[0], ours(x)[0])
    assert torch.equal(ours.eval()(x)[0], ours(x)[0])


def named(network):
    """Parameters by torch's names."""
    own = dict(network.named_parameters())
    return NAMES_OF_TORCH.to_theirs(own) if isinstance(network, Recurrent) else own


def test_dropout_without_gradients_drops_too():
    network = drawn("GRU", layers=2, dropout=0.4).train()
    x = randn(2, 4, 3)
    with torch.no_grad():
        assert not torch.equal(network(x)[0], network(x)[0])


# ------------------------------------------------------------------------------------------- which of the two ways it goes


@pytest.fixture
def runs(monkeypatch):
    """A list that grows with every call of the kernels."""
    run, seen = recurrent_kernels.run, []
    monkeypatch.setattr(recurrent_kernels, "run", lambda *given: seen.append(1) or run(*given))
    return seen


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # torch scripts rules of its own
@KINDS
def test_kernels_run_where_they_may(kind, runs):
    x, network = randn(2, 4, 3), drawn(kind)
    network(x)
    network(x, mask=torch.arange(4) < torch.tensor([[4], [2]]))
    assert len(runs) == 2
    drawn(kind, fused=False)(x)
    torch.func.vmap(lambda row: network(row[None])[0][0])(x)
    torch.func.jvp(lambda x: network(x)[0], (x,), (x,))
    assert len(runs) == 2


def test_projections_have_no_kernel_in_float32_on_a_cpu(runs):
    """Torch would warn of it."""
    network, x = drawn("LSTM", projection_dim=2), randn(2, 4, 3)
    expected = network(x)[0]
    assert len(runs) == 1
    torch.testing.assert_close(network.float()(x.float())[0].double(), expected, rtol=1e-4, atol=1e-5)
    assert len(runs) == 1


class Added(nn.Linear):
    """As adapters are: something is added to what the layer puts out."""

    def forward(self, x):
        return super().forward(x) + 0.5


def change_hook(cell):
    cell.hidden.register_forward_hook(lambda module, inputs, output: output + 0.5)


def change_cell_hook(cell):
    cell.hidden.weight.data.mul_(0.9)
    cell.activation = nn.ReLU() if hasattr(cell, "activation") else None
    cell.register_forward_pre_hook(lambda module, inputs: None)


def change_layer(cell):
    cell.hidden.__class__ = Added


def change_pruned(cell):
    prune.random_unstructured(cell.hidden, "weight", 0.5)
    cell.hidden.weight_orig.data.mul_(2)  # `weight` is computed anew when the layer is called


def change_parametrized(cell):
    parametrize.register_parametrization(cell.hidden, "weight", nn.Tanh())


@pytest.mark.parametrize("change", [change_hook, change_cell_hook, change_layer, change_pruned, change_parametrized])
@KINDS
def test_what_kernels_do_not_know_is_written_out(kind, change, runs):
    network, x = drawn(kind), randn(2, 4, 3)
    before = network(x)[0]
    runs.clear()
    change(network.cells[0])
    output = network(x)[0]
    network.fused = False
    assert torch.equal(output, network(x)[0])
    assert not runs
    assert not torch.isclose(output, before).all()


class LayerNormLSTMCell(LSTMCell):
    """Ba et al., "Layer Normalization", 2016 (arXiv 1607.06450), of the cell's state alone."""

    def __init__(self, dim, hidden_dim):
        super().__init__(dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)

    def step(self, projected, state):
        h, c = super().step(projected, state)
        return h, self.norm(c)


def test_cells_of_ones_own(runs):
    """In layers and both directions, padding and pieces included; a kernel is for cells that it knows."""
    network = stacked(lambda dim: LayerNormLSTMCell(dim, 5), 3, layers=2, bidirectional=True).double()
    x, mask = randn(2, 4, 3), torch.arange(4) < torch.tensor([[4], [2]])
    output, _ = network(x, mask=mask)
    torch.testing.assert_close(output[1, :2], network(x[1:, :2])[0][0])
    assert not runs
    assert output.shape == (2, 4, 10)


def test_layers_of_several_kinds_and_sizes(runs):
    """Cells with biases and without, or with two activations, are no case for one kernel."""
    for cells in ([LSTMCell(3, 5), LSTMCell(5, 5, bias=False)], [RNNCell(3, 5), RNNCell(5, 5, activation=nn.ReLU())]):
        assert Recurrent(cells)(torch.randn(2, 4, 3))[0].shape == (2, 4, 5)
    assert not runs


@KINDS
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("left", [True, False])
def test_autocast_takes_what_other_layers_have_left(kind, masked, dtype, left, runs):
    """In half precision or not, and a state that a call has left; with gradients.

    Where oneDNN lacks the type, the loop computes what is not: nn.LSTM raises.
    """
    network = drawn(kind).float()
    x, mask = torch.randn(3, 4, 3), torch.arange(4) < torch.tensor([[4], [1], [3]]) if masked else None
    expected = network(x, network(x, mask=mask)[1], mask=mask)[0]
    given = x.to(dtype) if left else x
    with torch.autocast("cpu", dtype):
        output = network(given, network(given, mask=mask)[1], mask=mask)[0]
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)
    assert all(g.isfinite().all() for g in torch.autograd.grad(output.float().sum(), list(network.parameters())))
    assert len(runs) == (4 if left or kind != "LSTM" or recurrent_kernels.onednn_has(dtype) else 2)
    with pytest.raises(RuntimeError, match="dtype"):
        network(x.to(dtype), mask=mask)


# ---------------------------------------------------------------------------------------------------------------- compilers


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # dynamo asks for it
@pytest.mark.parametrize(("kind", "masked"), [("LSTM", False), ("LSTM", True), ("GRU", True)])
def test_compiled_models_call_the_kernel_between_two_graphs(kind, masked):
    """In float32, where oneDNN's LSTM has no gradients for compilers; for any batch, with a mask too."""
    network, graphs, count = drawn(kind, bidirectional=True).float().train(), [], 0

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(lambda x, mask: network(x.sin(), mask=mask)[0].cos(), backend=counting)
    for batch in (2, 3, 4, 5):
        x = randn(batch, 4, 3).float().requires_grad_(True)
        mask = torch.arange(4) < torch.tensor([3, 4, 1, 2, 2])[:batch, None] if masked else None
        torch._dynamo.mark_dynamic(x, 0)
        output, expected = compiled(x, mask), network(x.sin(), mask=mask)[0].cos()
        torch.testing.assert_close(output, expected)
        wanted = [x, *network.parameters()]
        torch.testing.assert_close(*(torch.autograd.grad(y.sum(), wanted) for y in (output, expected)))
        count = len(graphs) if batch <= 3 else count
    assert len(graphs) == count
    assert not any("lstm" in str(node.target) or "gru" in str(node.target) for graph in graphs for node in graph.graph.nodes)
    torch._dynamo.reset()
    whole = torch.compile(network, backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="disable"):
        whole(torch.randn(2, 4, 3))


def test_the_loop_is_one_graph():
    network, x = drawn("LSTM", fused=False, bidirectional=True), randn(2, 3, 3)
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    mask = torch.arange(3) < torch.tensor([[3], [1]])
    torch.testing.assert_close(compiled(x, mask=mask), network(x, mask=mask))


@KINDS
def test_exported_kernels_stay_kernels(kind):
    """Without a mask; the loop is exported with one."""
    network, x = drawn(kind), randn(2, 3, 3)
    dynamic = {"x": {0: torch.export.Dim("batch")}}
    program = torch.export.export(network, (x,), dynamic_shapes=dynamic)
    assert sum(name in str(node.target) for node in program.graph.nodes for name in ("lstm", "gru", "rnn_tanh")) == 1
    x = randn(7, 3, 3)
    torch.testing.assert_close(program.module()(x), network(x))


# ------------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (dict(x=torch.randn(2, 4)), "x must have 3 axes"),
        (dict(x=torch.randn(2, 4, 5)), "x: dim must be 3, got 5"),
        (dict(mask=torch.ones(2, 5) > 0), "mask: tokens must be 4, got 5"),
        (dict(mask=torch.ones(3, 4) > 0), "mask: batch must be 2, got 3"),
        (dict(mask=torch.ones(2, 1, 1, 4) > 0), "mask must have 2 axes"),
        (dict(mask=torch.ones(2, 4)), "mask must be boolean"),
        (dict(state=torch.zeros(2, 2, 5)), "state must be a tuple of 2 tensors, got Tensor"),
        (dict(state=(torch.zeros(2, 2, 5),)), "state must be a tuple of 2 tensors, got tuple of 1"),
        (dict(state=(torch.zeros(2, 2, 5), torch.zeros(2, 1, 5))), r"state\[1\]: cells must be 2, got 1"),
    ],
)
def test_inputs_that_do_not_fit_are_named(changed, words):
    with pytest.raises(ValueError, match=words):
        LSTM(3, 5, layers=2)(**dict(x=torch.randn(2, 4, 3)) | changed)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (([],), "cells must be one at least, got 0"),
        (([LSTMCell(3, 5)], [LSTMCell(3, 5)] * 2), "backward_cells must be as many as cells, 1, got 2"),
        (([LSTMCell(3, 5), LSTMCell(4, 5)],), "dim of layer 1 must be 5, what the layer before puts out, got 4"),
        (([LSTMCell(3, 5)], [LSTMCell(4, 5)]), "dim of layer 0 must be 3"),
        (([LSTMCell(3, 5), LSTMCell(5, 6)],), r"state_dims of layer 1 must be \(5, 5\), got \(6, 6\)"),
        (([LSTMCell(3, 5), GRUCell(5, 5)],), r"state_dims of layer 1 must be \(5, 5\), got \(5,\)"),
    ],
)
def test_cells_that_do_not_fit_are_named(cells, words):
    with pytest.raises(ValueError, match=words):
        Recurrent(*cells)
