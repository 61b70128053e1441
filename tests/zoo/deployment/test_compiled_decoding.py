from __future__ import annotations

import copy
import importlib
import pickle
from contextlib import nullcontext
from functools import partial
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrizations, prune
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

import zoo
from layers.positions import LearnedPositions
from zoo.deployment import compiled_decoding, inductor
from zoo.deployment.inductor import has_templates
from zoo.generation import decoding
from zoo.transformer import Transformer, build

pytestmark = pytest.mark.slow
VOCABULARY, LONGEST = 1003, 40


@pytest.fixture(scope="module")
def models() -> tuple[Transformer, Transformer, list[int], set]:
    """(model, its copy optimized for another size than any of those below, the products that inductor wrote, their tiles)"""
    torch.manual_seed(0)
    # products of few sizes, each of which inductor compiles to time it: to 80 and to 3 x 80 channels, and logits
    model = build(VOCABULARY, dim=80, heads=2, hidden_dim=80, layers=2, dropout=0.3)
    model.positions = LearnedPositions(LONGEST, 80)
    model.encoder = model.encoder[:1]  # which compiles sooner; of the decoder's two, each has its own past
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
    at_least = len(["query, key and value", "output", "up", "down"]) + len(["keys and values of the memory"])
    if has_templates(torch.zeros(1), rows=2):
        assert models[2][0] >= at_least  # as many more as inductor does not join
        assert models[2][1:] == [of_a_step]
        assert models[3] == {(8 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 6, 16, 1)}
    else:
        assert models[2:] == ([0, 0], set())


@pytest.mark.parametrize(("capability", "dtype", "version", "most"), [
    ("AVX2", torch.float32, "2.15.0", 10**6), ("AVX2", torch.float32, "2.9.0", 10**6), ("AVX2", torch.float32, "2.8.1", 0),
    ("AVX512", torch.float32, "2.15.0", 64), ("AVX512", torch.bfloat16, "2.15.0", 1), ("AVX512", torch.float64, "2.15.0", 0),
    ("AVX2", torch.float64, "2.15.0", 0), ("AVX2", torch.bfloat16, "2.15.0", 0), ("DEFAULT", torch.float32, "2.15.0", 0),
])  # fmt: skip
def test_where_inductor_writes_products(monkeypatch, capability, dtype, version, most):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)(version))
    for rows in (1, 2, 64, 65, 10**6):
        assert has_templates(torch.zeros(1, dtype=dtype), rows) == (rows <= most)


def test_an_example_of_one_sentence_asks_for_programs_for_one():
    """Which are for two rows at least, all the same."""
    wanted = []

    def noted(program, *arguments, rows):
        wanted.append((rows, len(arguments[0])))

    for rows in (1, 5):
        with mock.patch.object(compiled_decoding, "compiled", noted):
            zoo.optimize(build(19, dim=8, heads=2, hidden_dim=8, layers=1), torch.ones(rows, 3, dtype=torch.long))
    assert wanted == [(1, 2), (1, 2), (5, 5), (5, 5)]


class Scaled(torch.nn.Module):
    """A matrix that is no constant, for which there is no template."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight * x.mean())


def test_a_product_without_a_template_is_compiled_too():
    block = Scaled().eval().requires_grad_(False)
    templates = has_templates(torch.zeros(1), rows=2)
    told = pytest.warns(match="the scaled of a Transformer goes without") if templates else nullcontext()
    with told:
        program = inductor.compiled(block, torch.randn(3, 4, 16))
    x = torch.randn(5, 2, 16)
    torch.testing.assert_close(program([x])[0], block(x))


def test_an_optimized_transformer_can_be_copied(models):
    source, tokens = torch.randint(VOCABULARY, (3, 4)), torch.ones(3, 1, dtype=torch.long)
    assert torch.equal(*(m.start(source, capacity=2)(tokens) for m in (models[1], copy.deepcopy(models[1]))))


def ones(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
    return torch.ones(shape, dtype=dtype)


BAD_STARTS = {
    "a token too high": lambda start: start(ones(2, 4) * VOCABULARY, capacity=3),
    "a token below 0": lambda start: start(-ones(2, 4), capacity=3),
    "one axis": lambda start: start(ones(4), capacity=3),
    "three axes": lambda start: start(ones(2, 4, 1), capacity=3),
    "float tokens": lambda start: start(ones(2, 4).float(), capacity=3),
    "boolean tokens": lambda start: start(ones(2, 4).bool(), capacity=3),
    "uint8 tokens": lambda start: start(ones(2, 4).byte(), capacity=3),
    "a longer mask": lambda start: start(ones(2, 4), ones(2, 5).bool(), capacity=3),
    "a mask of another batch": lambda start: start(ones(2, 4), ones(1, 4).bool(), capacity=3),
    "a mask of four axes": lambda start: start(ones(2, 4), ones(2, 1, 1, 4).bool(), capacity=3),
    "a float mask": lambda start: start(ones(2, 4), ones(2, 4).float(), capacity=3),
    "an integer mask": lambda start: start(ones(2, 4), ones(2, 4), capacity=3),
    "no capacity": lambda start: start(ones(2, 4), capacity=0),
    "a negative capacity": lambda start: start(ones(2, 4), capacity=-3),
    "more than the table has": lambda start: start(ones(2, 4), capacity=LONGEST + 1),
    "a longer source than the table": lambda start: start(ones(2, LONGEST + 1), capacity=3),
    "a bad source of no rows": lambda start: start(ones(0, 4), ones(0, 3).bool(), capacity=3),
}
BAD_CALLS = {
    "a token too high": lambda steps: steps(ones(2, 1) * VOCABULARY),
    "a token below 0": lambda steps: steps(-ones(2, 1)),
    "a prompt with a token too high": lambda steps: steps(ones(2, 2) * VOCABULARY),
    "another batch": lambda steps: steps(ones(3, 1)),
    "one row for two": lambda steps: steps(ones(1, 1)),
    "one axis": lambda steps: steps(ones(2)),
    "no tokens": lambda steps: steps(ones(2, 0)),
    "float tokens": lambda steps: steps(ones(2, 1).double()),
    "boolean tokens": lambda steps: steps(ones(2, 1).bool()),
    "too many": lambda steps: steps(ones(2, 4)),
    "one too many": lambda steps: [steps(ones(2, 1)) for _ in range(4)],
    "a longer mask": lambda steps: steps(ones(2, 2), mask=ones(2, 3).bool()),
    "a mask of another batch": lambda steps: steps(ones(2, 2), mask=ones(1, 2).bool()),
    "a float mask": lambda steps: steps(ones(2, 2), mask=ones(2, 2).float()),
    "padding on the right": lambda steps: steps(ones(2, 2), mask=torch.tensor([[True, False]] * 2)),
    "padding within": lambda steps: steps(ones(2, 3), mask=torch.tensor([[True, False, True]] * 2)),
    "a mask after the prompt": lambda steps: [steps(ones(2, 1), mask=ones(2, 1).bool()) for _ in range(2)],
    "a row that is not there": lambda steps: steps.select(torch.tensor([0, 2])),
    "a row below 0": lambda steps: steps.select(torch.tensor([-1])),
    "rows of two axes": lambda steps: steps.select(torch.tensor([[0]])),
    "rows that are floats": lambda steps: steps.select(torch.tensor([0.0])),
    "the second row of one": lambda steps: [steps(ones(2, 1)), *map(steps.select, torch.tensor([[1], [1]]))],
    "the batch before select": lambda steps: [steps.select(torch.tensor([1])), steps(ones(2, 1))],
}


def refused(call, target) -> str:
    with pytest.raises(ValueError) as error:
        call(target)
    return str(error.value)


@pytest.mark.parametrize("name", BAD_STARTS)
def test_a_bad_start_is_refused_as_the_model_refuses_it(models, name):
    assert refused(BAD_STARTS[name], models[1].start) == refused(BAD_STARTS[name], models[0].eval().start)


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_bad_call_is_refused_as_the_model_refuses_it(models, name):
    source = ones(2, 4)
    expected, got = (refused(BAD_CALLS[name], m.start(source, capacity=3)) for m in (models[0].eval(), models[1]))
    assert got == expected


def test_a_refused_call_leaves_the_decoding_as_it_was(models):
    source, tokens = torch.randint(VOCABULARY, (2, 4)), torch.randint(VOCABULARY, (2, 3))
    for model in (models[0].eval(), models[1]):
        steps, fresh = (model.start(source, capacity=3) for _ in range(2))
        for bad in (ones(2, 4), ones(3, 1), -ones(2, 2)):
            with pytest.raises(ValueError):
                steps(bad, mask=torch.arange(bad.shape[1]).expand(bad.shape) > 0)
        assert torch.equal(steps(tokens), fresh(tokens))


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_tokens_of_32_bits_are_as_good(models, rows):
    source, tokens = torch.randint(VOCABULARY, (rows, 4)), torch.randint(VOCABULARY, (rows, 1))
    for model in (models[0].eval(), models[1]):
        long, short = model.start(source, capacity=1), model.start(source.int(), capacity=1)
        assert torch.equal(long(tokens), short(tokens.int()))


@pytest.mark.parametrize("how", ["greedy", "beam", "sample"])
@pytest.mark.parametrize("rows", [1, 3])
def test_padded_prompts_decode_as_the_model_decodes_each_alone(models, how, rows):
    model, fast = models[0].eval(), models[1]
    source = torch.randint(VOCABULARY, (rows, 5))
    prompt, real = torch.randint(VOCABULARY, (rows, 4)), torch.arange(4) >= torch.tensor([[2], [0], [3]])[:rows]
    options = dict(max_new_tokens=20, **(dict(beams=3) if how == "beam" else {}))  # for which memory grows
    for row in range(rows):
        seed = dict(seed=torch.tensor([7])) if how == "sample" else {}
        seeds = dict(seed=torch.full((rows,), 7)) if how == "sample" else {}
        run = getattr(decoding, how)
        batch = run(fast.start(source, capacity=24), prompt, prompt_mask=real, **options, **seeds)
        alone = run(model.start(source[row : row + 1], capacity=24), prompt[row : row + 1, real[row]], **options, **seed)
        ours, theirs = (found.tokens[:, 0] if how == "beam" else found for found in (batch, alone))
        assert torch.equal(ours[row], theirs[0])


@pytest.mark.parametrize("rows", [1, 2, 17])
def test_every_step_after_a_padded_prompt_equals_the_models(models, rows):
    """Through `select`, to one row and back; and a prompt that is one token of padding for none."""
    model, fast = models[0].eval(), models[1]
    source, prompt = torch.randint(VOCABULARY, (rows, 3)), torch.randint(VOCABULARY, (rows, 3))
    real = torch.arange(3) >= torch.randint(3, (rows, 1))
    real[0] = torch.tensor([False, False, True])
    theirs, ours = (m.start(source, capacity=9) for m in (model, fast))
    found = [(theirs(prompt, mask=real), ours(prompt, mask=real))]
    for kept in ([0, rows - 1, 0], [1], [0, 0], None):
        new = torch.randint(VOCABULARY, (len(theirs.sentences), 1))
        found.append((theirs(new), ours(new)))
        if kept is not None:
            theirs.select(torch.tensor(kept))
            ours.select(torch.tensor(kept))
    for expected, got in found:
        assert (got - expected).abs().max() < 2e-5 * expected.square().mean().sqrt()


def eager(program, *arguments, rows):
    """In place of `compiled`."""
    structure = tree_flatten(arguments)[1]
    return lambda tensors: tree_leaves(program(*tree_unflatten(tensors, structure)))


@pytest.fixture
def uncompiled(monkeypatch):
    """(model, its optimized copy but for the compiler)"""
    monkeypatch.setattr(compiled_decoding, "compiled", eager)
    torch.manual_seed(0)
    model = build(VOCABULARY, dim=8, heads=2, hidden_dim=16, layers=1, bias=True)
    return model.eval(), zoo.optimize(model, torch.randint(VOCABULARY, (5, 7)))


REFUSED = {
    "load_state_dict": lambda fast, model: fast.load_state_dict(model.state_dict()),
    "assigned": lambda fast, model: fast.load_state_dict(model.state_dict(), assign=True),
    "of an outer model": lambda fast, model: torch.nn.Sequential(fast).load_state_dict({"0.bias": model.bias}, strict=False),
    "double": lambda fast, model: fast.double(),
    "outer to": lambda fast, model: torch.nn.Sequential(model, fast).to("meta"),
    "requires_grad_": lambda fast, model: fast.requires_grad_(),
    "state_dict": lambda fast, model: torch.nn.Sequential(fast).state_dict(),
    "pickle": lambda fast, model: pickle.dumps(fast),
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_would_change_weights_is_refused(uncompiled, change):
    model, fast = uncompiled
    with pytest.raises(RuntimeError, match=r"an optimized model cannot .*: its weights are constants of a program"):
        REFUSED[change](fast, copy.deepcopy(model))


def test_no_write_from_outside_reaches_a_part_of_decoding(uncompiled):
    """Else a prompt would go by new weights and its steps by old ones. `.data` tells nobody of what is written."""
    model, fast = uncompiled
    source, prompt = torch.randint(VOCABULARY, (2, 4)), torch.randint(VOCABULARY, (2, 3))
    expected = model.start(source, capacity=3)(prompt)
    for m in fast.modules():
        for x in (*m.parameters(), *m.buffers()):
            x.data.fill_(9.0)
    fast.bias = torch.nn.Parameter(torch.full((VOCABULARY,), 9.0))
    for m in (fast, copy.deepcopy(fast), fast.train().float().to("cpu").requires_grad_(False)):
        torch.testing.assert_close(m.start(source, capacity=3)(prompt), expected)
        torch.testing.assert_close(m(source, prompt)[:, -1], expected)
    place = next(fast.parameters())
    assert (place.dtype, place.device) == (torch.float32, source.device)


@pytest.mark.parametrize("change", [partial(prune.l1_unstructured, name="weight", amount=0.5), parametrizations.weight_norm])
def test_weights_that_are_computed_are_optimized_too(monkeypatch, change):
    monkeypatch.setattr(compiled_decoding, "compiled", eager)
    model = build(VOCABULARY, dim=8, heads=2, hidden_dim=16, layers=1).eval()
    change(model.encoder[0].feedforward.sublayer.up)
    change(model.decoder[0].attention.sublayer.query)
    fast, source = zoo.optimize(model, torch.randint(VOCABULARY, (5, 7))), torch.randint(VOCABULARY, (2, 4))
    theirs, ours = (m.start(source, capacity=3) for m in (model, fast))
    for tokens in torch.randint(VOCABULARY, (2, 3)).split([2, 1], 1):
        torch.testing.assert_close(ours(tokens), theirs(tokens))


def test_there_is_no_dropout_in_what_is_for_inference_only(models):
    source, tokens = torch.randint(VOCABULARY, (2, 4)), torch.randint(VOCABULARY, (2, 3))
    outer = torch.nn.ModuleList([models[1]]).train()
    assert torch.equal(*(outer[0].start(source, capacity=3)(tokens) for _ in range(2)))
    assert not any(m.training for m in models[1].modules())


def test_what_is_optimized_is_named_by_the_model(monkeypatch):
    """Any model's own way is asked for, and `forward` compiled where there is none."""
    model, example = zoo.create("vgg11", head="small", num_classes=2), torch.randn(1, 3, 32, 32)
    assert model.optimized(example, torch.float32) is None
    monkeypatch.setattr(type(model), "optimized", lambda self, example, dtype: (self, example, dtype))
    assert zoo.optimize(model, example) == (model, example, torch.float32)
