# %% [markdown]
# # 4. The Transformer: positions, masks, and a translation watched step by step
#
# Attention does not know the order of words, and it sees all of them at once. How does a Transformer know where a word stands,
# how is it kept from reading the answer, and how does a translation come about, token by token?
#
# # 4. Transformer：位置、掩码，以及逐步观察一次翻译
#
# 注意力不知道词的顺序，而且一眼看到所有的词。Transformer 怎样知道一个词站在哪里？怎样防止它偷看答案？
# 一句译文又是怎样一个词元一个词元地产生的？

# %%
import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

from layers import masks
from layers.positions import Sinusoidal
from zoo.generation import decoding
from zoo.transformer import build

torch.manual_seed(0)

# %% [markdown]
# ## Positions
#
# Each position gets sines and cosines of many wavelengths, and they are added to the embedding. The product of two such vectors
# depends only on how far the positions are apart: that is how attention can ask for "three words back".
#
# ## 位置
#
# 每个位置得到许多种波长的正弦和余弦，加到词嵌入上。两个这样的向量的内积只取决于两个位置相距多远：
# 注意力由此可以询问“往前第三个词”。

# %%
table = Sinusoidal(64)(torch.arange(50), torch.float64)
products = table @ table.T
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5))
left.imshow(table, aspect="auto", cmap="RdBu"), left.set(title="the vectors", xlabel="feature", ylabel="position")
right.imshow(products, cmap="viridis"), right.set(title="their products", xlabel="position", ylabel="position")
plt.show()
for distance in (0, 1, 7, 30):
    same = products.diagonal(distance)
    assert torch.allclose(same, same[:1].expand_as(same))
assert (products.diagonal(1) < products[0, 0]).all()

# %% [markdown]
# ## Masks
#
# There are two. Short rows of a batch are filled up with padding, which nobody may look at. And a target token may look at the
# tokens before it alone, for the ones after it are the answer. Masks are joined with `&`.
#
# ## 掩码
#
# 掩码有两种。一批里较短的行要用填充补齐，谁也不许看填充。目标词元只能看它前面的词元，因为后面的就是答案。掩码用 `&` 合并。

# %%
padding, causal = masks.padding(torch.tensor([4, 6]), 6), masks.causal(6)
both = padding & causal
figure, axes = plt.subplots(1, 3, figsize=(9, 3))
shown = {"padding, row of 4 tokens": padding[0, 0].expand(6, 6), "causal": causal, "both": both[0, 0]}
for ax, (title, mask) in zip(axes, shown.items(), strict=True):
    ax.imshow(mask, cmap="Blues", vmin=0, vmax=1), ax.set(title=title, xlabel="key", ylabel="query")
plt.show()
assert both.shape == (2, 1, 6, 6)
assert not both[0, 0, :, 4:].any() and not both[..., ~causal].any()

# %% [markdown]
# ## A language to translate
#
# The source is a row of six digits; its translation is the same digits from last to first. The decoder starts with a token
# BEGIN. It is trained on all positions at once: it gets the target shifted by one, and has to say what comes next.
#
# ## 要翻译的语言
#
# 源句是六个数字；译文是同样的数字，顺序相反。解码器从词元 BEGIN 开始。训练时所有位置同时进行：给它右移一位的目标，
# 让它说出下一个是什么。

# %%
BEGIN, LENGTH = 11, 6  # 0 is padding, 1 to 10 are the digits


def pairs(count):
    source = torch.randint(1, 11, (count, LENGTH))
    target = source.flip(1)
    shifted = torch.cat([torch.full((count, 1), BEGIN), target[:, :-1]], 1)
    return source, shifted, target


model = build(12, dim=48, heads=2, hidden_dim=96, layers=1, dropout=0.0)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=400)
losses = []
for _ in range(400):
    source, shifted, target = pairs(64)
    loss = F.cross_entropy(model(source, shifted).flatten(0, 1), target.flatten())
    optimizer.zero_grad(), loss.backward(), optimizer.step(), schedule.step()
    losses.append(loss.item())
model.eval()


@torch.no_grad()
def translate(source):
    decoder = model.start(source, capacity=LENGTH)
    return decoding.greedy(decoder, torch.full((len(source), 1), BEGIN), max_new_tokens=LENGTH)


source, _, target = pairs(200)
right = (translate(source) == target).float().mean().item()
figure, ax = plt.subplots(figsize=(6, 3))
ax.plot(losses), ax.set(xlabel="step", ylabel="loss", title=f"{right:.0%} of the digits of new rows are right")
plt.show()
assert right > 0.9

# %% [markdown]
# ## Step by step
#
# At each step the decoder says how likely each token is, the likeliest is taken, and goes in at the next step. The picture has
# a row for each step.
#
# ## 逐步观察
#
# 每一步解码器给出各词元的概率，取最可能的那个，下一步再把它送进去。图中每一行是一步。

# %%
sentence, written, chances = source[:1], [BEGIN], []
decoder = model.start(sentence, capacity=LENGTH)
for _ in range(LENGTH):
    logits = decoder(torch.tensor([[written[-1]]]))
    chances.append(logits.softmax(-1)[0])
    written.append(int(logits.argmax()))
    print("source", sentence[0].tolist(), "so far", written[1:])
figure, ax = plt.subplots(figsize=(6, 3.5))
ax.imshow(torch.stack(chances), cmap="Blues", vmin=0, vmax=1), ax.set(xlabel="token", ylabel="step")
plt.show()
assert written[1:] == translate(sentence)[0].tolist()

# %% [markdown]
# ## Where does it look?
#
# While digit i of the target is written, the last block looks at the memory. In a reversal these weights lie on the other
# diagonal. Weights are a hint and no proof. The proof is to change one digit of the source and see which output follows.
#
# ## 它在看哪里？
#
# 写目标的第 i 个数字时，最后一个块在看编码器留下的记忆。对于倒序，这些权重落在反对角线上。权重只是线索，不是证明；要证明，
# 就改动源句中的一个数字，看哪个输出跟着变。

# %%
source, shifted, target = pairs(100)
with torch.no_grad():
    looks = model.alignments(source, shifted).mean(0)
    before, follows = model(source, shifted).softmax(-1), torch.zeros(LENGTH, LENGTH)
    for n in range(LENGTH):
        other = source.clone()
        other[:, n] = other[:, n] % 10 + 1
        follows[:, n] = (model(other, shifted).softmax(-1) - before).abs().sum(-1).mean(0) / 2
figure, axes = plt.subplots(1, 2, figsize=(8, 3.5))
for ax, matrix, title in zip(axes, (looks, follows), ("attention to the memory", "what follows a changed digit"), strict=True):
    ax.imshow(matrix, cmap="Blues", vmin=0, vmax=1), ax.set(title=title, xlabel="source", ylabel="target")
plt.show()
assert follows.flip(1).diagonal().mean() > 0.6
assert follows.flip(1).argmax(1).tolist() == list(range(LENGTH))

# %% [markdown]
# ## Exercise 1
#
# Write the paper's positions in three lines, and compare them with `Sinusoidal`.
#
# ## 练习 1
#
# 用三行写出论文的位置编码，并与 `Sinusoidal` 比较。

# %%
# Solution 1
dim, places = 10, torch.arange(20, dtype=torch.float64)[:, None]
angles = places / 10000 ** (torch.arange(0, dim, 2) / dim)
mine = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
assert torch.allclose(mine, Sinusoidal(dim)(torch.arange(20), torch.float64))

# %% [markdown]
# ## Exercise 2
#
# Add two tokens of junk to the end of a source, and hide them by `source_mask`. Show that no logit changes, and that without
# the mask they do.
#
# ## 练习 2
#
# 在源句末尾加两个垃圾词元，用 `source_mask` 遮住。请证明 logits 一个也不变，而不用掩码就会变。

# %%
# Solution 2
model = model.double()
junk = torch.cat([source, torch.full((100, 2), 5)], 1)
real = torch.arange(LENGTH + 2).expand(100, -1) < LENGTH
with torch.no_grad():
    assert torch.allclose(model(junk, shifted, real), model(source, shifted), atol=1e-10)
    assert not torch.allclose(model(junk, shifted), model(source, shifted), atol=1e-10)

# %% [markdown]
# ## Exercise 3
#
# The decoder of `model.start` keeps keys and values of earlier tokens. Show that it gives, token by token, the logits that the
# whole model gives at once.
#
# ## 练习 3
#
# `model.start` 的解码器保存了先前词元的键和值。请证明：它逐个词元给出的 logits，与整个模型一次给出的相同。

# %%
# Solution 3
decoder = model.start(source, capacity=LENGTH)
steps = torch.stack([decoder(shifted[:, n : n + 1]) for n in range(LENGTH)], 1)
with torch.no_grad():
    assert torch.allclose(steps, model(source, shifted), atol=1e-10)

# %% [markdown]
# ## What commonly goes wrong
#
# - In the exponent of the positions, 2 i is used where i steps by 2 already (SamLynnEvans/Transformer#25).
# - A post-norm stack gets one more norm at its end, which the paper does not have (pytorch#50086).
# - Padding on the left shifts the learned positions of a row (transformers#21080).
# - A fast path for evaluation treats padding otherwise than training does (pytorch#86120).
# - Label smoothing counts padded targets, too (pytorch#73205).
#
# ## 常见错误
#
# - 位置编码的指数里用了 2 i，而 i 已经以 2 为步长（SamLynnEvans/Transformer#25）。
# - 后归一化的堆叠末尾多了一个归一化，论文里并没有（pytorch#50086）。
# - 左侧的填充使一行的可学习位置发生偏移（transformers#21080）。
# - 评估时的快速路径对填充的处理与训练时不同（pytorch#86120）。
# - 标签平滑把填充的目标也算了进去（pytorch#73205）。
