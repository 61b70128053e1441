from __future__ import annotations

from functools import partial

import pytest
import torch
from diffusion_twins import SameTimes, grid_table, of_diffusers
from hypothesis import strategies as st

import zoo
from layers.conditioning import SinusoidalTime
from layers.testing import Contract, Input, Twin, exercised, fill, initial_distribution, require_equal, tensor, tokens
from zoo.dit import DiT, build

TIMES = Input(("batch",), {}, lambda shape, g: 1000 * torch.rand(shape, generator=g, dtype=torch.float64))


def zero(a, parameter):
    return 0, 0


def small(a, parameter):
    return 0, 0.02


def glorot(a, weight):
    return 0, (2 / sum(weight.flatten(1).shape)) ** 0.5


def theirs(a):
    """With one embedding for all blocks, which hold copies, with our sines, and a table of places that is not float32."""
    model = of_diffusers("transformers.dit_transformer_2d").DiTTransformer2DModel(
        num_attention_heads=a.heads,
        attention_head_dim=a.dim // a.heads,
        in_channels=a.in_channels,
        out_channels=a.out_channels,
        num_layers=a.layers,
        sample_size=a._side * a.patch_size,
        patch_size=a.patch_size,
        num_embeds_ada_norm=a.classes,
        norm_eps=a.feedforward_eps or a.eps,
    )
    shared = model.transformer_blocks[0].norm1.emb
    sines = SinusoidalTime(256, cosines_first=True, frequency_shift=0.0, scale=a.time_scale)  # theirs have a shift of 1
    shared.time_proj = SameTimes(sines)
    shared.class_embedder.dropout_prob = a.class_dropout  # 0.1, whatever is asked for
    for block in model.transformer_blocks:
        block.norm1.emb = shared
        block.norm1.norm.eps = a.eps  # 1e-6, whatever is asked for
    model.norm_out.eps = a.eps
    model.pos_embed.pos_embed = grid_table(a.dim, a._side, a._side)
    return model


def built(dim, heads, layers, in_channels, classes, class_dropout, patch_size, time_scale, **options):
    """As the variants are."""
    return build(partial(DiT, dim, heads, layers, **options), in_channels, classes, class_dropout, patch_size, time_scale)


dits = Contract(
    built,
    arguments=dict(
        heads=st.integers(1, 2),
        dim=lambda a: 4 * a.heads,
        layers=st.integers(1, 2),
        patch_size=st.integers(2, 3),
        in_channels=st.integers(1, 2),
        out_channels=st.sampled_from([None, 3]),
        time_scale=st.sampled_from([1.0, 0.5]),
        classes=st.integers(2, 4),
        class_dropout=st.sampled_from([0.0, 0.5]),
        eps=st.sampled_from([1e-6, 1e-2]),
        feedforward_eps=st.sampled_from([None, 1e-5]),
        _side=st.integers(2, 3),
    ),
    inputs=lambda a: dict(
        images=tensor(
            "batch channels height width",
            channels=a.in_channels,
            height=a._side * a.patch_size,
            width=a._side * a.patch_size,
        ),
        times=TIMES,
        classes=tokens("batch", a.classes + 1),
    ),
    outputs=lambda a, s: ("batch", a.out_channels or a.in_channels, s.height, s.width),
    twins=[
        Twin(
            "diffusers",
            build=theirs,
            weights=lambda a: built(**a.passed()).maps["diffusers"],
            call=lambda model, i: model(i["images"], i["times"], i["classes"]).sample,
        )
    ],
    holds=[
        exercised(hidden_dim="diffusers' is four times dim", sines="with those of published weights below"),
        initial_distribution(
            {
                "*modulation.linear.*": zero,
                "norm.linear.*": zero,
                "output.projection.*": zero,
                "*.bias": zero,
                "time.*.weight": small,
                "class_embedding.*": small,
                "*.weight": glorot,
            }
        ),
    ],
    without={"random_law": "diffusers drops classes anew in each block; how often is tested with ClassEmbedding"},
    trains_differently=lambda a: a.class_dropout > 0,
    stochastic=lambda a: a.class_dropout > 0,
    invalid=[
        (dict(dim=6), "dim"),
        (dict(heads=3), "heads"),
        (dict(layers=0), "layers"),
        (dict(in_channels=0), "in_channels"),
        (dict(out_channels=0), "out_channels"),
        (dict(patch_size=0), "patch_size"),
        (dict(hidden_dim=0), "hidden_dim"),
        (dict(classes=0), "classes"),
        (dict(class_dropout=1.0), "dropout"),
        (dict(eps=0.0), "eps"),
        (dict(feedforward_eps=0.0), "feedforward_eps"),
    ],
    model=True,
    name="DiT",
)


def test_no_class_and_no_classes():
    model = fill(DiT(8, 2, 1, in_channels=1, classes=3), torch.Generator().manual_seed(0)).eval()
    images, times = torch.randn(2, 1, 4, 6), torch.tensor([3, 500])
    none = model(images, times)
    assert none.shape == images.shape
    assert torch.equal(none, model(images, times, torch.tensor([3, 3])))
    assert not torch.equal(model(images, times, torch.tensor([0, 3]))[0], none[0])
    free = DiT(8, 2, 1, in_channels=1)
    assert free.no_class is None
    with pytest.raises(ValueError, match="classes must be None"):
        free(images, times, torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="images: width must be a positive multiple of 2"):
        free(images[..., :5], times)


def test_both_eps_and_the_sines_are_those_of_published_weights():
    """Nothing of theirs is changed but what is float32 in it. The configuration is that of facebook/DiT-XL-2-256, but small."""
    kind = of_diffusers("transformers.dit_transformer_2d").DiTTransformer2DModel
    theirs = kind(2, 4, 1, 2, num_layers=2, sample_size=4, patch_size=2, num_embeds_ada_norm=3, norm_eps=1e-5)
    sines = SinusoidalTime(256, cosines_first=True, frequency_shift=1.0)
    ours = DiT(8, 2, 2, in_channels=1, out_channels=2, classes=3, sines=sines, feedforward_eps=1e-5)
    fill(ours.double(), torch.Generator().manual_seed(0)).eval()
    theirs.double().eval().load_state_dict(ours.maps["diffusers"].export(ours), strict=True)
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj = SameTimes(sines)
    theirs.pos_embed.pos_embed = grid_table(8, 2, 2)
    images, times, classes = torch.randn(2, 1, 4, 4).double(), torch.tensor([3.0, 999.0]).double(), torch.tensor([0, 3])
    require_equal(ours(images, times, classes), theirs(images, times, classes).sample, 1e-10)


def test_every_block_of_diffusers_gets_the_one_embedding_and_they_must_agree():
    kind = of_diffusers("transformers.dit_transformer_2d").DiTTransformer2DModel
    theirs = kind(2, 4, 1, num_layers=2, sample_size=4, num_embeds_ada_norm=3)
    ours = DiT(8, 2, 2, in_channels=1, classes=3)
    with pytest.raises(ValueError, match="tied entries must hold the same values"):
        ours.maps["diffusers"].load(ours, theirs.state_dict())
    theirs.load_state_dict(ours.maps["diffusers"].export(ours), strict=True)
    first, second = (block.norm1.emb.state_dict() for block in theirs.transformer_blocks)
    assert all(torch.equal(second[name], x) for name, x in first.items())
    ours.maps["diffusers"].load(DiT(8, 2, 2, in_channels=1, classes=3), theirs.state_dict())


@pytest.mark.parametrize(("name", "millions"), [("dit_s_2", 33), ("dit_b_2", 130)])
def test_sizes_are_the_papers(name, millions):
    """Table 1: of latent images of 4 channels, for which it learns the variance too, and 1000 classes."""
    with torch.device("meta"):
        model = zoo.create(name, in_channels=4, classes=1000)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions


def test_a_fresh_network_predicts_zero_and_learns_in_every_part():
    torch.manual_seed(0)
    model = zoo.create("dit_small", classes=3, in_channels=1)
    given = torch.randn(4, 1, 8, 8), torch.rand(4), torch.tensor([0, 1, 2, 3])
    assert not model(*given).any()
    optimizer = torch.optim.Adam(model.parameters())
    before = {name: x.clone() for name, x in model.state_dict().items()}
    for _ in range(4):
        optimizer.zero_grad()
        (model(*given) - 1).square().mean().backward()
        optimizer.step()
    still = {name for name, x in model.state_dict().items() if torch.equal(x, before[name])}
    assert still <= {name for name in before if name.endswith("key.bias")}  # softmax ignores it
