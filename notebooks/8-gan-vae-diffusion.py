# %% [markdown]
# # 8. GAN, VAE and diffusion: the same digits, three ideas
#
# How can a network make a picture that nobody has drawn? There are three classic ideas. What does each of them learn, and how
# does one see whether it has worked?
#
# # 8. GAN、VAE 与扩散：同样的数字，三种思路
#
# 网络怎样画出一张谁也没画过的图？经典的思路有三种。它们各学些什么？又怎样看出学成了没有？

# %%
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

import zoo
from layers.conditioning import SinusoidalTime
from zoo.autoencoder import VAE, Gaussian
from zoo.gan_losses import non_saturating
from zoo.generation import diffusion, samplers
from zoo.unet import UNet

torch.manual_seed(0)
images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1  # (1797, 1, 8, 8) in [-1, 1]


def batches(steps, size=32):
    for _ in range(steps):
        yield images[torch.randint(len(images), (size,))]


def show(rows, title):
    """rows: name -> images (n, 1, 8, 8)."""
    figure, axes = plt.subplots(len(rows), 10, figsize=(10, 1.2 * len(rows) + 0.5), squeeze=False)
    figure.suptitle(title)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        line[0].set_title(name, fontsize=8, loc="left")
        for ax, picture in zip(line, pictures, strict=False):
            ax.imshow(picture.detach()[0], cmap="gray_r", vmin=-1, vmax=1)
        for ax in line:
            ax.axis("off")
    plt.show()


# %% [markdown]
# ## How good is a picture?
#
# No single number says it. We use a simple one: the distance to the nearest real digit, on average. It is large for noise, and
# it sinks while a model learns. It does not notice a model that makes one picture only, so we look at the spread, too.
#
# ## 一张图好不好？
#
# 没有哪个单独的数能说清。我们用一个简单的：到最近的真实数字的平均距离。噪声的距离很大，模型学习时它会变小。
# 但它发现不了只会画一张图的模型，所以我们还要看图之间的差异。


# %%
def distance(pictures):
    return torch.cdist(pictures.detach().flatten(1), images.flatten(1)).amin(1).mean().item()


def spread(pictures):
    return pictures.detach().std(0).mean().item()


noise = torch.rand(200, 1, 8, 8) * 2 - 1
show({"real": images, "noise": noise}, f"distance of noise to the nearest digit: {distance(noise):.1f}")
assert distance(noise) > 2 * distance(images[:200] + 0.1 * torch.randn(200, 1, 8, 8))
results = {"noise": noise}

# %% [markdown]
# ## VAE: through a narrow place
#
# The encoder tells for each image a normal law of a few numbers, the decoder makes an image of them. Two wishes are weighed: the
# image shall come back, and the laws shall be near N(0, 1). For then one can draw numbers from N(0, 1) and decode them.
#
# ## VAE：穿过窄口
#
# 编码器为每张图给出几个数的正态分布，解码器再把这些数变成图。两个愿望相互权衡：图要能还原，分布要接近 N(0, 1)。
# 这样就能从 N(0, 1) 抽数来解码。

# %%
vae = VAE((16, 32), in_channels=1, latent_channels=1, depth=1, groups=4, attention=False)
optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
losses = []
for real in batches(110):
    loss = vae.loss(real, beta=0.3)
    optimizer.zero_grad(), loss.backward(), optimizer.step()
    losses.append(loss.item())
vae.eval()
with torch.no_grad():
    back = vae(images[:200])
    results["VAE"] = vae.decode(torch.randn(200, 1, 4, 4)).clamp(-1, 1)
    ends = vae.encode(images[:2]).mean
    steps = torch.linspace(0, 1, 10)[:, None, None, None]
    between = vae.decode((1 - steps) * ends[:1] + steps * ends[1:])
show({"real": images, "through the VAE": back, "from a 0 to a 1": between, "drawn": results["VAE"]}, "VAE, latents of 16 numbers")
error, of_mean = F.mse_loss(back, images[:200]), F.mse_loss(images.mean(0).expand(200, -1, -1, -1), images[:200])
assert error < 0.6 * of_mean
assert sum(losses[-20:]) < sum(losses[:20])

# %% [markdown]
# ## GAN: two players
#
# The generator makes images of random numbers, the discriminator tells them from real ones. Each is trained by the other. In the
# step of the discriminator the generator gets no gradient: its images are detached.
#
# ## GAN：两个玩家
#
# 生成器把随机数变成图，判别器把它们与真图分开，两者互相训练。在判别器的那一步，生成器得不到梯度：它的图要先 detach。

# %%
gan = zoo.create("dcgan_8", width=16, latent_dim=16)
generator, discriminator = gan.generator, gan.discriminator
of_generator = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.999))
of_discriminator = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999))
judged = {"real": [], "generated": []}
latents = torch.randn(200, 16)
for real in batches(400, 64):
    fake = generator(torch.randn(64, 16))
    on_real, on_fake = discriminator(real), discriminator(fake.detach())
    loss = non_saturating.discriminator(on_real, on_fake)
    of_discriminator.zero_grad(), loss.backward(), of_discriminator.step()
    loss = non_saturating.generator(None, discriminator(fake))
    of_generator.zero_grad(), loss.backward(), of_generator.step()
    judged["real"].append(on_real.mean().item()), judged["generated"].append(on_fake.mean().item())
results["GAN"] = generator.eval()(latents)
figure, ax = plt.subplots(figsize=(6, 3))
for name, values in judged.items():
    ax.plot(values, label=name)
ax.set(xlabel="step", ylabel="logit of the discriminator"), ax.legend()
plt.show()
show({"drawn": results["GAN"]}, "GAN")
assert distance(results["GAN"]) < 0.8 * distance(noise)
assert spread(results["GAN"]) > 0.1, "not all the same"

# %% [markdown]
# ## Diffusion: taking noise away
#
# Adding noise is easy: at time t an image is alpha x + sigma noise. The network learns to tell the noise that was added. From
# pure noise, it is then taken away in many small steps.
#
# ## 扩散：去掉噪声
#
# 加噪声很容易：在时刻 t，图像是 alpha x + sigma noise。网络学习说出加进去的噪声。然后从纯噪声开始，分许多小步把它去掉。

# %%
schedule = diffusion.cosine(100)
network = UNet((16, 32), 1, (False, False), in_channels=1, groups=4, sines=SinusoidalTime(16))
optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
losses = []
for real in batches(160):
    added, times = torch.randn_like(real), torch.randint(schedule.steps, (len(real),))
    predicted = network(schedule.add_noise(real, added, times), times)
    loss = F.mse_loss(predicted, schedule.target(real, added, times))
    optimizer.zero_grad(), loss.backward(), optimizer.step()
    losses.append(loss.item())
network.eval()
start = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(1))
film = [step.images for step in samplers.stream(network, start, schedule, steps=20, clip=1.0)]
results["diffusion"] = film[-1]
show(
    {
        "an image, more and more noise": torch.cat(
            [schedule.add_noise(images[:1], start[:1], torch.tensor([t])) for t in range(0, 100, 11)]
        ),
        "and back, from noise": torch.cat([film[n][:1] for n in range(1, 20, 2)]),
        "drawn": results["diffusion"],
    },
    "diffusion",
)
print(
    "D",
    sum(losses[-50:]) / 50,
    distance(results["diffusion"]),
    distance(results["GAN"]),
    distance(noise),
    {k: spread(v) for k, v in results.items()},
)
assert sum(losses[-50:]) / 50 < 0.5, "saying 0 each time has a loss of 1"
assert distance(results["diffusion"]) < 0.8 * distance(noise)
assert spread(results["diffusion"]) > 0.1

# %% [markdown]
# ## Side by side
#
# One pass each for VAE and GAN, twenty for diffusion. After these few seconds of training all three are nearer to real digits
# than noise is. Which is the best with more time is another question: the tasks of this project measure it.
#
# ## 并排比较
#
# VAE 和 GAN 各需一次计算，扩散要二十次。经过这几秒的训练，三者都比噪声更接近真实数字。时间更多时谁最好是另一个问题：
# 本项目的任务会去测量。

# %%
show(results, "200 of each were measured")
figure, ax = plt.subplots(figsize=(5, 3))
ax.bar(list(results), [distance(pictures) for pictures in results.values()]), ax.set(ylabel="distance to the nearest digit")
plt.show()
assert all(distance(results[name]) < distance(noise) for name in ("VAE", "GAN", "diffusion"))

# %% [markdown]
# ## Exercise 1
#
# Compute the KL divergence of N(m, s²) from N(0, 1) by the formula, and by drawing a million numbers. Compare with `Gaussian`.
#
# ## 练习 1
#
# 用公式、再用一百万次抽样，计算 N(m, s²) 相对于 N(0, 1) 的 KL 散度，并与 `Gaussian` 比较。

# %%
# Solution 1
mean, deviation = torch.tensor(0.7), torch.tensor(0.5)
formula = (mean**2 + deviation**2 - 1 - 2 * deviation.log()) / 2
drawn = mean + deviation * torch.randn(1_000_000)
law, unit = torch.distributions.Normal(mean, deviation), torch.distributions.Normal(0.0, 1.0)
assert abs((law.log_prob(drawn) - unit.log_prob(drawn)).mean() - formula) < 0.01
assert torch.allclose(Gaussian(mean.view(1, 1), 2 * deviation.log().view(1, 1)).divergence(), formula)

# %% [markdown]
# ## Exercise 2
#
# Show that without `detach` the discriminator's loss leaves gradients in the generator, and with it none.
#
# ## 练习 2
#
# 请证明：不用 `detach`，判别器的损失会在生成器里留下梯度；用了就没有。

# %%
# Solution 2
for detached in (False, True):
    gan.zero_grad()
    fake = generator(latents[:8])
    non_saturating.discriminator(discriminator(images[:8]), discriminator(fake.detach() if detached else fake)).backward()
    assert all(p.grad is None for p in generator.parameters()) == detached

# %% [markdown]
# ## Exercise 3
#
# An image and noise are mixed at time 40. Recover the image from the mixture and the true noise, with `levels` of the schedule.
#
# ## 练习 3
#
# 图像与噪声在时刻 40 混合。请由混合结果和真实的噪声，用 schedule 的 `levels` 还原图像。

# %%
# Solution 3
times, added = torch.full((4,), 40), torch.randn(4, 1, 8, 8)
mixed = schedule.add_noise(images[:4], added, times)
alpha, sigma = (level.float().view(-1, 1, 1, 1) for level in schedule.levels(times))
assert torch.allclose((mixed - sigma * added) / alpha, images[:4], atol=1e-4)
assert torch.allclose(schedule.split(added, mixed, times)[0], images[:4], atol=1e-4)

# %% [markdown]
# ## What commonly goes wrong
#
# - The discriminator's step sends gradients into the generator, for nobody has detached its images
#   (heykeetae/Self-Attention-GAN#48).
# - The list of previous levels is padded at the wrong end (lucidrains/denoising-diffusion-pytorch#18).
# - With fewer steps than in training, the first time is not the noisiest, or the last index is out of range (diffusers#2585).
# - The moving average copies weights and forgets the statistics of batch norms (pytorch#84053).
#
# ## 常见错误
#
# - 判别器的那一步把梯度传进了生成器，因为没有人 detach 它的图（heykeetae/Self-Attention-GAN#48）。
# - 前一时刻的列表补在了错误的一端（lucidrains/denoising-diffusion-pytorch#18）。
# - 步数比训练时少，第一个时刻却不是噪声最大的，或者最后一个下标越界（diffusers#2585）。
# - 滑动平均复制了权重，却忘了批归一化的统计量（pytorch#84053）。
