# %% [markdown]
# # 6. GPT: training, sampling, cache
#
# A GPT learns one thing alone: which character comes next. How do texts come out of that, who decides how bold they are, and
# why is writing them not as dear as reading everything again for each character?
#
# # 6. GPT：训练、采样、缓存
#
# GPT 只学一件事：下一个字符是什么。文本怎样由此产生？由什么决定它写得多大胆？为什么写作不必每写一个字符就把全文重读一遍？

# %%
import argparse
import inspect
import math

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

import zoo
from zoo.generation import decoding
from zoo.generation.sampling import keep_top_k, keep_top_p

torch.manual_seed(0)

# %% [markdown]
# ## The text
#
# We take the source of a module of Python's standard library, character by character. The targets are the same characters,
# shifted by one.
#
# ## 文本
#
# 我们取 Python 标准库中一个模块的源代码，逐字符地用。目标就是同样的字符，错开一位。

# %%
text = inspect.getsource(argparse)
characters = sorted(set(text))
number = {character: n for n, character in enumerate(characters)}
data = torch.tensor([number[character] for character in text])
train, valid = data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :]
LENGTH = 48


def batch(source, count=16):
    starts = torch.randint(len(source) - LENGTH - 1, (count,))
    rows = torch.stack([source[s : s + LENGTH + 1] for s in starts])
    return rows[:, :-1], rows[:, 1:]


def read(tokens):
    return "".join(characters[n] for n in tokens)


inputs, targets = batch(train, 1)
assert torch.equal(inputs[:, 1:], targets[:, :-1])
figure, ax = plt.subplots(figsize=(11, 1.6))
ax.imshow(torch.cat([inputs, targets])[:, :30], cmap="Pastel1", aspect="auto")
for row, tokens in enumerate((inputs[0, :30], targets[0, :30])):
    for place, character in enumerate(read(tokens)):
        ax.text(place, row, repr(character)[1:-1], ha="center", va="center", family="monospace")
ax.set(xticks=[], yticks=[0, 1], yticklabels=["input", "target"], title="each character's target is the next one")
plt.show()

model = zoo.create("gpt_small", vocab_size=len(characters), dim=64, heads=4, layers=2, max_positions=96, embedding_std=0.02)

# %% [markdown]
# ## Before training
#
# A new model knows nothing: all characters are about as likely, and the loss is near ln(vocabulary). Look at this number first;
# a loss of 10 or 100 at the start means a bug, or weights that are too large. And no character may see the ones after it.
#
# ## 训练之前
#
# 新模型什么也不知道：所有字符的概率差不多，损失接近 ln(词表大小)。先看这个数；一开始就是 10 或 100，说明有错，或者权重太大。
# 另外，任何字符都不能看到它后面的字符。

# %%
inputs, targets = batch(valid, 64)
with torch.no_grad():
    first = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).item()
    row = inputs[:1, :12]
    reaches = torch.zeros(12, 12, dtype=torch.bool)
    for n in range(12):
        other = row.clone()
        other[0, n] = (other[0, n] + 1) % len(characters)
        reaches[:, n] = (model(other) != model(row)).any(-1)[0]
figure, ax = plt.subplots(figsize=(3.5, 3.5))
ax.imshow(reaches, cmap="Blues", vmin=0, vmax=1), ax.set(xlabel="changed character", ylabel="logits", title="what reaches what")
plt.show()
assert abs(first - math.log(len(characters))) < 0.5
assert not reaches.triu(1).any()
assert reaches.diagonal().all()

# %% [markdown]
# ## Training
#
# A row of 48 characters holds 48 lessons. How good is the loss? Compare it with what needs no network: the frequencies of
# single characters.
#
# ## 训练
#
# 一行 48 个字符就是 48 堂课。怎样的损失算好？与不需要网络的做法比一比：单个字符的频率。

# %%
counts = torch.bincount(train, minlength=len(characters)).float() + 1
by_frequency = F.cross_entropy(counts.log().expand(len(valid), -1), valid).item()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
losses = []
for _ in range(250):
    inputs, targets = batch(train)
    loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    optimizer.zero_grad(), loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    losses.append(loss.item())
model.eval()
inputs, targets = batch(valid, 64)
with torch.no_grad():
    last = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).item()
figure, ax = plt.subplots(figsize=(6, 3.5))
ax.plot(losses, label="training")
for height, name in ((math.log(len(characters)), "guessing"), (by_frequency, "frequencies"), (last, "other text")):
    ax.axhline(height, ls="--", color="black"), ax.text(0, height + 0.05, name)
ax.set(xlabel="step", ylabel="loss"), ax.legend()
plt.show()
assert last < by_frequency < math.log(len(characters))

# %% [markdown]
# ## Sampling
#
# The model gives chances, and a rule draws from them. The temperature divides the logits: below 1 the likely gets likelier.
# Top-k keeps the k likeliest characters, top-p the fewest that together reach p.
#
# ## 采样
#
# 模型给出概率，再由一条规则从中抽取。温度去除 logits：低于 1 时，可能的变得更可能。Top-k 保留 k 个最可能的字符，
# top-p 保留合起来达到 p 的最少字符。

# %%
prompt = torch.tensor([[number[character] for character in "    def "]])
with torch.no_grad():
    logits = model(prompt)[:, -1]
chances = logits.softmax(-1)
choices = {
    "temperature 0.5": (logits / 0.5).softmax(-1), "temperature 1": chances, "temperature 2": (logits / 2).softmax(-1),
    "top-k 3": keep_top_k(chances, 3), "top-p 0.8": keep_top_p(chances, 0.8),
}  # fmt: skip
top = chances[0].topk(15).indices
figure, axes = plt.subplots(1, 5, figsize=(14, 2.5), sharey=True)
for ax, (name, weights) in zip(axes, choices.items(), strict=True):
    ax.bar(range(15), weights[0, top]), ax.set_xticks(range(15), [repr(characters[n])[1:-1] for n in top], fontsize=6)
    ax.set(title=name)
plt.show()
entropy = [torch.special.entr(choices[f"temperature {t}"]).sum().item() for t in ("0.5", "1", "2")]
assert entropy == sorted(entropy)
assert (choices["top-k 3"] > 0).sum() == 3
kept = choices["top-p 0.8"]
assert kept.sum() >= 0.8 > kept.sum() - kept[kept > 0].min(), "it reaches p, and needs the last one for it"
for temperature in (0.5, 1.0):
    written = decoding.sample(model.start(capacity=90), prompt, max_new_tokens=80, temperature=temperature, seed=1)
    print(f"--- temperature {temperature}\n{read(prompt[0])}{read(written[0])}")

# %% [markdown]
# ## The cache
#
# Without a cache, each new character sends the whole text through the model again. With one, keys and values of earlier
# characters are kept, and only the new character is computed. The logits are the same; the work is not.
#
# ## 缓存
#
# 没有缓存，每个新字符都要让全文再过一遍模型。有了缓存，先前字符的键和值都留着，只需计算新字符。logits 相同，工作量却不同。

# %%
model = model.double()
row, work = inputs[:1], {"without a cache": [], "with a cache": []}
caches = model.new_caches(capacity=LENGTH)
with torch.no_grad():
    for n in range(LENGTH):
        whole = model(row[:, : n + 1])[:, -1]
        step = model.next_logits(row[:, n : n + 1], caches)
        assert torch.allclose(step, whole, atol=1e-10)
        work["without a cache"].append(n + 1), work["with a cache"].append(1)
figure, ax = plt.subplots(figsize=(5, 3))
for name, tokens in work.items():
    ax.plot(torch.tensor(tokens).cumsum(0), label=name)
ax.set(xlabel="characters written", ylabel="characters computed"), ax.legend()
plt.show()
assert sum(work["with a cache"]) == LENGTH
assert sum(work["without a cache"]) == LENGTH * (LENGTH + 1) // 2

# %% [markdown]
# ## Exercise 1
#
# Write top-p in three lines: sort, sum, and keep what is needed. Mind the token that crosses p: it stays.
#
# ## 练习 1
#
# 用三行写出 top-p：排序、累加、保留所需的。注意跨过 p 的那个词元：它要留下。

# %%
# Solution 1


def top_p(chances, p):
    values, order = chances.sort(-1, descending=True)
    before = values.cumsum(-1) - values  # what the likelier ones sum up to
    return torch.zeros_like(chances).scatter(-1, order, values * (before < p))


for p in (0.1, 0.5, 0.9):
    assert torch.equal(top_p(chances, p) > 0, keep_top_p(chances, p) > 0)

# %% [markdown]
# ## Exercise 2
#
# Write a greedy loop without a cache, and show that it writes what `decoding.greedy` writes.
#
# ## 练习 2
#
# 写一个不用缓存的贪心循环，并证明它写出的与 `decoding.greedy` 相同。

# %%
# Solution 2
tokens = prompt
with torch.no_grad():
    for _ in range(20):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)
assert torch.equal(tokens[:, 8:], decoding.greedy(model.start(capacity=40), prompt, max_new_tokens=20))

# %% [markdown]
# ## Exercise 3
#
# Two batches, one with 10 and one with 90 real targets: is the mean of their two mean losses the loss of all 100? What must be
# divided by what when gradients are accumulated?
#
# ## 练习 3
#
# 两批数据，一批有 10 个真实目标，一批有 90 个：它们各自平均损失的平均，是全部 100 个的损失吗？累积梯度时该用什么除以什么？

# %%
# Solution 3
scores, right = torch.randn(100, 7), torch.randint(7, (100,))
parts = [(scores[:10], right[:10]), (scores[10:], right[10:])]
mean_of_means = sum(F.cross_entropy(s, r) for s, r in parts) / 2
sum_over_count = sum(F.cross_entropy(s, r, reduction="sum") for s, r in parts) / 100
assert torch.allclose(sum_over_count, F.cross_entropy(scores, right))
assert not torch.allclose(mean_of_means, sum_over_count, atol=1e-4)

# %% [markdown]
# ## What commonly goes wrong
#
# - Labels are shifted in the data and in the model again, which then learns the character after the next (transformers#47394).
# - The mean of means is taken for the mean over all tokens (transformers#34191).
# - Top-p drops the token that crosses p, and with it often the only sensible one (fishaudio/fish-speech#1171).
# - With a cache, a mask of new by new tokens is used where new by all is due (meta-llama/llama#899).
# - What the cache gives is another order of the same logits; nobody compared them with a full pass (x-transformers#219).
#
# ## 常见错误
#
# - 标签在数据里移了一位，在模型里又移了一位，于是学的是再下一个字符（transformers#47394）。
# - 把平均的平均当成了全部词元的平均（transformers#34191）。
# - Top-p 丢掉了跨过 p 的词元，往往正是唯一合理的那个（fishaudio/fish-speech#1171）。
# - 使用缓存时，该用“新对全部”的掩码，却用了“新对新”的（meta-llama/llama#899）。
# - 缓存给出的 logits 次序乱了，却没有人与完整计算比对过（x-transformers#219）。
