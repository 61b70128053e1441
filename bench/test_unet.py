"""Networks of diffusion, ours against diffusers' with the same weights, and sampling against diffusers' pipeline.

The U-Net has 2.8 million parameters: channels 32, 64 and 128, one block a level, attention at the last two; 32 images of 28 and
of 32 pixels. Theirs as it is, and both with channels last, the layout of memory that oneDNN's convolutions like best. The DiT has
4 layers of dim 128 in patches of 2; 32 images of 32 pixels. Samples are by DDIM, and the same on both sides.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DiTTransformer2DModel, UNet2DModel

import zoo
from layers.conditioning import SinusoidalTime
from layers.testing import fill
from zoo.dit import DiT
from zoo.generation import diffusion, samplers
from zoo.unet import UNet

ROWS, WIDTHS, ATTENTION = 32, (32, 64, 128), (False, True, True)


@cache
def models(last):
    """(ours, theirs) with the same drawn weights."""
    torch.manual_seed(0)
    sines = SinusoidalTime(32, cosines_first=True, frequency_shift=0.0)
    ours = UNet(WIDTHS, 1, ATTENTION, in_channels=1, head_dim=32, sines=sines, groups=8, eps=1e-5)
    theirs = UNet2DModel(
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=WIDTHS,
        norm_num_groups=8,
        attention_head_dim=32,
        down_block_types=["AttnDownBlock2D" if attends else "DownBlock2D" for attends in ATTENTION],
        up_block_types=["AttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(ATTENTION)],
    )
    ours.maps["diffusers"].load(ours, theirs.state_dict())
    layout = torch.channels_last if last else torch.contiguous_format
    return ours.to(memory_format=layout), theirs.to(memory_format=layout)


@pytest.mark.parametrize("size", [28, 32])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("step", [False, True], ids=["infer", "train step"])
def test_unet(benchmark, side_by_side, step, last, size):
    generator = torch.Generator().manual_seed(0)
    images, noise = (torch.randn(ROWS, 1, size, size, generator=generator) for _ in range(2))
    times = torch.randint(1000, (ROWS,), generator=generator)
    ours, theirs = (model.train(step) for model in models(last))
    layout = "channels last" if last else "contiguous"
    benchmark.group = f"U-Net, {size} pixels, {'train step' if step else 'infer'}, {layout}"
    compare(side_by_side, step, ours, lambda: ours(images, times), theirs, lambda: theirs(images, times).sample, noise)


def compare(side_by_side, step, ours, call_ours, theirs, call_theirs, noise):
    def inferred(call):
        with torch.inference_mode():
            return call()

    def stepped(model, call):
        (call() - noise).square().mean().backward()
        model.zero_grad(set_to_none=True)

    assert (inferred(call_ours) - inferred(call_theirs)).abs().max() < 1e-3
    if step:
        side_by_side(lambda: stepped(ours, call_ours), lambda: stepped(theirs, call_theirs), rounds=5)
    else:
        side_by_side(lambda: inferred(call_ours), lambda: inferred(call_theirs), rounds=7)


@pytest.mark.parametrize("step", [False, True], ids=["infer", "train step"])
def test_dit(benchmark, side_by_side, step):
    """In training theirs drops classes by chance, unless the probability is 0."""
    size, dim, heads, layers, classes = 32, 128, 4, 4, 10
    sines = SinusoidalTime(256, cosines_first=True, frequency_shift=1.0)
    sizes = dict(in_channels=1, classes=classes, class_dropout=0.0, sines=sines, feedforward_eps=1e-5)
    ours = fill(DiT(dim, heads, layers, **sizes), torch.Generator().manual_seed(0)).train(step)
    kind = dict(num_layers=layers, sample_size=size, patch_size=2, num_embeds_ada_norm=classes, norm_eps=1e-5)
    theirs = DiTTransformer2DModel(heads, dim // heads, 1, 1, **kind).train(step)
    theirs.load_state_dict(ours.maps["diffusers"].export(ours))
    for block in theirs.transformer_blocks:
        block.norm1.emb.class_embedder.dropout_prob = 0.0
    generator = torch.Generator().manual_seed(0)
    images, noise = (torch.randn(ROWS, 1, size, size, generator=generator) for _ in range(2))
    times, labels = (torch.randint(n, (ROWS,), generator=generator) for n in (1000, classes))
    benchmark.group = f"DiT, {size} pixels, {'train step' if step else 'infer'}"
    given = images, times, labels
    compare(side_by_side, step, ours, lambda: ours(*given), theirs, lambda: theirs(*given).sample, noise)


@pytest.mark.parametrize(
    ("rows", "dtype", "limit"), [(1, torch.float32, 1e-5), (ROWS, torch.float32, 1e-5), (ROWS, torch.bfloat16, 0.01)]
)
def test_sampling(benchmark, side_by_side, rows, dtype, limit):
    """`zoo.optimize` against the pipeline as it is: eager, not channels last, float32. limit: of the mean difference."""
    size, steps = 32, 5
    ours, theirs = (model.eval() for model in models(False))
    theirs.register_to_config(sample_size=size)
    pipeline = DDIMPipeline(theirs, DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(rows, 1, size, size, generator=torch.Generator().manual_seed(0))
    fast, how = zoo.optimize(ours, noise, dtype), dict(steps=steps, sampler="ddim", clip=1.0, spacing="leading")

    def sampled():
        return samplers.sample(fast, noise, diffusion.linear(), **how)

    def piped():
        options = dict(batch_size=rows, num_inference_steps=steps, output_type="np", use_clipped_model_output=True)
        return torch.from_numpy(pipeline(generator=torch.Generator().manual_seed(0), **options).images).permute(0, 3, 1, 2)

    assert ((sampled() / 2 + 0.5).clamp(0, 1) - piped()).abs().mean() < limit
    benchmark.group = f"U-Net, {size} pixels, {steps} steps of DDIM, zoo.optimize, {str(dtype).removeprefix('torch.')}"
    side_by_side(sampled, piped, rounds=3)


@pytest.mark.parametrize("step", [False, True], ids=["infer", "train step"])
def test_unet_memory(benchmark, compare_memory, step):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(ROWS, 1, 32, 32, generator=generator)
    times = torch.randint(1000, (ROWS,), generator=generator)
    ours, theirs = (model.train(step) for model in models(False))
    benchmark.group = f"U-Net, 32 pixels, memory of {'a train step' if step else 'infer'}"
    calls = [(lambda: ours(images, times)), (lambda: theirs(images, times).sample)]
    compare_memory(*[(lambda m=m, c=c: worked(m, c, step)) for m, c in zip((ours, theirs), calls, strict=True)])


def worked(model, call, step):
    with torch.inference_mode(not step):
        output = call()
    if step:
        output.square().mean().backward()
        model.zero_grad(set_to_none=True)
