"""`Contract` declares what a block promises; `Twin` names a reference it must equal; `Case` is one drawn configuration."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from layers.testing import profiles
from layers.testing.drawing import BATCH, Arguments, Function, Input, draw_arguments, draw_sizes, fill, seeded
from layers.testing.equality import bound, leaves, longest_reduction, real, rounding_depth
from layers.testing.nesting import flattened, nests, regrouped
from layers.weights import WeightMap

if TYPE_CHECKING:
    from layers.testing.examples import Report


@dataclass(frozen=True)
class Twin:
    """A reference implementation: built from the same arguments, given the same weights, called on the same inputs.

    name:    stands in brackets in the test's name.
    build:   arguments -> reference, a module or a function.
    weights: `WeightMap` between the block and the reference, or a function of the arguments that gives one; None for neither.
    call:    (reference, inputs) -> output in the block's structure.
    single_precision: reason with file and line, where the reference computes parts in float32 whatever it is given; it is then
             held to float32's rounding error.
    """

    name: str
    build: Callable[[Any], Callable[..., Any]]
    weights: WeightMap | Callable[[Any], WeightMap] | None = None
    call: Callable[[Any, dict[str, Any]], Any] = lambda module, inputs: module(*inputs.values())
    single_precision: str = ""

    def map(self, arguments: Arguments) -> WeightMap:
        weights = self.weights(arguments) if callable(self.weights) else self.weights
        return WeightMap() if weights is None else weights


@dataclass(frozen=True)
class KnownFailure:
    """A strict expected failure: it must fail until it is mended; from `expires` on it counts as a failure in any case."""

    reason: str
    link: str
    version: str
    expires: datetime.date

    def expired(self) -> str:
        """What there is to say from `expires` on; nothing before."""
        return f"known failure expired on {self.expires}: {self.reason}" if datetime.date.today() >= self.expires else ""


@dataclass
class Contract:
    """Everything a block promises, in one declaration; the pytest plugin makes one test of each property.

    block:     class or function that builds the block.
    arguments: constructor arguments: name -> strategy, value, or function of the arguments drawn so far. Names with a leading
               underscore are drawn and not passed.
    inputs:    arguments -> {name of a parameter of `forward`: `tensor`, `tokens`, `mask`, a strategy or a value}, or tuples,
               lists and dicts of them, whose parts go by names such as `state[0]`. The batch axis is called `b` or `batch`.
    outputs:   (arguments, sizes) -> documented shape, a tuple of ints and axis names; of several outputs a list of shapes, of
               mappings, dataclasses and objects a dict. `...` stands for a part that is not documented.
    twins:     reference implementations.
    holds:     claimed properties, such as `shift_equivariant(...)`.
    invalid:   (constructor arguments, name that the `ValueError` must contain) pairs, over drawn ones.
    trains_differently: arguments -> does training mode differ from evaluation (batch statistics, dropout)?
    stochastic: arguments -> does training mode draw random numbers?
    call:      (block, inputs) -> output, by keyword unless told otherwise.
    defaults:  argument -> (its default, the paper or reference that it is from).
    small:     argument or axis -> reason why it is not taken beyond the sizes that are drawn.
    without:   property -> reason for not checking it; such tests are reported as skipped and counted.
    failing:   property -> `KnownFailure`.
    model:     a whole model: float64 tolerance 1e-10 in place of 1e-12, fewer examples.
    foreign:   the block is another library's: its error messages are not looked at, what a mask hides need not be fit to hold
               NaN, and of its saved buffers only running statistics are drawn.
    single_precision: reason, where the block computes parts in float32 whatever it is given; it is then held to that rounding.
    keeps:     names of parameters and buffers that stay as the constructor leaves them; `*` stands for anything.
    backend:   what `compile` goes through in runs of `ci` and thorough ones; by default aot_eager, and inductor in thorough ones.
    """

    block: Callable[..., nn.Module]
    arguments: Mapping[str, Any]
    inputs: Callable[[Any], Mapping[str, Any]]
    outputs: Callable[[Any, Any], Any]
    twins: Sequence[Twin] = ()
    holds: Sequence[Any] = ()
    invalid: Sequence[tuple[Mapping[str, Any], str]] = ()
    trains_differently: Callable[[Any], bool] = lambda arguments: False
    stochastic: Callable[[Any], bool] = lambda arguments: False
    call: Callable[[Any, dict[str, Any]], Any] = lambda module, inputs: module(**inputs)
    defaults: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    small: Mapping[str, str] = field(default_factory=dict)
    without: Mapping[str, str] = field(default_factory=dict)
    failing: Mapping[str, KnownFailure] = field(default_factory=dict)
    model: bool = False
    foreign: bool = False
    single_precision: str = ""
    keeps: Sequence[str] = ()
    backend: str = ""
    name: str = ""
    beside: Sequence[Contract] = field(default=(), init=False, repr=False, compare=False)
    """Other contracts of the same block in the same file, once pytest has found them."""
    until: float | None = field(default=None, init=False, repr=False, compare=False)
    """When the time for its properties is over, of `time.monotonic`."""

    def __post_init__(self) -> None:
        self.name = self.name or getattr(self.block, "__name__", type(self.block).__name__)
        for kind in ("without", "small"):
            for name, reason in getattr(self, kind).items():
                if not reason.strip():
                    raise ValueError(f"{kind}[{name!r}] must give a reason, got {reason!r}")

    def check(self, only: Sequence[str] = (), examples: int = 8, seconds: float | None = None) -> Report:
        """Check the properties here and now, without pytest, as in a notebook; the report is True if none has failed.

        only: names of the properties to check. examples: configurations of each at most. seconds: of all of them together; what
        has not begun by then is skipped.
        """
        from layers.testing.examples import report

        return report(self, only, examples, seconds)

    def example(self) -> Case:
        """One configuration, the same every time."""
        return self.examples(1)[0]

    def examples(self, count: int) -> list[Case]:
        """So many configurations, fewer where there are no more; the same every time."""
        found: list[Case] = []

        @settings(max_examples=count, derandomize=True, database=None, phases=[Phase.generate], **profiles.COMMON)
        @given(self.cases())
        def draw(case: Case) -> None:
            found.append(case)

        draw()
        return found

    def cases(self) -> st.SearchStrategy[Case]:
        """Hypothesis strategy of drawn configurations."""

        @st.composite
        def draw_case(draw: Any) -> Case:
            arguments = draw_arguments(draw, self.arguments)
            given = self.inputs(arguments)
            specs = flattened(given)
            sizes, others = draw_sizes(draw, specs), draw_sizes(draw, specs)
            values = {k: draw(v) if isinstance(v, st.SearchStrategy) else v for k, v in specs.items()}
            return Case(self, arguments, values, sizes, others, draw(st.integers(0, 2**16)), given)

        return draw_case()


@dataclass
class Case:
    """One drawn configuration. Blocks and inputs are built on demand and are the same every time for the same seed."""

    contract: Contract
    arguments: Arguments
    specs: Mapping[str, Any]
    sizes: dict[str, int]
    other_sizes: dict[str, int]
    seed: int
    given: Mapping[str, Any]
    """The inputs as the contract gives them, nested; `specs` has them flat."""

    def __repr__(self) -> str:
        def shown(name: str, spec: Any) -> str:
            axes = ", ".join(f"{a}={self.sizes[a]}" if a != "1" else "1" for a in spec.axes) if isinstance(spec, Input) else ""
            return f"{name}[{axes}]" if isinstance(spec, Input) else f"{name}={spec!r}"

        inputs = ", ".join(shown(name, spec) for name, spec in self.specs.items())
        return f"{self.contract.name}({self.arguments!r}) on {inputs}, seed {self.seed}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def generator(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 16 + stream)

    def new(self, overrides: Mapping[str, Any] | None = None, stream: int = 0) -> nn.Module:
        """The block as its constructor leaves it; the global random state is untouched."""
        with seeded(self.seed * 16 + stream):
            return self.contract.block(**{**self.arguments.passed(), **(overrides or {})})

    def block(self, train: bool = False, dtype: torch.dtype = torch.float64, values: torch.dtype | None = None) -> nn.Module:
        """The block with drawn parameters and buffers. `values` rounds them to that dtype before they are stored as `dtype`."""
        contract, module = self.contract, cast(self.new(), torch.float64)
        fill(module, self.generator(0), contract.keeps, tables=not contract.foreign)
        rounded = values or dtype
        if rounded != torch.float64:
            module = cast(module, rounded)
        if dtype != rounded:
            module = cast(module, dtype)
        return module.train(train)

    def twin(self, twin: Twin, block: nn.Module) -> nn.Module:
        """The reference with the block's weights, in its dtype and mode."""
        with torch.random.fork_rng(devices=[]):
            module = twin.build(self.arguments)
        module = module if isinstance(module, nn.Module) else Function(module)
        dtype = next((x.dtype.to_real() for x in block.state_dict().values() if is_float(x)), torch.float64)
        cast(module, dtype).load_state_dict(twin.map(self.arguments).export(block), strict=True)
        return module.train(block.training)

    def inputs(
        self,
        dtype: torch.dtype = torch.float64,
        values: torch.dtype | None = None,
        stream: int = 1,
        sizes: Mapping[str, int] | None = None,
    ) -> dict[str, Any]:
        """Fresh inputs by name; another `stream` gives other values of the same shapes."""
        generator, result = self.generator(stream), {}
        for name, spec in self.specs.items():
            value = spec.sample(spec.shape(sizes or self.sizes), generator) if isinstance(spec, Input) else spec
            if is_float(value):
                value = value.to(like(value, values or dtype)).to(like(value, dtype))
            result[name] = value
        return result

    def call(self, block: nn.Module, inputs: dict[str, Any]) -> Any:
        """The contract's call; generators are passed as copies, so that the same inputs draw the same numbers every time."""
        return self.contract.call(block, regrouped(renewed(inputs), self.given))

    def call_twin(self, twin: Twin, module: nn.Module, inputs: dict[str, Any]) -> Any:
        return twin.call(module, regrouped(inputs, self.given))

    def gradients(self, run: Callable[[dict[str, Any]], Any], inputs: dict[str, Any], module: nn.Module, stream: int = 2):
        """Output, and gradients of the sum of outputs times a drawn tensor: {"input.x": ...}, {parameter: ...}."""
        inputs = {k: v.detach().clone().requires_grad_() if is_float(v) else v for k, v in inputs.items()}
        output = run(inputs)
        generator = self.generator(stream)
        total = torch.zeros((), dtype=torch.float64)
        for _, leaf in leaves(output):
            if is_float(leaf):
                leaf = real(leaf)
                total = total + (leaf.double() * torch.randn(leaf.shape, generator=generator, dtype=torch.float64)).sum()
        parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        variables = {f"input.{k}": v for k, v in inputs.items() if is_float(v)} | parameters
        found: Any = [None] * len(variables)
        if variables and total.requires_grad:
            found = torch.autograd.grad(total, list(variables.values()), allow_unused=True)
        named: dict[str, Any] = dict(
            zip(variables, (g.to_dense() if g is not None and g.is_sparse else g for g in found), strict=True)
        )
        of_inputs = {k: v for k, v in named.items() if k not in parameters and v is not None}
        return output, of_inputs, {k: named[k] for k in parameters if named[k] is not None}

    def tolerance(self, block: nn.Module, dtype: torch.dtype = torch.float64) -> float:
        if self.contract.single_precision and dtype == torch.float64:
            return self.tolerance(block, torch.float32)
        limit = bound(dtype, longest_reduction(block, self.inputs()), rounding_depth(block))
        return min(limit, 1e-10 if self.contract.model else 1e-12) if dtype == torch.float64 else limit

    def batches(self) -> dict[str, int]:
        """Inputs that have a batch axis, and its position."""
        return {k: s.batch for k, s in self.specs.items() if isinstance(s, Input) and s.batch is not None}

    def batch_size(self) -> int:
        return next(n for axis, n in self.sizes.items() if axis in BATCH)

    def modes(self) -> tuple[bool, ...]:
        """Evaluation, and training where it draws no random numbers."""
        return (False,) if self.contract.stochastic(self.arguments) else (False, True)

    def with_batch(self, size: int) -> Case:
        return replace(self, sizes={a: size if a in BATCH else n for a, n in self.sizes.items()})


class Called(nn.Module):
    """A block and how its contract calls it, for tools that call modules themselves, with the tensors among the inputs."""

    def __init__(self, case: Case, block: nn.Module) -> None:
        super().__init__()
        self.block, self.run, self.given = block, case.contract.call, case.inputs()
        self.nested = case.given if nests(case.given) else None  # not to be traced in vain
        self.draws = any(isinstance(v, torch.Generator) for v in self.given.values())

    def forward(self, *tensors: Tensor) -> Any:
        names = [k for k, v in self.given.items() if isinstance(v, Tensor)]
        given = renewed(self.given) if self.draws else self.given
        inputs = {**given, **dict(zip(names, tensors, strict=True))}
        return self.run(self.block, regrouped(inputs, self.nested) if self.nested else inputs)


class Flat(Called):
    """The same with the tensors of the output in a tuple: tools that call modules know no dataclasses and caches."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x for _, x in leaves(super().forward(*tensors)))


def renewed(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same with copies of the generators, in the same state."""
    others = {k: torch.Generator(v.device) for k, v in inputs.items() if isinstance(v, torch.Generator)}
    for name, generator in others.items():
        generator.set_state(inputs[name].get_state())
    return {**inputs, **others}


def is_float(value: Any) -> bool:
    """Whether gradients flow to it: a tensor of real or complex numbers."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def like(x: Tensor, dtype: torch.dtype) -> torch.dtype:
    """That dtype for a real tensor, and for a complex one the complex dtype whose parts are as wide, or of 32 bits at least."""
    return dtype if not x.is_complex() else torch.complex128 if dtype == torch.float64 else torch.complex64


def cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module with all float tensors of that dtype; complex ones stay complex, which `module.to(dtype)` makes real."""
    return module._apply(lambda x: x.to(like(x, dtype)) if is_float(x) else x)
