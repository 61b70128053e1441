from __future__ import annotations

import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from layers.discriminators import MinibatchStd, add_spectral_norm
from layers.testing import Contract, Twin, permutation_equivariant, tensor


class Written(nn.Module):
    """The statistic as section 3 of the paper tells it: a deviation for each feature and place, the mean of all of them."""

    def __init__(self, eps):
        super().__init__()
        self.eps = eps

    def forward(self, images):
        b, c, y, x = images.shape
        total = 0
        for values in images.reshape(b, -1).T:
            mean = sum(values) / b
            total = total + (sum((value - mean) ** 2 for value in values) / b + self.eps) ** 0.5
        return torch.cat([images, (total / (c * y * x)).expand(b, 1, y, x)], 1)


minibatch_std = Contract(
    MinibatchStd,
    defaults=dict(eps=(1e-8, "the code of Karras et al., 2018, networks.py")),
    arguments=dict(eps=st.sampled_from([1e-8, 1e-2])),
    inputs=lambda a: dict(
        images=tensor("batch channels height width", **dict.fromkeys(("channels", "height", "width"), st.integers(1, 5)))
    ),
    outputs=lambda a, s: ("batch", s.channels + 1, s.height, s.width),
    twins=[Twin("written out", build=lambda a: Written(a.eps))],
    holds=[permutation_equivariant("images", "batch", 0)],
    invalid=[(dict(eps=0.0), "eps")],
    without=dict.fromkeys(("weights", "parameters_used", "per_sample_gradients"), "no parameters")
    | {"batch_rows": "the statistic is of the whole batch", "bad_input": "takes images of every size"},
)


def test_the_statistic_sees_a_batch_that_does_not_vary():
    images = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0)).expand(5, -1, -1, -1)
    assert MinibatchStd()(images)[:, 2].unique().item() == pytest.approx(1e-4)
    with pytest.raises(ValueError, match="images must have 4 axes"):
        MinibatchStd()(images[0])


def layers_of_each_kind():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ConvTranspose2d(6, 3, 4, stride=2), nn.Flatten(), nn.Linear(300, 5))


def largest(weight, rows):
    """Singular value of a weight as a matrix with a row for each index of the axis `rows`."""
    return torch.linalg.matrix_norm(weight.detach().movedim(rows, 0).flatten(1), 2).item()


def test_spectral_norm_leaves_no_singular_value_above_one():
    model = add_spectral_norm(layers_of_each_kind())
    images = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    for _ in range(100):
        model.train()(images)
    model.eval()
    assert [largest(model[n].weight, rows) for n, rows in ((0, 0), (1, 1), (3, 0))] == pytest.approx([1, 1, 1], abs=1e-3)
    assert largest(model[1].weight, 0) != pytest.approx(1, abs=1e-3)  # the other axis shows something else


def test_spectral_norm_iterates_in_training_alone():
    """pytorch/pytorch issue 8208."""
    model = add_spectral_norm(layers_of_each_kind()).eval()
    images = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first = model(images)
    assert torch.equal(model(images), first)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.train()(images)
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {f"{n}.parametrizations.weight.0.{name}" for n in (0, 1, 3) for name in ("_u", "_v")}


def test_spectral_norm_is_added_once():
    model = add_spectral_norm(add_spectral_norm(layers_of_each_kind()), 2)
    assert [len(model[n].parametrizations["weight"]) for n in (0, 1, 3)] == [1, 1, 1]
    with pytest.raises(ValueError, match="iterations must be positive"):
        add_spectral_norm(model, 0)
