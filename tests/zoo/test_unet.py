from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from diffusion_twins import SameTimes, of_diffusers
from hypothesis import strategies as st
from processors import narrowest
from torch.nn import functional as F

import zoo
from layers.conditioning import SinusoidalTime
from layers.testing import Contract, Input, Twin, exercised, fill, initial_distribution, require_equal, tensor, tokens
from zoo.unet import UNet, build

TIMES = Input(("batch",), {}, lambda shape, g: 1000 * torch.rand(shape, generator=g, dtype=torch.float64))


def theirs(a):
    """`UNet2DModel` with our sines, for theirs are float32, and with as many classes as ours has, the one for none among them."""
    attends = ["Attn" if attends else "" for attends in a.attention]
    model = of_diffusers("unets.unet_2d").UNet2DModel(
        in_channels=a.in_channels * a.patch_size**2,
        out_channels=(a.out_channels or a.in_channels) * a.patch_size**2,
        block_out_channels=a.widths,
        layers_per_block=a.depth,
        norm_num_groups=a.groups,
        norm_eps=a.eps,
        attention_head_dim=a.head_dim,
        down_block_types=[f"{kind}DownBlock2D" for kind in attends],
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(attends)],
        downsample_padding=0 if a.pad_end else 1,
        num_class_embeds=None if a.classes is None else a.classes + 1,
    )
    model.time_proj = SameTimes(SinusoidalTime(a.widths[0], scale=a.time_scale, **a.sines))
    model.patch_size = a.patch_size
    return model


def call_theirs(model, inputs):
    images = F.pixel_unshuffle(inputs["images"], model.patch_size)
    found = model(images, inputs["times"], inputs.get("classes"))
    return F.pixel_shuffle(found.sample, model.patch_size)


def inputs(a):
    factor = a.patch_size * 2 ** (len(a.widths) - 1)
    sizes = {axis: st.integers(narrowest(), 4).map(lambda n: n * factor) for axis in ("height", "width")}
    given = dict(images=tensor("batch channels height width", channels=a.in_channels, **sizes), times=TIMES)
    return given | ({} if a.classes is None else dict(classes=tokens("batch", a.classes + 1)))


def built(widths, depth, attention, sines, in_channels, classes, class_dropout, time_scale, **options):
    """As the variants are."""
    network = partial(UNet, widths, depth, attention, **options)
    return build(network, partial(SinusoidalTime, *widths[:1], **sines), in_channels, classes, class_dropout, 0.0, time_scale)


unets = Contract(
    built,
    arguments=dict(
        widths=st.sampled_from([(4,), (4, 6), (6, 4), (4, 4)]),
        depth=lambda a: st.integers(1, 3 - len(a.widths)),
        attention=lambda a: st.tuples(*[st.booleans()] * len(a.widths)),
        in_channels=st.integers(1, 2),
        out_channels=st.sampled_from([None, 3]),
        head_dim=2,
        sines=st.sampled_from([{}, dict(cosines_first=True, frequency_shift=0.0)]),
        time_scale=st.sampled_from([1.0, 0.5]),
        classes=st.sampled_from([2, 3, None]),
        class_dropout=0.0,
        groups=2,
        eps=st.sampled_from([1e-5, 1e-2]),
        patch_size=st.sampled_from([1, 1, 2]),
        pad_end=st.booleans(),
    ),
    inputs=inputs,
    outputs=lambda a, s: ("batch", a.out_channels or a.in_channels, s.height, s.width),
    twins=[Twin("diffusers", build=theirs, weights=lambda a: built(**a.passed()).maps["diffusers"], call=call_theirs)],
    invalid=[
        (dict(widths=(4, 0), attention=(True, True)), "widths"),
        (dict(widths=(4, 5), attention=(False, False)), "channels"),
        (dict(attention=(True, True, True)), "attention"),
        (dict(depth=0), "depth"),
        (dict(in_channels=0), "in_channels"),
        (dict(out_channels=0), "out_channels"),
        (dict(head_dim=0), "head_dim"),
        (dict(head_dim=5), "head_dim"),
        (dict(patch_size=0), "patch_size"),
        (dict(classes=0), "classes"),
        (dict(classes=2, class_dropout=1.0), "dropout"),
        (dict(groups=0), "groups"),
    ],
    holds=[
        initial_distribution(dict.fromkeys(("*.conv2.*", "*.attention.output.*", "output.*"), lambda a, p: (0, 0))),
        exercised(
            class_dropout="in the contract of ClassEmbedding",
            dropout="in the contract of TimeResidual",
            groups="divides the widths, and so does head_dim: in the contract of PixelAttention",
            head_dim="divides the widths, and so do groups: in the contract of PixelAttention",
        ),
    ],
    model=True,
    name="UNet",
)


def small(**arguments):
    model = UNet((4, 6), 1, (False, True), **dict(in_channels=1, head_dim=2, groups=2, classes=3) | arguments)
    return fill(model, torch.Generator().manual_seed(0))


def test_no_class_is_a_class_of_its_own_and_the_default():
    model, images, times = small().eval(), torch.randn(2, 1, 4, 4), torch.tensor([3, 500])
    assert model.no_class == 3
    none = model(images, times)
    assert torch.equal(none, model(images, times, torch.tensor([3, 3])))
    found = model(images, times, torch.tensor([0, 3]))
    assert not torch.equal(found[0], none[0])
    torch.testing.assert_close(found[1], none[1])
    assert small(classes=None).no_class is None


def test_more_levels_and_blocks_equal_those_of_diffusers():
    """The contract draws what compiles quickly: two levels of one block, or one of two."""
    sizes = dict(widths=(4, 6, 8), depth=2, attention=(False, True, True), head_dim=2, groups=2, eps=1e-5, pad_end=False)
    given = dict(sines={}, time_scale=1.0, in_channels=1, classes=2, class_dropout=0.0, patch_size=1, out_channels=None)
    ours = fill(built(**sizes, **given).double(), torch.Generator().manual_seed(0)).eval()
    there = theirs(SimpleNamespace(**sizes, **given)).double().eval()
    there.load_state_dict(ours.maps["diffusers"].export(ours), strict=True)
    one = dict(images=torch.randn(2, 1, 4, 8).double(), times=torch.tensor([1.0, 999.0]).double(), classes=torch.tensor([0, 2]))
    require_equal(ours(**one), call_theirs(there, one), 1e-10)


def test_integer_times_are_their_floats():
    model, images = small(), torch.randn(2, 1, 4, 4)
    assert torch.equal(model(images, torch.tensor([3, 999])), model(images, torch.tensor([3.0, 999.0])))
    scaled = small(sines=SinusoidalTime(4, scale=1000.0))
    torch.testing.assert_close(scaled(images, torch.tensor([0.003, 0.999])), model(images, torch.tensor([3, 999])))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(images=torch.zeros(2, 1, 7, 8)), "images: height must be a positive multiple of 2, got shape"),
        (dict(images=torch.zeros(2, 1, 8, 7)), "images: width must be a positive multiple of 2, got shape"),
        (dict(images=torch.zeros(2, 1, 0, 8)), "images: height must be a positive multiple of 2"),
        (dict(images=torch.zeros(2, 3, 8, 8)), "images: channels must be 1, got 3"),
        (dict(times=torch.tensor(3)), "times must have 1 axes"),
        (dict(times=torch.tensor([1, 2, 3])), "times: batch must be 2, got 3"),
        (dict(classes=torch.tensor([1])), "classes: batch must be 2, got 1"),
        (dict(classes=torch.tensor([1, 4])), "classes must be tokens from 0 to 3, got 4"),
    ],
)
def test_bad_input_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        small()(**dict(images=torch.zeros(2, 1, 8, 8), times=torch.tensor([1, 2])) | given)


def test_classes_of_a_network_without_are_refused():
    with pytest.raises(ValueError, match="classes must be None for a network that was built without classes"):
        small(classes=None)(torch.zeros(2, 1, 8, 8), torch.tensor([1, 2]), torch.tensor([1, 2]))


@pytest.mark.parametrize(
    ("name", "size", "millions"), [("unet_small", 8, 1.0), ("unet_medium", 28, 1.0), ("unet_ddpm", None, 35.7)]
)
def test_sizes(name, size, millions):
    """That of DDPM for CIFAR-10 is the paper's, in appendix B."""
    with torch.device("meta"):
        model = zoo.create(name, **{} if size is None else dict(classes=10, in_channels=1))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions
    if size is not None:
        images, times = torch.empty(2, 1, size, size, device="meta"), torch.empty(2, device="meta")
        assert model(images, times).shape == images.shape


def test_the_network_of_the_paper_has_the_names_of_diffusers():
    """Its configuration is that of google/ddpm-cifar10-32."""
    with torch.device("meta"):
        ours = zoo.create("unet_ddpm")
        there = of_diffusers("unets.unet_2d").UNet2DModel(
            block_out_channels=(128, 256, 256, 256),
            attention_head_dim=None,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            downsample_padding=0,
        )
    found, state = ours.maps["diffusers"].export(ours), there.state_dict()
    assert {name: x.shape for name, x in found.items()} == {name: x.shape for name, x in state.items()}


def test_a_fresh_network_predicts_zero_and_learns_in_every_part():
    torch.manual_seed(0)
    model = zoo.create("unet_small", classes=3, in_channels=1)
    given = torch.randn(4, 1, 8, 8), torch.rand(4), torch.tensor([0, 1, 2, 3])
    assert not model(*given).any()
    optimizer = torch.optim.Adam(model.parameters())
    before = {name: x.clone() for name, x in model.state_dict().items()}
    for _ in range(3):
        optimizer.zero_grad()
        (model(*given) - 1).square().mean().backward()
        optimizer.step()
    still = {name for name, x in model.state_dict().items() if torch.equal(x, before[name])}
    assert still <= {name for name in before if name.endswith("key.bias")}  # softmax ignores it
