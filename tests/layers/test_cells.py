from __future__ import annotations

import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from layers.cells import GRUCell, LSTMCell, RNNCell
from layers.testing import Contract, Twin, initial_distribution, part, tensor
from layers.weights import WeightMap

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # of the twin

NAMES = WeightMap(
    ("input.weight", "weight_ih"), ("input.bias", "bias_ih"), ("hidden.weight", "weight_hh"), ("hidden.bias", "bias_hh")
)
sizes = dict(dim=st.integers(2, 5), hidden_dim=st.integers(6, 9), bias=st.booleans())
single = dict(
    inputs=lambda a: {"x": tensor("batch dim", dim=a.dim), "state[0]": tensor("batch output_dim", output_dim=a.hidden_dim)},
    outputs=lambda a, s: [("batch", a.hidden_dim)],
    call=lambda m, i: m(i["x"], (i["state[0]"],)),
    invalid=[(dict(dim=0), "dim"), (dict(hidden_dim=0), "hidden_dim")],
)


def uniform(a, parameter):
    return 0.0, (3 * a.hidden_dim) ** -0.5


FRESH = initial_distribution(input__weight=uniform, hidden__weight=uniform)

rnn_cell = Contract(
    RNNCell,
    arguments=sizes | dict(activation=st.sampled_from([None, part(nn.Tanh), part(nn.ReLU)])),
    twins=[
        Twin(
            "torch",
            build=lambda a: nn.RNNCell(a.dim, a.hidden_dim, a.bias, "relu" if repr(a.activation) == "ReLU()" else "tanh"),
            weights=NAMES,
            call=lambda m, i: (m(i["x"], i["state[0]"]),),
        )
    ],
    holds=[FRESH],
    **single,
)

gru_cell = Contract(
    GRUCell,
    arguments=sizes,
    twins=[
        Twin(
            "torch",
            build=lambda a: nn.GRUCell(a.dim, a.hidden_dim, a.bias),
            weights=NAMES,
            call=lambda m, i: (m(i["x"], i["state[0]"]),),
        )
    ],
    holds=[FRESH],
    **single,
)


class Projected(nn.LSTMCell):
    """`nn.LSTMCell` has no projection: one step of `nn.LSTM`, which has."""

    def __init__(self, a):
        nn.Module.__init__(self)
        self.lstm = nn.LSTM(a.dim, a.hidden_dim, bias=a.bias, proj_size=a.projection_dim)

    def forward(self, x, state):
        return tuple(part[0] for part in self.lstm(x[None], tuple(part[None] for part in state))[1])


OF_LSTM = WeightMap(
    *((row.ours[0].template, f"lstm.{row.theirs[0].template}_l0") for row in NAMES.rows),
    ("projection.weight", "lstm.weight_hr_l0"),
)

lstm_cell = Contract(
    LSTMCell,
    arguments=sizes | dict(projection_dim=st.sampled_from([None, 1, 4])),
    inputs=lambda a: {
        "x": tensor("batch dim", dim=a.dim),
        "state[0]": tensor("batch output_dim", output_dim=a.projection_dim or a.hidden_dim),
        "state[1]": tensor("batch hidden_dim", hidden_dim=a.hidden_dim),
    },
    outputs=lambda a, s: [("batch", a.projection_dim or a.hidden_dim), ("batch", a.hidden_dim)],
    call=lambda m, i: m(i["x"], (i["state[0]"], i["state[1]"])),
    twins=[
        Twin(
            "torch",
            build=lambda a: Projected(a) if a.projection_dim else nn.LSTMCell(a.dim, a.hidden_dim, a.bias),
            weights=lambda a: OF_LSTM if a.projection_dim else NAMES,
            call=lambda m, i: m(i["x"], (i["state[0]"], i["state[1]"])),
        )
    ],
    holds=[FRESH],
    invalid=[
        (dict(dim=0), "dim"), (dict(hidden_dim=0, projection_dim=None), "hidden_dim"), (dict(projection_dim=0), "projection_dim"),
        (dict(projection_dim=9), "projection_dim"),
    ],
)  # fmt: skip


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (torch.zeros(2, 4), "state must be a tuple of 2 tensors, got Tensor"),
        ((torch.zeros(2, 4),), "state must be a tuple of 2 tensors, got tuple of 1"),
        ([torch.zeros(2, 4)] * 2, "state must be a tuple of 2 tensors, got list of 2"),
        ((torch.zeros(2, 4), torch.zeros(2, 3)), r"state\[1\]: hidden_dim must be 4, got 3"),
        ((torch.zeros(3, 4), torch.zeros(2, 4)), r"state\[0\]: batch must be 2, got 3"),
    ],
)
def test_states_that_do_not_fit_are_named(state, words):
    with pytest.raises(ValueError, match=words):
        LSTMCell(3, 4)(torch.zeros(2, 3), state)
