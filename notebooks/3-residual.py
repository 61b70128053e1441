# %% [markdown]
# # 3. Residual nets: what the shortcut does
#
# Beyond some depth, a plain network fits even its training data worse. What does it change to add the input to the output?
#
# # 3. 残差网络：捷径起了什么作用
#
# 超过一定深度后，普通网络连训练数据都拟合得更差。把输入加到输出上，究竟改变了什么？

# %%
import copy

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import zoo
from layers.residual import Residual, basic_block, projected

torch.manual_seed(0)


# %% [markdown]
# ## Two deep networks
#
# The body is the same: two linear layers with a ReLU between. One network calls 24 of them in a row. The other is built of this
# project's `Residual`: body(x) + shortcut(x), where the shortcut is the identity. On its way through the plain one, a picture is
# lost: after a few blocks all digits look alike.
#
# ## 两个深网络
#
# 主体相同：两个线性层，中间一个 ReLU。一个网络把 24 个主体首尾相接；另一个用本项目的 `Residual` 搭成：body(x) + shortcut(x)，
# 其中捷径是恒等映射。图像穿过普通网络时会丢失：几个块之后，所有数字看上去都一样。


# %%
def body(dim):
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))


def deep(residual, depth=24, dim=64):
    blocks = [Residual(body(dim), nn.Identity(), nn.Identity()) if residual else body(dim) for _ in range(depth)]
    return nn.Sequential(*blocks, nn.Linear(dim, 10))


digits = load_digits()
order = torch.randperm(1797)
x, y = torch.tensor(digits.data, dtype=torch.float32)[order] / 16, torch.tensor(digits.target)[order]
train, test = slice(0, 1400), slice(1400, 1797)


@torch.no_grad()
def differences(net):
    """How much the outputs of each block differ from digit to digit, as a part of what the first block's do."""
    h, found = x[:200], []
    for block in net[:-1]:
        h = block(h)
        found.append(h.std(0).norm())
    return torch.stack(found) / found[0]


figure, ax = plt.subplots(figsize=(6, 3.5))
for name, net in (("plain", deep(False)), ("with shortcuts", deep(True))):
    ax.semilogy(differences(net), "o-", label=name)
ax.set(xlabel="block", ylabel="difference between digits"), ax.legend()
plt.show()
assert differences(deep(False))[-1] < 1e-4 < 0.1 < differences(deep(True))[-1]

# %% [markdown]
# ## Gradients on their way back
#
# Before any training: how large is the gradient of the loss by the output of each block? In the plain network every block makes
# it smaller by a factor, so it falls exponentially. With shortcuts it arrives whole.
#
# ## 梯度的归途
#
# 训练之前：损失对每个块的输出的梯度有多大？普通网络里每个块都把它缩小若干倍，于是指数下降；有捷径时它完整地到达。


# %%
def gradients(net):
    """The norm of the gradient of the loss by what each block puts out, from the first on."""
    h, kept = x[:200], []
    for block in net:
        h = block(h)
        h.retain_grad()
        kept.append(h)
    F.cross_entropy(h, y[:200]).backward()
    return torch.stack([h.grad.norm() for h in kept[:-1]])


plain, shortcut = gradients(deep(False)), gradients(deep(True))
figure, ax = plt.subplots(figsize=(6, 3.5))
ax.semilogy(plain, "o-", label="plain"), ax.semilogy(shortcut, "o-", label="with shortcuts")
ax.set(xlabel="block", ylabel="norm of the gradient"), ax.legend()
plt.show()
assert plain[0] / plain[-1] < 1e-6
assert 0.1 < shortcut[0] / shortcut[-1] < 100

# %% [markdown]
# ## Why: the Jacobian has a diagonal
#
# The derivative of x + f(x) is I + f'(x). Where f does little, the product over many blocks is near I, not near 0.
#
# ## 原因：雅可比矩阵有对角线
#
# x + f(x) 的导数是 I + f'(x)。即使 f 作用很小，许多块的乘积也接近 I，而不是接近 0。

# %%
part, point = body(12), torch.randn(12)
jacobian = torch.autograd.functional.jacobian(part, point)
with_identity = torch.autograd.functional.jacobian(Residual(part, nn.Identity(), nn.Identity()), point)
figure, axes = plt.subplots(1, 2, figsize=(7, 3.2))
for ax, matrix, title in zip(axes, (jacobian, with_identity), ("f'(x)", "I + f'(x)"), strict=True):
    ax.imshow(matrix, cmap="RdBu", vmin=-1, vmax=1), ax.set(title=title)
plt.show()
assert torch.allclose(with_identity, jacobian + torch.eye(12), atol=1e-6)

# %% [markdown]
# ## Does it learn?
#
# Both learn by plain SGD with momentum, with the same numbers. The plain one does not leave the loss of guessing, ln 10 = 2.3.
#
# ## 学得会吗？
#
# 两者都用带动量的普通 SGD 训练，设置相同。普通网络停在瞎猜的损失 ln 10 = 2.3 上，动弹不得。


# %%
def learn(net, epochs=4, lr=0.02):
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9), []
    for _ in range(epochs):
        for rows in torch.randperm(1400).split(70):
            loss = F.cross_entropy(net(x[train][rows]), y[train][rows])
            optimizer.zero_grad(), loss.backward(), optimizer.step()
            losses.append(loss.item())
    return losses


@torch.no_grad()
def accuracy(net):
    return (net(x[test]).argmax(1) == y[test]).float().mean().item()


nets = {"plain": deep(False), "with shortcuts": deep(True)}
figure, ax = plt.subplots(figsize=(6, 3.5))
for name, net in nets.items():
    ax.plot(learn(net), label=name)
ax.set(xlabel="step", ylabel="training loss"), ax.legend()
plt.show()
assert accuracy(nets["plain"]) < 0.5
assert accuracy(nets["with shortcuts"]) > 0.8

# %% [markdown]
# ## Many short paths
#
# A network of n residual blocks is a sum over 2^n paths, most of them short. So it can do without any single block: take one
# out after training, and most answers stay right (Veit et al., 2016).
#
# ## 许多条短路径
#
# n 个残差块的网络是 2^n 条路径之和，大多数路径很短。因此它缺了哪一个块都行：训练后拿掉一个块，大多数答案仍然正确（Veit 等，
# 2016）。

# %%
net = nets["with shortcuts"]
without = []
for n in range(24):
    shorter = copy.deepcopy(net)
    shorter[n] = nn.Identity()
    without.append(accuracy(shorter))
figure, ax = plt.subplots(figsize=(6, 3))
ax.bar(range(24), without), ax.axhline(accuracy(net), color="black", ls="--", label="all blocks")
ax.set(xlabel="block that is taken out", ylabel="test accuracy", ylim=(0, 1.05)), ax.legend()
plt.show()
assert sum(without) / 24 > 0.7

# %% [markdown]
# ## Exercise 1
#
# Where a block halves the image or widens it, its input cannot be added as it is. Which shortcut does `projected` give for
# strides 1 and 2? Do shapes then agree?
#
# ## 练习 1
#
# 块把图像减半或加宽时，输入不能直接相加。步长为 1 和 2 时 `projected` 给出怎样的捷径？形状一致吗？

# %%
# Solution 1
assert isinstance(projected(8, 8, stride=1), nn.Identity)
strided = projected(8, 16, stride=2)
assert strided.conv.kernel_size == (1, 1) and strided.conv.stride == (2, 2)
block = basic_block(8, 16, stride=2)
pictures = torch.randn(2, 8, 9, 9)
assert block.body(pictures).shape == strided(pictures).shape == (2, 16, 5, 5)

# %% [markdown]
# ## Exercise 2
#
# With `zero_init=True` the last norm of every block starts at zero. Show that each block of a new `resnet20` whose shape stays
# the same then starts as the identity followed by a ReLU.
#
# ## 练习 2
#
# 设 `zero_init=True` 时，每个块最后的归一化从零开始。请证明：新建的 `resnet20` 中形状不变的块，一开始就是恒等映射加 ReLU。

# %%
# Solution 2
model = zoo.create("resnet20", zero_init=True)
pictures = torch.randn(2, 16, 8, 8)
for block in model.stages[0]:
    assert torch.equal(block(pictures), pictures.relu())

# %% [markdown]
# ## Exercise 3
#
# What if the shortcut is halved, 0.5 x + f(x)? Predict how much of the gradient is left after 24 blocks, and measure it.
#
# ## 练习 3
#
# 如果捷径减半，变成 0.5 x + f(x)，会怎样？先预测 24 个块之后梯度还剩多少，再测量。

# %%
# Solution 3


class Half(nn.Module):
    def forward(self, x):
        return x / 2


halved = nn.Sequential(*(Residual(body(64), Half(), nn.Identity()) for _ in range(24)), nn.Linear(64, 10))
left = gradients(halved)
assert left[0] / left[-1] < 1e-3, "about 0.5 ** 23, a ten-millionth"
assert left[0] / left[-1] < shortcut[0] / shortcut[-1]

# %% [markdown]
# ## What commonly goes wrong
#
# - The stride is put on the 1x1 convolution in place of the 3x3: shapes and numbers of weights agree, results do not
#   (pytorch/vision#191).
# - The first block of the first stage widens at stride 1 and still needs a projection (ANEForge#209).
# - A sub-layer is called and its result is dropped; only its missing gradient tells (lucidrains/audiolm-pytorch#265).
# - Stochastic depth drops blocks in training and does not rescale, so that evaluation sees other sums (mosaicml/composer#372).
#
# ## 常见错误
#
# - 步长放在了 1x1 卷积上，而不是 3x3 上：形状和权重个数都一致，结果却不同（pytorch/vision#191）。
# - 第一级的第一个块步长为 1 但加宽了通道，仍然需要投影（ANEForge#209）。
# - 调用了子层却丢掉了它的结果；只有缺失的梯度会泄露这一点（lucidrains/audiolm-pytorch#265）。
# - 随机深度在训练时丢弃块却不重新缩放，评估时的和就变了（mosaicml/composer#372）。
