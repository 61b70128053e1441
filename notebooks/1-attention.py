# %% [markdown]
# # 1. Attention: from a paper to a contract to a block
#
# In a sentence, any word may need any other. How can a layer let each one pick what it needs, and how do we know that
# we have built that layer right?
#
# # 1. 注意力：从论文到契约，再到模块
#
# 句子里的任何一个词都可能需要另一个词。怎样的一层网络能让每个词各取所需？我们又怎么知道自己写对了？

# %%
import matplotlib.pyplot as plt
import torch
from hypothesis import strategies as st
from torch import nn

from layers import masks
from layers.attention import MultiHeadAttention
from layers.testing import Contract, Twin, causal, tensor
from layers.weights import WeightMap

torch.manual_seed(0)

# %% [markdown]
# ## The formula
#
# The paper (Vaswani et al., 2017) has one line: softmax(Q Kᵀ / √d) V. A query is compared with every key. The softmax turns
# the scores of one query into weights that sum to 1. The output is the mean of the values with these weights.
#
# ## 公式
#
# 论文（Vaswani 等，2017）只有一行：softmax(Q Kᵀ / √d) V。每个查询（query）与所有的键（key）作比较；
# softmax 把同一个查询的得分变成和为 1
# 的权重；输出就是值（value）按这些权重的加权平均。


# %%
def attention(query, key, value, mask=None):
    """query (b, q, d), key (b, k, d), value (b, k, e) -> output (b, q, e), weights (b, q, k); True in a mask: may look."""
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(-1)
    return weights @ value, weights


words = ["the", "cat", "saw", "a", "dog"]
key = torch.eye(5)[None]  # a key for each word, all orthogonal
query = 8 * torch.eye(5)[[1, 1, 2, 4, 4]][None]  # what each word asks for: "the" asks for "cat", "a" for "dog"
output, weights = attention(query, key, key)
assert torch.allclose(weights.sum(-1), torch.ones(1, 5))
assert weights[0].argmax(-1).tolist() == [1, 1, 2, 4, 4]


def show(weights, ax, title):
    ax.imshow(weights.detach(), vmin=0, vmax=1, cmap="Blues")
    ax.set(title=title, xlabel="key", ylabel="query", xticks=range(len(words)), yticks=range(len(words)))
    ax.set_xticklabels(words), ax.set_yticklabels(words)


figure, ax = plt.subplots(figsize=(4, 4))
show(weights[0], ax, "each query finds its key")
plt.show()

# %% [markdown]
# ## Why divide by √d?
#
# The product of two random vectors of d numbers has a standard deviation of √d. Without the division, scores grow with d, and
# the softmax puts nearly all weight on one key. Then its gradient is nearly zero, and nothing is learned.
#
# ## 为什么要除以 √d？
#
# 两个 d 维随机向量的内积，标准差是 √d。不除的话，得分随 d 变大，softmax 会把几乎全部权重放在一个键上；这时梯度几乎为零，
# 什么也学不到。

# %%
dims = [4, 16, 64, 256, 1024]
spread, largest, largest_scaled = [], [], []
for d in dims:
    scores = (torch.randn(500, 1, d) @ torch.randn(500, d, 10))[:, 0]
    spread.append(scores.std().item())
    largest.append(scores.softmax(-1).amax(-1).mean().item())
    largest_scaled.append((scores / d**0.5).softmax(-1).amax(-1).mean().item())

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
left.loglog(dims, spread, "o-", label="measured"), left.loglog(dims, [d**0.5 for d in dims], "--", label="√d")
left.set(xlabel="d", title="standard deviation of the scores"), left.legend()
right.semilogx(dims, largest, "o-", label="not divided"), right.semilogx(dims, largest_scaled, "o-", label="divided by √d")
right.set(xlabel="d", ylim=(0, 1), title="largest of 10 weights"), right.legend()
plt.show()
assert all(0.8 < s / d**0.5 < 1.25 for s, d in zip(spread, dims, strict=True))
assert largest[-1] > 0.8 > 0.6 > max(largest_scaled)

# %% [markdown]
# ## The mask
#
# A model that writes text must not look ahead. A mask hides the later keys: their scores become -inf, their weights exactly 0.
# In this project True means "may look", everywhere.
#
# ## 掩码
#
# 写文本的模型不能偷看后文。掩码把后面的键藏起来：得分变成 -inf，权重正好是 0。在本项目中，True 处处表示“可以看”。

# %%
mask = masks.causal(5)
output, weights = attention(torch.randn(1, 5, 8), torch.randn(1, 5, 8), torch.randn(1, 5, 8), mask)
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4))
show(mask.float(), left, "the mask: True is blue"), show(weights[0], right, "the weights")
plt.show()
assert (weights[0][~mask] == 0).all()

# %% [markdown]
# ## The contract comes first
#
# Before the block we write down what it promises: its arguments, its inputs and outputs, that it never looks ahead, and a twin,
# a known implementation that it must equal. The twin here is the project's own `MultiHeadAttention`; that one has the twins of
# PyTorch and Hugging Face. `causal` checks both sides: later inputs change nothing, earlier ones do change something.
#
# ## 先写契约
#
# 写模块之前，先写下它承诺什么：参数、输入、输出、绝不偷看后文，以及一个“孪生”，即必须与之相等的已知实现。
# 这里的孪生是本项目自己的 `MultiHeadAttention`，后者的孪生则是 PyTorch 和 Hugging Face 的实现。`causal` 从两面检查：
# 后面的输入什么也不改变，前面的输入必须有影响。


# %%
def contract(block):
    return Contract(
        block,
        arguments=dict(heads=st.integers(2, 4), _head_dim=st.integers(2, 3), dim=lambda a: a.heads * a._head_dim),
        inputs=lambda a: dict(x=tensor("b n dim", dim=a.dim)),
        outputs=lambda a, sizes: ("b", "n", a.dim),
        twins=[Twin("zooproof", build=lambda a: MultiHeadAttention(a.dim, a.heads, causal=True), weights=WeightMap(("", "")))],
        holds=[causal("x", "n", output_axis=1)],
        foreign=True,  # its error messages are not looked at
    )


PROPERTIES = ["shape", "forward", "backward", "batch_rows", "causal"]

known, sentence = MultiHeadAttention(8, 2, causal=True), torch.randn(1, 5, 8)
reaches = torch.zeros(5, 5)
with torch.no_grad():
    for n in range(5):
        other = sentence.clone()
        other[:, n] += 1.0
        reaches[:, n] = (known(other) != known(sentence)).any(-1)[0]
figure, ax = plt.subplots(figsize=(4, 4))
show(reaches, ax, "blue: a changed key changes this output")
plt.show()
assert torch.equal(reaches.bool(), masks.causal(5)), "nothing from later words, something from each earlier one"

# %% [markdown]
# ## The block
#
# Several heads look at several things at once. Each works on its own part of the features; a last linear layer mixes them.
#
# ## 模块
#
# 多个头同时关注多样东西。每个头在自己的那部分特征上工作，最后由一个线性层把它们混合起来。


# %%
class SelfAttention(nn.Module):
    """x (b, n, dim) -> (b, n, dim), causal."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim) for _ in range(4))

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (b, n, dim) -> (b, heads, n, head_dim)

    def forward(self, x):
        q, k, v = (self.split(project(x)) for project in (self.query, self.key, self.value))
        return self.output(self.attend(q, k, v, masks.causal(x.shape[1])).transpose(1, 2).flatten(2))

    def attend(self, q, k, v, mask):
        return attention(q, k, v, mask)[0]


block, x = SelfAttention(8, 2), torch.randn(1, 5, 8)
weights = attention(*(block.split(project(x)) for project in (block.query, block.key, block.value)), masks.causal(5))[1]
figure, axes = plt.subplots(1, 2, figsize=(8, 4))
for head, ax in enumerate(axes):
    show(weights[0, head], ax, f"head {head + 1} of a new block")
plt.show()
assert weights.shape == (1, 2, 5, 5)
assert not torch.allclose(weights[0, 0], weights[0, 1], atol=0.01), "each head looks in its own way"


class WrongScale(SelfAttention):
    """Divides by the root of all features, not of one head's: the shapes are right, and it even trains."""

    def attend(self, q, k, v, mask):
        return attention(q / self.heads**0.5, k, v, mask)[0]


class LooksAhead(SelfAttention):
    def attend(self, q, k, v, mask):
        return attention(q, k, v)[0]


reports = {block.__name__: contract(block).check(PROPERTIES, examples=4) for block in (SelfAttention, WrongScale, LooksAhead)}
print(reports["SelfAttention"])
assert reports["SelfAttention"]
assert not reports["WrongScale"]
assert not reports["LooksAhead"]

# %% [markdown]
# Which checks see which mistake? A test of shapes sees neither.
#
# 哪项检查能发现哪个错误？只检查形状的测试一个也发现不了。

# %%
seen = torch.tensor(
    [[bool(contract(b).check([p], examples=4)) for p in PROPERTIES] for b in (SelfAttention, WrongScale, LooksAhead)]
)
figure, ax = plt.subplots(figsize=(6, 2.5))
ax.imshow(seen, cmap="RdYlGn", vmin=0, vmax=1)
ax.set(xticks=range(len(PROPERTIES)), yticks=range(3), title="green: passed, red: failed")
ax.set_xticklabels(PROPERTIES), ax.set_yticklabels(reports)
plt.show()
assert seen[0].all()
assert seen[:, 0].all(), "every shape is right"
assert not seen[1:, 1].any(), "but not every value"
assert seen[1, 4] and not seen[2, 4]

# %% [markdown]
# ## Exercise 1
#
# What does `attention` give for a query whose keys are all hidden? What should it give? Write `safe_attention`.
#
# ## 练习 1
#
# 如果一个查询的键全被遮住，`attention` 会给出什么？应该给出什么？请写出 `safe_attention`。

# %%
# Solution 1


def safe_attention(query, key, value, mask):
    weights = attention(query, key, value, mask)[1]
    return weights.masked_fill(~mask, 0.0) @ value


x, nothing = torch.randn(1, 3, 4), torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
assert attention(x, x, x, nothing)[0][0, 2].isnan().all(), "0 / 0"
assert (safe_attention(x, x, x, nothing)[0, 2] == 0).all()
assert torch.allclose(safe_attention(x, x, x, nothing)[0, :2], attention(x, x, x, nothing)[0][0, :2])

# %% [markdown]
# ## Exercise 2
#
# Show that attention without a mask knows nothing of the order of its inputs: shuffled inputs give shuffled outputs.
#
# ## 练习 2
#
# 请证明：没有掩码的注意力不知道输入的顺序，打乱输入，输出只是同样地被打乱。

# %%
# Solution 2
block, x, order = MultiHeadAttention(8, 2).double(), torch.randn(2, 6, 8, dtype=torch.float64), torch.randperm(6)
assert torch.allclose(block(x[:, order]), block(x)[:, order])
assert not torch.allclose(block(x[:, order]), block(x))

# %% [markdown]
# ## Exercise 3
#
# Grouped queries: 4 heads of queries share 2 heads of keys and values. Which queries belong to which key: neighbours
# (0, 0, 1, 1), or in turn (0, 1, 0, 1)? Find out from `MultiHeadAttention(kv_heads=2)`.
#
# ## 练习 3
#
# 分组查询：4 个查询头共用 2 个键值头。哪些查询对应哪个键：相邻的（0, 0, 1, 1），还是轮流的（0, 1, 0, 1）？
# 请用 `MultiHeadAttention(kv_heads=2)`
# 找出答案。

# %%
# Solution 3
block, x = MultiHeadAttention(8, 4, kv_heads=2), torch.randn(1, 5, 8)
with torch.no_grad():
    before = block(x, return_weights=True)[1]
    block.key.weight[:2] += 1.0  # the first head of keys has two features
    after = block(x, return_weights=True)[1]
changed = [not torch.allclose(before[:, head], after[:, head]) for head in range(4)]
assert changed == [True, True, False, False]

# %% [markdown]
# ## What commonly goes wrong
#
# - The scale takes the width of the model in place of a head's; all shapes are right (lucidrains/vit-pytorch#65).
# - True means "may look" in one library and "hidden" in the next; then a model attends to the future
#   (rasbt/LLMs-from-scratch#1061).
# - A row in which all is hidden gives NaN, and NaN spreads (pytorch#103749).
# - A hidden value that is NaN still poisons the output, for 0 · NaN is NaN (pytorch#101967).
# - With a cache, the causal mask is laid at the upper left, and a new query sees the first key only (pytorch#108108).
#
# ## 常见错误
#
# - 缩放用了模型的宽度，而不是一个头的宽度；形状全都对（lucidrains/vit-pytorch#65）。
# - 一个库里 True 表示“可以看”，另一个库里表示“遮住”；结果模型看到了未来（rasbt/LLMs-from-scratch#1061）。
# - 整行都被遮住时得到 NaN，而 NaN 会扩散（pytorch#103749）。
# - 被遮住的值若是 NaN，仍会污染输出，因为 0 · NaN 还是 NaN（pytorch#101967）。
# - 使用缓存时，因果掩码对齐到了左上角，新的查询只看得到第一个键（pytorch#108108）。
