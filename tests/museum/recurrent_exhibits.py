"""Recurrent cells and networks."""

from __future__ import annotations

from exhibit import Exhibit

from layers import cells, recurrent, recurrent_kernels

OF_CELLS, OF_NETWORKS = "layers/test_cells.py:", "layers/test_recurrent.py:"

EXHIBITS = (
    Exhibit(
        "reset gate before the product",
        "The reset gate is applied to the state, not to the product with it; biases differ.",
        ("tracel-ai/burn#2704", "onnx/keras-onnx#33"),
        cells.GRUCell.step, "n = (x_n + r * h_n).tanh()", "n = (x_n + self.hidden(r * h).chunk(3, -1)[2]).tanh()",
        OF_CELLS + "gru_cell", "forward[torch]",
    ),
    Exhibit(
        "update gate the other way round",
        "Where the gate should keep, it renews.",
        ("tracel-ai/burn#2704",),
        cells.GRUCell.step, "n + z * (h - n)", "h + z * (n - h)",
        OF_CELLS + "gru_cell", "forward[torch]", cf=True,
    ),
    Exhibit(
        "order of a GRU's gates",
        "Update and reset gate are exchanged.",
        ("NX-AI/xlstm#98",),
        cells.GRUCell.step, "r, z = (x_r", "z, r = (x_r",
        OF_CELLS + "gru_cell", "forward[torch]", cf=True,
    ),
    Exhibit(
        "order of an LSTM's gates",
        "Input and forget gate are exchanged.",
        ("NX-AI/xlstm#98", "apple/coremltools#93"),
        cells.LSTMCell.step, "i, f, g, o =", "f, i, g, o =",
        OF_CELLS + "lstm_cell", "forward[torch]",
    ),
    Exhibit(
        "order of other libraries",
        "The output gate comes before the candidate, as in the files of other libraries.",
        ("NX-AI/xlstm#98", "apple/coremltools#93"),
        cells.LSTMCell.step, "i, f, g, o =", "i, f, o, g =",
        OF_CELLS + "lstm_cell", "forward[torch]",
    ),
    Exhibit(
        "one of two biases",
        "The state's product has no bias, for the other one has: weights of others do not fit.",
        ("onnx/onnx#1127", "pytorch/pytorch#36905"),
        cells.LSTMCell.step, "self.hidden(h)", "h @ self.hidden.weight.mT",
        OF_CELLS + "lstm_cell", "parameters_used", cf=True,
    ),
    Exhibit(
        "output without tanh",
        "The memory is put out as it is.",
        ("NX-AI/xlstm#98",),
        cells.LSTMCell.step, "o.sigmoid() * c.tanh()", "o.sigmoid() * c",
        OF_CELLS + "lstm_cell", "forward[torch]", cf=True,
    ),
    Exhibit(
        "weights start as a linear layer's",
        "Uniform within the root of what comes in, not of the state.",
        ("pytorch/torchtitan#3334",),
        cells.Cell.reset_parameters, "-(self.state_dims[-1] ** -0.5), self.state_dims[-1] ** -0.5",
        "-(self.dim**-0.5), self.dim**-0.5",
        OF_CELLS + "gru_cell", "initial_distribution", cf=True,
    ),
    Exhibit(
        "a state that goes on through padding",
        "The backward direction begins in the padding, and the last state is that after it.",
        ("onnx/onnx#1127",),
        recurrent.through, "state = after if real is None else", "state = after if True else",
        OF_NETWORKS + "packed", "forward[torch]", cf=True,
    ),
    Exhibit(
        "backward outputs in the order of computing",
        "What a backward direction puts out is not turned round.",
        ("onnx/onnx#1127",),
        recurrent.through, "outputs[::-1] if backward else outputs", "outputs",
        OF_NETWORKS + "lstm", "forward[torch]", cf=True,
    ),
    Exhibit(
        "states in the order of lengths",
        "Rows are sorted by length for the kernel, and their states are not sorted back.",
        ("onnx/onnx#1127",),
        recurrent_kernels.computed, "new.transpose(0, 1)[rows]", "new.transpose(0, 1)",
        OF_NETWORKS + "packed", "forward[torch]", cf=True,
    ),
    Exhibit(
        "biases exchanged",
        "The two biases of a GRU are not the same: one is within the reset gate.",
        ("tracel-ai/burn#2704", "onnx/onnx#1127"),
        recurrent_kernels.weights_of, "(first.bias, second.bias)", "(second.bias, first.bias)",
        OF_NETWORKS + "gru", "forward[torch]", cf=True,
    ),
)  # fmt: skip
