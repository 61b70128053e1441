"""What the kit has found in blocks of x-transformers."""

from __future__ import annotations

import pickle

from findings import Finding

from layers.testing import Mismatch

BEGUN = """
import torch
from x_transformers.x_transformers import Attention

torch.manual_seed(0)
attention = Attention(8, dim_head=4, heads=2, causal=True, {option}=True)
x = torch.randn(1, 4, 8)
"""
LEAKS = """
assert not torch.allclose(attention(x)[:, :2], attention(x[:, :2]))
"""
SOUND = ("flash", "qk_norm", "sigmoid", "num_mem_kv", "add_zero_kv", "head_learned_sink", "inverted_attention")
"""Options under which a softmax of nothing is none, or is taken in float64."""


def option(*names):
    return lambda case: case.arguments.option in names


FOUND = [
    Finding(
        "Attention",
        "causal streaming",
        "`orthog_projected_values`",
        "The future leaks though `causal=True`: outputs are projected on the values of all positions. A cache decodes otherwise.",
        BEGUN.format(option="orthog_projected_values") + LEAKS,
        where=option("orthog_projected_values"),
    ),
    Finding(
        "Attention",
        "causal streaming",
        "`inverted_attention`",
        "The future leaks though `causal=True`, for the softmax is over the queries, later ones too; a cache decodes otherwise.",
        BEGUN.format(option="inverted_attention") + LEAKS,
        where=option("inverted_attention"),
    ),
    Finding(
        "Attention",
        "streaming",
        "`data_dependent_alibi`, with and without `data_dependent_alibi_per_row`",
        "With a cache several new tokens are an error, and one forgets nothing: the bias is made from the new tokens alone.",
        BEGUN.format(option="data_dependent_alibi")
        + """
torch.nn.init.normal_(attention.data_dependent_alibi.to_forget_gates[0].bias)
whole = attention(x)
_, state = attention(x[:, :3], return_intermediates=True)
assert not torch.allclose(attention(x[:, 3:], cache=state, return_intermediates=True)[0], whole[:, 3:])
_, state = attention(x[:, :2], return_intermediates=True)
try:
    attention(x[:, 2:], cache=state, return_intermediates=True)
    raise AssertionError("works")
except RuntimeError as error:
    assert "must match the size" in str(error)
""",
        raises=(RuntimeError, Mismatch),
        where=option("data_dependent_alibi", "data_dependent_alibi_per_row"),
    ),
    Finding(
        "Attention",
        "padding_invariant",
        "float64 and a softmax in float32: all but " + ", ".join(f"`{name}`" for name in SOUND),
        "Left padding makes all gradients NaN: the least float64, with which scores are masked, is minus infinity in float32.",
        """
import torch
from x_transformers.x_transformers import Attention

attention = Attention(8, dim_head=4, heads=2, causal=True).double()
mask = torch.tensor([[False, True, True]])
output = attention(torch.randn(1, 3, 8, dtype=torch.float64), mask=mask)[mask]
output.sum().backward()
assert output.isfinite().all() and attention.to_v.weight.grad.isnan().all()
""",
        where=lambda case: case.arguments.option not in SOUND,
    ),
    Finding(
        "TransformerWrapper of a Decoder",
        "streaming",
        "`shift_tokens`",
        "A cache decodes otherwise: each call shifts its own tokens, and the last token before it is not kept.",
        """
import torch
from x_transformers import Decoder, TransformerWrapper

torch.manual_seed(0)
layers = Decoder(dim=8, depth=1, heads=2, attn_dim_head=8, shift_tokens=1)
model = TransformerWrapper(num_tokens=7, max_seq_len=16, attn_layers=layers)
x = torch.tensor([[1, 2, 3, 4]])
_, cache = model(x[:, :3], return_intermediates=True)
assert not torch.allclose(model(x, cache=cache), model(x)[:, 3:], atol=1e-4)
""",
        where=option("shift_tokens"),
        seen=("lucidrains/x-transformers#311", "lucidrains/x-transformers#187"),
        cf=True,
    ),
    Finding(
        "TransformerWrapper of a Decoder",
        "padding_invariant",
        "`shift_tokens`",
        "`seq_start_pos` is ignored: the first token of a row gets half of its features from the padding before it.",
        """
import torch
from x_transformers import Decoder, TransformerWrapper

torch.manual_seed(0)
layers = Decoder(dim=8, depth=1, heads=2, attn_dim_head=8, shift_tokens=1)
model = TransformerWrapper(num_tokens=7, max_seq_len=16, attn_layers=layers)
padded, start = torch.tensor([[5, 1, 2]]), torch.tensor([1])
assert not torch.allclose(model(padded, seq_start_pos=start)[:, 1:], model(padded[:, 1:]), atol=1e-4)
""",
        where=option("shift_tokens"),
    ),
    Finding(
        "TransformerWrapper of a Decoder",
        "padding_invariant",
        "`scaled_sinu_pos_emb`, where positions are absolute",
        "Left padding by `seq_start_pos` is an error.",
        """
import torch
from x_transformers import Decoder, TransformerWrapper

layers = Decoder(dim=8, depth=1, heads=2, attn_dim_head=8)
model = TransformerWrapper(num_tokens=7, max_seq_len=16, attn_layers=layers, scaled_sinu_pos_emb=True)
try:
    model(torch.tensor([[5, 1, 2]]), seq_start_pos=torch.tensor([1]))
    raise AssertionError("works")
except RuntimeError as error:
    assert "einsum()" in str(error)
""",
        raises=RuntimeError,
        where=lambda case: case.arguments.scaled_sinu_pos_emb and "rotary" not in case.arguments.option,
    ),
    Finding(
        "Attention",
        "state_round_trip",
        "`flash`",
        "It cannot be pickled: it keeps members of `torch.nn.attention.SDPBackend`, which torch does not pickle.",
        """
import pickle

from x_transformers.x_transformers import Attention

try:
    pickle.dumps(Attention(8, dim_head=4, heads=2, flash=True))
    raise AssertionError("works")
except pickle.PicklingError as error:
    assert "_SDPBackend" in str(error)
""",
        raises=pickle.PicklingError,
        where=option("flash"),
    ),
    Finding(
        "TransformerWrapper of a Decoder",
        "state_round_trip",
        "`attn_flash`",
        "It cannot be pickled: it keeps members of `torch.nn.attention.SDPBackend`, which torch does not pickle.",
        """
import pickle

from x_transformers.x_transformers import Attention

try:
    pickle.dumps(Attention(8, dim_head=4, heads=2, flash=True))
    raise AssertionError("works")
except pickle.PicklingError as error:
    assert "_SDPBackend" in str(error)
""",
        raises=pickle.PicklingError,
    ),
]
