"""Every rewrite of a model by the class of its modules, on modules that others have changed."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm

from layers.convolution import ConvNormAct, fold_norms
from layers.normalization import SyncedBatchNorm2d, synchronise_norms
from layers.testing import fill
from layers.winograd import use_winograd
from zoo.deployment.optimize import prepared


class Negative(nn.Conv2d):
    def forward(self, input):
        return -super().forward(input)


class Before(ConvNormAct):
    """The norm first, as in a pre-activation ResNet; its convolution keeps the number of channels."""

    def forward(self, images):
        return self.conv(self.activation(self.norm(images)))


def doubled(module, inputs, output=None):
    """Hook before or after a module."""
    return 2 * (inputs[0] if output is None else output)


def hooked(part, register):
    return lambda block: getattr(block.get_submodule(part), register)(doubled)


def own_forward(part):
    def change(block):
        module = block.get_submodule(part)
        module.forward = lambda x, forward=module.forward: 3 * forward(x)

    return change


def share_the_convolution(block):
    block.activation = nn.Sequential(block.activation, block.conv)


def share_the_norm(block):
    block.activation = nn.Sequential(block.activation, block.norm)


def two_norms_on_one_convolution(block):
    other = ConvNormAct(8, 8)
    other.conv, other.norm = block.conv, fill(other.norm, torch.Generator().manual_seed(7))
    block.activation = other


def one_norm_after_two_convolutions(block):
    other = ConvNormAct(8, 8)
    other.norm = block.norm
    block.activation = other


def norm(block, kind, **options):
    block.norm = kind(8, **options)


PLAIN = {
    "as it is": lambda block: None,
    "without affine": lambda block: norm(block, nn.BatchNorm2d, affine=False),
    "synchronised": lambda block: norm(block, SyncedBatchNorm2d),
    "convolution shared": share_the_convolution,
    "norm shared": share_the_norm,
    "two norms on one convolution": two_norms_on_one_convolution,
    "one norm after two convolutions": one_norm_after_two_convolutions,
    "hooked block": lambda block: block.register_forward_hook(doubled),
}
"""Modifications after which the norm can be folded."""
OTHERS = {
    "norm without statistics": lambda block: norm(block, nn.BatchNorm2d, track_running_stats=False),
    "norm with an activation": lambda block: norm(block, BatchNormAct2d),
    "group norm": lambda block: norm(block, partial(nn.GroupNorm, 2)),
    "subclass of the convolution": lambda block: setattr(block, "conv", Negative(8, 8, 3, padding=1)),
    "subclass of the block": lambda block: setattr(block, "__class__", Before),
    "own forward of the block": own_forward(""),
    "own forward of the norm": own_forward("norm"),
    "own forward of the convolution": own_forward("conv"),
    **{
        f"{register} of the {part}": hooked(part, register)
        for part in ("conv", "norm")
        for register in ("register_forward_hook", "register_forward_pre_hook")
    },
    "weight norm": lambda block: parametrizations.weight_norm(block.conv),
    "spectral norm": lambda block: parametrizations.spectral_norm(block.conv),
    "spectral norm by a hook": lambda block: spectral_norm(block.conv),
    "pruned convolution": lambda block: prune.random_unstructured(block.conv, "weight", 0.5),
    "pruned norm": lambda block: prune.random_unstructured(block.norm, "weight", 0.5),
}
"""Modifications after which folding would compute something else."""
REWRITES = {
    "fold_norms": fold_norms,
    "use_winograd": partial(use_winograd, least_channels=8),
    "synchronise_norms": synchronise_norms,
    "prepared": lambda model: use_winograd(prepared(model, torch.float64), least_channels=8),
}


@pytest.mark.parametrize("rewrite", REWRITES)
@pytest.mark.parametrize("modification", [*PLAIN, *OTHERS])
def test_a_rewritten_model_computes_what_it_did(rewrite, modification):
    """All that is done to a model by the class of its modules; `prepared` is what `zoo.optimize` does before it compiles."""
    torch.manual_seed(0)
    block = ConvNormAct(8, 8, bias=False)
    model = nn.Sequential(ConvNormAct(3, 8), block, ConvNormAct(8, 4))
    {**PLAIN, **OTHERS}[modification](block)
    fill(model.double().eval(), torch.Generator().manual_seed(1))
    images = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    expected = model(images).detach()
    rewritten = REWRITES[rewrite](model)
    torch.testing.assert_close(rewritten(images), expected, rtol=1e-12, atol=1e-12)
    if rewrite in ("fold_norms", "prepared"):
        assert isinstance(rewritten[1].norm, nn.Identity) == (modification in PLAIN)
        assert isinstance(rewritten[0].norm, nn.Identity)


def test_a_norm_that_is_left_in_training_mode_is_not_folded():
    model, images = nn.Sequential(ConvNormAct(3, 4)).eval(), torch.randn(2, 3, 5, 5)
    model[0].norm.train()
    expected = model(images)
    torch.testing.assert_close(fold_norms(model)(images), expected)
    assert type(model[0].norm) is nn.BatchNorm2d


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_hooks_stay_where_they_are(register):
    model, seen = nn.Sequential(ConvNormAct(3, 8), ConvNormAct(8, 8)).eval(), []
    getattr(model[1].norm, register)(lambda module, *gradients: seen.append(type(module)))
    rewritten = synchronise_norms(use_winograd(fold_norms(model), least_channels=8))
    rewritten(torch.randn(2, 3, 5, 5, requires_grad=True)).sum().backward()
    assert seen == [SyncedBatchNorm2d]
