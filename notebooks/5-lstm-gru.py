# %% [markdown]
# # 5. LSTM and GRU: gates
#
# A recurrent network reads one token after another and keeps a state. Why does a plain one forget what was forty tokens ago,
# and how do gates keep it?
#
# # 5. LSTM 与 GRU：门
#
# 循环网络一个接一个地读词元，并保持一个状态。为什么普通的循环网络会忘记四十个词元之前的事，门又怎样把它留住？

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

from layers.cells import GRUCell, LSTMCell, RNNCell
from layers.recurrent import Recurrent

torch.manual_seed(0)
HIDDEN = 32


# %% [markdown]
# ## Vanishing gradients, measured
#
# How much does the last output change with the token t steps before? In a plain network every step multiplies by the same matrix
# and by a slope below 1, so the answer falls exponentially. An LSTM adds to its state and multiplies it by the forget gate. At
# the start that gate is 0.5, which falls as fast! With a bias of 3 it is 0.95, and the memory is long.
#
# ## 测量消失的梯度
#
# 最后的输出对 t 步之前的词元有多敏感？普通网络每一步都乘以同一个矩阵和一个小于 1 的斜率，于是指数下降。LSTM 对状态做加法，
# 再乘以遗忘门。初始时遗忘门是 0.5，下降得同样快！把偏置设为 3，它就是 0.95，记忆便长了。


# %%
@torch.no_grad()
def remember(cell, gate, value=3.0):
    """Set the bias of one gate: number 1 of an LSTM's i, f, g, o, and of a GRU's r, z, n."""
    size = cell.state_dims[-1]
    cell.input.bias[gate * size : (gate + 1) * size] = value
    return cell


def sensitivity(cell, length=60):
    """The norm of the gradient of the last output by each token, the last token first."""
    x = torch.randn(16, length, 8, requires_grad=True)
    output, _ = Recurrent([cell])(x)
    output[:, -1].sum().backward()
    return x.grad.norm(dim=-1).mean(0).flip(0)


found = {
    "RNN": sensitivity(RNNCell(8, HIDDEN)),
    "LSTM": sensitivity(LSTMCell(8, HIDDEN)),
    "LSTM, forget bias 3": sensitivity(remember(LSTMCell(8, HIDDEN), 1)),
    "GRU, update bias 3": sensitivity(remember(GRUCell(8, HIDDEN), 1)),
}
figure, ax = plt.subplots(figsize=(7, 4))
for name, values in found.items():
    ax.semilogy(values.clamp(min=1e-12), label=name)
ax.set(xlabel="tokens ago", ylabel="gradient"), ax.legend()
plt.show()
kept = {name: (values[40] / values[0]).item() for name, values in found.items()}
assert kept["RNN"] < 1e-4
assert kept["LSTM"] < 1e-4
assert kept["LSTM, forget bias 3"] > 1e-3
assert kept["GRU, update bias 3"] > 1e-3

# %% [markdown]
# ## The cell, written by hand
#
# i says how much of the new is let in, f how much of the old is kept, o how much is shown. g is what is new. With nothing new,
# the state shrinks by f at each token: how long it lasts is up to the bias of f.
#
# ## 手写单元
#
# i 决定让多少新内容进来，f 决定保留多少旧内容，o 决定展示多少，g 就是新内容。没有新内容时，状态每个词元都乘以 f：
# 它能留存多久，取决于 f 的偏置。


# %%
def lstm_step(cell, x, h, c):
    i, f, g, o = (cell.input(x) + cell.hidden(h)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c, (i.sigmoid(), f.sigmoid(), o.sigmoid())


cell, x, h, c = LSTMCell(8, HIDDEN), torch.randn(4, 8), torch.randn(4, HIDDEN), torch.randn(4, HIDDEN)
for ours, theirs in zip(lstm_step(cell, x, h, c), cell(x, (h, c)), strict=False):
    assert torch.allclose(ours, theirs)

figure, ax = plt.subplots(figsize=(6, 3.5))
for bias in (0.0, 1.0, 3.0, 5.0):
    cell, c, states = LSTMCell(8, 1).requires_grad_(False), torch.ones(1, 1), []
    for parameter in cell.parameters():
        parameter.zero_()  # so that g is 0, and the gates are what their biases say
    remember(cell, 1, bias)
    for _ in range(40):
        c = lstm_step(cell, torch.randn(1, 8), torch.zeros(1, 1), c)[1]
        states.append(c.item())
    ax.plot(states, label=f"bias {bias:.0f}, f = {torch.tensor(bias).sigmoid():.2f}")
    assert abs(states[-1] - torch.tensor(bias).sigmoid().item() ** 40) < 1e-4
ax.set(xlabel="tokens", ylabel="what is left of the state"), ax.legend()
plt.show()

# %% [markdown]
# ## A task that needs a long memory
#
# The first token holds a flag, +1 or -1; forty tokens of noise follow. At the end the network has to name the flag.
#
# ## 需要长记忆的任务
#
# 第一个词元带着一面旗子，+1 或 -1；后面跟着四十个噪声词元。最后网络要说出旗子是什么。


# %%
def batch(count=64, length=41):
    flags = torch.randint(2, (count,))
    x = torch.zeros(count, length, 2)
    x[:, 1:, 0] = torch.randn(count, length - 1)
    x[:, 0, 1] = 2.0 * flags - 1
    return x, flags


class Reader(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.recurrent, self.output = Recurrent([cell]), nn.Linear(HIDDEN, 2)

    def forward(self, x):
        return self.output(self.recurrent(x)[0][:, -1])


def learn(model, steps=120):
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=3e-3), []
    for _ in range(steps):
        x, flags = batch()
        loss = F.cross_entropy(model(x), flags)
        optimizer.zero_grad(), loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    x, flags = batch(500)
    return losses, (model(x).argmax(1) == flags).float().mean().item()


readers = {
    "RNN": Reader(RNNCell(2, HIDDEN)),
    "LSTM": Reader(remember(LSTMCell(2, HIDDEN), 1)),
    "GRU": Reader(remember(GRUCell(2, HIDDEN), 1)),
}
figure, ax = plt.subplots(figsize=(7, 3.5))
scores = {}
for name, reader in readers.items():
    losses, scores[name] = learn(reader)
    ax.plot(losses, label=f"{name}: {scores[name]:.0%} right")
ax.set(xlabel="step", ylabel="loss"), ax.legend()
plt.show()
assert scores["LSTM"] > 0.9
assert scores["GRU"] > 0.9
assert scores["RNN"] < 0.8

# %% [markdown]
# ## Watching the gates
#
# The trained LSTM reads two rows that differ in the flag alone. Its states stay apart for all forty tokens, for the forget
# gates stay near 1.
#
# ## 观察门
#
# 训练好的 LSTM 读两行只有旗子不同的输入。四十个词元过去，两者的状态始终分开，因为遗忘门一直接近 1。

# %%
x, _ = batch(1)
x = x.repeat(2, 1, 1)
x[:, 0, 1] = torch.tensor([1.0, -1.0])
cell, h, c = readers["LSTM"].recurrent.cells[0], torch.zeros(2, HIDDEN), torch.zeros(2, HIDDEN)
states, forget = [], []
with torch.no_grad():
    for t in range(x.shape[1]):
        h, c, gates = lstm_step(cell, x[:, t], h, c)
        states.append(c), forget.append(gates[1][0])
states, forget = torch.stack(states), torch.stack(forget)
unit = int((states[-1, 0] - states[-1, 1]).abs().argmax())
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5))
(
    left.plot(states[:, :, unit], label=["flag +1", "flag -1"]),
    left.set(xlabel="token", title=f"state of unit {unit}"),
    left.legend(),
)
right.imshow(forget.T, aspect="auto", vmin=0, vmax=1), right.set(xlabel="token", ylabel="unit", title="forget gates")
plt.show()
apart = (states[:, 0] - states[:, 1]).norm(dim=-1)
assert apart[-1] > 0.2 * apart[1]
assert forget.mean() > 0.8

# %% [markdown]
# ## Exercise 1
#
# Write a step of a GRU by hand and compare it with `GRUCell`. Mind where the reset gate comes: after the product.
#
# ## 练习 1
#
# 手写 GRU 的一步，与 `GRUCell` 比较。注意重置门的位置：在矩阵乘法之后。

# %%
# Solution 1


def gru_step(cell, x, h):
    (x_r, x_z, x_n), (h_r, h_z, h_n) = cell.input(x).chunk(3, -1), cell.hidden(h).chunk(3, -1)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
    return (1 - z) * (x_n + r * h_n).tanh() + z * h


cell, x, h = GRUCell(8, HIDDEN), torch.randn(4, 8), torch.randn(4, HIDDEN)
assert torch.allclose(gru_step(cell, x, h), cell(x, (h,))[0], atol=1e-6)

# %% [markdown]
# ## Exercise 2
#
# Read a row in two halves, and hand the state from the first to the second. Show that the outputs are those of one call.
#
# ## 练习 2
#
# 把一行分成两半来读，把前一半的状态交给后一半。请证明输出与一次读完相同。

# %%
# Solution 2
network, x = Recurrent([LSTMCell(8, HIDDEN)]), torch.randn(3, 10, 8)
whole, _ = network(x)
first, state = network(x[:, :4])
second, _ = network(x[:, 4:], state)
assert torch.allclose(torch.cat([first, second], 1), whole, atol=1e-6)
assert not torch.allclose(network(x[:, 4:])[0], second, atol=1e-3), "without the state it begins anew"

# %% [markdown]
# ## Exercise 3
#
# In a network of two directions, the backward one begins at the end of the row. Show that a `mask` keeps it out of the padding.
#
# ## 练习 3
#
# 双向网络中，反向的那个从行末开始读。请证明 `mask` 使它不受填充影响。

# %%
# Solution 3
network = Recurrent([LSTMCell(8, HIDDEN)], [LSTMCell(8, HIDDEN)])
real = torch.arange(10).expand(3, -1) < 7
alone = network(x[:, :7])[0]
assert torch.allclose(network(x, mask=real)[0][:, :7], alone, atol=1e-6)
assert not torch.allclose(network(x)[0][:, :7], alone, atol=1e-3), "without it, padding is read first"

# %% [markdown]
# ## What commonly goes wrong
#
# - The reset gate of a GRU comes before the product in one library and after it in the next; at the first token, with a state
#   of zeros, nobody sees it (tracel-ai/burn#2701).
# - The gates of an LSTM stand in another order; shapes agree (NX-AI/xlstm#98).
# - Two biases are merged into one, and it is then initialised or updated twice (onnx#1127).
# - A second text goes on with the state of the first (lag-llama#81).
#
# ## 常见错误
#
# - GRU 的重置门，在一个库里位于乘法之前，在另一个库里位于之后；第一个词元时状态为零，谁也看不出来（tracel-ai/burn#2701）。
# - LSTM 的门排列顺序不同；形状却一致（NX-AI/xlstm#98）。
# - 两个偏置合并成一个之后，被初始化或更新了两次（onnx#1127）。
# - 第二篇文本接着用了第一篇的状态（lag-llama#81）。
