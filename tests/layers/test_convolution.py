from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torchvision.ops import Conv2dNormActivation

from layers.convolution import BlurPool, ConvNormAct, ConvStack, SqueezeExcite, fold_norms, hard_sigmoid
from layers.testing import Contract, Twin, part, shift_equivariant, tensor
from layers.weights import WeightMap


def other_than(n):
    return st.integers(1, 5).filter(lambda m: m != n)


def images(a):
    sizes = dict(height=st.integers(7, 11), width=st.integers(7, 11))
    return dict(images=tensor("batch channels height width", channels=a.in_channels, **sizes))


def kernel(a):
    """Rows and columns are as many; JSON gives a list."""
    return a.kernel_size[0] if isinstance(a.kernel_size, list) else a.kernel_size


def padding(a):
    return {None: kernel(a) // 2, "same": kernel(a) // 2, "valid": 0}.get(a.padding, a.padding)


def out(a, n):
    return (n + 2 * padding(a) - kernel(a)) // a.stride + 1


def in_sequence(a):
    bias = a.norm is None if a.bias is None else a.bias
    conv = nn.Conv2d(a.in_channels, a.out_channels, a.kernel_size, a.stride, padding(a), groups=a.groups, bias=bias)
    norm = [] if a.norm is None else [a.norm(a.out_channels)]
    return nn.Sequential(conv, *norm, *([] if a.activation is None else [a.activation()]))


def border(a):
    """Output positions whose window touches the padding or what roll() brought in from the other end."""
    return -(-(padding(a) + a.stride + kernel(a)) // a.stride)


conv_norm_act = Contract(
    ConvNormAct,
    defaults=dict(kernel_size=(3, "torchvision's Conv2dNormActivation")),
    arguments=dict(
        groups=st.sampled_from([1, 1, 2, 3]),
        _per_group=st.permutations([1, 2, 3]),
        in_channels=lambda a: a.groups * a._per_group[0],
        out_channels=lambda a: a.groups * a._per_group[1],
        kernel_size=st.sampled_from([1, 3, 5, [3, 3]]),
        stride=st.sampled_from([1, 2]),
        padding=lambda a: st.sampled_from([None, 0, 1, "valid"] + ["same"] * (a.stride == 1)),
        bias=st.sampled_from([None, True, False]),
        norm=st.sampled_from([nn.BatchNorm2d, None]),
        activation=st.sampled_from([nn.ReLU, nn.Hardswish, nn.SiLU, None]),
    ),
    inputs=images,
    outputs=lambda a, s: ("batch", a.out_channels, out(a, s.height), out(a, s.width)),
    twins=[
        Twin("torch", build=in_sequence, weights=WeightMap(("conv", "0"), ("norm", "1"))),
        Twin(
            "torchvision",
            build=lambda a: Conv2dNormActivation(
                a.in_channels, a.out_channels, a.kernel_size, a.stride, a.padding, a.groups, a.norm, a.activation,
                inplace=None, bias=a.bias,
            ),
            weights=WeightMap(("conv", "0"), ("norm", "1")),
        ),
    ],
    holds=[
        shift_equivariant("images", "height", 2, lambda a: a.stride, border),
        shift_equivariant("images", "width", 3, lambda a: a.stride, border),
    ],
    invalid=[
        (dict(in_channels=0), "in_channels"),
        (dict(out_channels=-1), "out_channels"),
        (dict(kernel_size=0), "kernel_size"),
        (dict(kernel_size=4, padding=None), "kernel_size"),
        (dict(kernel_size=(3, 2), padding=None), "kernel_size"),
        (dict(kernel_size=[3, 3, 3]), "kernel_size"),
        (dict(kernel_size="3"), "kernel_size"),
        (dict(kernel_size=3.0), "kernel_size"),
        (dict(stride=0), "stride"),
        (dict(stride=None), "stride"),
        (dict(padding=-1), "padding"),
        (dict(padding=[1]), "padding"),
        (dict(padding="full"), "padding"),
        (dict(padding="same", stride=2), "padding"),
        (dict(groups=0), "groups"),
        (dict(groups=2, in_channels=3), "groups"),
    ],
    trains_differently=lambda a: a.norm is not None,
)  # fmt: skip


def stack_in_sequence(a):
    layers = []
    for i in range(a.depth):
        layers.append(nn.Conv2d(a.in_channels if i == 0 else a.out_channels, a.out_channels, 3, padding=1))
        layers += [nn.BatchNorm2d(a.out_channels)] * (a.norm is not None) + [nn.ReLU()]
    return nn.Sequential(*layers, a.pool.factory(2))


def stack_weights(a):
    step = 2 + (a.norm is not None)
    rows = [(f"convs.{i}.conv", f"{i * step}") for i in range(a.depth)]
    return WeightMap(*rows, *((f"convs.{i}.norm", f"{i * step + 1}") for i in range(a.depth) if a.norm is not None))


conv_stack = Contract(
    ConvStack,
    arguments=dict(
        in_channels=st.integers(1, 4),
        out_channels=lambda a: other_than(a.in_channels),
        depth=st.integers(1, 3),
        pool=st.sampled_from([part(nn.MaxPool2d, kernel_size=2), part(nn.AvgPool2d, kernel_size=2)]),
        norm=st.sampled_from([nn.BatchNorm2d, None]),
        bias=True,
    ),
    inputs=images,
    outputs=lambda a, s: ("batch", a.out_channels, s.height // 2, s.width // 2),
    twins=[Twin("torch", build=stack_in_sequence, weights=stack_weights)],
    invalid=[(dict(depth=0), "depth"), (dict(in_channels=0), "in_channels")],
    trains_differently=lambda a: a.norm is not None,
)


def test_rectangular_kernels_keep_the_size():
    images = torch.randn(1, 2, 9, 7)
    assert ConvNormAct(2, 3, (1, 7))(images).shape == (1, 3, 9, 7)


def test_sizes_are_integers_of_any_kind():
    block = ConvNormAct(2, 3, np.int64(3), stride=(np.int32(2), 1), padding=torch.tensor(2))
    assert str(block) == str(ConvNormAct(2, 3, 3, stride=(2, 1), padding=2))
    for bad in (3.0, np.float64(3), (3, 3, 3), (3, 1.0), "33"):
        with pytest.raises(ValueError, match=r"kernel_size must be an int or \(rows, columns\), got"):
            ConvNormAct(2, 3, bad)


def test_folded_norms_compute_the_same():
    model = nn.Sequential(ConvNormAct(3, 4, bias=True), ConvStack(4, 5, 2)).double()
    images = torch.randn(16, 3, 9, 9, dtype=torch.float64)
    model(images)  # move the running statistics off their start
    with pytest.raises(ValueError, match="eval mode"):
        fold_norms(model)
    expected = model.eval()(images)
    fold_norms(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    torch.testing.assert_close(model(images), expected, rtol=1e-12, atol=1e-12)


def test_pixels_are_needed_and_floats():
    with pytest.raises(ValueError, match="images must have at least 1 rows and columns"):
        SqueezeExcite(3, 4)(torch.randn(2, 3, 0, 5))
    with pytest.raises(ValueError, match="images must have at least 2 rows and columns"):
        BlurPool(3)(torch.randn(2, 3, 5, 1))
    with pytest.raises(ValueError, match=r"images must be of a floating-point dtype, got torch.uint8"):
        BlurPool(3)(torch.ones(2, 3, 5, 5, dtype=torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_largest_pixels(dtype):
    """The mean of float16 numbers whose sum overflows, and their blur, are numbers of that size."""
    largest = torch.full((2, 3, 8, 8), torch.finfo(dtype).max / 4 if dtype == torch.float16 else 1e30, dtype=dtype)
    assert BlurPool(3)(largest).isfinite().all()
    block = SqueezeExcite(3, 4).to(dtype)
    nn.init.zeros_(block.down.weight)
    assert block(largest).isfinite().all()


def test_hard_sigmoid_is_torchs():
    x = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    torch.testing.assert_close(hard_sigmoid(x), nn.functional.hardsigmoid(x), rtol=1e-15, atol=1e-15)


def test_defaults_are_those_of_torch_and_torchvision():
    ours = ConvNormAct(3, 4)
    theirs = Conv2dNormActivation(3, 4, inplace=False)
    assert str(ours.conv) == str(theirs[0])
    assert str(ours.norm) == str(theirs[1]) == str(nn.BatchNorm2d(4, eps=1e-5, momentum=0.1))
    assert str(ours.activation) == str(theirs[2])
    assert SqueezeExcite(3, 4).gate is torch.sigmoid
    assert inspect.signature(BlurPool).parameters["stride"].default == 2


def run_without_gradients(block: ConvNormAct, images: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """The output, and whether it lies where the norm's output lay."""
    forward, made = block.norm.forward, []
    block.norm.forward = lambda x: made.append(forward(x)) or made[-1]
    with torch.no_grad():
        found = block(images)
    del block.norm.forward
    return found, found.data_ptr() == made[0].data_ptr()


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, None])
def test_without_gradients_the_activation_works_in_place_and_gives_the_same_bits(norm, activation):
    torch.manual_seed(0)
    block, images = ConvNormAct(3, 4, norm=norm, activation=activation).eval(), torch.randn(2, 3, 5, 5)
    before, expected = images.clone(), block(images)
    found, in_place = run_without_gradients(block, images)
    assert torch.equal(found, expected)
    assert torch.equal(images, before)
    assert in_place == (activation is not nn.GELU)


@pytest.mark.parametrize("place", ["conv", "norm", "activation", "every module"])
@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
def test_where_a_hook_may_see_it_nothing_is_written_over(place, kind):
    block, images = ConvNormAct(3, 4).eval(), torch.randn(2, 3, 5, 5)
    if place == "every module":
        handle = getattr(nn.modules.module, f"register_module_{kind}")(lambda module, *values: None)
    else:
        handle = getattr(getattr(block, place), f"register_{kind}")(lambda module, *values: None)
    assert not run_without_gradients(block, images)[1]
    handle.remove()
    assert run_without_gradients(block, images)[1]


def test_the_callers_images_are_never_written_over():
    """Nor where a convolution and its norm were taken out."""
    block, images = ConvNormAct(3, 3, norm=None).eval(), torch.randn(2, 3, 5, 5)
    block.conv, before = nn.Identity(), images.clone()
    with torch.no_grad():
        assert torch.equal(block(images), before.relu())
    assert torch.equal(images, before)


def test_what_is_more_than_a_known_module_is_called():
    class Doubled(nn.ReLU):
        def forward(self, x):
            return 2 * super().forward(x)

    class Remembering(nn.BatchNorm2d):
        def forward(self, x):
            self.last = super().forward(x)
            return self.last

    images = torch.randn(2, 3, 5, 5)
    doubled, remembering = ConvNormAct(3, 4, activation=Doubled).eval(), ConvNormAct(3, 4, norm=Remembering).eval()
    assert torch.equal(run_without_gradients(doubled, images)[0], doubled(images))
    run_without_gradients(remembering, images)
    assert (remembering.norm.last < 0).any()
