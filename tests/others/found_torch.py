"""What the kit has found in blocks of torch."""

from __future__ import annotations

from findings import Finding

FOUND = [
    Finding(
        "MultiheadAttention, to others",
        "batch_rows finite float32 bfloat16 autocast gradcheck forward_derivatives",
        "`need_weights=True` without `add_bias_kv` and `add_zero_attn`",
        "A query that may see nothing gets NaN, and so do the gradients of all weights; with `need_weights=False` it gets zeros.",
        """
import torch

attention = torch.nn.MultiheadAttention(4, 2, batch_first=True)
x = torch.randn(1, 3, 4)
assert attention(x, x, x, attn_mask=torch.ones(3, 3, dtype=torch.bool))[0].isnan().all()
assert not attention(x, x, x, attn_mask=torch.ones(3, 3, dtype=torch.bool), need_weights=False)[0].isnan().any()
""",
        where=lambda case: case.specs["need_weights"] and not (case.arguments.add_bias_kv or case.arguments.add_zero_attn),
        seen=("pytorch/pytorch#41508", "pytorch/pytorch#160064"),
    ),
    Finding(
        "MultiheadAttention, to others",
        "empty_batch",
        "`need_weights=False` with a mask for each head",
        "A batch of no rows is an error, where without the mask, or with `need_weights=True`, it gives no rows.",
        """
import torch

attention = torch.nn.MultiheadAttention(4, 2, batch_first=True)
x, mask = torch.randn(0, 3, 4), torch.zeros(0, 3, 3, dtype=torch.bool)
assert attention(x, x, x, attn_mask=mask)[0].shape == (0, 3, 4)
try:
    attention(x, x, x, attn_mask=mask, need_weights=False)
    raise AssertionError("works")
except RuntimeError as error:
    assert "cannot reshape tensor of 0 elements" in str(error)
""",
        raises=RuntimeError,
        where=lambda case: not case.specs["need_weights"],
        seen=("pytorch/pytorch#38115", "pytorch/pytorch#192651"),
        cf=True,
    ),
    Finding(
        "InstanceNorm2d",
        "empty_batch",
        "`affine=True`",
        "A batch of no rows is an error; without weights it is none.",
        """
import torch

try:
    torch.nn.InstanceNorm2d(3, affine=True)(torch.randn(0, 3, 4, 4))
    raise AssertionError("works")
except IndexError as error:
    assert "select()" in str(error)
""",
        raises=IndexError,
        where=lambda case: case.arguments.affine,
        seen=("pytorch/pytorch#39049",),
        cf=True,
    ),
    Finding(
        "Linear with weight_norm",
        "second_derivatives",
        "all",
        "On the CPU the second derivatives by the direction are wrong, without a word: `gradgradcheck` of the kernel fails.",
        """
import torch

v = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
g = torch.randn(2, 1, dtype=torch.float64, requires_grad=True)
w = torch.randn(2, 3, dtype=torch.float64)


def second(norm):
    first = torch.autograd.grad((norm(v, g) * w).sum(), v, create_graph=True)[0]
    return torch.autograd.grad(first.square().sum(), v)[0]


by_hand = second(lambda v, g: v * (g / v.norm(dim=1, keepdim=True)))
assert not torch.allclose(second(lambda v, g: torch._weight_norm(v, g, 0)), by_hand)
""",
    ),
    Finding(
        "BatchNorm2d",
        "batch_rows",
        "`track_running_stats=False`",
        "In evaluation a row depends on the other rows of its batch.",
        """
import torch

norm, x = torch.nn.BatchNorm2d(3, track_running_stats=False).eval(), torch.randn(4, 3, 5, 5)
assert not torch.allclose(norm(x)[:1], norm(x[:1]))
""",
        where=lambda case: not case.arguments.track_running_stats,
        documented="torch.nn.BatchNorm2d, `track_running_stats`",
    ),
    Finding(
        "Embedding",
        "history_independent gradcheck second_derivatives",
        "`max_norm`",
        "A call in evaluation changes the weights.",
        """
import torch

embedding = torch.nn.Embedding(5, 4, max_norm=0.5).eval().requires_grad_(False)
before = embedding.weight.clone()
embedding(torch.arange(5))
assert not torch.equal(embedding.weight, before)
""",
        where=lambda case: case.arguments.max_norm is not None,
        documented="torch.nn.Embedding, `max_norm`",
    ),
    Finding(
        "Embedding",
        "gradcheck forward_derivatives",
        "`padding_idx`",
        "The gradient of the row at `padding_idx` is zero, though the output depends on it.",
        """
import torch

embedding = torch.nn.Embedding(5, 4, padding_idx=0)
embedding(torch.tensor([0, 1])).sum().backward()
assert not embedding.weight.grad[0].any() and embedding.weight.grad[1].all()
""",
        where=lambda case: case.arguments.padding_idx is not None,
        documented="torch.nn.Embedding, `padding_idx`",
    ),
]
