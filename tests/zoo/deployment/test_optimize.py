from __future__ import annotations

import copy
import importlib
import pickle
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from torch import Tensor

import zoo
from layers.convolution import ConvNormAct
from layers.positions import LearnedPositions
from layers.residual import basic_block
from layers.winograd import WinogradConv2d
from zoo.deployment import inductor
from zoo.deployment.inductor import has_templates
from zoo.generation import decoding
from zoo.model import LinearHead
from zoo.resnet import ResNet, small_stem
from zoo.transformer import Transformer, build
from zoo.vgg import VGG


def test_optimized_equals_eager_and_leaves_the_model_alone():
    model = VGG((1, 2), LinearHead(128, 10), widths=(16, 128), norm=torch.nn.BatchNorm2d)
    images = torch.randn(8, 3, 40, 33)
    model(images)
    model.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fast = zoo.optimize(model, images)
    with torch.no_grad():
        for batch in (images, torch.randn(3, 3, 32, 32), images[:5]):
            expected, got = model(batch), fast(batch)
            assert not got.requires_grad
            assert (got - expected).abs().max() < 2e-5 * expected.square().mean().sqrt()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    for_example, for_others, _ = fast.programs
    assert any(isinstance(m, WinogradConv2d) for m in for_example.modules())
    assert not any(isinstance(m, WinogradConv2d) for m in for_others.modules())


def test_weights_are_constants_of_the_program():
    """Which is what lets a compiler lay them out as its convolutions like them, once."""
    images = torch.randn(2, 8, 9, 9)
    fast = zoo.optimize(ConvNormAct(8, 16), images)
    before = fast(images)
    for parameter in fast.programs[0].parameters():
        if parameter.ndim == 4:
            parameter.zero_()
    assert torch.equal(fast(images), before)


@pytest.fixture(scope="module")
def images_fast():
    """(images, model, its optimized copy)"""
    torch.manual_seed(0)
    head = LinearHead(8, 10, dropout=0.5)
    model = ResNet(basic_block, (1,), (8,), small_stem(3, 8), head, stem_channels=8).eval()
    torch.nn.init.normal_(model.head.output.weight)
    images = torch.randn(2, 3, 6, 7)
    return images, model, zoo.optimize(model, images)


CHANGES = {
    "load_state_dict": lambda fast, model: fast.load_state_dict(model.state_dict()),
    "load_state_dict, strict=False": lambda fast, model: fast.load_state_dict(model.state_dict(), strict=False),
    "of an outer model": lambda fast, model: torch.nn.Sequential(fast).load_state_dict({"0.x": torch.ones(1)}, strict=False),
    "double": lambda fast, model: fast.double(),
    "half": lambda fast, model: fast.half(),
    "to": lambda fast, model: fast.to(torch.bfloat16),
    "another device": lambda fast, model: fast.to("meta"),
    "outer to": lambda fast, model: torch.nn.Sequential(model, fast).to("meta"),
    "requires_grad_": lambda fast, model: fast.requires_grad_(),
    "state_dict": lambda fast, model: fast.state_dict(),
    "pickle": lambda fast, model: pickle.dumps(fast),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_program_froze_is_not_changed_from_outside(images_fast, change):
    images, model, fast = images_fast
    before = fast(images)
    with pytest.raises(RuntimeError, match=r"an optimized model cannot .*: its weights are constants of a program"):
        CHANGES[change](fast, copy.deepcopy(model))
    assert torch.equal(fast(images), before)


def test_what_changes_nothing_is_let_through(images_fast):
    """As an outer model does to all its parts. There is nothing inside that somebody could change in place."""
    images, _, fast = images_fast
    before = fast(images)
    outer = torch.nn.Sequential(fast, torch.nn.Dropout()).train()
    assert not fast.training
    assert torch.equal(fast.train()(images), before)  # no dropout
    outer.float().cpu().to(images.device).requires_grad_().requires_grad_(False)
    outer.load_state_dict({})
    assert fast.requires_grad_(False) is fast.eval() is fast
    assert [*fast.parameters(), *fast.buffers(), *fast.children()] == []
    assert torch.equal(fast(images), before)
    assert torch.equal(copy.deepcopy(outer)[0](images), before)
    assert not fast(images.clone().requires_grad_()).requires_grad


BAD = {
    "pixels": lambda images: images.mul(99).byte(),
    "integers": lambda images: images.long(),
    "complex": lambda images: images.to(torch.complex64),
    "channels": lambda images: images[:, :2],
    "channels of another size": lambda images: images[:, :2, :5],
    "axes": lambda images: images[0],
    "no rows": lambda images: images[:, :, :0],
    "too small": lambda images: images[:, :, :2],
    "another device": lambda images: images.to("meta"),
    "no tensor": lambda images: images.tolist(),
    "nothing": lambda images: None,
}


@pytest.mark.parametrize("bad", BAD)
def test_the_optimized_copy_complains_as_the_model_does(images_fast, bad, monkeypatch):
    images, model, fast = images_fast
    monkeypatch.setattr(ResNet, "smallest_image", 3)
    found = []
    for m in (model, fast):
        with torch.no_grad(), pytest.raises(Exception) as error:
            m(BAD[bad](images))
        found.append(error)
    ours, theirs = found
    assert ours.type is theirs.type
    if ours.type is ValueError:
        assert str(ours.value) == str(theirs.value)
    with torch.profiler.profile() as profile:
        fast(images)
    assert "mkldnn::_convolution_pointwise" in {event.key for event in profile.key_averages()}  # compiled as before


def test_no_images_and_other_floats(images_fast):
    """The model refuses other floats; its copy converts them, as it has to for a copy in bfloat16."""
    images, _, fast = images_fast
    assert fast(images[:0]).shape == (0, 10)
    for dtype in (torch.float64, torch.bfloat16):
        assert torch.equal(fast(images.to(dtype)), fast(images.to(dtype).float()))


@pytest.mark.parametrize("model", [torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.MaxPool2d(2)])
def test_a_model_without_parameters_is_optimized_too(model):
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(zoo.optimize(model, images)(images), model.eval()(images))


def test_any_number_of_models_is_compiled():
    """torch.compile gives up on a class after eight, and then runs eager, saying so in a log. In `inference_mode` too."""
    images = torch.randn(2, 3, 5, 5)
    models = [zoo.optimize(ConvNormAct(3, 4), images) for _ in range(10)]
    assert not torch._inductor.config.freezing
    for n, fast in enumerate(models):
        with torch.profiler.profile() as profile, torch.inference_mode(n % 2 == 0):
            fast(images)
        assert "mkldnn::_convolution_pointwise" in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 2e-2)])
def test_other_dtypes_have_no_use_for_winograd(dtype, tolerance):
    images, model = torch.randn(2, 128, 5, 5), ConvNormAct(128, 128).eval()
    fast = zoo.optimize(model, images, dtype=dtype)
    assert not any(isinstance(m, WinogradConv2d) for m in fast.modules())
    expected = model.double()(images.double())
    torch.testing.assert_close(fast(images.to(dtype)).double(), expected, rtol=tolerance, atol=tolerance)


# --------------------------------------------------------------------------------------------------------------- decoding

VOCABULARY, LONGEST = 1003, 40


@pytest.fixture(scope="module")
def models() -> tuple[Transformer, Transformer, list[int], set]:
    """(model, its copy optimized for another size than any of those below, the products that inductor wrote, their tiles)"""
    torch.manual_seed(0)
    model = build(VOCABULARY, dim=80, heads=2, hidden_dim=200, layers=2, dropout=0.3)
    model.positions = LearnedPositions(LONGEST, 80)
    products, tiles = [], set()
    importlib.import_module("torch._inductor.lowering")  # first, for these modules import each other
    from torch._inductor.codegen import cpp_gemm_template

    def create(*args, _create=cpp_gemm_template.create_micro_gemm, **kwargs):
        created = _create(*args, **kwargs)
        tiles.add(tuple(created.register_blocking))
        return created

    def packaged(*args, _packaged=inductor.packaged, **options):
        before = products_written()
        program = _packaged(*args, **options)
        products.append(products_written() - before)
        return program

    with mock.patch.object(cpp_gemm_template, "create_micro_gemm", create), mock.patch.object(inductor, "packaged", packaged):
        fast = zoo.optimize(model, torch.randint(VOCABULARY, (5, 7)))
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    return model, fast, products, tiles


def products_written() -> int:
    return torch._dynamo.utils.counters["inductor"]["cpp_templated_kernel_counter"]


@pytest.mark.parametrize("rows", [1, 2, 3, 17, 200])
@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_every_step_of_an_optimized_transformer_equals_the_models(models, rows, length, masked):
    model, fast = models[0].eval(), models[1]
    source = torch.randint(VOCABULARY, (length, rows)).mT  # not contiguous
    mask = torch.rand(rows, length) < 0.7 if masked else None
    theirs, ours = (m.start(source, mask, capacity=9) for m in (model, fast))
    for tokens, kept in ((1, None), (1, [0, 0, rows - 1]), (3, None), (1, [2]), (1, [0, 0]), (1, None)):
        new = torch.randint(VOCABULARY, (tokens, len(theirs.sentences))).mT
        expected, got = theirs(new), ours(new)
        assert got.shape == expected.shape
        assert (got - expected).abs().max() < 2e-5 * expected.square().mean().sqrt()
        if kept is not None:
            theirs.select(torch.tensor(kept))
            ours.select(torch.tensor(kept))


def test_an_optimized_transformer_decodes_as_the_model(models):
    model, fast = models[0].eval(), models[1]
    source, start = torch.randint(VOCABULARY, (6, 5)), torch.ones(6, 1, dtype=torch.long)
    options = {"max_new_tokens": 36, "stop": (2,)}  # for which memory grows twice
    assert torch.equal(*(decoding.greedy(m.start(source, capacity=37), start, **options) for m in (model, fast)))
    theirs, ours = (decoding.beam(m.start(source, capacity=37), start, beams=3, nbest=2, **options) for m in (model, fast))
    assert torch.equal(theirs.tokens, ours.tokens)
    assert ours.tokens.shape[2] == 36
    torch.testing.assert_close(theirs.scores, ours.scores)
    assert fast.start(source[:0], capacity=3)(start[:0]).shape == (0, VOCABULARY)


def test_inductor_writes_the_products(models):
    """An option that has no effect would still give the right numbers."""
    of_a_step = 2 * len(["query, key and value", "output", "query of the memory", "output", "up", "down"]) + len(["logits"])
    at_least = 2 * len(["query, key and value", "output", "up", "down"]) + len(["keys and values of the memory"])
    if has_templates(torch.zeros(1)):
        assert models[2][0] >= at_least  # as many more as inductor does not join
        assert models[2][1:] == [of_a_step]
        assert models[3] == {(6, 16, 1)}
    else:
        assert models[2:] == ([0, 0], set())


@pytest.mark.parametrize(("capability", "dtype", "version", "expected"), [
    ("AVX2", torch.float32, "2.15.0", True), ("AVX2", torch.float32, "2.9.0", True), ("AVX2", torch.float32, "2.8.1", False),
    ("AVX512", torch.float32, "2.15.0", False), ("AVX2", torch.float64, "2.15.0", False),
])  # fmt: skip
def test_where_inductor_writes_products(monkeypatch, capability, dtype, version, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)(version))
    assert has_templates(torch.zeros(1, dtype=dtype)) == expected


class Scaled(torch.nn.Module):
    """A matrix that is no constant, for which there is no template."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight * x.mean())


def test_a_product_without_a_template_is_compiled_too():
    model, source = build(VOCABULARY, dim=16, heads=2, hidden_dim=24, layers=1).eval(), torch.randint(VOCABULARY, (3, 4))
    model.decoder[0].feedforward.sublayer = Scaled()
    told = pytest.warns(match="the step of a Transformer goes without") if has_templates(torch.zeros(1)) else nullcontext()
    with told:
        fast = zoo.optimize(model, source)
    theirs, ours = (m.start(source, capacity=2) for m in (model, fast))
    new = torch.ones(3, 1, dtype=torch.long)
    torch.testing.assert_close(ours(new), theirs(new))


def test_an_optimized_transformer_can_be_copied(models):
    source, tokens = torch.randint(VOCABULARY, (3, 4)), torch.ones(3, 1, dtype=torch.long)
    assert torch.equal(*(m.start(source, capacity=2)(tokens) for m in (models[1], copy.deepcopy(models[1]))))


def test_an_optimized_transformer_complains_as_the_model_does(models):
    fast, source = models[1], torch.randint(VOCABULARY, (2, 4))
    with pytest.raises(ValueError, match=f"source must be tokens from 0 to {VOCABULARY - 1}, got {VOCABULARY}"):
        fast.start(torch.full((2, 4), VOCABULARY), capacity=3)
    with pytest.raises(ValueError, match="source_mask: source_length must be 4, got 5"):
        fast.start(source, torch.ones(2, 5, dtype=torch.bool), capacity=3)
    with pytest.raises(ValueError, match=f"source and capacity must be {LONGEST} at most, got {LONGEST + 1}"):
        fast.start(source, capacity=LONGEST + 1)
    steps = fast.start(source, capacity=2)
    with pytest.raises(ValueError, match="tokens must be tokens from 0"):
        steps(torch.full((2, 1), -1))
    with pytest.raises(ValueError, match="tokens: batch must be 2, got 3"):
        steps(torch.ones(3, 1, dtype=torch.long))
    for _ in range(2):
        steps(torch.ones(2, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="cache has a capacity of 2, got 2 \\+ 1 positions"):
        steps(torch.ones(2, 1, dtype=torch.long))
