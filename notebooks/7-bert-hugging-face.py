# %% [markdown]
# # 7. BERT and Hugging Face
#
# A BERT learns to fill gaps in text. How does that become a classifier, how do weights go to and from Hugging Face, and how
# does a model of your own get into `AutoModel`?
#
# # 7. BERT 与 Hugging Face
#
# BERT 学的是填空。填空怎样变成分类器？权重怎样与 Hugging Face 互相往来？你自己的模型又怎样进入 `AutoModel`？

# %%
import itertools
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, BertConfig, BertForSequenceClassification, PreTrainedConfig, PreTrainedModel

import zoo

torch.manual_seed(0)
home = tempfile.TemporaryDirectory()
folder = Path(home.name)

# %% [markdown]
# ## A small language
#
# Its sentences are "the cats chase a dog": a subject, a verb, an object. Animals chase and see, machines carry and lift, and the
# verb agrees with the subject. Nobody says so; a model that fills gaps has to find it out.
#
# ## 一种小语言
#
# 句子形如 "the cats chase a dog"：主语、动词、宾语。动物会 chase 和 see，机器会 carry 和 lift，
# 动词还要与主语的数一致。没有人告诉模型这一点；要填空，它就得自己发现。

# %%
ANIMALS, MACHINES = ["cat", "dog", "horse", "bird"], ["robot", "truck", "drone", "crane"]
NOUNS, VERBS = ANIMALS + MACHINES, ["chase", "see", "carry", "lift"]
SPECIAL = ["<pad>", "<mask>", "<start>"]
words = [*SPECIAL, "the", "a", *NOUNS, *(n + "s" for n in NOUNS), *VERBS, *(v + "s" for v in VERBS)]
number = {word: n for n, word in enumerate(words)}
PAD, MASK, START = range(3)


def sentence(noun, plural, verb, article, other):
    subject, verb = (noun + "s", verb) if plural else (noun, verb + "s")
    return [number[w] for w in ("<start>", "the", subject, verb, article, other)]


every = list(itertools.product(NOUNS, (False, True), VERBS, ("the", "a"), NOUNS))
every = [choice for choice in every if (choice[0] in ANIMALS) == (choice[2] in VERBS[:2])]
tokens = torch.tensor([sentence(*choice) for choice in every])
about_animals = torch.tensor([choice[0] in ANIMALS for choice in every]).long()
print(" ".join(words[n] for n in tokens[300]))

subjects, verbs = [*NOUNS, *(n + "s" for n in NOUNS)], [*VERBS, *(v + "s" for v in VERBS)]
counts = torch.tensor([[((tokens[:, 2] == number[s]) & (tokens[:, 3] == number[v])).sum() for v in verbs] for s in subjects])
figure, ax = plt.subplots(figsize=(6, 4.5))
ax.imshow(counts > 0, cmap="Blues", aspect="auto"), ax.set(title="blue: they stand together", xlabel="verb", ylabel="subject")
ax.set_xticks(range(8), verbs, fontsize=8), ax.set_yticks(range(16), subjects, fontsize=8)
plt.show()
assert (counts[:8, :4] == 0).all() and (counts[8:, 4:] == 0).all(), "one takes the verb with s, many the one without"
assert (counts[:4, 4:6] > 0).all() and (counts[:4, 6:] == 0).all(), "animals chase and see"

# %% [markdown]
# ## Filling gaps
#
# In each sentence one word is hidden by a mask, and the model has to say which it was. The loss is taken there alone.
#
# ## 填空
#
# 每个句子里用掩码遮住一个词，模型要说出原来是哪个。损失只在那个位置计算。

# %%
SIZES = dict(vocab_size=len(words), dim=32, heads=2, hidden_dim=64, layers=2, max_positions=16, dropout=0.0)
model = zoo.create("bert_small", head="masked", **SIZES)
optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
for _ in range(500):
    rows = tokens[torch.randint(len(tokens), (32,))]
    hidden = torch.randint(1, rows.shape[1], (32, 1))
    logits = model(rows.scatter(1, hidden, MASK))
    loss = F.cross_entropy(logits[torch.arange(32), hidden[:, 0]], rows.gather(1, hidden)[:, 0])
    optimizer.zero_grad(), loss.backward(), optimizer.step()
    losses.append(loss.item())
model.eval()

gaps = torch.tensor([[number[w] for w in ("<start>", "the", noun, "<mask>", "a", "dog")] for noun in ("cat", "cats")])
with torch.no_grad():
    chances = model(gaps)[:, 3].softmax(-1)
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3))
left.plot(losses), left.set(xlabel="step", ylabel="loss")
for shift, row, name in ((-0.2, 0, "the cat ..."), (0.2, 1, "the cats ...")):
    right.bar([n + shift for n in range(8)], chances[row, [number[v] for v in verbs]], 0.4, label=name)
right.set_xticks(range(8), verbs, fontsize=8), right.legend()
plt.show()
one, many = chances[:, [number[v + "s"] for v in VERBS]].sum(1), chances[:, [number[v] for v in VERBS]].sum(1)
assert one[0] > 0.7 and many[1] > 0.7, "singular after cat, plural after cats"

# %% [markdown]
# ## Fine-tuning
#
# The same body gets another head: does the sentence speak of an animal or of a machine, as its subject? The weights of the body
# are taken over, the head starts anew, and a few steps with small learning rate are enough.
#
# ## 微调
#
# 同一个主体换上另一个头：句子的主语是动物还是机器？主体的权重照搬，头从零开始，用较小的学习率走几步就够了。

# %%
order = torch.randperm(len(tokens))
few, rest = order[:64], order[64:]


def fine_tune(classifier, steps=60):
    optimizer, curve = torch.optim.AdamW(classifier.parameters(), lr=2e-3), []
    for _ in range(steps):
        loss = F.cross_entropy(classifier(tokens[few]), about_animals[few])
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        curve.append(loss.item())
    return curve


classifier = zoo.create("bert_small", head="sequence", num_classes=2, **SIZES)
body = {name: x for name, x in model.state_dict().items() if not name.startswith("head.")}
missing = classifier.load_state_dict(body, strict=False)
assert missing.missing_keys and all(name.startswith("head.") for name in missing.missing_keys)
assert not missing.unexpected_keys
curve = fine_tune(classifier)
classifier.eval()
with torch.no_grad():
    right = (classifier(tokens[rest]).argmax(1) == about_animals[rest]).float().mean().item()
figure, ax = plt.subplots(figsize=(5, 3))
ax.plot(curve), ax.set(xlabel="step", ylabel="loss", title=f"{right:.0%} of {len(rest)} other sentences are right")
plt.show()
assert right > 0.85

# %% [markdown]
# ## Weights from Hugging Face, and back
#
# `save_pretrained` leaves a folder: `config.json` says what to build, `model.safetensors` holds the weights. The zoo reads it.
# Names differ, results do not. `zoo.to_huggingface` goes the other way.
#
# ## 从 Hugging Face 取权重，再还回去
#
# `save_pretrained` 留下一个文件夹：`config.json` 说明要搭什么，`model.safetensors` 里是权重。本项目能读它。名字不同，结果相同。
# `zoo.to_huggingface` 则走相反的方向。

# %%
config = BertConfig(
    vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=16, num_labels=2,
)  # fmt: skip
theirs = BertForSequenceClassification(config).eval()
theirs.save_pretrained(folder / "theirs")
ours = zoo.create("bert_base", weights=f"hf:{folder / 'theirs'}").eval()
back = zoo.to_huggingface(ours).eval()
with torch.no_grad():
    expected, found, again = theirs(tokens[:8]).logits, ours(tokens[:8]), back(tokens[:8]).logits
figure, ax = plt.subplots(figsize=(3.5, 3.5))
ax.plot(expected.flatten(), found.flatten(), "o"), ax.set(xlabel="their logits", ylabel="ours", title="the same weights")
plt.show()
assert torch.allclose(found, expected, atol=1e-5)
assert torch.allclose(again, expected, atol=1e-5)
print(next(iter(theirs.state_dict())), "is called", next(iter(ours.state_dict())))

# %% [markdown]
# ## Your own model in AutoModel
#
# Three things are needed: a config class with a `model_type`, a model class with that `config_class`, and two lines that
# register them. Then `from_pretrained` builds your class from a folder.
#
# ## 让 AutoModel 认识你自己的模型
#
# 需要三样东西：带有 `model_type` 的配置类、指明 `config_class` 的模型类，以及注册它们的两行代码。
# 之后 `from_pretrained` 就能由文件夹建出你的类。


# %%
class BagConfig(PreTrainedConfig):
    model_type = "bag-of-words"

    def __init__(self, vocab_size=10, dim=8, **options):
        self.vocab_size, self.dim = vocab_size, dim
        super().__init__(**options)


class BagModel(PreTrainedModel):
    config_class = BagConfig

    def __init__(self, config):
        super().__init__(config)
        self.table = nn.Embedding(config.vocab_size, config.dim)
        self.post_init()

    def forward(self, input_ids):
        return self.table(input_ids).mean(1)


AutoConfig.register("bag-of-words", BagConfig)
AutoModel.register(BagConfig, BagModel)
bag = BagModel(BagConfig(vocab_size=len(words)))
bag.save_pretrained(folder / "bag")
loaded = AutoModel.from_pretrained(folder / "bag")
figure, axes = plt.subplots(1, 2, figsize=(6, 4))
for ax, one, title in zip(axes, (bag, loaded), ("BagModel, saved", "what AutoModel loads"), strict=True):
    ax.imshow(one.table.weight.detach(), cmap="RdBu", aspect="auto"), ax.set(title=title, xlabel="feature", ylabel="word")
plt.show()
assert type(loaded) is BagModel
assert torch.equal(loaded(tokens[:4]), bag(tokens[:4]))

# %% [markdown]
# ## Exercise 1
#
# Fill sentences up with padding to ten tokens, and give a mask. Show that the logits stay, whatever the padding holds.
#
# ## 练习 1
#
# 把句子用填充补到十个词元，并给出掩码。请证明：不管填充里是什么，logits 都不变。

# %%
# Solution 1
for junk in (PAD, number["cats"]):
    longer = torch.cat([tokens[:8], torch.full((8, 4), junk)], 1)
    real = torch.arange(10).expand(8, -1) < 6
    with torch.no_grad():
        assert torch.allclose(classifier(longer, real), classifier(tokens[:8]), atol=1e-5)

# %% [markdown]
# ## Exercise 2
#
# BERT chooses 15 % of the tokens. Of these 80 % become the mask, 10 % a random word, 10 % stay as they are. Padding and the
# first token are never chosen. Write it, and check the shares.
#
# ## 练习 2
#
# BERT 选出 15 % 的词元：其中 80 % 换成掩码，10 % 换成随机词，10 % 不变。填充和第一个词元永远不选。请写出来，
# 并检查各部分的比例。

# %%
# Solution 2


def corrupt(rows):
    chosen = (torch.rand(rows.shape) < 0.15) & (rows >= len(SPECIAL))
    kind = torch.rand(rows.shape)
    randoms = torch.randint(len(SPECIAL), len(words), rows.shape)
    changed = torch.where(chosen & (kind < 0.8), MASK, rows)
    return torch.where(chosen & (kind >= 0.8) & (kind < 0.9), randoms, changed), chosen


rows = torch.cat([tokens, torch.full((len(tokens), 2), PAD)], 1).repeat(20, 1)
changed, chosen = corrupt(rows)
assert not chosen[rows < len(SPECIAL)].any()
assert (changed == rows)[~chosen].all()
assert abs(chosen[rows >= len(SPECIAL)].float().mean() - 0.15) < 0.02
assert abs((changed == MASK)[chosen].float().mean() - 0.8) < 0.03

# %% [markdown]
# ## Exercise 3
#
# Save `classifier` by `zoo.to_huggingface` into a folder, load it by their `from_pretrained`, and compare.
#
# ## 练习 3
#
# 用 `zoo.to_huggingface` 把 `classifier` 存到一个文件夹，用他们的 `from_pretrained` 读回来，再作比较。

# %%
# Solution 3
zoo.to_huggingface(classifier, folder=folder / "given")
given = BertForSequenceClassification.from_pretrained(folder / "given").eval()
with torch.no_grad():
    assert torch.allclose(given(tokens[:8]).logits, classifier(tokens[:8]), atol=1e-5)
home.cleanup()

# %% [markdown]
# ## What commonly goes wrong
#
# - Padding or special tokens are masked too, or the shares of 80, 10 and 10 are drawn in the wrong order (mlm-pytorch#6).
# - Layer norms have an eps of 1e-5 where BERT has 1e-12; only small variances show it (keras-hub#642).
# - GELU has two formulas; the difference is below a thousandth, and it is there (vllm#3411).
# - Tied weights are saved twice, or as an empty entry (transformers#38870).
# - Buffers that are not saved come out of `from_pretrained` without values (transformers#34234).
#
# ## 常见错误
#
# - 填充或特殊词元也被遮住，或者 80、10、10 的比例按错误的次序抽取（mlm-pytorch#6）。
# - 层归一化的 eps 用了 1e-5，而 BERT 是 1e-12；方差很小时才看得出来（keras-hub#642）。
# - GELU 有两个公式；差别不到千分之一，但确实存在（vllm#3411）。
# - 共享的权重被存了两次，或者存成了空条目（transformers#38870）。
# - 没有保存的缓冲区从 `from_pretrained` 出来时没有值（transformers#34234）。
