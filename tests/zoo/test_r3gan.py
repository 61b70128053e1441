"""Both parts of R3GAN against their formulas, written as sums of products over the same parameters."""

from __future__ import annotations

import torch
from einops import reduce
from gan_parts import COMMON, INVALID, contract, part_of
from hypothesis import strategies as st
from torch.nn import functional as F

from layers.testing import Twin
from layers.weights import WeightMap
from zoo.gan import grid_sizes

R3GAN = (
    dict(name="r3gan_8", patch=st.sampled_from([2, 1]))
    | COMMON
    | dict(image_size=lambda a: st.sampled_from([8, 12, 16] if a.patch == 2 else [6, 8]), width=8, depth=1, group_size=4)
)


def leaky(x):
    return torch.where(x > 0, x, 0.2 * x)


def pixelwise(x, weight, bias=None):
    x = torch.einsum("bcyx,oc->boyx", x, weight[:, :, 0, 0])
    return x if bias is None else x + bias[:, None, None]


def block(x, p):
    """Convolutions without bias, which activations add, as in the paper's code."""
    h = leaky(pixelwise(x, p["0.weight"]) + p["0.bias"][:, None, None])
    size = p["2.weight"].shape[1]
    groups = [F.conv2d(g, w, padding=1) for g, w in zip(h.split(size, 1), p["2.weight"].split(size), strict=True)]
    h = leaky(torch.cat(groups, 1) + p["2.bias"][:, None, None])
    return x + pixelwise(h, p["4.weight"])


def doubled(x):
    """Every new pixel three quarters of the nearest old one and one quarter of the next, per axis; repeated at the borders."""
    n = x.shape[-1]
    matrix = x.new_zeros(2 * n, n)
    for i in range(2 * n):
        matrix[i, i // 2] += 0.75
        matrix[i, min(max(i // 2 + (1 if i % 2 else -1), 0), n - 1)] += 0.25
    return torch.einsum("py,bcyx,qx->bcpq", matrix, x, matrix)


def written(part):
    """Our own parameters, under their names, in another forward."""

    def build(a):
        net = part_of(part)(**a.passed())

        def parameters(n):
            prefix = f"body.{n}."
            found = {k.removeprefix(prefix).removeprefix("body."): v for k, v in net.named_parameters() if k.startswith(prefix)}
            return found

        def stages(x, n, resample):
            for level in range(len(grid_sizes(a.image_size // a.patch, least=1))):
                if level:
                    x, n = resample(x), n + 1
                x, n = block(x, parameters(n)), n + 1
            return x, n

        def draw(latents, classes=None):
            z = latents if classes is None else torch.cat([latents, net.classes.weight[classes]], 1)
            p = parameters(0)
            x, n = stages(torch.einsum("bi,ci,cyx->bcyx", z, p["weights.weight"], p["grid"]), 1, doubled)
            x = pixelwise(x, **parameters(n))
            return F.pixel_shuffle(x, a.patch).tanh()

        def judge(images, classes=None):
            x = pixelwise(F.pixel_unshuffle(images, a.patch), **parameters(1))
            x, n = stages(x, 2, lambda x: reduce(x, "b c (y p) (x q) -> b c y x", "mean", p=2, q=2))
            x = torch.einsum("bcyx,cyx->bc", x, parameters(n)["weight"][:, 0])
            logits = x @ net.output.weight[0] + net.output.bias
            return logits if classes is None else logits + torch.einsum("bi,bi->b", x, net.classes.weight[classes])

        net.forward = draw if part == "generator" else judge
        return net

    return Twin("written out", build=build, weights=WeightMap(("", "")))


MORE_INVALID = [*INVALID, (dict(patch=5), "patch"), (dict(group_size=3), "group_size"), (dict(depth=0), "depth")]
r3gan_generator = contract("generator", R3GAN, written("generator"), invalid=MORE_INVALID, name="R3GAN's generator")
r3gan_discriminator = contract(
    "discriminator", R3GAN, written("discriminator"), invalid=MORE_INVALID, name="R3GAN's discriminator"
)
