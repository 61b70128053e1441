# %% [markdown]
# # 9. From one process to many, and out into the world
#
# A small model is trained. How is it trained by several processes at once, what do compile, export and quantization do to it,
# and how does it answer somebody who has no Python?
#
# # 9. 从一个进程到多个进程，再走向世界
#
# 一个小模型训练好了。怎样用多个进程同时训练它？编译、导出和量化对它做了什么？对方没有 Python，它又怎样回答？

# %%
import copy
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import zoo

torch.manual_seed(0)
home = tempfile.TemporaryDirectory()
folder = Path(home.name)

# %% [markdown]
# ## The model
#
# `resnet20` on scikit-learn's digits. `zoo.save` writes its weights, and its name and arguments; `zoo.load` needs nothing else.
#
# ## 模型
#
# 用 `resnet20` 识别 scikit-learn 的数字。`zoo.save` 写下权重、名字和参数；`zoo.load` 不需要别的东西。

# %%
digits = load_digits()
order = torch.randperm(1797)
x, y = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16, torch.tensor(digits.target)[order]
train, test = slice(0, 1400), slice(1400, 1797)
model = zoo.create("resnet20", num_classes=10, in_channels=1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=3 * 20)
losses = []
for _ in range(3):
    for rows in torch.randperm(1400).split(70):
        loss = F.cross_entropy(model(x[train][rows]), y[train][rows])
        optimizer.zero_grad(), loss.backward(), optimizer.step(), schedule.step()
        losses.append(loss.item())
model.eval()
zoo.save(model, folder / "model")


@torch.no_grad()
def accuracy(net):
    return (net(x[test]).argmax(1) == y[test]).float().mean().item()


figure, ax = plt.subplots(figsize=(5, 3))
ax.plot(losses), ax.set(xlabel="step", ylabel="loss", title=f"{accuracy(model):.0%} of the test digits are right")
plt.show()
assert accuracy(model) > 0.85
assert torch.equal(zoo.load(folder / "model")(x[:5]), model(x[:5]))

# %% [markdown]
# ## Two processes
#
# Each process has the whole model and half of the batch. After the backward pass, DDP takes the mean of the gradients of all
# processes. With halves of equal size, that is the gradient of the whole batch: many processes change the time, not the result.
# `torchrun` starts the processes; here we start the second by hand, and are the first ourselves.
#
# ## 两个进程
#
# 每个进程都有整个模型和半批数据。反向传播之后，DDP 取所有进程梯度的平均。两半一样大时，这就是整批的梯度：
# 多个进程改变的是时间，不是结果。
# 平时由 `torchrun` 启动进程；这里我们亲手启动第二个，自己当第一个。

# %%
(folder / "worker.py").write_text("""
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import zoo


def work(folder, rank):
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    model = DistributedDataParallel(zoo.load(folder / "model"))
    x, y = torch.load(folder / "batch.pt")
    F.cross_entropy(model(x[rank::2]), y[rank::2]).backward()
    torch.save([p.grad for p in model.module.parameters()], folder / f"gradients{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    work(Path(sys.argv[1]), 1)
""")
batch = x[:64], y[:64]
torch.save(batch, folder / "batch.pt")
search = os.pathsep.join([str(Path(zoo.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
other = subprocess.Popen([sys.executable, folder / "worker.py", folder], env={**os.environ, "PYTHONPATH": search})
runpy.run_path(str(folder / "worker.py"))["work"](folder, 0)  # this process is the first of the two
assert other.wait() == 0
by_two = [torch.load(folder / f"gradients{rank}.pt") for rank in (0, 1)]
by_one = torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), list(model.parameters()))
figure, ax = plt.subplots(figsize=(4, 4))
ax.plot(torch.cat([g.flatten() for g in by_one])[::97], torch.cat([g.flatten() for g in by_two[0]])[::97], ".")
ax.set(xlabel="gradient by one process", ylabel="by two")
plt.show()
assert all(torch.equal(a, b) for a, b in zip(*by_two, strict=True)), "both have the same"
assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(by_one, by_two[0], strict=True))

# %% [markdown]
# ## Compile: from Python to a graph
#
# `torch.compile` watches the Python code once and writes down its operations as a graph, which a backend makes fast. Our backend
# only looks at the graph. A branch that depends on a value cannot be written down: the graph breaks into pieces.
#
# ## 编译：从 Python 到图
#
# `torch.compile` 观察一遍 Python 代码，把其中的运算记成一张图，再由后端把它变快。我们的后端只看图。取决于数值的分支记不下来：
# 图就断成几段。

# %%
graphs = []


def look(graph, inputs):
    graphs.append(graph)
    return graph.forward


with torch.no_grad():
    assert torch.allclose(torch.compile(model, backend=look)(x[:4]), model(x[:4]), atol=1e-5)
kinds = Counter(node.target.__name__ for node in graphs[0].graph.nodes if node.op == "call_function")
figure, ax = plt.subplots(figsize=(7, 3), layout="constrained")
ax.barh(list(kinds), list(kinds.values())), ax.set(title="operations in the graph of resnet20")
plt.show()
assert len(graphs) == 1, "the model is one graph"


def branching(x):
    x = x * 2
    if x.sum() > 0:
        x = x + 1
    return x.cos()


graphs.clear()
torch.compile(branching, backend=look)(torch.ones(3))
assert len(graphs) > 1, "this function is not"

# %% [markdown]
# ## Export: a program without this project
#
# `zoo.export` writes a program that torch alone can run, or onnxruntime. It checks the file before it leaves it: other batch
# sizes too, for the size of the example must not be baked in.
#
# ## 导出：不依赖本项目的程序
#
# `zoo.export` 写出一个只用 torch 或 onnxruntime 就能运行的程序。它在交出文件之前先检查：别的批大小也查，
# 因为例子的大小不能被固定在里面。

# %%
zoo.export(model, x[:4], folder / "model.pt2", to="torch")
program = torch.export.load(folder / "model.pt2").module()
found = program(images=x[:7])["logits"]
figure, ax = plt.subplots(figsize=(3.5, 3.5))
ax.plot(model(x[:7]).detach().flatten(), found.detach().flatten(), "o"), ax.set(xlabel="model", ylabel="exported program")
plt.show()
assert torch.allclose(found, model(x[:7]), atol=1e-4)

# %% [markdown]
# ## Quantization: fewer bits
#
# A weight of 8 bits is an integer times a scale of its row. The error is half a step at most, and the steps double with every
# bit that is taken away. How many bits can go?
#
# ## 量化：更少的比特
#
# 8 比特的权重是一个整数乘以它那一行的缩放因子。误差至多是半步，每去掉一个比特，步长就加倍。能去掉多少比特？


# %%
def rounded(weight, bits):
    """weight (o, ...) as integers of so many bits times a scale for each o."""
    most = 2 ** (bits - 1) - 1
    scale = weight.abs().flatten(1).amax(1).clamp(min=1e-8).view(-1, *[1] * (weight.ndim - 1)) / most
    return (weight / scale).round().clamp(-most, most) * scale


def quantized(bits):
    small = copy.deepcopy(model)
    with torch.no_grad():
        for module in small.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.copy_(rounded(module.weight, bits))
    return small


bits = [8, 6, 5, 4, 3, 2]
scores = {n: accuracy(quantized(n)) for n in bits}
weight = model.stages[0][0].body[0].conv.weight.detach()
errors = [(rounded(weight, n) - weight).abs().max().item() for n in bits]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.plot(bits, [scores[n] for n in bits], "o-"), left.set(xlabel="bits", ylabel="test accuracy", ylim=(0, 1.05))
right.semilogy(bits, errors, "o-"), right.set(xlabel="bits", ylabel="largest error of a weight")
plt.show()
assert abs(scores[8] - accuracy(model)) < 0.03
assert errors == sorted(errors)
assert errors[-1] > 20 * errors[0]

# %% [markdown]
# ## Deployment: questions over HTTP
#
# A server is a loop: read a question, check it, compute, write an answer. What comes from outside is checked before it reaches
# the model, and a wrong question gets an error that says what is wrong. `python -m tasks.serve` is the grown-up one.
#
# ## 部署：用 HTTP 提问
#
# 服务器就是一个循环：读问题、检查、计算、写回答。外面来的东西先检查再交给模型，错误的问题要得到说明错在哪里的回复。
# `python -m tasks.serve` 是成熟的版本。


# %%
class Answers(BaseHTTPRequestHandler):
    def do_POST(self):
        pixels = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        good = isinstance(pixels, list) and len(pixels) == 64 and all(isinstance(p, float) and 0 <= p <= 1 for p in pixels)
        if good:
            with torch.no_grad():
                chances = model(torch.tensor(pixels).view(1, 1, 8, 8)).softmax(-1)[0]
            answer = {"digit": int(chances.argmax()), "chance": float(chances.max())}
        else:
            answer = {"error": "pixels must be 64 numbers from 0.0 to 1.0"}
        self.send_response(200 if good else 400), self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *args):
        pass


server = HTTPServer(("127.0.0.1", 0), Answers)
threading.Thread(target=server.serve_forever, daemon=True).start()


def ask(pixels):
    body = json.dumps(pixels).encode()
    try:
        reply = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://127.0.0.1:{server.server_port}", body)
    except urllib.error.HTTPError as error:
        reply = error
    return reply.status, json.load(reply)


replies = [ask(picture.flatten().tolist()) for picture in x[test][:6]]
figure, axes = plt.subplots(1, 6, figsize=(10, 2))
for ax, picture, (_, answer) in zip(axes, x[test], replies, strict=False):
    ax.imshow(picture[0], cmap="gray_r"), ax.axis("off"), ax.set_title(f"{answer['digit']}: {answer['chance']:.0%}")
plt.show()
assert [answer["digit"] for _, answer in replies] == model(x[test][:6]).argmax(1).tolist()
assert ask([0.5, 2.0])[0] == 400
server.shutdown(), server.server_close()

# %% [markdown]
# ## Exercise 1
#
# Of 10 rows one process gets 7 and the other 3. Is the mean of their gradients that of all 10? By what must each be weighted?
#
# ## 练习 1
#
# 10 行数据，一个进程得 7 行，另一个得 3 行。它们梯度的平均是全部 10 行的梯度吗？各自应该加怎样的权重？

# %%
# Solution 1


def gradient(rows):
    loss = F.cross_entropy(model(x[rows]), y[rows])
    return torch.autograd.grad(loss, model.head.output.weight)[0]


parts = {7: gradient(slice(0, 7)), 3: gradient(slice(7, 10))}
weighted = sum(count / 10 * part for count, part in parts.items())
assert torch.allclose(weighted, gradient(slice(0, 10)), atol=1e-5)
assert not torch.allclose((parts[7] + parts[3]) / 2, weighted, rtol=1e-3, atol=1e-9)

# %% [markdown]
# ## Exercise 2
#
# `torch.export` bakes the sizes of its example in unless told otherwise. Show it, and then leave the batch free.
#
# ## 练习 2
#
# 不另外说明时，`torch.export` 会把例子的大小固定下来。请证明这一点，然后让批大小自由。

# %%
# Solution 2
baked = torch.export.export(model, (x[:4],)).module()
try:
    baked(x[:7])
except Exception as error:
    print("refused:", str(error).splitlines()[0])
else:
    raise AssertionError("7 rows were accepted")
free = torch.export.export(model, (x[:4],), dynamic_shapes=({0: torch.export.Dim("rows")},)).module()
assert torch.allclose(free(x[:7]), model(x[:7]), atol=1e-4)

# %% [markdown]
# ## Exercise 3
#
# Make a small GPT of 8-bit weights by `zoo.quantize`. How many bytes does its state take, compared with before? How far are the
# logits?
#
# ## 练习 3
#
# 用 `zoo.quantize` 把一个小 GPT 变成 8 比特权重。它的状态占多少字节，与之前相比如何？logits 相差多远？

# %%
# Solution 3
gpt, tokens = zoo.create("gpt_small", vocab_size=97).eval(), torch.arange(12)[None]
small = zoo.quantize(gpt, "int8")
before, after = (sum(t.nbytes for t in {t.data_ptr(): t for t in m.state_dict().values()}.values()) for m in (gpt, small))
assert after < 0.5 * before
with torch.no_grad():
    assert (small(tokens) - gpt(tokens)).norm() < 0.1 * gpt(tokens).norm()
home.cleanup()

# %% [markdown]
# ## What commonly goes wrong
#
# - The sampler of several processes shows the same order in every epoch, for nobody calls `set_epoch` (pytorch#31771).
# - Exported or traced, a model takes texts of one length only (pytorch#110347).
# - The loss is divided by the rows of each process in place of all rows (transformers#34191).
# - New weights are loaded into a compiled copy whose constants are those of the old ones (pytorch#104984).
# - A resumed run begins with the order and the random numbers of the first epoch (huggingface/accelerate#3996).
#
# ## 常见错误
#
# - 多进程的采样器在每一轮都给出相同的顺序，因为没有人调用 `set_epoch`（pytorch#31771）。
# - 导出或追踪之后，模型只接受一种长度的文本（pytorch#110347）。
# - 损失除以每个进程自己的行数，而不是全部的行数（transformers#34191）。
# - 新权重载入了编译过的副本，其中的常量却还是旧的（pytorch#104984）。
# - 恢复的训练又从第一轮的顺序和随机数开始（huggingface/accelerate#3996）。
