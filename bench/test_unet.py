"""The U-Net of diffusion, ours against diffusers' with the same weights: 32 images of 28 and of 32 pixels.

2.8 million parameters: channels 32, 64 and 128, one block a level, attention at the last two. Theirs as it is, and both with
channels last, the layout of memory that oneDNN's convolutions like best.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from diffusers import UNet2DModel

from layers.conditioning import SinusoidalTime
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
    calls = {"ours": lambda: ours(images, times), "theirs": lambda: theirs(images, times).sample}

    def inferred(call):
        with torch.inference_mode():
            return call()

    assert (inferred(calls["ours"]) - inferred(calls["theirs"])).abs().max() < 1e-3

    def stepped(model, call):
        (call() - noise).square().mean().backward()
        model.zero_grad(set_to_none=True)

    layout = "channels last" if last else "contiguous"
    benchmark.group = f"U-Net, {size} pixels, {'train step' if step else 'infer'}, {layout}"
    if step:
        side_by_side(lambda: stepped(ours, calls["ours"]), lambda: stepped(theirs, calls["theirs"]), rounds=5)
    else:
        side_by_side(lambda: inferred(calls["ours"]), lambda: inferred(calls["theirs"]), rounds=7)
