# %% [markdown]
# # 2. VGG: small kernels, many layers
#
# A large kernel sees much of the image at once. Why, then, are all kernels of VGG 3x3, and what do its layers see?
#
# # 2. VGG：小卷积核，多层堆叠
#
# 大的卷积核一眼就能看到图像的一大片。那么，为什么 VGG 的卷积核全是 3x3？它的各层又看到了什么？

# %%
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import zoo
from layers.convolution import ConvNormAct, ConvStack
from zoo.model import LinearHead
from zoo.vgg import VGG

torch.manual_seed(0)

# %% [markdown]
# ## What one output sees
#
# Send a gradient back from the pixel in the middle of the output. Where it arrives at the input, there the output looks. One
# 3x3 layer sees 3 pixels across, two see 5, three see 7.
#
# ## 一个输出看到多大的范围
#
# 从输出中央的那个像素往回传梯度，梯度到达输入的哪里，输出就看到哪里。一层 3x3 看到 3 个像素宽，两层 5 个，三层 7 个。


# %%
def seen(net, size=15):
    """(size, size): the gradient of the middle of the output by the input."""
    images = torch.ones(1, 1, size, size, requires_grad=True)
    output = net(images)
    output[0, :, output.shape[2] // 2, output.shape[3] // 2].sum().backward()
    return images.grad[0, 0]


def width(gradient):
    return int((gradient.abs().sum(0) > 0).sum())


def stack(depth, kernel_size=3):
    convs = [nn.Conv2d(1, 1, kernel_size, padding=kernel_size // 2) for _ in range(depth)]
    for conv in convs:
        nn.init.constant_(conv.weight, 1 / kernel_size**2)
    return nn.Sequential(*convs)


figure, axes = plt.subplots(1, 4, figsize=(11, 3))
for ax, (depth, size) in zip(axes, [(1, 3), (2, 3), (3, 3), (1, 7)], strict=True):
    found = seen(stack(depth, size))
    ax.imshow(found, cmap="magma"), ax.set(title=f"{depth} x ({size}x{size}): sees {width(found)}")
plt.show()
assert [width(seen(stack(depth))) for depth in (1, 2, 3)] == [3, 5, 7]
assert width(seen(stack(1, 7))) == 7

# %% [markdown]
# ## The same view for fewer weights
#
# Three 3x3 layers see what one 7x7 sees. They have 27 c² weights in place of 49 c², and three ReLUs in place of one.
#
# ## 同样的视野，更少的权重
#
# 三层 3x3 与一层 7x7 看到的范围相同，权重却是 27 c² 而不是 49 c²，并且有三个 ReLU 而不是一个。


# %%
def weights(module):
    return sum(p.numel() for name, p in module.named_parameters() if name.endswith("conv.weight"))


views, channels = [3, 5, 7, 9, 11], 16
small = [weights(ConvStack(channels, channels, depth=view // 2)) for view in views]
large = [weights(ConvNormAct(channels, channels, kernel_size=view)) for view in views]
figure, ax = plt.subplots(figsize=(5, 3.5))
ax.plot(views, large, "o-", label="one large kernel"), ax.plot(views, small, "o-", label="3x3 layers")
ax.set(xlabel="pixels that are seen", ylabel="weights"), ax.legend()
plt.show()
assert small[2] * 49 == large[2] * 27
assert all(s < n for s, n in zip(small[1:], large[1:], strict=True))

# %% [markdown]
# ## A VGG for digits
#
# scikit-learn brings 1,797 handwritten digits of 8x8 pixels. VGG's five pools would halve them to nothing, so we take three
# stages and fewer channels. The class is the same.
#
# ## 用于数字的 VGG
#
# scikit-learn 自带 1,797 个 8x8 像素的手写数字。VGG 的五次池化会把它们缩没，所以我们只用三级、较少的通道。类还是同一个类。

# %%
digits = load_digits()
order = torch.randperm(1797)
images, labels = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16, torch.tensor(digits.target)[order]
train, test = slice(0, 1400), slice(1400, 1797)

model = VGG((1, 1, 2), LinearHead(64, 10), in_channels=1, widths=(16, 32, 64), norm=nn.BatchNorm2d)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
losses, accuracies = [], []


def accuracy():
    model.eval()
    with torch.no_grad():
        return (model(images[test]).argmax(1) == labels[test]).float().mean().item()


for _ in range(6):
    model.train()
    for rows in torch.randperm(1400).split(70):
        loss = F.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        losses.append(loss.item())
    accuracies.append(accuracy())

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
left.plot(losses), left.set(title="training loss", xlabel="step")
right.plot(range(1, 7), accuracies, "o-"), right.set(title="test accuracy", xlabel="epoch")
plt.show()
assert accuracies[-1] > 0.9

# %% [markdown]
# ## What the layers see
#
# The first stage keeps the place: strokes and their edges can be recognised. Each pool halves the grid, so that the last stage
# has one pixel left: it says what is there and no longer where.
#
# ## 各层看到了什么
#
# 第一级保留位置：笔画和边缘还认得出来。每次池化都把网格减半，到最后一级只剩一个像素：它说出“有什么”，不再说“在哪里”。

# %%
model.eval()
with torch.no_grad():
    maps = [images[test][:1]]
    for stage in model.stages:
        maps.append(stage(maps[-1]))
figure, axes = plt.subplots(4, 6, figsize=(10, 6))
for row, (ax_row, x) in enumerate(zip(axes, maps, strict=True)):
    for n, ax in enumerate(ax_row):
        ax.axis("off")
        if n < x.shape[1]:
            ax.imshow(x[0, n], cmap="gray"), ax.set_title("input" if row == 0 else f"stage {row}, channel {n}", fontsize=8)
plt.show()
assert [tuple(x.shape[2:]) for x in maps] == [(8, 8), (4, 4), (2, 2), (1, 1)]

# %% [markdown]
# Which pixels decide? Cover a 2x2 square and see how far the logit of the right class falls. Covering ink costs more than
# covering paper.
#
# 哪些像素起决定作用？盖住一个 2x2 的方块，看正确类别的 logit 下降多少。盖住墨迹的代价比盖住白纸大。

# %%
x, y = images[test][:100], labels[test][:100]
fall = torch.zeros(100, 4, 4)
with torch.no_grad():
    whole = model(x).gather(1, y[:, None])[:, 0]
    for row in range(4):
        for column in range(4):
            covered = x.clone()
            covered[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = 0
            fall[:, row, column] = whole - model(covered).gather(1, y[:, None])[:, 0]
ink = F.avg_pool2d(x, 2)[:, 0]
figure, axes = plt.subplots(2, 5, figsize=(10, 4))
for n in range(5):
    axes[0, n].imshow(x[n, 0], cmap="gray_r"), axes[0, n].set_title(f"a {y[n]}")
    axes[1, n].imshow(fall[n], cmap="Reds"), axes[1, n].set_title("costs most: dark")
    axes[0, n].axis("off"), axes[1, n].axis("off")
plt.show()
assert fall[ink > 0.5].mean() > fall[ink < 0.1].mean()

# %% [markdown]
# ## Exercise 1
#
# How large a part of the weights of `vgg11` for ImageNet is in its three linear layers? Count on the meta device, which takes
# no memory.
#
# ## 练习 1
#
# 用于 ImageNet 的 `vgg11` 有多大一部分权重在最后三个线性层里？请在不占内存的 meta 设备上数一数。

# %%
# Solution 1
with torch.device("meta"):
    full = zoo.create("vgg11")
share = sum(p.numel() for p in full.head.parameters()) / sum(p.numel() for p in full.parameters())
assert share > 0.9

# %% [markdown]
# ## Exercise 2
#
# Write a function that computes how many pixels the last layer sees, from the kernel sizes and strides of all layers. Test it
# against `seen`. How much does the last convolution of VGG-16 see?
#
# ## 练习 2
#
# 写一个函数，由各层的核大小和步长算出最后一层看到多少像素，并用 `seen` 验证。VGG-16 的最后一个卷积看到多少？

# %%
# Solution 2


def receptive_field(layers):
    """layers: (kernel_size, stride) of each, from the input on."""
    pixels, step = 1, 1
    for kernel_size, stride in layers:
        pixels += (kernel_size - 1) * step
        step *= stride
    return pixels


conv, pool = (3, 1), (2, 2)
net = nn.Sequential(stack(1), nn.AvgPool2d(2), stack(2))
assert receptive_field([conv, pool, conv, conv]) == width(seen(net, 32))
vgg16 = [*2 * [conv], pool, *2 * [conv], pool, *3 * [conv], pool, *3 * [conv], pool, *3 * [conv]]
assert receptive_field(vgg16) == 196

# %% [markdown]
# ## Exercise 3
#
# In evaluation, a convolution and its batch norm are one linear function. Make one convolution of the two.
#
# ## 练习 3
#
# 在评估模式下，卷积和它后面的批归一化合起来是一个线性函数。请把两者合并成一个卷积。

# %%
# Solution 3
part = model.stages[0].convs[0]
gain = part.norm.weight / (part.norm.running_var + part.norm.eps).sqrt()
folded = nn.Conv2d(1, 16, 3, padding=1)
with torch.no_grad():
    folded.weight.copy_(part.conv.weight * gain[:, None, None, None])
    folded.bias.copy_((part.conv.bias - part.norm.running_mean) * gain + part.norm.bias)
    assert torch.allclose(folded(x), part.norm(part.conv(x)), atol=1e-4)

# %% [markdown]
# ## What commonly goes wrong
#
# - A classifier for a fixed 7x7 grid fails for every image that is not of 224 pixels (pytorch/vision#1534).
# - The momentum of a batch norm means the opposite in TensorFlow: 0.99 there is 0.01 here (pytorch/vision#8250).
# - A branch that the paper calls 5x5 has 3x3 kernels; shapes agree, published weights even depend on it (pytorch/vision#906).
# - Padding "same" at stride 2 is not symmetric in TensorFlow; ported weights then see a shifted image (tensornets#25).
#
# ## 常见错误
#
# - 分类头只接受固定的 7x7 网格，图像不是 224 像素就出错（pytorch/vision#1534）。
# - 批归一化的 momentum 在 TensorFlow 中含义相反：那里的 0.99 就是这里的 0.01（pytorch/vision#8250）。
# - 论文里叫 5x5 的分支用了 3x3 的核；形状一致，公开的权重甚至依赖于此（pytorch/vision#906）。
# - 步长为 2 时，TensorFlow 的 "same" 填充并不对称；移植来的权重看到的图像就错位了（tensornets#25）。
